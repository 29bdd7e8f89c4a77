"""Learn confidence from references (calibration), and measure how reliable it is."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from myllm.caption import Calibration, Caption, log_support, normalize_word
from myllm.config import DecodeConfig
from myllm.data.records import quantity
from myllm.errors import DataError
from myllm.metrics.bootstrap import interval, intervals
from myllm.metrics.result import Floats, share_of

COMMON_SHARE = 1 / 3
"""A word in the references of a greater share of pictures is common; other words are informative."""
MIN_WORDS = 100
"""Informative words needed for a calibration."""
FOLDS = 5
BINS = 10
RIDGE = 0.01
DRAWS = 2_000
SHARES = tuple(tenth / 10 for tenth in range(1, 11))
HALF = SHARES.index(0.5)


@dataclass(frozen=True)
class Bin:
    """Words or captions of similar confidence."""

    count: int
    confidence: float
    """Mean confidence."""
    right: float
    """Share that is right."""
    interval: tuple[float, float] | None = None
    """95 % interval of `right`; None if it is not known which pictures the cases come from."""


@dataclass(frozen=True)
class ConfidenceReport:
    """How reliable confidence is on pictures with references."""

    words: tuple[Bin, ...]
    """Informative words; those that references use are right."""
    captions: tuple[Bin, ...]
    """Captions; `right` is the mean share of their informative words that references use."""
    coverage: tuple[float, ...]
    """Mean metric of the most confident captions, for each of `SHARES`."""
    is_cross_fitted: bool
    """Whether each fifth of the pictures was judged with a calibration learned from the other four."""
    gain: tuple[float, float] | None = None
    """95 % interval of `half` minus the mean of all captions; None if there is only one caption."""
    half_by_score: float | None = None
    """Mean metric of the half with the higher `score`, the plain mean log-probability."""
    coverage_intervals: tuple[tuple[float, float], ...] = ()
    """95 % interval of each value of `coverage`; empty if there is only one caption."""

    @property
    def word_error(self) -> float:
        """Expected calibration error of words."""
        return expected_calibration_error(self.words)

    @property
    def caption_error(self) -> float:
        """Expected calibration error of captions."""
        return expected_calibration_error(self.captions)

    @property
    def half(self) -> float:
        """Mean metric of the more confident half of the captions."""
        return self.coverage[HALF]

    def describe_sorting(self, metric: str) -> str:
        """Return whether more confident captions are better by the metric, and whether `score` sorts them better."""
        text = f"the more confident half of the captions has {metric} {self.half:.3f}, all have {self.coverage[-1]:.3f}"
        if self.gain is None or self.half_by_score is None:
            return text
        low, high = self.gain
        text += f" (95 % interval of the difference {low:+.3f} to {high:+.3f})"
        if low <= 0 <= high:
            return f"{text}: sorting these captions by confidence may do nothing"
        advice = ": sort these captions by `score`" * (self.half_by_score > self.half)
        return f"{text}; by `score` the better half has {self.half_by_score:.3f}{advice}"

    def as_json(self) -> dict[str, Any]:
        """Return the entries for metrics.json."""
        return {
            "word_calibration_error": self.word_error, "caption_calibration_error": self.caption_error,
            "coverage": dict(zip(map("{:.0%}".format, SHARES), self.coverage, strict=True)),
            "coverage_intervals": self.coverage_intervals,
            "half_minus_all": self.gain, "half_by_score": self.half_by_score, "cross_fitted": self.is_cross_fitted,
            "words": list(map(asdict, self.words)), "captions": list(map(asdict, self.captions)),
        }


def changed_options(decode: Mapping[str, Any]) -> dict[str, Any]:
    """Return the decoding options that differ from the defaults."""
    defaults = asdict(DecodeConfig())
    return {name: value for name, value in decode.items() if value != defaults[name]}


def described(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Return a calibration's record of an evaluation: its data, and decoding options that are not the defaults."""
    changed = changed_options(protocol["decode"]).items()
    decode = {name: list(value) if isinstance(value, tuple) else value for name, value in changed}
    data = {"data": protocol["dataset"], "split": protocol["split"], "pictures": protocol["pictures"]}
    return data | {"hash": protocol["data"], "decode": decode}


