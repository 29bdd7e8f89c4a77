"""Diversity of a set of captions; a collapsed captioner writes the same caption for every picture."""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from myllm.errors import DataError
from myllm.metrics.cider import CiderD
from myllm.metrics.ngrams import Words
from myllm.metrics.ptb import ptb_tokenize
from myllm.metrics.result import Floats, MetricResult, mean_of


@dataclass(frozen=True)
class Diversity:
    """Counts and shares (0 to 1) over a set of captions, compared word by word."""

    captions: int
    distinct_captions: int
    distinct_share: float
    """Distinct captions over captions."""
    repeated_share: float
    """Captions that come more than once, over captions."""
    unseen_share: float | None
    """Captions that are not training captions, over captions; None if no training captions were given."""
    distinct_1: float
    """Distinct words over words (Li et al. 2016, https://arxiv.org/abs/1510.03055)."""
    distinct_2: float
    """Distinct pairs of neighbouring words over all such pairs."""
    distinct_3: float
    """Distinct runs of three words over all such runs."""
    mean_length: float
    """Words in a caption."""
    vocabulary_size: int
    most_frequent: str
    """The most frequent caption, as its words joined by blanks."""
    most_frequent_share: float
    """Share of captions that are the most frequent one; near 1 the model has collapsed."""


def measure_diversity(captions: Sequence[str], training: Collection[str] = ()) -> Diversity:
    """Measure the diversity of captions, one for each picture.

    training: captions that the captioner was trained on, for `unseen_share`. Raises DataError without captions.
    """
    if not captions:
        raise DataError("no captions to measure; give at least one")
    tokenized = [ptb_tokenize(caption) for caption in captions]
    sentences, total = Counter(map(" ".join, tokenized)), len(captions)
    ((most_frequent, repeats),) = sentences.most_common(1)
    known = {" ".join(ptb_tokenize(caption)) for caption in training}
    unseen = sum(count for sentence, count in sentences.items() if sentence not in known)
    repeated = sum(count for count in sentences.values() if count > 1)
    distinct_1, distinct_2, distinct_3 = (_distinct(tokenized, n) for n in (1, 2, 3))
    return Diversity(
        captions=total, distinct_captions=len(sentences), distinct_share=len(sentences) / total,
        repeated_share=repeated / total, unseen_share=unseen / total if training else None,
        distinct_1=distinct_1, distinct_2=distinct_2, distinct_3=distinct_3,
        mean_length=sum(map(len, tokenized)) / total, vocabulary_size=len(set().union(*tokenized)),
        most_frequent=most_frequent, most_frequent_share=repeats / total,
    )


def repeating_share(captions: Sequence[str], n: int = 3) -> float:
    """Return the share of captions in which a run of `n` words comes twice."""
    repeating = 0
    for words in map(ptb_tokenize, captions):
        runs = list(zip(*(words[start:] for start in range(n)), strict=False))
        repeating += len(set(runs)) < len(runs)
    return repeating / max(1, len(captions))


def unusual_endings(captions: Sequence[str], references: Sequence[str], rare: float = 0.001) -> dict[str, float]:
    """Return the last words that captions have and references hardly ever, with their shares of the captions.

    rare: a word ends no larger share of the references. "a dog on a" is a typical result of training for CIDEr-D only.
    """

    def last_words(texts: Sequence[str]) -> Counter[str]:
        return Counter(words[-1] for words in map(ptb_tokenize, texts) if words)

    usual = last_words(references)
    return {
        word: count / len(captions)
        for word, count in last_words(captions).most_common() if usual[word] <= rare * len(references)
    }


def _distinct(tokenized: Sequence[Words], n: int) -> float:
    n_grams = [ngram for words in tokenized for ngram in zip(*(words[start:] for start in range(n)), strict=False)]
    return len(set(n_grams)) / max(1, len(n_grams))


def self_cider(groups: Sequence[Sequence[str]], corpus: Sequence[Sequence[str]] = ()) -> MetricResult:
    """Measure how different the captions of one picture are (Wang & Chan 2019, https://arxiv.org/abs/1903.12020).

    groups: at least two captions of each picture, such as samples or alternatives.
    corpus: captions of each picture that give the document frequencies, such as references; by default `groups`. With
        a corpus of one picture all n-grams weigh 0, and so the result is 0, as CIDEr's is.

    K_ij is the CIDEr of caption i compared with caption j (mean over 1- to 4-grams of the cosine of TF-IDF vectors),
    with eigenvalues l_1 >= ... >= l_m. The value is -log_m(sqrt(l_1) / sum(sqrt(l_i))): 0 if all captions are the same,
    1 if no two share an n-gram. Raises DataError for a picture with fewer than two captions.
    """
    for number, group in enumerate(groups, 1):
        if len(group) < 2:
            raise DataError(
                f"picture {number} of {len(groups)} has {len(group)} captions; self-CIDEr compares several captions of "
                "each picture: sample more than one, or use beam search, which gives alternatives"
            )
    tokenized = [[ptb_tokenize(caption) for caption in group] for group in groups]
    cider = CiderD([[ptb_tokenize(caption) for caption in group] for group in corpus] or tokenized)
    return mean_of([_spread(cider.cosines(captions)) for captions in tokenized])


def _spread(kernel: Floats) -> float:
    """Return self-CIDEr of a picture from the CIDEr of each two captions; 0 if no n-gram has a weight."""
    roots = np.sqrt(np.clip(np.linalg.eigvalsh(kernel), 0, None))  # rounding can make a zero slightly negative
    total = float(roots.sum())
    return -math.log(float(roots[-1]) / total) / math.log(len(kernel)) if total else 0.0
