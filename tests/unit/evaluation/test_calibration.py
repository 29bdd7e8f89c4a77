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
    calibrate,
    cross_fitted,
    expected_calibration_error,
    fit_log_odds,
    measure_confidence,
    reliability,
    risk_coverage,
)

RNG = np.random.default_rng(0)
KINDS = [f"kind{number}" for number in range(20)]


def world(pictures: int, seed: int = 0, sharpness: float = 1.0) -> tuple[list[Caption], list[list[str]]]:
    """Captions 'a KIND KIND' of which each kind is right as often as its token is likely, to the power of sharpness."""
    rng = np.random.default_rng(seed)
    captions, references = [], []
    for _ in range(pictures):
        said = rng.choice(20, 2, replace=False)
        chances = rng.uniform(0.05, 0.95, 2)
        is_right = rng.uniform(size=2) < chances**sharpness
        logprobs = [-0.01, *np.log(chances).tolist(), -0.01]
        words = ["a", *(KINDS[at] for at in said)]
        captions.append(
            Caption(
                " ".join(words), float(np.mean(logprobs)), [0, *said.tolist()], logprobs, "end",
                pieces=[f" {word}".encode() for word in words],
            )
        )
        references.append(["A thing.", " ".join(KINDS[at] for at, right in zip(said, is_right, strict=True) if right)])
    return captions, references


ON = {"data": "world", "split": "val", "hash": "ab", "pictures": 400}
FIGURES = [0.0] * 400


def test_the_error_of_one_who_is_right_as_often_as_sure_is_near_nothing() -> None:
    sure = RNG.uniform(size=50_000)
    assert expected_calibration_error(reliability(sure, RNG.uniform(size=50_000) < sure)) < 0.01


def test_planted_overconfidence_is_found_in_full() -> None:
    sure = RNG.uniform(0.3, 1, size=50_000)
    found = expected_calibration_error(reliability(sure, RNG.uniform(size=50_000) < sure - 0.2))
    assert found == pytest.approx(0.2, abs=0.01)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40), st.integers(1, 12))
def test_bins_hold_equally_many_in_order_and_lose_none(cases: list[tuple[float, bool]], bins: int) -> None:
    found = reliability([sure for sure, _ in cases], [right for _, right in cases], bins)
    counts = [one.count for one in found]
    assert sum(counts) == len(cases) and max(counts) - min(counts) <= 1
    assert [one.confidence for one in found] == sorted(one.confidence for one in found)
    assert sum(one.count * one.right for one in found) == pytest.approx(sum(right for _, right in cases))


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 10)), min_size=1, unique_by=lambda one: one[0]))
def test_coverage_is_the_mean_of_the_most_confident(cases: list[tuple[int, float]]) -> None:
    found = risk_coverage([float(sure) for sure, _ in cases], [figure for _, figure in cases])
    best = [figure for _, figure in sorted(cases, reverse=True)]
    for tenths, value in enumerate(found, start=1):
        kept = best[: math.ceil(round(tenths * len(best) / 10, 9))]
        assert value == pytest.approx(sum(kept) / len(kept))
    assert found[-1] == pytest.approx(sum(best) / len(best))


def test_the_fit_is_where_no_step_makes_it_better() -> None:
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


def test_planted_weights_and_offsets_are_found_again() -> None:
    inputs, word = RNG.normal(size=(40_000, 2)), RNG.integers(0, 4, 40_000)
    planted = np.array([-1.0, -0.3, 0.3, 1.0])
    odds = inputs @ [0.7, 2.0] + 0.5 + planted[word]
    weights, offsets = fit_log_odds(inputs, word, RNG.uniform(size=40_000) < 1 / (1 + np.exp(-odds)))
    assert weights == pytest.approx([0.7, 2.0, 0.5], abs=0.1)
    assert offsets == pytest.approx(planted, abs=0.1)


