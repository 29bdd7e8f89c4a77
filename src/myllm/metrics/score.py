"""Score captions against references. `METRICS` is the table of metrics: a new one is a function and a line there."""

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean
from typing import NamedTuple, TypeVar

from myllm.config import nearest
from myllm.errors import ConfigError, DataError
from myllm.metrics.bleu import bleu
from myllm.metrics.cider import cider
from myllm.metrics.hallucination import LOWER_IS_BETTER, hallucination
from myllm.metrics.meteor import meteor
from myllm.metrics.meteor_data import missing_data
from myllm.metrics.ngrams import Words
from myllm.metrics.ptb import ptb_tokenize
from myllm.metrics.result import Floats, MetricResult
from myllm.metrics.rouge import rouge_l
from myllm.progress import Progress, no_progress

Item = TypeVar("Item")


class Metric(NamedTuple):
    """A function from tokenized candidates and references, one entry for each picture, to {name: result}."""

    compute: Callable[[Sequence[Words], Sequence[Sequence[Words]]], dict[str, MetricResult]]
    results: tuple[str, ...]
    """Names of its results."""


METRICS: dict[str, Metric] = {
    "BLEU": Metric(bleu, ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")),
    "ROUGE-L": Metric(rouge_l, ("ROUGE-L",)),
    "METEOR": Metric(meteor, ("METEOR",)),
    "CIDEr": Metric(cider, ("CIDEr", "CIDEr-D")),
    "hallucination": Metric(hallucination, LOWER_IS_BETTER),
}
TOKENIZER = "PTB 3.4.1"
PEOPLE = ("BLEU", "ROUGE-L", "CIDEr", "hallucination")
"""Metrics by which people's captions are compared with each other; METEOR would take minutes."""
MAX_PICTURES = 5_000
"""Maximum number of pictures for which people are compared; that takes ten times as long as scoring captions."""

# Scripts without blanks between words: Thai to Myanmar, Khmer, Japanese, Chinese.
_WITHOUT_BLANKS = re.compile("[\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")


@dataclass(frozen=True)
class Scores:
    """Metrics, {name: result}, as fractions (CIDEr: 0 to 10), and how they were measured."""

    figures: dict[str, MetricResult]
    protocol: dict[str, str | int]
    """The tokenizer's name and the numbers of pictures and references."""

    @property
    def corpus(self) -> dict[str, float]:
        """One value for all pictures together, by metric."""
        return {name: figure.corpus for name, figure in self.figures.items()}

    @property
    def per_image(self) -> dict[str, Floats]:
        """A value for each picture (N,), in the order of the candidates, by metric."""
        return {name: figure.per_image for name, figure in self.figures.items()}


def absent() -> dict[str, str]:
    """Return the metrics that cannot be computed here, each with the reason and the fix."""
    return {} if (reason := missing_data()) is None else {"METEOR": reason}


def score_captions(
    candidates: Sequence[str], references: Sequence[Sequence[str]], metrics: Sequence[str] | None = None
) -> Scores:
    """Score a candidate caption of each picture against the picture's references, given in the same order.

    metrics: names of `METRICS` or of their results, such as ("CIDEr-D", "BLEU-4"); by default all that are not
        `absent`. An empty candidate is legal and scores 0. Raises DataError if there is nothing to score or the
        numbers differ, and ConfigError for an unknown metric.
    """
    check(candidates, references)
    scored = score_words(tokenized(candidates), [tokenized(captions) for captions in references], metrics)
    return Scores(scored, protocol_of(references))


def tokenized(captions: Iterable[str]) -> list[Words]:
    """Return the words of each caption."""
    return [ptb_tokenize(caption) for caption in captions]


def score_words(
    candidates: Sequence[Words], references: Sequence[Sequence[Words]], metrics: Sequence[str] | None = None,
    progress: Progress = no_progress,
) -> dict[str, MetricResult]:
    """Return the figures of `score_captions`, for captions that are tokenized already."""
    chosen = select_metrics(METRICS.keys() - absent() if metrics is None else metrics)
    scored: dict[str, MetricResult] = {}
    for done, (name, results) in enumerate(chosen.items(), 1):
        computed = METRICS[name].compute(candidates, references)
        scored |= {result: computed[result] for result in results}
        progress("scoring", done, len(chosen))
    return scored


def select_metrics(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the metrics to compute, each with its selected results, in the order of `METRICS`.

    names: names of metrics or of their results, in any case. Raises ConfigError for an unknown name.
    """
    spellings = [*METRICS, *chain.from_iterable(metric.results for metric in METRICS.values())]
    known, selected = {spelling.lower(): spelling for spelling in spellings}, set[str]()
    for name in map(str.strip, names):
        if name.lower() not in known:
            hint = nearest(name, spellings)
            raise ConfigError(f"metric {name!r} is unknown{hint}; known are {', '.join(known.values())}")
        selected.add(known[name.lower()])
    chosen = {
        name: [result for result in metric.results if selected & {name, result}] for name, metric in METRICS.items()
    }
    return {name: results for name, results in chosen.items() if results}


def protocol_of(references: Sequence[Sequence[object]]) -> dict[str, str | int]:
    """Return how captions are scored: the tokenizer's name and the numbers of pictures and references."""
    return {"tokenizer": TOKENIZER, "pictures": len(references), "references": sum(map(len, references))}


def human_agreement(
    captions: Sequence[Words], references: Sequence[Sequence[Words]], metrics: Sequence[str] = PEOPLE
) -> dict[str, tuple[float, float]]:
    """Score people's captions and `captions` in the same way; return (people, captions) by metric.

    In each round one reference of every picture is left out; it and the caption are both scored against the others.
    The values are means over the rounds. Pictures with one reference are left out, and of more than `MAX_PICTURES`
    only so many are used, evenly spaced. Empty if no picture has two references.
    """
    several = [index for index, group in enumerate(references) if len(group) > 1]
    chosen = [several[index] for index in evenly_spaced(len(several), MAX_PICTURES)]
    groups, chosen_captions = [references[index] for index in chosen], [captions[index] for index in chosen]
    rounds: dict[str, list[tuple[float, float]]] = {}
    for round_ in range(max(map(len, groups), default=0)):
        left_out = [round_ % len(group) for group in groups]  # pictures with fewer references start again
        people = [group[index] for group, index in zip(groups, left_out, strict=True)]
        others = [[*group[:index], *group[index + 1 :]] for group, index in zip(groups, left_out, strict=True)]
        by_people, by_captioner = score_words(people, others, metrics), score_words(chosen_captions, others, metrics)
        for name in by_people:
            rounds.setdefault(name, []).append((by_people[name].corpus, by_captioner[name].corpus))
    return {name: (fmean(a for a, _ in pairs), fmean(b for _, b in pairs)) for name, pairs in rounds.items()}


def evenly_spaced(total: int, count: int) -> list[int]:
    """Return `count` indices, or `total` if that is fewer, evenly spaced over range(total)."""
    return [index * total // count for index in range(count)] if count < total else list(range(total))


def shuffled(captions: Sequence[Item], seed: int = 0) -> list[Item]:
    """Return the captions in another order, none with its own picture, as if the captioner had seen the wrong ones."""
    order = list(range(len(captions)))
    random.Random(seed).shuffle(order)
    # A cycle through all of them leaves none where it was.
    source = dict(zip(order, order[1:] + order[:1], strict=True))
    return [captions[source[index]] for index in range(len(captions))]


def has_words_without_blanks(captions: Iterable[str]) -> bool:
    """Return whether most captions are in a script without blanks between words, such as Chinese or Thai."""
    marks = [_WITHOUT_BLANKS.search(text) is not None for text in captions]
    return sum(marks) > len(marks) / 2


def check(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raise DataError if candidates and references cannot be scored by any metric."""
    if len(candidates) != len(references):
        raise DataError(
            f"{len(candidates)} candidate captions but references of {len(references)} pictures; "
            "expected one candidate for each picture, in the same order"
        )
    if not candidates:
        raise DataError("no captions to score; expected at least one picture")
    for number, captions in enumerate(references, 1):
        picture = f"picture {number} of {len(references)}"
        if isinstance(captions, str):
            raise DataError(f"{picture} has a string; expected a list of captions")
        if not captions:
            raise DataError(f"{picture} has no reference caption; add one or leave the picture out")
