"""Captions of the training pictures that look most like a picture, with which the best of several captions agrees.

Devlin et al. 2015 (https://arxiv.org/abs/1505.04467) caption a picture with the caption of its nearest neighbours that
agrees most with the others. Here the captions that the search found are ranked by their score and that agreement, and
confidence in a word rises with the share of these pictures whose captions use it, too.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from myllm.decoding.arrays import Floats, Ints, softmax
from myllm.metrics.cider import CiderD
from myllm.metrics.ngrams import Words

INDEX_NAME = "index.npz"
"""File of `CaptionIndex.as_arrays` in an export."""
NEIGHBOURS = 30
"""Training pictures whose captions a caption is compared with."""
TEMPERATURE = 0.1
"""Neighbours have the softmax of their cosines, divided by this, as weights."""
CIDER_WEIGHT, PRECISION_WEIGHT = 3.0, 1.5
"""Weights of `Neighbours.cider` and `Neighbours.precision`, relative to a caption's mean log-probability."""
MAX_COMPONENTS = 256
Tokens = Sequence[int]
Array = NDArray[Any]


@dataclass(frozen=True)
class CaptionIndex:
    """Training pictures as vectors, with the tokens of their captions.

    A picture's vector is the mean of its values in the last cross-attention, in principal components of equal variance
    (whitened). Pictures are compared by the cosine.
    """

    mean: Array
    """(C,) mean of the training pictures' means."""
    components: Array
    """(C, D) principal components, divided by their standard deviation."""
    vectors: Array
    """(N, D) float16, of length 1."""
    tokens: Array
    """Tokens of all captions one after the other, int32, without begin and end."""
    lengths: Array
    """Number of tokens of each caption, int32."""
    counts: Array
    """(N,) number of captions of each picture, int32."""
    ngrams: Array
    """(K,) n-grams that captions of several pictures contain, as `CiderD.frequencies` returns them."""
    log_frequencies: Array
    """(K,) logarithms of the numbers of pictures."""

    @classmethod
    def build(cls, means: Floats, captions: Sequence[Sequence[Tokens]]) -> "CaptionIndex":
        """means: (N, C) of training pictures; captions: those of each. Raises ValueError for fewer than two of them."""
        if len(means) < 2:
            raise ValueError("an index needs at least two pictures")
        mean = means.mean(0)
        _, deviations, axes = np.linalg.svd(means - mean, full_matrices=False)
        # the last component of N centred pictures has no variance; others with hardly any would only add noise
        count = min(MAX_COMPONENTS, len(means) - 1, int(np.sum(deviations > 1e-4 * deviations[0])))
        components = axes[:count].T / np.maximum(deviations[:count], 1e-12) * len(means) ** 0.5
        every = [caption for group in captions for caption in group]
        corpus = CiderD([[_as_words(caption) for caption in group] for group in captions])
        return cls(
            mean.astype(np.float32), components.astype(np.float32),
            _of_length_1((means - mean) @ components).astype(np.float16),
            np.array([token for caption in every for token in caption], np.int32),
            np.array([len(caption) for caption in every], np.int32),
            np.array([len(group) for group in captions], np.int32),
            *corpus.frequencies(),
        )

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> "CaptionIndex":
        """Return the index whose `as_arrays` was saved. Raises ValueError if the arrays do not fit together."""
        index = cls(**{name: np.asarray(array) for name, array in arrays.items()})  # TypeError for other names
        (width, count), pictures = index.components.shape, len(index.counts)
        fits = index.mean.shape == (width,) and index.vectors.shape == (pictures, count) and pictures > 0
        fits &= all(array.ndim == 1 and array.dtype == np.int32 and bool((array >= 0).all())
                    for array in (index.tokens, index.lengths, index.counts))
        fits &= index.counts.sum() == len(index.lengths) and index.lengths.sum() == len(index.tokens)
        fits &= index.ngrams.ndim == 1 and index.ngrams.dtype == np.int64
        fits &= index.ngrams.shape == index.log_frequencies.shape
        if not fits:
            raise ValueError("the arrays of the caption index do not fit together")
        if not all(np.isfinite(array).all() for array in index.as_arrays().values()):
            raise ValueError("the caption index has numbers that are not finite")
        return index

    def as_arrays(self) -> dict[str, Array]:
        """Return the arrays by name, to be saved."""
        return {part.name: getattr(self, part.name) for part in fields(self)}

    def neighbours(self, mean: Floats) -> "Neighbours":
        """Return the training pictures most like a picture with this mean (C,), the most similar first."""
        cosines = self._vectors @ _of_length_1((mean - self.mean) @ self.components)
        count = min(NEIGHBOURS, len(cosines))
        nearest = np.argpartition(-cosines, count - 1)[:count]
        nearest = nearest[np.argsort(-cosines[nearest], kind="stable")]
        return Neighbours(self, nearest, softmax(cosines[nearest] / TEMPERATURE))

    def captions(self, picture: int) -> list[Tokens]:
        """Return the captions of a training picture."""
        ends = self._ends[self._first_caption[picture] : self._first_caption[picture + 1] + 1].tolist()
        return [self.tokens[begin:end].tolist() for begin, end in pairwise(ends)]

    @cached_property
    def corpus(self) -> CiderD:
        """CIDEr-D with the document frequencies of the training pictures; words are tokens."""
        _, first = np.unique(self.tokens, return_index=True)
        words = _as_words(self.tokens[np.sort(first)].tolist())
        return CiderD.from_frequencies(words, len(self.counts), self.ngrams, self.log_frequencies)

    @cached_property
    def _vectors(self) -> Array:
        return self.vectors.astype(np.float32)

    @cached_property
    def _ends(self) -> Array:
        """Where each caption begins in `tokens`, and where the last ends."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    @cached_property
    def _first_caption(self) -> Array:
        """The number of each picture's first caption, and of all captions."""
        return np.concatenate([[0], np.cumsum(self.counts)])


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The training pictures that look most like a picture."""

    index: CaptionIndex
    pictures: Ints
    """(k,) their numbers in the index, the most similar first."""
    weights: Floats
    """(k,) their weights, which add up to 1: the more similar, the greater."""

    def agreement(self, captions: Sequence[Tokens]) -> list[float]:
        """Return how well captions agree with the captions of these pictures: `cider` and `precision`, weighted."""
        precision = [self.precision(tokens) for tokens in captions]
        return (CIDER_WEIGHT * self.cider(captions) + PRECISION_WEIGHT * np.array(precision)).tolist()

    def cider(self, captions: Sequence[Tokens]) -> Floats:
        """Return the CIDEr-D of captions with the captions of each of these pictures: the weighted mean."""
        references = [_as_words(caption) for group in self._captions for caption in group]
        counts = self.index.counts[self.pictures]
        weights = np.repeat(self.weights, counts) / np.repeat(counts, counts)
        similarities = self.index.corpus.similarities([_as_words(tokens) for tokens in captions], references)
        return np.asarray(similarities @ weights)

    def precision(self, tokens: Tokens) -> float:
        """Return the share of a caption that these pictures' captions support: the mean support of its tokens.

        Tokens have their inverse document frequency as weight. A token that comes again is not supported, as in the
        modified precision of BLEU (Papineni et al. 2002).
        """
        weights = self.index.corpus.idf(_as_words(tokens))
        _, first = np.unique(np.array(tokens, int), return_index=True)
        return float(weights[first] @ np.array(self.support(tokens))[first] / max(weights.sum(), 1e-12))

    def support(self, tokens: Tokens) -> list[float]:
        """Return for each token the weight of those of these pictures of which a caption contains it."""
        return [self._support.get(token, 0.0) for token in tokens]

    @cached_property
    def _support(self) -> dict[int, float]:
        support = defaultdict[int, float](float)
        for weight, group in zip(self.weights.tolist(), self._captions, strict=True):
            for token in set(chain.from_iterable(group)):
                support[token] += weight
        return support

    @cached_property
    def _captions(self) -> list[list[Tokens]]:
        return [self.index.captions(picture) for picture in self.pictures.tolist()]


def _as_words(tokens: Tokens) -> Words:
    return list(map(str, tokens))


def _of_length_1(vectors: Array) -> Array:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12))