def calibrate(
    captions: Sequence[Caption], references: Sequence[Sequence[str]], on: Mapping[str, Any] | None = None
) -> Calibration:
    """Learn confidence from captions and the references of their pictures.

    on: from `described`. Raises DataError if there are fewer than `MIN_WORDS` informative words.
    """
    used = _words_used(references)
    pictures = Counter(word for words in used for word in words)
    common = sorted(word for word, count in pictures.items() if word and count > COMMON_SHARE * len(used))
    words = [
        (normalize_word(word.text), word, caption.score, reference_words)
        for caption, reference_words in zip(captions, used, strict=True)
        for word in caption.words
        if word.logprob is not None
    ]
    informative = [word for text, word, *_ in words if text and text not in common]
    if len(informative) < MIN_WORDS:
        raise DataError(
            f"{quantity(len(captions), 'caption')} with {quantity(len(informative), 'word')} that distinguish "
            f"pictures; at least {MIN_WORDS} are needed to learn from: use more pictures"
        )
    supports = [log_support(word.support) for word in informative if word.support is not None]
    usual = sum(supports) / max(1, len(supports))
    vocabulary, index = np.unique([text for text, *_ in words], return_inverse=True)
    inputs = np.array([
        (word.logprob, score, 0.0 if word.support is None else log_support(word.support) - usual)
        for _, word, score, _ in words
    ])
    right = np.array([text in reference_words for text, *_, reference_words in words])
    weights, offsets = fit_log_odds(inputs, index, right)
    word_offsets = {str(word): round(float(offset), 4) for word, offset in zip(vocabulary, offsets, strict=True)}
    logprob, score, support, constant = map(float, weights)
    return Calibration(logprob, score, constant, word_offsets, tuple(common), on or {}, support, usual)


