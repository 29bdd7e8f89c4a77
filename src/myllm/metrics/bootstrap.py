"""Confidence intervals by the bootstrap over pictures, and a paired permutation test for two captioners.

All metrics of a call are computed on the same draws, so differences between them are paired.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from myllm.metrics.result import Floats, MetricResult

DRAWS = 10_000
LEVEL = 0.95
MIN_TESTED = 10
"""Minimum number of pictures for a p-value."""
MIN_RELIABLE = 100
"""Pictures; with fewer, intervals are too narrow (docs/metrics.md has the figures)."""
TIE_BELOW = 0.001
"""Two values of a picture, or of all pictures, that are both closer to 0 than this are a tie."""
_MAX_IN_MEMORY, _MAX_DRAWN = 2_000_000, 500_000_000  # pictures drawn per block, and in total
_MIN_DRAWS = 500
_MAX_ENUMERATED = 13  # pictures; 2**13 ways to swap them are fewer than DRAWS


def draws_for(pictures: int, draws: int = DRAWS) -> int:
    """Return the number of draws to take for this many pictures; fewer for very many, to bound the time."""
    return min(draws, max(_MAX_DRAWN // pictures, _MIN_DRAWS))


def resample(results: Mapping[str, MetricResult], draws: int = DRAWS, seed: int = 0) -> dict[str, Floats]:
    """Return {name: values (draws,)} of each metric, on pictures drawn with replacement (Efron 1979).

    results: metrics of the same N pictures.
    """
    pictures = len(next(iter(results.values())).per_image)
    # Metrics that share their sums, as BLEU-1 to BLEU-4 do, are added up once.
    arrays = {id(result.sums): result.sums for result in results.values()}
    starts = np.cumsum([0, *(array.shape[1] for array in arrays.values())])
    columns = {key: slice(start, stop) for key, (start, stop) in zip(arrays, pairwise(starts), strict=True)}
    sums = np.concatenate(list(arrays.values()), axis=1)
    rng = np.random.default_rng(seed)
    blocks = []
    for count in _block_sizes(pictures, draws_for(pictures, draws)):
        chosen = rng.integers(pictures, size=(count, pictures)) + pictures * np.arange(count)[:, None]
        times = np.bincount(chosen.ravel(), minlength=count * pictures).reshape(count, pictures)
        blocks.append(times @ sums)
    resampled = np.concatenate(blocks)
    return {name: result.of_sums(resampled[:, columns[id(result.sums)]]) for name, result in results.items()}


def interval(values: Floats) -> tuple[float, float]:
    """Return the 95 % percentile interval (low, high) of a metric's resampled values; NaN values are left out."""
    if np.isnan(values).all():
        return np.nan, np.nan
    tail = 50 * (1 - LEVEL)
    low, high = np.nanpercentile(values, (tail, 100 - tail))
    return float(low), float(high)


