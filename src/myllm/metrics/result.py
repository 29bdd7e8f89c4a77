"""A figure with what it is made of, so that it can be computed anew for any of its pictures.

Bootstrap intervals, slices and figures without leaked pictures all ask for that; no caption is scored twice for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MetricResult:
    """One metric's value for N pictures."""

    per_image: Floats
    """(N,): each picture's own."""
    sums: Floats
    """(N, S): what adds up over pictures: counts of matches, lengths, the value itself."""
    of_sums: Callable[[Floats], Floats]
    """From sums over any pictures, (..., S), to their common value, (...)."""

    @property
    def corpus(self) -> float:
        """The value of all pictures together."""
        return float(self.of_sums(self.sums.sum(axis=0)))

    def of(self, pictures: Sequence[int] | NDArray[np.int64] | NDArray[np.bool_]) -> float:
        """The value of some of the pictures together: their places, or a mask (N,)."""
        return float(self.of_sums(self.sums[np.asarray(pictures)].sum(axis=0)))


def mean_of(per_image: Sequence[float] | Floats) -> MetricResult:
    """A metric whose value for a corpus is the mean of its pictures' values."""
    values = np.asarray(per_image, dtype=np.float64)
    return MetricResult(values, np.stack([values, np.ones_like(values)], axis=1), _mean)


def _mean(sums: Floats) -> Floats:
    return np.asarray(sums[..., 0] / sums[..., 1])
