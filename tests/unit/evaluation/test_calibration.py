import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm.caption import Caption
from myllm.errors import DataError
from myllm.evaluation.calibration import (
    Bin,
    ConfidenceReport,
    calibrate,
    cross_fitted,
    expected_calibration_error,
    fit_log_odds,
    measure_confidence,
    reliability,
    resample_coverage,
    risk_coverage,
)

RNG = np.random.default_rng(0)
KINDS = [f"kind{number}" for number in range(20)]


def world(pictures: int, seed: int = 0, sharpness: float = 1.0) -> tuple[list[Caption], list[list[str]]]:
    """Captions 'a KIND KIND' of which each kind is right as often as its token is likely, to the power of sharpness."""
    rng = np.random.default_rng(seed)
    captions, references = [], []
    for _ in range(pictures):
        kinds = rng.choice(20, 2, replace=False)
        chances = rng.uniform(0.05, 0.95, 2)
        is_right = rng.uniform(size=2) < chances**sharpness
        logprobs = [-0.01, *np.log(chances).tolist(), -0.01]
        words = ["a", *(KINDS[index] for index in kinds)]
        captions.append(
            Caption(
                " ".join(words), float(np.mean(logprobs)), [0, *kinds.tolist()], logprobs, "end",
                pieces=[f" {word}".encode() for word in words],
            )
        )
        right = [KINDS[kind] for kind, is_used in zip(kinds, is_right, strict=True) if is_used]
        references.append(["A thing.", " ".join(right)])
    return captions, references


ON = {"data": "world", "split": "val", "hash": "ab", "pictures": 400}
FIGURES = [0.0] * 400


def test_calibration_error_is_near_0_if_confidence_is_the_chance_of_being_right() -> None:
    sure = RNG.uniform(size=50_000)
    assert expected_calibration_error(reliability(sure, RNG.uniform(size=50_000) < sure)) < 0.01


def test_calibration_error_equals_planted_overconfidence() -> None:
    sure = RNG.uniform(0.3, 1, size=50_000)
    result = expected_calibration_error(reliability(sure, RNG.uniform(size=50_000) < sure - 0.2))
    assert result == pytest.approx(0.2, abs=0.01)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40), st.integers(1, 12))
def test_bins_are_equally_large_and_sorted_by_confidence(cases: list[tuple[float, bool]], bins: int) -> None:
    result = reliability([sure for sure, _ in cases], [right for _, right in cases], bins=bins)
    counts = [item.count for item in result]
    assert sum(counts) == len(cases) and max(counts) - min(counts) <= 1
    assert [item.confidence for item in result] == sorted(item.confidence for item in result)
    assert sum(item.count * item.right for item in result) == pytest.approx(sum(right for _, right in cases))


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 10)), min_size=1, unique_by=lambda item: item[0]))
def test_risk_coverage_equals_the_mean_of_the_most_confident(cases: list[tuple[int, float]]) -> None:
    result = risk_coverage([float(sure) for sure, _ in cases], [figure for _, figure in cases])
    best = [figure for _, figure in sorted(cases, reverse=True)]
    for tenths, value in enumerate(result, start=1):
        best_part = best[: math.ceil(round(tenths * len(best) / 10, 9))]
        assert value == pytest.approx(sum(best_part) / len(best_part))
    assert result[-1] == pytest.approx(sum(best) / len(best))


def test_fit_log_odds_is_at_a_minimum_of_the_loss() -> None:
    inputs, word = RNG.normal(size=(300, 2)), RNG.integers(0, 12, 300)
    right = RNG.uniform(size=300) < 0.3 + 0.05 * word
    targets = np.where(right, (right.sum() + 1) / (right.sum() + 2), 1 / ((~right).sum() + 2))

    def loss(weights: Any, offsets: Any) -> float:
        chance = 1 / (1 + np.exp(-(inputs @ weights[:2] + weights[2] + offsets[word])))
        likelihood = (targets * np.log(chance) + (1 - targets) * np.log(1 - chance)).sum()
        return float(-likelihood + 0.01 / 2 * (weights**2).sum() + (offsets**2).sum() / 2)

    weights, offsets = fit_log_odds(inputs, word, right)
    for _ in range(200):
        steps = 1e-3 * RNG.normal(size=3), 1e-3 * RNG.normal(size=12)
        assert loss(weights + steps[0], offsets + steps[1]) > loss(weights, offsets)


