"""How varied a model's captions are, whatever they describe: a collapsed captioner says one thing of every picture."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from myllm.errors import DataError
from myllm.metrics.ngrams import Words, ngrams
from myllm.metrics.ptb import ptb_tokenize


@dataclass(frozen=True)
class Diversity:
    """Counts and shares (0 to 1) over a set of captions, compared word by word."""

    captions: int
    distinct_captions: int
    distinct_share: float
    """Distinct captions over captions."""
    distinct_1: float
    """Distinct words over words (Li et al. 2016, https://arxiv.org/abs/1510.03055)."""
    distinct_2: float
    """Distinct pairs of neighbouring words over all such pairs."""
    mean_length: float
    """Words in a caption."""
    vocabulary_size: int
    most_frequent: str
    """The caption said most often, as its words joined by blanks."""
    most_frequent_share: float
    """How many of the captions are that one; near 1 the model has collapsed."""


def measure_diversity(captions: Sequence[str]) -> Diversity:
    """The diversity of captions, one for each picture."""
    if not captions:
        raise DataError("no captions to measure; give at least one")
    tokenized = [ptb_tokenize(caption) for caption in captions]
    sentences = Counter(" ".join(words) for words in tokenized)
    ((most_frequent, repeats),) = sentences.most_common(1)
    return Diversity(
        captions=len(captions),
        distinct_captions=len(sentences),
        distinct_share=len(sentences) / len(captions),
        distinct_1=_distinct(tokenized, 1),
        distinct_2=_distinct(tokenized, 2),
        mean_length=sum(map(len, tokenized)) / len(captions),
        vocabulary_size=len({word for words in tokenized for word in words}),
        most_frequent=most_frequent,
        most_frequent_share=repeats / len(captions),
    )


def _distinct(tokenized: Sequence[Words], n: int) -> float:
    found = [ngram for words in tokenized for ngram in ngrams(words, n) if len(ngram) == n]
    return len(set(found)) / max(1, len(found))
