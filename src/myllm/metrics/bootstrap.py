"""How far a figure can be trusted: the bootstrap over pictures (Efron 1979; paired, as Koehn 2004 does for BLEU).

Pictures are drawn anew with replacement, as many as there are, and each figure is computed of every draw. All figures
of a call see the same draws, so that the difference of two of them is a paired one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from myllm.metrics.result import Floats, MetricResult

DRAWS = 10_000
LEVEL = 0.95
# pictures drawn at a time, and in all
_AT_ONCE, _IN_ALL = 2_000_000, 500_000_000
_LEAST_DRAWS = 500


def draws_for(pictures: int, draws: int = DRAWS) -> int:
    """How many draws are taken of so many pictures: with a million of them each takes long, and fewer do."""
    return min(draws, max(_IN_ALL // pictures, _LEAST_DRAWS))


def resample(figures: Mapping[str, MetricResult], draws: int = DRAWS, seed: int = 0) -> dict[str, Floats]:
    """Each figure (draws,) of the same pictures drawn anew; all figures are of the same N pictures."""
    pictures = len(next(iter(figures.values())).per_image)
    draws = draws_for(pictures, draws)
    # figures that share their sums, as BLEU's do, are added up once
    arrays = {id(figure.sums): figure.sums for figure in figures.values()}
    starts = np.cumsum([0, *(array.shape[1] for array in arrays.values())])
    place = dict(zip(arrays, pairwise(starts), strict=True))
    everything = np.concatenate(list(arrays.values()), axis=1)
    rng = np.random.default_rng(seed)
    sums = np.empty((draws, everything.shape[1]))
    step = max(1, _AT_ONCE // pictures)
    for first in range(0, draws, step):
        count = min(step, draws - first)
        drawn = rng.integers(pictures, size=(count, pictures)) + pictures * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * pictures).reshape(count, pictures)
        sums[first : first + count] = times @ everything
    return {name: figure.of_sums(sums[:, slice(*place[id(figure.sums)])]) for name, figure in figures.items()}


def interval(values: Floats, level: float = LEVEL) -> tuple[float, float]:
    """The percentile interval of what `resample` gave for a figure: (low, high)."""
    tail = 50 * (1 - level)
    low, high = np.percentile(values, (tail, 100 - tail))
    return float(low), float(high)


def intervals(figures: Mapping[str, MetricResult], draws: int = DRAWS, seed: int = 0) -> dict[str, tuple[float, float]]:
    """The 95 % interval of each figure."""
    return {name: interval(values) for name, values in resample(figures, draws, seed).items()}


@dataclass(frozen=True)
class Difference:
    """B beside A on the same pictures, by one figure."""

    a: float
    b: float
    interval: tuple[float, float]
    """95 % of b - a."""
    p: float
    """Two-sided: how often a difference at least as far from none would come by chance, by the bootstrap."""
    wins: tuple[int, int, int]
    """Pictures on which A is better, B is better, and neither is."""

    @property
    def difference(self) -> float:
        return self.b - self.a


def differences(
    a: Mapping[str, MetricResult], b: Mapping[str, MetricResult], draws: int = DRAWS, seed: int = 0
) -> dict[str, Difference]:
    """B beside A by each figure that both have, of the same N pictures in the same order."""
    shared = [name for name in a if name in b]
    drawn = resample({**{f"a {name}": a[name] for name in shared}, **{f"b {name}": b[name] for name in shared}},
                     draws, seed)
    found = {}
    for name in shared:
        gains = drawn[f"b {name}"] - drawn[f"a {name}"]
        # the least p that so many draws can show is of the order of 1 / draws, never 0
        sides = (1 + np.count_nonzero(gains <= 0), 1 + np.count_nonzero(gains >= 0))
        p = min(1.0, 2 * min(sides) / (1 + len(gains)))
        ours, theirs = a[name].per_image, b[name].per_image
        even = np.isclose(ours, theirs, rtol=1e-9, atol=1e-12)
        wins = (int((~even & (ours > theirs)).sum()), int((~even & (theirs > ours)).sum()), int(even.sum()))
        found[name] = Difference(a[name].corpus, b[name].corpus, interval(gains), p, wins)
    return found
