"""CIDEr-D (Vedantam et al. 2015, https://arxiv.org/abs/1411.5726, section 7), quick enough to be a reward.

All captions of a call are arrays together: an n-gram is one 64-bit key, and equal ones meet by sorting.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from myllm.metrics.ngrams import Words
from myllm.metrics.result import MetricResult, mean_of

# pictures, which bounds the memory for the n-grams of many
_AT_ONCE = 20_000

_Ints = NDArray[np.int64]
_Keys = NDArray[np.uint64]
_Floats = NDArray[np.float64]


class _Vectors(NamedTuple):
    """TF-IDF vectors of many captions: entry i is one distinct n-gram of one caption."""

    caption: _Ints
    key: _Keys
    weight: _Floats
    norm: _Floats  # Euclidean, over the n-grams of the same order in the same caption


class CiderD:
    """Document frequencies of a reference corpus, counted once, and the scores of captions under them.

    An n-gram that few pictures' references contain weighs more: log(pictures / pictures with the n-gram).
    A corpus of one picture therefore weighs everything 0.
    """

    def __init__(self, references: Sequence[Sequence[Words]], max_n: int = 4, sigma: float = 6.0) -> None:
        self._max_n = max_n
        self._sigma = sigma
        self._log_pictures = math.log(len(references))
        words = chain.from_iterable(chain.from_iterable(references))
        # From 1: with a word 0, (word 0, word x) and (word x) would have one key.
        self._word_ids = {word: number for number, word in enumerate(dict.fromkeys(words), 1)}
        starts = range(0, len(references), _AT_ONCE)
        parts = [self._frequencies(references[first : first + _AT_ONCE]) for first in starts]
        keys, place = np.unique(np.concatenate([keys for keys, _ in parts]), return_inverse=True)
        frequencies = np.bincount(place, weights=np.concatenate([counts for _, counts in parts]))
        # Once and never weigh the same, log 1 and log max(1, 0): four of five n-grams need no memory.
        self._keys = keys[frequencies > 1]
        self._log_frequencies = np.log(frequencies[frequencies > 1])

    def _frequencies(self, references: Sequence[Sequence[Words]]) -> tuple[_Keys, _Ints]:
        """The n-grams of some pictures, and in how many of these pictures each is."""
        caption, _, key = self._ngrams(list(chain.from_iterable(references)))
        picture = np.repeat(np.arange(len(references)), [len(group) for group in references])[caption]
        _, first = np.unique(_append(key, picture), return_index=True)
        return np.unique(key[first], return_counts=True)

    def score(self, candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
        """Each candidate's CIDEr-D, from 0 to 10, against its own picture's references.

        It is 10 x the mean over references and orders of: clipped cosine x gaussian of the length difference.
        Where candidates share a picture (self-critical training), pass the same list object for each of
        them, and it is prepared once.
        """
        if len(candidates) != len(references):
            raise ValueError(f"{len(candidates)} candidates but references of {len(references)} pictures")
        scores: list[float] = []
        for first in range(0, len(candidates), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            scores += self._score(candidates[part], list(references[part]))
        return scores

    def _score(self, candidates: Sequence[Words], references: list[Sequence[Words]]) -> list[float]:
        groups = {id(group): group for group in references}
        numbers = {identity: number for number, identity in enumerate(groups)}
        captions = [*candidates, *chain.from_iterable(groups.values())]
        picture = np.array(
            [numbers[id(group)] for group in references]
            + [numbers[identity] for identity, group in groups.items() for _ in group]
        )
        vectors = self._weigh(captions)
        ours, theirs = _matches(vectors, picture, len(candidates))

        # The smaller weight, so that repeating a word earns nothing.
        clipped = np.minimum(vectors.weight[ours], vectors.weight[theirs])
        cosine = clipped * vectors.weight[theirs] / (vectors.norm[ours] * vectors.norm[theirs])
        lengths = np.array([len(words) for words in captions])
        surplus = lengths[vectors.caption[ours]] - lengths[vectors.caption[theirs]]
        similarity = cosine * np.exp(-(surplus**2) / (2 * self._sigma**2))
        total = np.bincount(vectors.caption[ours], weights=similarity, minlength=len(candidates))
        terms = [self._max_n * len(group) for group in references]
        return [10 * sum_ / number for sum_, number in zip(total.tolist(), terms, strict=True)]

    def _weigh(self, captions: Sequence[Words]) -> _Vectors:
        caption, order, key = self._ngrams(captions)
        _, first, counts = np.unique(_append(key, caption), return_index=True, return_counts=True)
        caption, order, key = caption[first], order[first], key[first]

        place = np.searchsorted(self._keys, key)
        known = self._keys.take(place, mode="clip") == key if len(self._keys) else np.zeros(len(key), dtype=bool)
        log_frequency = np.zeros(len(key))
        log_frequency[known] = self._log_frequencies[place[known]]
        weight = counts * (self._log_pictures - log_frequency)

        vector = caption * self._max_n + order
        norm = np.sqrt(np.bincount(vector, weights=weight**2))[vector]
        # Where all weights are 0 so is the cosine, over any norm; 1 keeps the division legal.
        return _Vectors(caption, key, weight, np.where(norm == 0, 1, norm))

    def _ngrams(self, captions: Sequence[Words]) -> tuple[_Ints, _Ints, _Keys]:
        """Caption, order (from 0) and key of each n-gram, repeated ones included."""
        known, new = self._word_ids, defaultdict[str, int](count(len(self._word_ids) + 1).__next__)
        words = np.array([known[w] if w in known else new[w] for w in chain(*captions)], dtype=np.uint64)
        caption = np.repeat(np.arange(len(captions)), [len(words) for words in captions])
        orders, starts, keys, key = [], [], [], words
        for order in range(self._max_n):
            if order:
                key = _append(key[:-1], words[order:])
            (start,) = np.nonzero(caption[: len(key)] == caption[order:])  # crosses no caption's end
            starts.append(start)
            orders.append(np.full(len(start), order))
            keys.append(key[start])
        return caption[np.concatenate(starts)], np.concatenate(orders), np.concatenate(keys)


def _append(key: _Keys, item: _Ints | _Keys) -> _Keys:
    """The keys of n-grams that grow by one item: a polynomial modulo 2^64 at a fixed random odd number.

    Among a million n-grams any two share a key with a chance of about 1 in 40 million.
    """
    return key * np.uint64(0x2BAC70B1497F3F25) + item.astype(np.uint64)


def _matches(vectors: _Vectors, picture: _Ints, n_candidates: int) -> tuple[_Ints, _Ints]:
    """Entries of candidates, and the entries with the same n-gram in one reference of the same picture.

    picture: (captions,), the candidates first.
    """
    key = _append(vectors.key, picture[vectors.caption])
    (ours,) = np.nonzero(vectors.caption < n_candidates)
    (theirs,) = np.nonzero(vectors.caption >= n_candidates)
    theirs = theirs[np.argsort(key[theirs])]
    left, right = (np.searchsorted(key[theirs], key[ours], side) for side in ("left", "right"))
    matches = right - left
    # Row i becomes matches[i] rows, and theirs counts up from left[i] in them.
    position = np.arange(matches.sum()) + np.repeat(right - np.cumsum(matches), matches)
    return np.repeat(ours, matches), theirs[position]


def cider(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> dict[str, MetricResult]:
    """CIDEr-D with document frequencies of these references, the mean over pictures, under both of its names.

    What COCO's scorer, and so nearly every paper, prints as "CIDEr" is CIDEr-D: the figures are one.
    """
    figure = mean_of(CiderD(references).score(candidates, references))
    return {"CIDEr": figure, "CIDEr-D": figure}
