"""Is a captioner that is sure also right? Calibration from references, and what confidence is then worth."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from myllm.caption import Calibration, Caption, normalize_word
from myllm.config import DecodeConfig
from myllm.errors import DataError

Floats = NDArray[np.float64]
# a word in the references of a greater share of pictures tells little of one
COMMON_SHARE = 1 / 3
MIN_WORDS = 100
FOLDS = 5
BINS = 10
SHARES = tuple(tenth / 10 for tenth in range(1, 11))


@dataclass(frozen=True)
class Bin:
    """Cases that a captioner was about as sure of."""

    count: int
    confidence: float
    """Their mean."""
    right: float
    """The share of them that is right."""


@dataclass(frozen=True)
class ConfidenceReport:
    """What confidence is worth on pictures with references."""

    words: tuple[Bin, ...]
    """Telling words, and the share of them that references use."""
    captions: tuple[Bin, ...]
    """Captions, and the mean share of their telling words that references use."""
    coverage: tuple[float, ...]
    """The mean figure of the most confident captions, of each of `SHARES`."""
    is_cross_fitted: bool
    """Whether each fifth of the pictures was judged by a calibration of the other four."""

    @property
    def word_error(self) -> float:
        """The expected calibration error of words."""
        return expected_calibration_error(self.words)

    @property
    def caption_error(self) -> float:
        """The same of captions."""
        return expected_calibration_error(self.captions)

    @property
    def half(self) -> float:
        """The mean figure of the more confident half of the captions."""
        return self.coverage[SHARES.index(0.5)]

    def as_json(self) -> dict[str, Any]:
        """What metrics.json holds."""
        return {
            "word_calibration_error": self.word_error,
            "caption_calibration_error": self.caption_error,
            "coverage": dict(zip(map("{:.0%}".format, SHARES), self.coverage, strict=True)),
            "cross_fitted": self.is_cross_fitted,
            "words": [asdict(one) for one in self.words], "captions": [asdict(one) for one in self.captions],
        }


def changed_options(decode: Mapping[str, Any]) -> dict[str, Any]:
    """The decoding options that are not the standard."""
    standard = asdict(DecodeConfig())
    return {name: value for name, value in decode.items() if value != standard[name]}


def described(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """What a calibration says of its origin, an evaluation by `protocol`.

    Decoding as far as it is not the standard.
    """
    changed = changed_options(protocol["decode"])
    return {
        "data": protocol["dataset"], "split": protocol["split"], "pictures": protocol["pictures"],
        "hash": protocol["data"],
        "decode": {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()},
    }


def calibrate(
    captions: Sequence[Caption], references: Sequence[Sequence[str]], on: Mapping[str, Any] | None = None
) -> Calibration:
    """Learn confidence from captions of pictures and the pictures' references; `on`: as `described` tells.

    Raises DataError where there are too few words to learn from.
    """
    used = _words_used(references)
    pictures = Counter(word for words in used for word in words)
    common = sorted(word for word, count in pictures.items() if word and count > COMMON_SHARE * len(used))
    words = [
        (normalize_word(word.text), word.logprob, caption.score, own)
        for caption, own in zip(captions, used, strict=True)
        for word in caption.words
        if word.logprob is not None
    ]
    telling = sum(bool(word) and word not in common for word, *_ in words)
    if telling < MIN_WORDS:
        raise DataError(
            f"{telling} words of {len(captions)} captions tell one picture from another; at least {MIN_WORDS} are "
            "needed to learn from how often they are right: take more pictures"
        )
    known, place = np.unique([word for word, *_ in words], return_inverse=True)
    inputs = np.array([(logprob, score) for _, logprob, score, _ in words])
    right = np.array([word in own for word, _, _, own in words])
    weights, offsets = fit_log_odds(inputs, place, right)
    told = {str(word): round(float(offset), 4) for word, offset in zip(known, offsets, strict=True)}
    logprob, score, constant = map(float, weights)
    return Calibration(logprob, score, constant, told, tuple(common), on or {})


def fit_log_odds(
    inputs: Floats, word: NDArray[np.int64], right: NDArray[np.bool_], ridge: float = 0.01
) -> tuple[Floats, Floats]:
    """From inputs (N, 2), which word each is (N,) and whether it was right (N,) -> weights (3,), offsets (words,).

    The log-odds of being right are the inputs by two weights, and the third, and the word's offset. Offsets are taken
    to be normal with variance 1, so that a word that was met once hardly has one. Targets are not quite 0 and 1 (Platt
    1999, section 2.2). Newton's method; each word's own row of the Hessian has few entries, and is eliminated first.
    """
    hits = right.sum()
    targets = np.where(right, (hits + 1) / (hits + 2), 1 / (len(right) - hits + 2))
    x = np.concatenate([inputs, np.ones((len(right), 1))], axis=1)
    weights, offsets = np.zeros(3), np.zeros(word.max() + 1)

    def loss(weights: Floats, offsets: Floats) -> float:
        odds = x @ weights + offsets[word]
        fit = float((np.logaddexp(0, odds) - targets * odds).sum())
        return fit + float(ridge * weights @ weights + offsets @ offsets) / 2

    for _ in range(100):
        chances = np.exp(-np.logaddexp(0, -(x @ weights + offsets[word])))
        error, weight = chances - targets, (chances * (1 - chances))[:, None]
        slope, own_slope = x.T @ error + ridge * weights, np.bincount(word, error) + offsets
        shared = np.zeros((len(offsets), 3))
        np.add.at(shared, word, weight * x)
        own = np.bincount(word, weight[:, 0]) + 1
        left = x.T @ (weight * x) + ridge * np.eye(3) - shared.T @ (shared / own[:, None])
        step = np.linalg.solve(left, slope - shared.T @ (own_slope / own))
        own_step, size = (own_slope - shared @ step) / own, 1.0
        if max(np.abs(step).max(), np.abs(own_step).max()) < 1e-7:
            break
        while loss(weights - size * step, offsets - size * own_step) > loss(weights, offsets) + 1e-9 and size > 1e-6:
            size /= 2
        weights, offsets = weights - size * step, offsets - size * own_step
    return weights, offsets


def cross_fitted(captions: Sequence[Caption], references: Sequence[Sequence[str]]) -> list[Caption]:
    """The captions, each with a calibration that has not seen its picture, but four fifths of the others.

    Raises DataError as `calibrate`.
    """
    fold = np.random.default_rng(0).permutation(len(captions)) % FOLDS
    fitted = []
    for part in range(FOLDS):
        others = np.flatnonzero(fold != part).tolist()
        fitted.append(calibrate([captions[at] for at in others], [references[at] for at in others]))
    return [replace(caption, calibration=fitted[part]) for caption, part in zip(captions, fold, strict=True)]


def measure_confidence(
    captions: Sequence[Caption], references: Sequence[Sequence[str]], figures: Sequence[float] | Floats,
    on: Mapping[str, Any] | None = None,
) -> ConfidenceReport:
    """Hold the captions' confidence against references, and against a figure of each caption, as CIDEr-D.

    Where they are not calibrated, or on pictures of which `described` tells the same as `on`, what is judged is a
    calibration by the other pictures, `cross_fitted`. Raises DataError where that has too few words to learn from.
    """
    calibrations = [caption.calibration for caption in captions]
    is_cross_fitted = any(one is None or _is_same(one.calibrated_on, on or {}) for one in calibrations)
    if is_cross_fitted:
        captions = cross_fitted(captions, references)
    words_sure, words_right = list[float](), list[bool]()
    captions_sure, captions_right = list[float](), list[float]()
    everyone = list[float]()
    for caption, used in zip(captions, _words_used(references), strict=True):
        assert caption.calibration is not None
        everyone.append(caption.confidence)
        telling = [
            (word.confidence, normalize_word(word.text) in used)
            for word in caption.words
            if word.confidence is not None and caption.calibration.is_informative(word)
        ]
        words_sure += [sure for sure, _ in telling]
        words_right += [right for _, right in telling]
        if telling:
            captions_sure.append(caption.confidence)
            captions_right.append(sum(right for _, right in telling) / len(telling))
    bins = reliability(words_sure, words_right), reliability(captions_sure, captions_right)
    return ConfidenceReport(*bins, risk_coverage(everyone, figures), is_cross_fitted)


def reliability(
    confidence: Sequence[float] | Floats, right: Sequence[float] | Floats, bins: int = BINS
) -> tuple[Bin, ...]:
    """Cases in the order of their confidence, in bins of equally many: none is empty, and each is as exact."""
    sure, hits = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    order = np.argsort(sure, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return tuple(Bin(len(part), float(sure[part].mean()), float(hits[part].mean())) for part in parts)


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """How far confidence is from being right, in the mean over all cases (Naeini et al. 2015); bins of equally many."""
    total = sum(one.count for one in bins)
    return sum(one.count * abs(one.confidence - one.right) for one in bins) / max(1, total)


def risk_coverage(confidence: Sequence[float] | Floats, figures: Sequence[float] | Floats) -> tuple[float, ...]:
    """The mean figure of the most confident 10, 20 ... 100 %, rounded up to whole captions (`SHARES`)."""
    order = np.argsort(-np.asarray(confidence, dtype=np.float64), kind="stable")
    means = np.asarray(figures, dtype=np.float64)[order].cumsum() / np.arange(1, len(order) + 1)
    return tuple(float(means[-(-tenth * len(order) // 10) - 1]) for tenth in range(1, 11))


def _is_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether a picture may be in both: the same pictures, or the same split of the same data, if only a part of it."""
    return any(all(name in one and one[name] == other.get(name) for name in names)
               for names in (("hash",), ("data", "split")))


def _words_used(references: Sequence[Sequence[str]]) -> list[set[str]]:
    return [{normalize_word(word) for text in texts for word in text.split()} for texts in references]
