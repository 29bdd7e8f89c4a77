import numpy as np
import pytest

from myllm.decoding.engine import Hypothesis
from myllm.decoding.retrieval import NEIGHBOURS, CaptionIndex, by_agreement
from myllm.metrics.cider import CiderD

RNG = np.random.default_rng(0)
MEANS = RNG.normal(size=(50, 8)).astype(np.float32) * np.array([9, 5, 3, 1, 1, 1, 0.1, 0.1], np.float32)
CAPTIONS = [[RNG.integers(20, size=length).tolist() for length in (3, 6, 4)[: 1 + number % 3]] for number in range(50)]


@pytest.fixture(scope="module")
def index() -> CaptionIndex:
    return CaptionIndex.build(MEANS, CAPTIONS)


def test_a_training_picture_is_its_own_nearest_neighbour(index: CaptionIndex) -> None:
    neighbours = index.neighbours(MEANS)
    assert neighbours.shape == (50, NEIGHBOURS) and neighbours[:, 0].tolist() == list(range(50))


def test_components_are_uncorrelated_and_have_variance_1(index: CaptionIndex) -> None:
    parts = (MEANS - index.mean) @ index.components
    assert np.allclose(np.cov(parts.T, bias=True), np.eye(8), atol=1e-4)


def test_neighbours_stay_the_same_if_the_values_are_scaled_and_turned(index: CaptionIndex) -> None:
    turned = MEANS @ RNG.normal(size=(8, 8)) + 7
    other = CaptionIndex.build(turned, CAPTIONS)
    for number in range(50):  # vectors are rounded to float16, so neighbours that are equally near may swap
        assert set(other.neighbours(turned)[number, :5]) <= set(index.neighbours(MEANS)[number, :7])


def test_agreement_is_cider_d_with_all_captions_of_the_neighbours(index: CaptionIndex) -> None:
    words = [[list(map(str, caption)) for caption in group] for group in CAPTIONS]
    candidates, neighbours = [CAPTIONS[3][0], [1, 2, 3, 4]], np.array([3, 7, 8])
    references = [caption for number in (3, 7, 8) for caption in words[number]]
    expected = CiderD(words).score([list(map(str, caption)) for caption in candidates], [references] * 2)
    assert index.agreement(neighbours, candidates) == expected and expected[0] > expected[1]


def test_an_index_that_was_saved_is_the_same(index: CaptionIndex) -> None:
    again = CaptionIndex.from_arrays(index.as_arrays())
    assert again.neighbours(MEANS).tolist() == index.neighbours(MEANS).tolist()
    assert again.agreement(np.arange(9), [[1, 2, 3]]) == index.agreement(np.arange(9), [[1, 2, 3]])


@pytest.mark.parametrize(("name", "array"), [
    ("counts", np.array([1, 2], np.int32)), ("lengths", np.zeros(150, np.int32)), ("mean", np.zeros(7)),
    ("tokens", np.zeros(5)), ("vectors", np.zeros((50, 3), np.float16)), ("ngrams", np.zeros(3, np.int64)),
    ("counts", -np.ones(50, np.int32)),
])
def test_arrays_that_do_not_fit_together_are_refused(index: CaptionIndex, name: str, array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="do not fit together"):
        CaptionIndex.from_arrays(index.as_arrays() | {name: array})


@pytest.mark.parametrize("count", [2, 3])
def test_a_few_pictures_or_equal_ones_can_be_indexed(count: int) -> None:
    for means in (MEANS[:count], np.ones((count, 8), np.float32)):
        small = CaptionIndex.build(means, CAPTIONS[:count])
        assert sorted(small.neighbours(MEANS[:1])[0].tolist()) == list(range(count))
        assert np.isfinite(small.components).all() and len(small.agreement(np.arange(count), [[1], []])) == 2
    with pytest.raises(ValueError, match="two pictures"):
        CaptionIndex.build(MEANS[:1], CAPTIONS[:1])


def test_captions_are_ranked_by_score_and_agreement_and_last_if_they_lack_a_word() -> None:
    likely, agreeing = Hypothesis([1], [-1.0]), Hypothesis([2], [-1.5])
    incomplete = Hypothesis([3], [-0.1], missing=("ball",))
    assert by_agreement([likely, agreeing, incomplete], [0.1, 0.2, 9.0]) == [likely, agreeing, incomplete]
    assert by_agreement([likely, agreeing, incomplete], [0.1, 0.3, 9.0]) == [agreeing, likely, incomplete]


def test_neighbours_do_not_depend_on_the_batch(index: CaptionIndex) -> None:
    alone = [index.neighbours(MEANS[number : number + 1])[0].tolist() for number in range(50)]
    assert index.neighbours(MEANS).tolist() == alone
