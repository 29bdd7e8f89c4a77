"""Captions judged: figures with their intervals, controls to read them by, and what people reach."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from myllm.metrics.bootstrap import draws_for, intervals
from myllm.metrics.diversity import Diversity, measure_diversity
from myllm.metrics.hallucination import LESS_IS_BETTER
from myllm.metrics.not_offered import UNSUPPORTED_METRICS
from myllm.metrics.result import Floats, MetricResult, mean_of
from myllm.metrics.score import (
    MAX_PICTURES,
    absent,
    check,
    no_progress,
    people_agree,
    protocol_of,
    score_words,
    shuffled,
    tokenized,
)

MAIN = "CIDEr-D"
# names of controls, for people
TOLD = {f"{MAIN}_shuffled": "  other pictures", f"{MAIN}_blind": "  no picture", "grounding_gap": "  the gap"}
TOLD |= {name: f"{name} (less is better)" for name in LESS_IS_BETTER}


@dataclass(frozen=True)
class Judgement:
    """What captions of N pictures are worth."""

    figures: dict[str, MetricResult]
    """Quality by name, and the controls of CIDEr-D: `_shuffled`, `_blind` where known, and `grounding_gap`."""
    diversity: Diversity
    people: dict[str, tuple[float, float]]
    """By figure: people's own captions, and the judged ones, each held against the others of a picture's references
    but one. Empty where pictures have one reference only."""
    protocol: dict[str, Any]

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % by the bootstrap over pictures, of each figure."""
        return intervals(self.figures)

    def add(self, figures: Mapping[str, MetricResult], **protocol: Any) -> None:
        """Take figures that were measured elsewhere, and by what."""
        self.figures.update(figures)
        self.protocol.update(protocol)
        self.__dict__.pop("intervals", None)

    @property
    def per_image(self) -> dict[str, Floats]:
        """(N,) of each figure that a single picture has."""
        return {name: figure.per_image for name, figure in self.figures.items()}

    def as_json(self) -> dict[str, Any]:
        """Figures by name, with all that they are to be read by."""
        return {
            **{name: figure.corpus for name, figure in self.figures.items()},
            "distinct_captions": self.diversity.distinct_share,
            "mean_length": self.diversity.mean_length,
            "diversity": asdict(self.diversity),
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "people": {name: {"people": own, "captions": others} for name, (own, others) in self.people.items()},
            "protocol": self.protocol,
        }

    def lines(self) -> list[str]:
        """The figures for people to read, one a line, and how varied the captions are."""
        lines = [
            f"{'':<30} {'':>5}  {'95 % interval':<16}" + "  people: figure (of these captions)" * bool(self.people)
        ]
        for name, figure in self.figures.items():
            if name == "CIDEr":  # CIDEr-D by its other name
                continue
            low, high = self.intervals[name]
            people = "  {:.3f} ({:.3f})".format(*self.people[name]) if name in self.people else ""
            lines.append(f"{TOLD.get(name, name):<30} {figure.corpus:5.3f}  {low:.3f} to {high:.3f}{people}")
        found = self.diversity
        lines.append(
            f"distinct captions {found.distinct_share:.1%}"
            + (f", no training caption {found.unseen_share:.1%}" if found.unseen_share is not None else "")
            + f", mean length {found.mean_length:.1f} words, vocabulary {found.vocabulary_size:,} words"
        )
        return lines + [f"{name} is absent: {reason}" for name, reason in absent().items()]


def judge_captions(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    training: Collection[str] = (),
    blind: str | None = None,
    progress: Callable[[str, int, int], None] = no_progress,
) -> Judgement:
    """A caption and the references of each picture, in the same order.

    training: captions that the captioner learned from, where known: how many of its own are none of these. blind: what
    it says where it sees nothing, held against every picture. Raises DataError.
    """
    check(captions, references)
    words, told = tokenized(captions), [tokenized(group) for group in references]
    found = score_words(words, told, progress=progress)
    others = {"shuffled": shuffled(words)} | ({} if blind is None else {"blind": tokenized([blind]) * len(words)})
    controls = {f"{MAIN}_{name}": score_words(said, told, ("CIDEr",))[MAIN] for name, said in others.items()}
    gap = found[MAIN].per_image - controls[f"{MAIN}_shuffled"].per_image
    names = list(found)
    place = names.index(MAIN) + 1  # what a figure is to be read by stands below it
    figures = {name: found[name] for name in names[:place]} | controls | {"grounding_gap": mean_of(gap)} | found
    protocol = {
        **protocol_of(references),
        "absent": absent() | UNSUPPORTED_METRICS,
        "CIDEr-D frequencies": "these references",
        "people": f"each reference against its picture's others; of more than {MAX_PICTURES:,} pictures a spread",
        "intervals": f"95 %, bootstrap over pictures, {draws_for(len(captions)):,} draws",
    }
    return Judgement(figures, measure_diversity(captions, training), people_agree(words, told), protocol)
