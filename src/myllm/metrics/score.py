"""Captions against references. `METRICS` is the table that the command line reads."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

from myllm.errors import DataError
from myllm.metrics.bleu import bleu
from myllm.metrics.cider import cider
from myllm.metrics.hallucination import hallucination
from myllm.metrics.meteor import meteor
from myllm.metrics.meteor_data import missing_data
from myllm.metrics.ngrams import Words
from myllm.metrics.ptb import ptb_tokenize
from myllm.metrics.result import Floats, MetricResult
from myllm.metrics.rouge import rouge_l

Said = TypeVar("Said")
# From tokenized candidates and references, one entry a picture, to figures by name.
Metric = Callable[[Sequence[Words], Sequence[Sequence[Words]]], dict[str, MetricResult]]

METRICS: dict[str, Metric] = {
    "BLEU": bleu,
    "ROUGE-L": rouge_l,
    "METEOR": meteor,
    "CIDEr": cider,
    "hallucination": hallucination,
}
TOKENIZER = "PTB 3.4.1"
# What people are held against each other by, and on how many pictures at most: it is ten times the work of one figure.
PEOPLE = ("BLEU", "ROUGE-L", "CIDEr", "hallucination")
MAX_PICTURES = 5_000


@dataclass(frozen=True)
class Scores:
    """Figures by name, as fractions (CIDEr: 0 to 10), and what they were measured with."""

    figures: dict[str, MetricResult]
    protocol: dict[str, str | int]
    """The tokenizer's name and the numbers of pictures and references."""

    @property
    def corpus(self) -> dict[str, float]:
        """One value for all pictures together."""
        return {name: figure.corpus for name, figure in self.figures.items()}

    @property
    def per_image(self) -> dict[str, Floats]:
        """(N,): a value for each picture, in the order of the candidates."""
        return {name: figure.per_image for name, figure in self.figures.items()}


def no_progress(what: str, done: int, total: int) -> None:
    """Where nobody asks how far a job is."""


def absent() -> dict[str, str]:
    """Metrics that can't be computed here, with what is to be done for it."""
    reason = missing_data()
    return {} if reason is None else {"METEOR": reason}


def score_captions(
    candidates: Sequence[str], references: Sequence[Sequence[str]], metrics: Sequence[str] | None = None
) -> Scores:
    """All of `METRICS` but those `absent`, or those named, for a candidate and the references of each picture.

    Both are in the same order. An empty candidate is legal and scores 0: a model that says nothing has answered.
    Raises DataError.
    """
    check(candidates, references)
    said, told = tokenized(candidates), [tokenized(captions) for captions in references]
    return Scores(score_words(said, told, metrics), protocol_of(references))


def tokenized(captions: Iterable[str]) -> list[Words]:
    """The words of each caption."""
    return [ptb_tokenize(caption) for caption in captions]


def score_words(
    candidates: Sequence[Words],
    references: Sequence[Sequence[Words]],
    metrics: Sequence[str] | None = None,
    progress: Callable[[str, int, int], None] = no_progress,
) -> dict[str, MetricResult]:
    """The figures of `score_captions`, of captions that are words already."""
    figures: dict[str, MetricResult] = {}
    if metrics is None:
        missing = absent()
        metrics = [name for name in METRICS if name not in missing]
    for done, name in enumerate(metrics, 1):
        figures |= METRICS[name](candidates, references)
        progress("scoring", done, len(metrics))
    return figures


def protocol_of(references: Sequence[Sequence[object]]) -> dict[str, str | int]:
    """What figures are measured with: the tokenizer's name and the numbers of pictures and references."""
    return {"tokenizer": TOKENIZER, "pictures": len(references), "references": sum(map(len, references))}


def people_agree(
    captions: Sequence[Words], references: Sequence[Sequence[Words]], metrics: Sequence[str] = PEOPLE
) -> dict[str, tuple[float, float]]:
    """How well people say what other people say, and how well `captions` do on the same footing, by figure.

    Each reference of a picture is left out once: it and the caption are both held against the others. The figures are
    means over these rounds. Pictures with one reference take no part, and of very many only a spread; where there are
    none, nothing is told.
    """
    several = [at for at, group in enumerate(references) if len(group) > 1]
    several = several[:: max(1, len(several) // MAX_PICTURES)][:MAX_PICTURES]
    groups, own = [references[at] for at in several], [captions[at] for at in several]
    found: dict[str, list[tuple[float, float]]] = {}
    for round_ in range(max(map(len, groups), default=0)):
        # pictures with fewer references begin again
        left_out = [round_ % len(group) for group in groups]
        people = [group[place] for group, place in zip(groups, left_out, strict=True)]
        others = [[*group[:place], *group[place + 1 :]] for group, place in zip(groups, left_out, strict=True)]
        theirs, ours = score_words(people, others, metrics), score_words(own, others, metrics)
        for name in theirs:
            found.setdefault(name, []).append((theirs[name].corpus, ours[name].corpus))
    return {
        name: (fmean(theirs for theirs, _ in pairs), fmean(ours for _, ours in pairs)) for name, pairs in found.items()
    }


def shuffled(captions: Sequence[Said], seed: int = 0) -> list[Said]:
    """Each caption at another picture's place: what a model that looks at the wrong pictures would score.

    A caption depends on its own picture alone, so captions of shuffled pictures are shuffled captions.
    """
    order = list(range(len(captions)))
    random.Random(seed).shuffle(order)
    # a cycle through all of them leaves none where it was
    moved = dict(zip(order, order[1:] + order[:1], strict=True))
    return [captions[moved[place]] for place in range(len(captions))]


def check(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raises DataError where these can't be scored, by whatever metric."""
    if len(candidates) != len(references):
        raise DataError(
            f"{len(candidates)} candidate captions but references of {len(references)} pictures; "
            "expected one candidate for each picture, in the same order"
        )
    if not candidates:
        raise DataError("no captions to score; expected at least one picture")
    for number, captions in enumerate(references, 1):
        if isinstance(captions, str):
            raise DataError(f"picture {number} of {len(references)} has a string; expected a list of captions")
        if not captions:
            raise DataError(
                f"picture {number} of {len(references)} has no reference caption; add one or leave the picture out"
            )
