import math

import numpy as np
import pytest

from myllm.decoding.engine import Hypothesis
from myllm.decoding.retrieval import (
    CIDER_WEIGHT,
    NEIGHBOURS,
    PRECISION_WEIGHT,
    TEMPERATURE,
    CaptionIndex,
    Neighbours,
)
from myllm.decoding.search import by_agreement, by_value
from myllm.metrics.cider import CiderD

RNG = np.random.default_rng(0)
MEANS = RNG.normal(size=(50, 8)).astype(np.float32) * np.array([9, 5, 3, 1, 1, 1, 0.1, 0.1], np.float32)
CAPTIONS = [[RNG.integers(20, size=length).tolist() for length in (3, 6, 4)[: 1 + number % 3]] for number in range(50)]


@pytest.fixture(scope="module")
def index() -> CaptionIndex:
    return CaptionIndex.build(MEANS, CAPTIONS)


def test_a_training_picture_is_its_own_nearest_neighbour(index: CaptionIndex) -> None:
    for number, mean in enumerate(MEANS):
        pictures = index.neighbours(mean).pictures.tolist()
        assert len(set(pictures)) == NEIGHBOURS and pictures[0] == number


def test_components_are_uncorrelated_and_have_variance_1(index: CaptionIndex) -> None:
    parts = (MEANS - index.mean) @ index.components
    assert np.allclose(np.cov(parts.T, bias=True), np.eye(8), atol=1e-4)


def test_neighbours_stay_the_same_if_the_values_are_scaled_and_turned(index: CaptionIndex) -> None:
    turned = MEANS @ RNG.normal(size=(8, 8)) + 7
    other = CaptionIndex.build(turned, CAPTIONS)
    for number in range(50):  # vectors are rounded to float16, so neighbours that are equally near may swap
        nearest = index.neighbours(MEANS[number]).pictures
        assert set(other.neighbours(turned[number]).pictures[:5]) <= set(nearest[:7])


def test_the_more_similar_a_neighbour_the_greater_its_weight(index: CaptionIndex) -> None:
    neighbours = index.neighbours(MEANS[4])
    vectors = (MEANS - index.mean) @ index.components
    cosines = vectors[neighbours.pictures] @ vectors[4] / np.linalg.norm(vectors[neighbours.pictures], axis=1)
    expected = np.exp(cosines / np.linalg.norm(vectors[4]) / TEMPERATURE)
    assert neighbours.weights == pytest.approx(expected / expected.sum(), rel=0.02)  # vectors are rounded to float16
    assert (np.diff(neighbours.weights) <= 0).all() and neighbours.weights[0] > 2 * neighbours.weights[-1]


def test_cider_is_the_weighted_mean_of_cider_d_with_the_neighbours_captions(index: CaptionIndex) -> None:
    words = [[list(map(str, caption)) for caption in group] for group in CAPTIONS]
    candidates = [CAPTIONS[3][0], [1, 2, 3, 4], []]
    corpus, texts = CiderD(words), [list(map(str, caption)) for caption in candidates]
    scores = [corpus.score(texts, [words[number]] * 3) for number in (3, 7, 8)]
    expected = np.array([0.5, 0.3, 0.2]) @ np.array(scores)
    neighbours = Neighbours(index, np.array([3, 7, 8]), np.array([0.5, 0.3, 0.2]))
    assert neighbours.cider(candidates) == pytest.approx(expected) and expected[0] > expected[1]


def test_precision_is_the_mean_support_weighted_by_rarity_of_tokens_that_come_once(index: CaptionIndex) -> None:
    neighbours = Neighbours(index, np.array([3, 7, 8]), np.array([0.5, 0.3, 0.2]))
    token, other = CAPTIONS[3][0][0], 99  # no caption has 99
    pictures = [len(CAPTIONS) / max(1, sum(any(t in caption for caption in group) for group in CAPTIONS))
                for t in (token, other)]
    rarity, rarest = map(math.log, pictures)
    [support] = neighbours.support([token])
    assert support >= 0.5 and rarity < rarest
    assert neighbours.precision([token]) == pytest.approx(support)
    assert neighbours.precision([other]) == neighbours.precision([]) == 0
    assert neighbours.precision([other, token, token]) == pytest.approx(support * rarity / (rarest + 2 * rarity))


