"""A metric's values and the sums that they come from, so that subsets of the pictures need no new scoring."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MetricResult:
    """One metric's value for each of N pictures, and the sums that give a value for several pictures."""

    per_image: Floats
    """(N,): the value of each picture; NaN if the metric says nothing about it."""
    sums: Floats
    """(N, S): numbers to add over pictures, such as counts of matches, lengths, or the value itself."""
    of_sums: Callable[[Floats], Floats]
    """Maps sums over any pictures, (..., S), to their common value, (...)."""
    unit: str = ""
    """What a share counts, such as "colour"; empty for metrics that are not shares. `sums[:, 1]` counts them."""

    @property
    def corpus(self) -> float:
        """The value of all pictures together; NaN for a share of nothing."""
        return float(self.of_sums(self.sums.sum(axis=0)))

    @property
    def denominator(self) -> int | None:
        """Number of `unit`s in all pictures; None for metrics that are not shares."""
        return int(self.sums[:, 1].sum()) if self.unit else None

    def of(self, pictures: Sequence[int] | NDArray[np.int64] | NDArray[np.bool_]) -> float:
        """Return the common value of some of the pictures, given by their indices or by a mask (N,)."""
        return float(self.of_sums(self.sums[np.asarray(pictures)].sum(axis=0)))


def mean_of(per_image: Sequence[float] | Floats) -> MetricResult:
    """Return a metric whose value for several pictures is the mean of their values."""
    values = np.asarray(per_image, dtype=np.float64)
    return MetricResult(values, np.stack([values, np.ones_like(values)], axis=1), _ratio)


def share_of(pairs: Sequence[tuple[int, int]] | Floats, unit: str) -> MetricResult:
    """Return a metric that is the share of `unit`s with some property.

    pairs: (N, 2), for each picture, how many have the property, and how many there are.
    """
    sums = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return MetricResult(_ratio(sums), sums, _ratio, unit)


def _ratio(sums: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])