def test_fit_log_odds_recovers_planted_weights_and_offsets() -> None:
    inputs, word = RNG.normal(size=(40_000, 2)), RNG.integers(0, 4, 40_000)
    planted = np.array([-1.0, -0.3, 0.3, 1.0])
    odds = inputs @ [0.7, 2.0] + 0.5 + planted[word]
    weights, offsets = fit_log_odds(inputs, word, RNG.uniform(size=40_000) < 1 / (1 + np.exp(-odds)))
    assert weights == pytest.approx([0.7, 2.0, 0.5], abs=0.1)
    assert offsets == pytest.approx(planted, abs=0.1)


@pytest.mark.parametrize("right", [True, False])
def test_fit_log_odds_of_all_right_or_all_wrong_is_not_certain(right: bool) -> None:
    weights, offsets = fit_log_odds(np.full((5, 2), -0.5), np.zeros(5, np.int64), np.full(5, right))
    assert np.isfinite([*weights, *offsets]).all()
    odds = float(np.array([-0.5, -0.5, 1]) @ weights + offsets[0])
    assert 0.5 < 1 / (1 + math.exp(-odds if right else odds)) < 0.99


@pytest.mark.parametrize("sharpness", [0.3, 4.0])
def test_calibrate_corrects_over_and_underconfidence_on_other_pictures(sharpness: float) -> None:
    learned = calibrate(*world(800, seed=1, sharpness=sharpness))
    captions, references = world(800, seed=2, sharpness=sharpness)
    raw = [math.exp(word.logprob or 0) for item in captions for word in item.words[1:]]
    pairs = zip(captions, references, strict=True)
    right = [word.text in group[1].split() for item, group in pairs for word in item.words[1:]]
    before = expected_calibration_error(reliability(raw, right))
    trust = measure_confidence([replace(item, calibration=learned) for item in captions], references, [0.0] * 800)
    assert not trust.is_cross_fitted and before > 0.2
    assert expected_calibration_error(trust.words) < before / 2 and expected_calibration_error(trust.captions) < 0.07


def test_calibrate_learns_what_support_says_about_a_word() -> None:
    captions, references = world(2_000)
    rng = np.random.default_rng(5)
    shown = []
    for caption, (_, right) in zip(captions, references, strict=True):
        # three in four supported words are right, one in four of the others: much more than the log-probability says
        is_right = [word in right.split() for word in caption.text.split()]
        shares = [0.9 if right == (rng.uniform() < 0.75) else 0.0 for right in is_right]
        shown.append(replace(caption, support=shares))
    without, with_support = calibrate(captions, references), calibrate(shown, references)
    assert without.support == without.usual_support == 0.0 and with_support.support > 0.1
    assert -3 < with_support.usual_support < -1
    assert measure_confidence(shown, references, [0.0] * 2_000).word_error < 0.03
    sure = {
        share: np.mean([
            word.confidence for caption in shown for word in replace(caption, calibration=with_support).words[1:]
            if word.support == share
        ])
        for share in (0.0, 0.9)
    }
    assert sure[0.9] > 0.7 and sure[0.0] < 0.3
    # without support, confidence is right on average
    blind = [word.confidence for caption in captions for word in replace(caption, calibration=with_support).words[1:]]
    assert np.mean(blind) == pytest.approx(0.5, abs=0.05)


def test_common_words_are_in_the_references_of_most_pictures() -> None:
    learned = calibrate(*world(400))
    assert {"a", "thing"} <= set(learned.common_words) and not set(KINDS) & set(learned.common_words)


def test_offset_is_lowest_for_a_word_that_is_never_right() -> None:
    captions, references = world(400)
    never = [[text.replace("kind3", "") for text in group] for group in references]
    learned = calibrate(captions, never)
    assert min(learned.offsets, key=lambda word: learned.offsets[word]) == "kind3"


def test_too_few_words_to_learn_from_are_an_error() -> None:
    with pytest.raises(DataError, match="40 captions with 80 words .* at least 100 are needed"):
        calibrate(*world(40))


