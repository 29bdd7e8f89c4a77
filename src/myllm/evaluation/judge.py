"""Judge captions: metrics with intervals, controls, and the scores of people's captions."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from myllm.data.records import quantity
from myllm.metrics import score
from myllm.metrics.bootstrap import MIN_RELIABLE, draws_for, intervals
from myllm.metrics.diversity import Diversity, measure_diversity
from myllm.metrics.hallucination import LOWER_IS_BETTER
from myllm.metrics.result import Floats, MetricResult, mean_of
from myllm.progress import Progress, no_progress

MAIN = "CIDEr-D"
UNSUPPORTED_METRICS = {
    "SPICE": "it compares scene graphs, which Stanford's CoreNLP 3.6 and a parser make of the captions: a Java program "
             "that needs 8 GB of memory and downloads its models. No port of it is known to give the same values; "
             "pycocoevalcap runs the original",
}
"""Metrics that people ask for and that are not computed here, with the reason."""

_LABELS = {f"{MAIN}_shuffled": "  other pictures", f"{MAIN}_blind": "  no picture", "grounding_gap": "  the gap"}
_LABELS |= {name: f"{name} (lower is better)" for name in LOWER_IS_BETTER}


@dataclass(frozen=True)
class Judgement:
    """The quality of captions of N pictures."""

    figures: Mapping[str, MetricResult]
    """Metrics, {name: result}, and the controls of CIDEr-D: `_shuffled`, `_blind` if known, and `grounding_gap`."""
    diversity: Diversity
    people: Mapping[str, tuple[float, float]]
    """By metric, the score of people's captions and of the judged ones, each compared with all but one of a picture's
    references. Empty if no picture has several references."""
    protocol: Mapping[str, Any]
    """How the figures were measured."""
    cautions: tuple[str, ...] = ()
    """Reasons why some figures mean less than they seem to."""

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95 % interval of each figure, by the bootstrap over pictures."""
        return intervals(self.figures)

    def with_figures(self, figures: Mapping[str, MetricResult], **protocol: Any) -> "Judgement":
        """Return a copy with further figures, and with entries of the protocol that say how they were measured."""
        return replace(self, figures={**self.figures, **figures}, protocol={**self.protocol, **protocol})

    def with_protocol(self, **entries: Any) -> "Judgement":
        """Return a copy with further entries of the protocol."""
        return self.with_figures({}, **entries)

    @property
    def per_image(self) -> dict[str, Floats]:
        """The value of each picture (N,), by figure; NaN for a share of nothing."""
        return {name: figure.per_image for name, figure in self.figures.items()}

    @property
    def undefined(self) -> dict[str, str]:
        """Figures without a value, with the reason."""
        return _undefined(self.figures)

    def as_json(self) -> dict[str, Any]:
        """Return the figures, {name: value} (None for undefined ones), with all that is needed to read them."""
        return {
            **{name: defined(figure.corpus) for name, figure in self.figures.items()},
            "distinct_captions": self.diversity.distinct_share,
            "mean_length": self.diversity.mean_length,
            "diversity": asdict(self.diversity),
            "intervals": {name: list(map(defined, ends)) for name, ends in self.intervals.items()},
            "denominators": {name: figure.denominator for name, figure in self.figures.items() if figure.unit},
            "undefined": self.undefined,
            "people": {
                name: {"people": defined(people), "captions": defined(captions)}
                for name, (people, captions) in self.people.items()
            },
            "cautions": list(self.cautions),
            "protocol": dict(self.protocol),
        }

    def lines(self) -> list[str]:
        """Return the lines of a table of the figures, with diversity and cautions below."""
        head = f"{'':<31} {'':>5}  {'95 % interval':<16}"
        lines = [head + "  people (these captions)" * bool(self.people)]
        for name, figure in self.figures.items():
            if name == "CIDEr":  # CIDEr-D under another name
                continue
            low, high = self.intervals[name]
            label, value = f"{_LABELS.get(name, name):<31}", figure.corpus
            if math.isnan(value):
                lines.append(f"{label} {'-':>5}  {_reason(figure)}")
                continue
            people = "  {} ({})".format(*map(_number, self.people[name])) if name in self.people else ""
            counted = "" if figure.denominator is None else f"  of {quantity(figure.denominator, figure.unit)}"
            lines.append(f"{label} {value:5.3f}  {low:.3f} to {high:.3f}{people}{counted}")
        diversity = self.diversity
        lines.append(
            f"distinct captions {diversity.distinct_share:.1%}"
            + (f", not in training {diversity.unseen_share:.1%}" if diversity.unseen_share is not None else "")
            + f", mean length {diversity.mean_length:.1f} words, "
            f"vocabulary {quantity(diversity.vocabulary_size, 'word')}"
        )
        printed = self.figures.keys() | UNSUPPORTED_METRICS
        absent = [f"{name} is absent: {why}" for name, why in self.protocol["absent"].items() if name not in printed]
        return [*lines, *absent, *self.cautions]