def intervals(results: Mapping[str, MetricResult], draws: int = DRAWS, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Return the 95 % interval of each metric."""
    return {name: interval(values) for name, values in resample(results, draws, seed).items()}


@dataclass(frozen=True)
class Difference:
    """Two captioners A and B on the same pictures, by one metric."""

    a: float
    b: float
    interval: tuple[float, float]
    """95 % interval of b - a, by the paired bootstrap."""
    p: float | None
    """Two-sided p-value of the paired permutation test; None for fewer than `MIN_TESTED` pictures."""
    wins: tuple[int, int, int]
    """Number of pictures on which A is higher, B is higher, and neither is."""

    @property
    def difference(self) -> float:
        """b - a."""
        return self.b - self.a

    @property
    def p_text(self) -> str:
        """The p-value as text; "-" if there is none."""
        return "-" if self.p is None else f"{self.p:.4f}"


def differences(
    a: Mapping[str, MetricResult], b: Mapping[str, MetricResult], draws: int = DRAWS, seed: int = 0
) -> dict[str, Difference]:
    """Compare B with A by each metric that both have, on the same N pictures in the same order.

    A metric that is NaN on either side is left out, such as the share of wrong numbers if no caption has a number.
    """
    names = [name for name in a if name in b and not np.isnan(a[name].corpus + b[name].corpus)]
    if not names:
        return {}
    pairs = {f"a {name}": a[name] for name in names} | {f"b {name}": b[name] for name in names}
    resampled = resample(pairs, draws, seed)
    p_values = _permutation_test([a[name] for name in names], [b[name] for name in names], draws, seed)
    results = {}
    for name, p in zip(names, p_values, strict=True):
        gain, wins = resampled[f"b {name}"] - resampled[f"a {name}"], _count_wins(a[name].per_image, b[name].per_image)
        results[name] = Difference(a[name].corpus, b[name].corpus, interval(gain), p, wins)
    return results


def _count_wins(a: Floats, b: Floats) -> tuple[int, int, int]:
    tied = np.isclose(a, b, rtol=1e-9, atol=1e-12) | (np.maximum(np.abs(a), np.abs(b)) < TIE_BELOW)
    a_wins, b_wins = int((~tied & (a > b)).sum()), int((~tied & (b > a)).sum())
    return a_wins, b_wins, len(a) - a_wins - b_wins


def _permutation_test(
    a: Sequence[MetricResult], b: Sequence[MetricResult], draws: int, seed: int
) -> Sequence[float | None]:
    """Return a two-sided p-value for each pair of metrics.

    Approximate randomization (Noreen 1989; Riezler and Maxwell 2005, https://aclanthology.org/W05-0908): if A and B are
    equally good, swapping their captions on any of the pictures makes no difference. p is the share of swaps whose
    difference is at least as large as the observed one; for few pictures all 2^N swaps are tried. For a metric that is
    a mean over pictures this is the sign-flip test.
    """
    pictures = len(a[0].per_image)
    if pictures < MIN_TESTED:
        return [None] * len(a)
    is_exact = pictures <= _MAX_ENUMERATED
    swaps = 2**pictures if is_exact else draws_for(pictures, draws)
    # Random swaps count the observed difference as one of them, so p is never 0.
    extreme, number = np.full(len(a), 0 if is_exact else 1), swaps + (0 if is_exact else 1)
    pairs = list(zip(a, b, strict=True))
    values = np.array([(metric_a.corpus, metric_b.corpus) for metric_a, metric_b in pairs])
    observed = np.where(np.abs(values).max(axis=1) < TIE_BELOW, 0, np.abs(np.diff(values)[:, 0]))
    halves = [(metric_a.sums + metric_b.sums).sum(axis=0) / 2 for metric_a, metric_b in pairs]
    gains = np.concatenate([(metric_a.sums - metric_b.sums) / 2 for metric_a, metric_b in pairs], axis=1)
    starts = np.cumsum([len(half) for half in halves])[:-1]
    rng = np.random.default_rng(seed)
    first = 0
    for count in _block_sizes(pictures, swaps):
        if is_exact:
            bits = (np.arange(first, first + count)[:, None] >> np.arange(pictures) & 1).astype(np.uint8)
        else:
            octets = rng.integers(256, size=(count, -(-pictures // 8)), dtype=np.uint8)
            bits = np.unpackbits(octets, axis=1, count=pictures)
        first += count
        shifts = np.split((1.0 - 2.0 * bits) @ gains, starts, axis=1)
        for index, ((metric_a, metric_b), half, shift) in enumerate(zip(pairs, halves, shifts, strict=True)):
            swapped = metric_a.of_sums(half + shift) - metric_b.of_sums(half - shift)
            extreme[index] += np.count_nonzero(np.abs(swapped) >= observed[index] * (1 - 1e-9) - 1e-12)
    return (extreme / number).tolist()


def _block_sizes(pictures: int, draws: int) -> Iterator[int]:
    step = max(1, _MAX_IN_MEMORY // pictures)
    for first in range(0, draws, step):
        yield min(step, draws - first)