@pytest.mark.parametrize("right", [True, False])
def test_all_right_or_all_wrong_is_no_certainty(right: bool) -> None:
    weights, offsets = fit_log_odds(np.full((5, 2), -0.5), np.zeros(5, np.int64), np.full(5, right))
    assert np.isfinite([*weights, *offsets]).all()
    odds = float(np.array([-0.5, -0.5, 1]) @ weights + offsets[0])
    assert 0.5 < 1 / (1 + math.exp(-odds if right else odds)) < 0.99


@pytest.mark.parametrize("sharpness", [0.3, 4.0])
def test_a_model_that_over_or_understates_is_set_right_on_other_pictures(sharpness: float) -> None:
    learned = calibrate(*world(800, seed=1, sharpness=sharpness))
    captions, references = world(800, seed=2, sharpness=sharpness)
    raw = [math.exp(word.logprob or 0) for one in captions for word in one.words[1:]]
    pairs = zip(captions, references, strict=True)
    right = [word.text in own[1].split() for one, own in pairs for word in one.words[1:]]
    before = expected_calibration_error(reliability(raw, right))
    trust = measure_confidence([replace(one, calibration=learned) for one in captions], references, [0.0] * 800)
    assert not trust.is_cross_fitted and before > 0.2
    assert expected_calibration_error(trust.words) < before / 2 and expected_calibration_error(trust.captions) < 0.07


def test_common_words_are_those_that_most_pictures_references_use() -> None:
    learned = calibrate(*world(400))
    assert {"a", "thing"} <= set(learned.common_words) and not set(KINDS) & set(learned.common_words)


def test_a_words_own_offset_tells_what_is_said_too_readily() -> None:
    captions, references = world(400)
    never = [[text.replace("kind3", "") for text in own] for own in references]
    learned = calibrate(captions, never)
    assert min(learned.offsets, key=lambda word: learned.offsets[word]) == "kind3"


def test_too_few_words_to_learn_from_are_told() -> None:
    with pytest.raises(DataError, match="40 captions have 80 words .* at least 100 are needed"):
        calibrate(*world(40))


def test_a_captions_own_references_have_no_say_in_its_cross_fitted_confidence() -> None:
    captions, references = world(100)
    before = cross_fitted(captions, references)
    others = [["nothing"], *references[1:]]
    after = cross_fitted(captions, others)
    assert before[0].confidence == after[0].confidence
    assert [one.confidence for one in before[1:]] != [one.confidence for one in after[1:]]


@pytest.mark.parametrize(
    ("asked", "is_cross_fitted"),
    [
        (ON, True),
        (ON | {"hash": "cd"}, True),
        (ON | {"split": "test"}, True),
        (ON | {"split": "test", "hash": "cd"}, False),
        (None, False),
    ],
)
def test_pictures_that_were_learned_from_are_judged_by_what_others_teach(
    asked: dict[str, Any] | None, is_cross_fitted: bool
) -> None:
    captions, references = world(400)
    calibration = calibrate(captions, references, ON)
    learned = [replace(one, calibration=calibration) for one in captions]
    assert measure_confidence(learned, references, FIGURES, asked).is_cross_fitted == is_cross_fitted
    assert measure_confidence(captions, references, FIGURES, asked).is_cross_fitted


def test_the_most_confident_come_first_in_coverage_and_all_last() -> None:
    captions, references = world(400)

    def share_right(caption: Caption, own: Sequence[str]) -> float:
        return sum(word.text in own[1].split() for word in caption.words[1:]) / 2

    figures = [share_right(one, own) for one, own in zip(captions, references, strict=True)]
    trust = measure_confidence(captions, references, figures)
    assert trust.coverage[0] > trust.coverage[4] > trust.coverage[-1] == pytest.approx(np.mean(figures))
    told = trust.as_json()
    assert told["coverage"]["50%"] == trust.coverage[4] and told["cross_fitted"] is True
    assert told["word_calibration_error"] == expected_calibration_error(trust.words)