def test_agreement_weighs_cider_and_precision(index: CaptionIndex) -> None:
    neighbours, candidates = index.neighbours(MEANS[4]), [CAPTIONS[4][0], [1, 2], []]
    precision = np.array([neighbours.precision(candidate) for candidate in candidates])
    expected = CIDER_WEIGHT * neighbours.cider(candidates) + PRECISION_WEIGHT * precision
    assert neighbours.agreement(candidates) == pytest.approx(expected.tolist())


def test_support_is_the_weight_of_the_neighbours_whose_captions_have_a_token(index: CaptionIndex) -> None:
    pictures, weights = [3, 7, 8, 20], [0.4, 0.3, 0.2, 0.1]
    support = Neighbours(index, np.array(pictures), np.array(weights)).support(list(range(20)))
    for token, share in enumerate(support):
        users = [any(token in caption for caption in CAPTIONS[number]) for number in pictures]
        assert share == pytest.approx(np.dot(weights, users))
    assert len(set(support)) > 2


def test_an_index_that_was_saved_is_the_same(index: CaptionIndex) -> None:
    again = CaptionIndex.from_arrays(index.as_arrays())
    for mean in MEANS:
        loaded, built = again.neighbours(mean), index.neighbours(mean)
        assert loaded.pictures.tolist() == built.pictures.tolist()
        assert loaded.agreement([[1, 2, 3]]) == built.agreement([[1, 2, 3]])


@pytest.mark.parametrize(("name", "array"), [
    ("counts", np.array([1, 2], np.int32)), ("lengths", np.zeros(150, np.int32)), ("mean", np.zeros(7)),
    ("tokens", np.zeros(5)), ("vectors", np.zeros((50, 3), np.float16)), ("ngrams", np.zeros(3, np.int64)),
    ("counts", -np.ones(50, np.int32)),
])
def test_arrays_that_do_not_fit_together_are_refused(index: CaptionIndex, name: str, array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="do not fit together"):
        CaptionIndex.from_arrays(index.as_arrays() | {name: array})


@pytest.mark.parametrize("name", ["mean", "components", "vectors", "log_frequencies"])
def test_an_index_with_a_number_that_is_not_finite_is_refused(index: CaptionIndex, name: str) -> None:
    array = index.as_arrays()[name].copy()
    array.flat[-1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        CaptionIndex.from_arrays(index.as_arrays() | {name: array})


@pytest.mark.parametrize("count", [2, 3])
def test_a_few_pictures_or_equal_ones_can_be_indexed(count: int) -> None:
    for means in (MEANS[:count], np.ones((count, 8), np.float32)):
        small = CaptionIndex.build(means, CAPTIONS[:count])
        neighbours = small.neighbours(MEANS[0])
        assert sorted(neighbours.pictures.tolist()) == list(range(count))
        assert np.isfinite(small.components).all() and len(neighbours.agreement([[1], []])) == 2
    with pytest.raises(ValueError, match="two pictures"):
        CaptionIndex.build(MEANS[:1], CAPTIONS[:1])


def test_captions_that_lack_a_word_come_last_whatever_their_value() -> None:
    first, second, incomplete = Hypothesis([1]), Hypothesis([2]), Hypothesis([3], missing=("ball",))
    assert by_value([first, incomplete, second], [0.3, 9.0, 0.7]) == [second, first, incomplete]
    assert by_value([first, second, incomplete], [0.3, 0.3, 9.0]) == [first, second, incomplete]


def test_captions_are_ranked_by_score_and_agreement(index: CaptionIndex) -> None:
    neighbours = index.neighbours(MEANS[4])
    likely, agreeing = Hypothesis([99, 98], [-0.1, -0.1]), Hypothesis(CAPTIONS[4][0])
    [agreement] = neighbours.agreement([agreeing.tokens])
    agreeing.logprobs = [-0.2 - agreement / 2]
    assert by_agreement([likely, agreeing], neighbours) == [agreeing, likely]
    agreeing.logprobs = [-0.2 - 2 * agreement]
    assert by_agreement([likely, agreeing], neighbours) == [likely, agreeing]