def test_cross_fitted_confidence_does_not_depend_on_the_captions_references() -> None:
    captions, references = world(100)
    before = cross_fitted(captions, references)
    others = [["nothing"], *references[1:]]
    after = cross_fitted(captions, others)
    assert before[0].confidence == after[0].confidence
    assert [item.confidence for item in before[1:]] != [item.confidence for item in after[1:]]


@pytest.mark.parametrize(
    ("judged_on", "is_cross_fitted"),
    [
        (ON, True),
        (ON | {"hash": "cd"}, True),
        (ON | {"split": "test"}, True),
        (ON | {"split": "test", "hash": "cd"}, False),
        (None, False),
    ],
)
def test_pictures_that_were_calibrated_on_are_judged_cross_fitted(
    judged_on: dict[str, Any] | None, is_cross_fitted: bool
) -> None:
    captions, references = world(400)
    calibration = calibrate(captions, references, ON)
    learned = [replace(item, calibration=calibration) for item in captions]
    assert measure_confidence(learned, references, FIGURES, judged_on).is_cross_fitted == is_cross_fitted
    assert measure_confidence(captions, references, FIGURES, judged_on).is_cross_fitted


def test_coverage_starts_with_the_most_confident_and_ends_with_all() -> None:
    captions, references = world(400)

    def share_right(caption: Caption, group: Sequence[str]) -> float:
        return sum(word.text in group[1].split() for word in caption.words[1:]) / 2

    figures = [share_right(item, group) for item, group in zip(captions, references, strict=True)]
    trust = measure_confidence(captions, references, figures)
    assert trust.coverage[0] > trust.coverage[4] > trust.coverage[-1] == pytest.approx(np.mean(figures))
    entries = trust.as_json()
    assert entries["coverage"]["50%"] == trust.coverage[4] and entries["cross_fitted"] is True
    assert entries["word_calibration_error"] == expected_calibration_error(trust.words)


def test_interval_of_the_gain_holds_the_difference_between_the_confident_half_and_all() -> None:
    sure = RNG.uniform(size=400)
    trust = measure_confidence(*world(400), RNG.uniform(size=400))
    assert trust.gain is not None and trust.gain[0] < 0 < trust.gain[1]
    drawn = resample_coverage(sure, 2 * sure)
    gains = drawn[:, 4] - drawn[:, -1]
    # of uniform numbers the upper half has mean 0.75, all have 0.5; times 2
    assert np.quantile(gains, 0.025) < 0.5 < np.quantile(gains, 0.975)


def test_coverage_has_intervals_that_hold_it_and_narrow_with_the_number_of_captions() -> None:
    trust = measure_confidence(*world(400), RNG.uniform(size=400))
    assert all(
        low < value < high for value, (low, high) in zip(trust.coverage, trust.coverage_intervals, strict=True)
    )
    widths = [high - low for low, high in trust.coverage_intervals]
    assert widths[0] > 2 * widths[-1]


def test_intervals_of_bins_hold_the_share_as_often_as_they_say() -> None:
    """Cases of one picture are all right or all wrong, so that an interval over cases would be too narrow."""
    hits, trials = 0, 60
    for _ in range(trials):
        is_right = np.repeat(RNG.uniform(size=200) < 0.7, 5)
        (result,) = reliability(np.full(1000, 0.7), is_right, np.repeat(np.arange(200), 5), bins=1)
        assert result.interval is not None
        hits += result.interval[0] <= 0.7 <= result.interval[1]
    assert hits >= 0.85 * trials
    assert reliability([0.5], [True])[0].interval is None


def test_describe_sorting_says_when_confidence_does_not_help() -> None:
    bins, coverage = (Bin(1, 0.5, 0.5),), (3.0, 2.5, 2.5, 2.5, 2.0, 2.0, 2.0, 2.0, 2.0, 1.5)
    report = ConfidenceReport(bins, bins, coverage, True, (0.25, 0.75), 1.75)
    assert "half of the captions has CIDEr-D 2.000, all have 1.500 (95 % interval" in report.describe_sorting("CIDEr-D")
    assert "sort these captions by `score`" in replace(report, half_by_score=2.25).describe_sorting("CIDEr-D")
    assert "may do nothing" in replace(report, gain=(-0.1, 0.9)).describe_sorting("CIDEr-D")