def fit_log_odds(inputs: Floats, word: NDArray[np.int64], right: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Fit a logistic regression with an offset for each word; return weights (K + 1,) and offsets (words,).

    inputs: (N, K). word: (N,) index of the word. right: (N,).
    log-odds = inputs @ weights[:K] + weights[K] + offsets[word]. The offsets have a normal prior of variance 1, so a
    word that occurs once has one close to 0. Targets are not quite 0 and 1 (Platt 1999, section 2.2). The fit
    uses Newton's method; the offsets, whose part of the Hessian is diagonal, are eliminated first.
    """
    hits = right.sum()
    targets = np.where(right, (hits + 1) / (hits + 2), 1 / (len(right) - hits + 2))
    x = np.concatenate([inputs, np.ones((len(right), 1))], axis=1)
    weights, offsets = np.zeros(x.shape[1]), np.zeros(word.max() + 1)

    def loss(weights: Floats, offsets: Floats) -> float:
        odds = x @ weights + offsets[word]
        fit = float((np.logaddexp(0, odds) - targets * odds).sum())
        return fit + float(RIDGE * weights @ weights + offsets @ offsets) / 2

    for _ in range(100):
        chances = np.exp(-np.logaddexp(0, -(x @ weights + offsets[word])))
        error, weight = chances - targets, (chances * (1 - chances))[:, None]
        slope, word_slope = x.T @ error + RIDGE * weights, np.bincount(word, error) + offsets
        shared = np.zeros((len(offsets), len(weights)))
        np.add.at(shared, word, weight * x)
        curvature = np.bincount(word, weight[:, 0]) + 1
        left = x.T @ (weight * x) + RIDGE * np.eye(len(weights)) - shared.T @ (shared / curvature[:, None])
        step = np.linalg.solve(left, slope - shared.T @ (word_slope / curvature))
        word_step, size = (word_slope - shared @ step) / curvature, 1.0
        if max(np.abs(step).max(), np.abs(word_step).max()) < 1e-7:
            break
        while loss(weights - size * step, offsets - size * word_step) > loss(weights, offsets) + 1e-9 and size > 1e-6:
            size /= 2
        weights, offsets = weights - size * step, offsets - size * word_step
    return weights, offsets


def cross_fitted(captions: Sequence[Caption], references: Sequence[Sequence[str]]) -> list[Caption]:
    """Return the captions, each with a calibration learned on the four fifths of the pictures without its own.

    Raises DataError as `calibrate`.
    """
    fold = np.random.default_rng(0).permutation(len(captions)) % FOLDS
    others = [np.flatnonzero(fold != part).tolist() for part in range(FOLDS)]
    fitted = [calibrate([captions[i] for i in indices], [references[i] for i in indices]) for indices in others]
    return [replace(caption, calibration=fitted[part]) for caption, part in zip(captions, fold, strict=True)]


def measure_confidence(
    captions: Sequence[Caption], references: Sequence[Sequence[str]], figures: ArrayLike,
    on: Mapping[str, Any] | None = None,
) -> ConfidenceReport:
    """Compare the captions' confidence with the references, and with a metric's value of each caption (`figures`).

    on: the judged data, from `described`. If any caption has no calibration, or one learned on these data, each caption
    is judged with a calibration learned from other pictures (`cross_fitted`). Raises DataError if there are too few
    words for that.
    """
    calibrations = [caption.calibration for caption in captions]
    is_cross_fitted = any(c is None or _may_overlap(c.calibrated_on, on or {}) for c in calibrations)
    if is_cross_fitted:
        captions = cross_fitted(captions, references)
    words: list[tuple[float, bool, int]] = []
    whole: list[tuple[float, float, int]] = []
    for picture, (caption, used) in enumerate(zip(captions, _words_used(references), strict=True)):
        assert caption.calibration is not None
        cases = [
            (word.confidence, normalize_word(word.text) in used, picture)
            for word in caption.words
            if word.confidence is not None and caption.calibration.is_informative(word)
        ]
        words += cases
        if cases:
            whole.append((caption.confidence, sum(right for _, right, _ in cases) / len(cases), picture))
    confidence = np.array([caption.confidence for caption in captions])
    values, scores = np.asarray(figures, dtype=np.float64), [caption.score for caption in captions]
    resampled = resample_coverage(confidence, values) if len(captions) > 1 else None
    return ConfidenceReport(
        reliability(*np.array(words).reshape(-1, 3).T), reliability(*np.array(whole).reshape(-1, 3).T),
        risk_coverage(confidence, values), is_cross_fitted,
        gain=None if resampled is None else interval(resampled[:, HALF] - resampled[:, -1]),
        half_by_score=risk_coverage(scores, values)[HALF],
        coverage_intervals=() if resampled is None else tuple(map(interval, resampled.T)),
    )


def resample_coverage(confidence: ArrayLike, figures: ArrayLike) -> Floats:
    """Return `risk_coverage` (DRAWS, 10) of captions drawn with replacement, for intervals by the bootstrap."""
    sure, values = np.asarray(confidence, dtype=np.float64), np.asarray(figures, dtype=np.float64)
    generator = np.random.default_rng(0)
    draws = (generator.integers(0, len(sure), len(sure)) for _ in range(DRAWS))
    return np.array([risk_coverage(sure[chosen], values[chosen]) for chosen in draws])


def reliability(
    confidence: ArrayLike, right: ArrayLike, pictures: ArrayLike | None = None, bins: int = BINS
) -> tuple[Bin, ...]:
    """Return cases sorted by confidence in bins of equally many.

    pictures: index of each case's picture. With it the bins have intervals, by the bootstrap over pictures: words of
    the same caption are often right or wrong together.
    """
    sure, hits = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    order = np.argsort(sure, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    spreads: dict[str, tuple[float, float]] = {}
    if pictures is not None and parts:
        picture = np.asarray(pictures, dtype=np.int64)
        counted = np.stack([hits, np.ones_like(hits)], axis=1)
        shares = {}
        for number, part in enumerate(parts):
            sums = np.zeros((picture.max() + 1, 2))
            np.add.at(sums, picture[part], counted[part])
            shares[str(number)] = share_of(sums, "case")
        spreads = intervals(shares, DRAWS)
    return tuple(
        Bin(len(part), float(sure[part].mean()), float(hits[part].mean()), spreads.get(str(number)))
        for number, part in enumerate(parts)
    )


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Return the mean over cases of the difference between a bin's confidence and right share (Naeini et al. 2015)."""
    total = sum(part.count for part in bins)
    return sum(part.count * abs(part.confidence - part.right) for part in bins) / max(1, total)


def risk_coverage(confidence: ArrayLike, figures: ArrayLike) -> tuple[float, ...]:
    """Return the mean of `figures` of the most confident 10, 20 ... 100 % (`SHARES`), rounded up to whole captions."""
    order = np.argsort(-np.asarray(confidence, dtype=np.float64), kind="stable")
    means = np.asarray(figures, dtype=np.float64)[order].cumsum() / np.arange(1, len(order) + 1)
    return tuple(float(means[-(-tenth * len(order) // 10) - 1]) for tenth in range(1, 11))


def _may_overlap(calibrated_on: Mapping[str, Any], judged_on: Mapping[str, Any]) -> bool:
    """Whether both may contain the same picture: if the hashes are equal, or the names of data and split."""
    return any(
        all(name in calibrated_on and calibrated_on[name] == judged_on.get(name) for name in names)
        for names in (("hash",), ("data", "split"))
    )


def _words_used(references: Sequence[Sequence[str]]) -> list[set[str]]:
    return [{normalize_word(word) for text in texts for word in text.split()} for texts in references]