def judge_captions(
    captions: Sequence[str], references: Sequence[Sequence[str]], training: Collection[str] = (),
    blind: str | None = None, progress: Progress = no_progress,
    metrics: Sequence[str] | None = None
) -> Judgement:
    """Judge one caption of each picture by the picture's references, given in the same order.

    training: captions that the captioner was trained on, if known, to report how many of its captions are new.
    blind: the captioner's caption without a picture; it is scored for every picture, as a control.
    metrics: names as for `score_captions`; by default all that can be computed. CIDEr-D is always computed.
    Raises DataError as `score_captions`, and ConfigError for an unknown metric.
    """
    score.check(captions, references)
    words, reference_words = score.tokenized(captions), [score.tokenized(group) for group in references]
    names = None if metrics is None else [*metrics, MAIN]
    scored = score.score_words(words, reference_words, names, progress)
    texts = {f"{MAIN}_shuffled": score.shuffled(words)}
    if blind is not None:
        texts[f"{MAIN}_blind"] = score.tokenized([blind]) * len(words)
    controls = {name: score.score_words(control, reference_words, [MAIN])[MAIN] for name, control in texts.items()}
    controls["grounding_gap"] = mean_of(scored[MAIN].per_image - controls[f"{MAIN}_shuffled"].per_image)
    figures: dict[str, MetricResult] = {}
    for name, figure in scored.items():
        figures |= {name: figure} | (controls if name == MAIN else {})
    by_people = [name for name in score.PEOPLE if names is None or name in score.select_metrics(names)]
    people = score.human_agreement(words, reference_words, by_people)
    protocol = {
        **score.protocol_of(references),
        **({} if metrics is None else {"metrics": list(metrics)}),
        "absent": (score.absent() if metrics is None else {}) | _undefined(scored) | UNSUPPORTED_METRICS,
        "CIDEr-D frequencies": "these references",
        "people": f"each reference against the other ones; at most {score.MAX_PICTURES:,} pictures, evenly spread",
        "intervals": f"95 %, bootstrap over pictures, {draws_for(len(captions)):,} draws",
    }
    return Judgement(
        figures, measure_diversity(captions, training), {name: people[name] for name in people if name in scored},
        protocol, tuple(_cautions(captions, references)),
    )


def defined(value: float) -> float | None:
    """Return the value, or None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value


def _undefined(figures: Mapping[str, MetricResult]) -> dict[str, str]:
    return {name: _reason(figure) for name, figure in figures.items() if math.isnan(figure.corpus)}


def _reason(figure: MetricResult) -> str:
    if not figure.unit:
        return "no value"
    # CHAIRs counts captions, but has no value because none of them names a thing
    nouns = "things" if figure.unit == "caption" else f"{figure.unit}s"
    return f"the captions name no {nouns} of the English word lists"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _cautions(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[str]:
    count = len(captions)
    verb = "is" if count == 1 else "are"
    few = f"{quantity(count, 'picture')} {verb} few: below {MIN_RELIABLE} the intervals are too narrow."
    has_no_blanks = score.has_words_without_blanks([*captions, *(group[0] for group in references)])
    cautions = {
        "CIDEr-D of one picture is 0 by definition: its weights compare pictures with each other.": count == 1,
        few: count < MIN_RELIABLE,
        "These captions have no blanks between words, so each phrase counts as one word, and BLEU, ROUGE-L, METEOR "
        "and CIDEr-D see only phrases that are equal as a whole: put blanks between words first.": has_no_blanks,
    }
    return [caution for caution, applies in cautions.items() if applies]
