import itertools
import math

import numpy as np
import pytest

from myllm.metrics.bleu import bleu
from myllm.metrics.bootstrap import LEVEL, differences, draws_for, interval, intervals, resample
from myllm.metrics.result import mean_of, share_of


def normal(count: int, seed: int, mean: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1, count)


def test_interval_of_a_mean_equals_the_normal_approximation() -> None:
    values = normal(2000, 1)
    low, high = intervals({"x": mean_of(values)})["x"]
    error = 1.959964 * values.std() / math.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.003)


def test_intervals_cover_the_truth_in_19_of_20_cases() -> None:
    covered = 0
    for seed in range(300):
        low, high = intervals({"x": mean_of(normal(100, seed, 5))}, draws=500, seed=seed)["x"]
        covered += low <= 5 <= high
    assert covered / 300 == pytest.approx(LEVEL, abs=0.04)


def test_figures_that_share_their_sums_see_the_same_pictures() -> None:
    candidates, references = [["a", "b"], ["a"], ["c", "d"]], [[["a", "b"]], [["b"]], [["c", "x"]]]
    figures = bleu(candidates, references, max_n=2)
    again = resample({**figures, "first": mean_of(figures["BLEU-1"].per_image)}, draws=50)
    one_draw = np.random.default_rng(0).integers(3, size=(50, 3))[7]
    expected = bleu([candidates[index] for index in one_draw], [references[index] for index in one_draw], max_n=2)
    assert again["BLEU-2"][7] == pytest.approx(expected["BLEU-2"].corpus)
    assert again["first"][7] == pytest.approx(figures["BLEU-1"].per_image[one_draw].mean())


def test_the_same_seed_draws_the_same_pictures() -> None:
    figures = {"x": mean_of(normal(50, 1))}
    assert (resample(figures, 20, seed=3)["x"] == resample(figures, 20, seed=3)["x"]).all()
    assert (resample(figures, 20, seed=3)["x"] != resample(figures, 20, seed=4)["x"]).any()


def test_interval_of_one_picture_has_width_0() -> None:
    assert intervals({"x": mean_of([0.5])}) == {"x": (0.5, 0.5)}


def test_a_real_difference_is_significant_and_equal_values_are_not() -> None:
    a = normal(500, 1)
    better, same = mean_of(a + 0.2 + 0.3 * normal(500, 2)), mean_of(a)
    result = differences({"x": same}, {"x": better})["x"]
    assert result.p < 0.001 and result.interval[0] > 0
    assert result.interval[0] < result.difference < result.interval[1]
    nothing = differences({"x": same}, {"x": same})["x"]
    assert nothing.p == 1 and nothing.interval == (0, 0) and nothing.wins == (0, 0, 500)


@pytest.mark.parametrize("pictures", [10, 12, 60])
def test_p_is_below_a_twentieth_at_most_one_time_in_twenty_if_nothing_differs(pictures: int) -> None:
    p = [
        differences(
            {"x": mean_of(normal(pictures, seed))}, {"x": mean_of(normal(pictures, seed + 10_000))}, draws=400
        )["x"].p
        for seed in range(300)
    ]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.03)


def test_p_of_few_pictures_enumerates_all_swaps() -> None:
    gains = normal(11, 3) + 0.4
    p = differences({"x": mean_of(np.zeros(11))}, {"x": mean_of(gains)})["x"].p
    means = [abs(np.mean(gains * signs)) for signs in itertools.product((-1, 1), repeat=11)]
    assert p == np.mean(np.array(means) >= abs(gains.mean()) - 1e-12)


def test_p_of_many_pictures_is_close_to_that_of_all_sign_flips() -> None:
    gains = normal(14, 8) + 0.5  # one more than is enumerated
    p = differences({"x": mean_of(np.zeros(14))}, {"x": mean_of(gains)})["x"].p
    means = [abs(np.mean(gains * signs)) for signs in itertools.product((-1, 1), repeat=14)]
    assert p == pytest.approx(np.mean(np.array(means) >= abs(gains.mean()) - 1e-12), abs=0.01)


def test_fewer_than_ten_pictures_have_no_p() -> None:
    difference = differences({"x": mean_of(np.zeros(9))}, {"x": mean_of(np.ones(9))})["x"]
    assert difference.p is None and difference.p_text == "-"


def test_values_below_a_thousandth_are_ties() -> None:
    a, b = mean_of([1e-9, 5e-4, 0.0005, 0.2]), mean_of([1e-5, 9e-4, 0.0015, 0.1])
    assert differences({"x": a}, {"x": b})["x"].wins == (1, 1, 2)


def test_values_below_0_are_not_ties() -> None:
    a, b = mean_of([-0.5, -0.1, 0.3]), mean_of([-0.2, -0.3, -0.1])  # as the grounding gap may be
    assert differences({"x": a}, {"x": b})["x"].wins == (2, 1, 0)


@pytest.mark.parametrize("pictures", [12, 50])
def test_metrics_that_are_both_below_a_thousandth_do_not_differ(pictures: int) -> None:
    a, b = mean_of(np.full(pictures, 1e-16)), mean_of(np.full(pictures, 9e-4))
    assert differences({"BLEU-4": a}, {"BLEU-4": b})["BLEU-4"].p == 1


def test_a_share_of_nothing_is_not_compared() -> None:
    nothing, half = share_of([(0, 0)] * 4, "numbers"), share_of([(1, 2)] * 4, "numbers")
    assert differences({"x": nothing}, {"x": half}) == {}


def test_draws_without_a_case_do_not_spoil_the_interval() -> None:
    low, high = intervals({"x": share_of([(1, 2), (0, 0), (0, 0)], "numbers")})["x"]
    assert low == high == 0.5


def test_paired_difference_is_found_although_intervals_overlap() -> None:
    a = 10 * normal(200, 1)
    b = a + 0.5 + 0.1 * normal(200, 2)
    separate = intervals({"a": mean_of(a), "b": mean_of(b)})
    assert separate["a"][1] > separate["b"][0]  # they overlap
    assert differences({"x": mean_of(a)}, {"x": mean_of(b)})["x"].p < 0.001


def test_wins_count_pictures() -> None:
    result = differences({"x": mean_of([1, 2, 3, 4])}, {"x": mean_of([2, 1, 3, 5])})["x"]
    assert result.wins == (1, 2, 1)


def test_only_figures_that_both_have_are_compared() -> None:
    assert list(differences({"x": mean_of([1]), "y": mean_of([1])}, {"x": mean_of([2])})) == ["x"]


def test_a_million_pictures_get_fewer_draws() -> None:
    assert draws_for(1_000) == 10_000 and 100 < draws_for(1_000_000) < 1_000


def test_interval_cuts_off_equal_tails() -> None:
    assert interval(np.arange(1001.0)) == pytest.approx((25, 975))
