"""CIDEr-D (Vedantam et al. 2015, https://arxiv.org/abs/1411.5726, section 7), fast enough to be a reward in training.

All captions of a call are processed as arrays: an n-gram is a 64-bit key, and equal n-grams are found by sorting.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from myllm.metrics.ngrams import Words
from myllm.metrics.result import Floats, MetricResult, mean_of

_MAX_N, _SIGMA = 4, 6.0  # longest n-gram; standard deviation, in words, of the penalty for other lengths
_BLOCK = 4_000  # pictures processed together, which bounds the memory

_Ints = NDArray[np.int64]
_Keys = NDArray[np.uint64]


class _Vectors(NamedTuple):
    """TF-IDF vectors of many captions: entry i is one distinct n-gram of one caption."""

    caption: _Ints
    key: _Keys
    weight: Floats
    norm: Floats  # Euclidean norm over the n-grams of the same order in the same caption


class CiderD:
    """Scores captions with document frequencies that are counted once, from a reference corpus.

    The weight of an n-gram is log(pictures / pictures whose references contain it). In a corpus of one picture all
    weights, and so all scores, are 0.
    """

    def __init__(self, references: Sequence[Sequence[Words]]) -> None:
        # np.log, as for the frequencies below: math.log may differ from it in the last digit, and an n-gram that all
        # pictures have would then weigh a little more than nothing
        self._log_pictures = np.log(len(references))
        words = chain.from_iterable(chain.from_iterable(references))
        # From 1: with a word 0, the n-grams (word 0, word x) and (word x) would have the same key.
        self._word_ids = {word: number for number, word in enumerate(dict.fromkeys(words), 1)}
        starts = range(0, len(references), _BLOCK)
        parts = [self._frequencies(references[first : first + _BLOCK]) for first in starts]
        keys, inverse = np.unique(np.concatenate([keys for keys, _ in parts]), return_inverse=True)
        frequencies = np.bincount(inverse, weights=np.concatenate([counts for _, counts in parts]))
        # A frequency of 1 has the same weight as one of 0, so four of five n-grams need not be stored.
        self._keys = keys[frequencies > 1]
        self._log_frequencies = np.log(frequencies[frequencies > 1])

    @classmethod
    def from_frequencies(
        cls, words: Sequence[str], pictures: int, keys: NDArray[np.int64], log_frequencies: Floats
    ) -> "CiderD":
        """Return the scorer of a reference corpus whose document frequencies were saved.

        words: those of the corpus, in the order in which they occur first; pictures: their number; keys and
        log_frequencies: of `frequencies`.
        """
        scorer = cls.__new__(cls)
        scorer._log_pictures = np.log(pictures)
        scorer._word_ids = {word: number for number, word in enumerate(words, 1)}
        scorer._keys, scorer._log_frequencies = keys.view(np.uint64), log_frequencies
        return scorer

    def frequencies(self) -> tuple[NDArray[np.int64], Floats]:
        """Return the keys of the n-grams that several pictures have, and the logarithms of the numbers of pictures."""
        return self._keys.view(np.int64), self._log_frequencies

    def _frequencies(self, references: Sequence[Sequence[Words]]) -> tuple[_Keys, _Ints]:
        """Return the keys of the pictures' n-grams, and the number of these pictures that contain each."""
        caption, _, key = self._ngrams(list(chain.from_iterable(references)))
        picture = np.repeat(np.arange(len(references)), [len(group) for group in references])[caption]
        _, first = np.unique(_append(key, picture), return_index=True)
        return np.unique(key[first], return_counts=True)

    def score(self, candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
        """Return each candidate's CIDEr-D, 0 to 10, compared with its picture's references.

        It is 10 x the mean, over references and n-gram orders, of clipped cosine x gaussian of the length difference.
        If several candidates share a picture (self-critical training), pass the same list object of references for
        each of them; it is then prepared once. Raises ValueError if the numbers of candidates and references differ.
        """
        if len(candidates) != len(references):
            raise ValueError(f"{len(candidates)} candidates but references of {len(references)} pictures")
        blocks = [slice(first, first + _BLOCK) for first in range(0, len(candidates), _BLOCK)]
        return [score for block in blocks for score in self._score(candidates[block], references[block])]

    def _score(self, candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
        groups = {id(group): group for group in references}
        numbers = {key: number for number, key in enumerate(groups)}
        captions = [*candidates, *chain.from_iterable(groups.values())]
        of_references = (numbers[key] for key, group in groups.items() for _ in group)
        picture = np.array([*(numbers[id(group)] for group in references), *of_references])
        candidate, _, similarity = self._similar(captions, picture, len(candidates))
        total = np.bincount(candidate, weights=similarity, minlength=len(candidates))
        return [10 * value / (_MAX_N * len(group)) for value, group in zip(total.tolist(), references, strict=True)]

    def similarities(self, candidates: Sequence[Words], references: Sequence[Words]) -> Floats:
        """Return the CIDEr-D, 0 to 10, of each candidate with each reference on its own: (candidates, references)."""
        captions, shape = [*candidates, *references], (len(candidates), len(references))
        candidate, reference, similarity = self._similar(captions, np.zeros(len(captions), int), len(candidates))
        pair = candidate * len(references) + reference - len(candidates)
        total = np.bincount(pair, weights=similarity, minlength=shape[0] * shape[1])
        return np.asarray(10 / _MAX_N * total.reshape(shape))

    def _similar(self, captions: Sequence[Words], picture: _Ints, n_candidates: int) -> tuple[_Ints, _Ints, Floats]:
        """Return candidate, reference and similarity for each n-gram that a candidate shares with a reference.

        captions: candidates first; picture: (captions,), the picture of each: only its own references are compared.
        """
        vectors = self._vectors(captions)
        entry, match = _matches(vectors, picture, n_candidates)

        # The smaller weight, so that repeating a word earns nothing.
        clipped = np.minimum(vectors.weight[entry], vectors.weight[match])
        cosine = clipped * vectors.weight[match] / (vectors.norm[entry] * vectors.norm[match])
        lengths = np.array([len(words) for words in captions])
        candidate, reference = vectors.caption[entry], vectors.caption[match]
        surplus = lengths[candidate] - lengths[reference]
        return candidate, reference, cosine * np.exp(-(surplus**2) / (2 * _SIGMA**2))

    def cosines(self, captions: Sequence[Words]) -> Floats:
        """Return the CIDEr, 0 to 1, of each two captions (N, N): cosines without clipping or penalty for length."""
        vectors = self._vectors(captions)
        keys, column = np.unique(vectors.key, return_inverse=True)
        units = np.zeros((len(captions), len(keys)))
        units[vectors.caption, column] = vectors.weight / vectors.norm
        return np.asarray(units @ units.T / _MAX_N)

    def _vectors(self, captions: Sequence[Words]) -> _Vectors:
        caption, order, key = self._ngrams(captions)
        _, first, counts = np.unique(_append(key, caption), return_index=True, return_counts=True)
        caption, order, key = caption[first], order[first], key[first]

        weight = counts * self._idf(key)
        vector = caption * _MAX_N + order
        norm = np.sqrt(np.bincount(vector, weights=weight**2))[vector]
        # If all weights are 0, the cosine is 0 whatever the norm; 1 avoids a division by 0.
        return _Vectors(caption, key, weight, np.where(norm == 0, 1, norm))

    def idf(self, words: Words) -> Floats:
        """Return for each word log(pictures / pictures whose references contain it): its inverse document frequency."""
        return self._idf(np.array([self._word_ids.get(word, 0) for word in words], dtype=np.uint64))  # 0 is no key

    def _idf(self, key: _Keys) -> Floats:
        index = np.searchsorted(self._keys, key)
        known = self._keys.take(index, mode="clip") == key if len(self._keys) else np.zeros(len(key), dtype=bool)
        log_frequency = np.zeros(len(key))
        log_frequency[known] = self._log_frequencies[index[known]]
        return np.asarray(self._log_pictures - log_frequency)

    def _ngrams(self, captions: Sequence[Words]) -> tuple[_Ints, _Ints, _Keys]:
        """Return the caption index, the order (from 0) and the key of each n-gram, with repetitions."""
        known, new = self._word_ids, defaultdict[str, int](count(len(self._word_ids) + 1).__next__)
        words = np.array([known[w] if w in known else new[w] for w in chain(*captions)], dtype=np.uint64)
        caption = np.repeat(np.arange(len(captions)), [len(words) for words in captions])
        orders, starts, keys, key = [], [], [], words
        for order in range(_MAX_N):
            if order:
                key = _append(key[:-1], words[order:])
            (start,) = np.nonzero(caption[: len(key)] == caption[order:])  # stays within one caption
            starts.append(start)
            orders.append(np.full(len(start), order))
            keys.append(key[start])
        return caption[np.concatenate(starts)], np.concatenate(orders), np.concatenate(keys)


def _append(key: _Keys, item: _Ints | _Keys) -> _Keys:
    """Return the keys of n-grams extended by one item: a polynomial hash modulo 2^64 with a fixed random odd base.

    Among a million n-grams the chance that any two share a key is about 1 in 40 million.
    """
    return key * np.uint64(0x2BAC70B1497F3F25) + item.astype(np.uint64)


def _matches(vectors: _Vectors, picture: _Ints, n_candidates: int) -> tuple[_Ints, _Ints]:
    """Return pairs of entries with the same n-gram: one of a candidate, one of a reference of the same picture.

    picture: (captions,), the picture of each caption, candidates first.
    """
    key = _append(vectors.key, picture[vectors.caption])
    (candidate,) = np.nonzero(vectors.caption < n_candidates)
    (reference,) = np.nonzero(vectors.caption >= n_candidates)
    reference = reference[np.argsort(key[reference])]
    left, right = (np.searchsorted(key[reference], key[candidate], side) for side in ("left", "right"))
    matches = right - left
    # Candidate entry i is repeated matches[i] times, and paired with the reference entries from left[i] on.
    position = np.arange(matches.sum()) + np.repeat(right - np.cumsum(matches), matches)
    return np.repeat(candidate, matches), reference[position]


def cider(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> dict[str, MetricResult]:
    """Return CIDEr-D, averaged over pictures, under the names "CIDEr" and "CIDEr-D".

    Document frequencies come from these references. COCO's scorer, and so nearly every paper, prints CIDEr-D as
    "CIDEr", so the two names have one value.
    """
    result = mean_of(CiderD(references).score(candidates, references))
    return {"CIDEr": result, "CIDEr-D": result}
