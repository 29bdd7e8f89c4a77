"""Captions against references. `METRICS` is the table that the command line reads."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from myllm.errors import DataError
from myllm.metrics.bleu import bleu
from myllm.metrics.cider import cider_d
from myllm.metrics.ngrams import Words
from myllm.metrics.rouge import rouge_l
from myllm.metrics.tokenize import tokenize

# From tokenized candidates and references, one entry a picture, to (corpus, per picture) of each figure by name.
Metric = Callable[[Sequence[Words], Sequence[Sequence[Words]]], dict[str, tuple[float, list[float]]]]

METRICS: dict[str, Metric] = {
    "BLEU": bleu,
    "ROUGE-L": rouge_l,
    "CIDEr-D": cider_d,
}


@dataclass(frozen=True)
class Scores:
    """Figures by name, as fractions (CIDEr-D: 0 to 10), and what they were measured with."""

    corpus: dict[str, float]
    """One figure for all pictures together."""
    per_image: dict[str, list[float]]
    """A figure for each picture, in the order of the candidates."""
    protocol: dict[str, str | int]
    """The tokenizer's name and the numbers of pictures and references."""


def score_captions(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenizer: str = "simple",
    metrics: Sequence[str] | None = None,
) -> Scores:
    """All of `METRICS`, or those named, for a candidate and the references of each picture, in the same order.

    An empty candidate is legal and scores 0: a model that says nothing has still answered.
    """
    _check(candidates, references)
    candidate_words = tokenize(candidates, tokenizer)
    reference_words = [tokenize(captions, tokenizer) for captions in references]
    figures: dict[str, tuple[float, list[float]]] = {}
    for name in METRICS if metrics is None else metrics:
        figures |= METRICS[name](candidate_words, reference_words)
    return Scores(
        corpus={name: corpus for name, (corpus, _) in figures.items()},
        per_image={name: per_image for name, (_, per_image) in figures.items()},
        protocol={
            "tokenizer": tokenizer,
            "pictures": len(candidates),
            "references": sum(map(len, references)),
        },
    )


def shuffled(captions: Sequence[str], seed: int = 0) -> list[str]:
    """Each caption at another picture's place: what a model that looks at the wrong pictures would score.

    A caption depends on its own picture alone, so captions of shuffled pictures are shuffled captions.
    """
    order = list(range(len(captions)))
    random.Random(seed).shuffle(order)
    # a cycle through all of them leaves none where it was
    moved = dict(zip(order, order[1:] + order[:1], strict=True))
    return [captions[moved[place]] for place in range(len(captions))]


def _check(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
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
