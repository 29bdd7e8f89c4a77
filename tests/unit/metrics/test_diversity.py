import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm.errors import DataError
from myllm.metrics.diversity import measure_diversity


def test_a_collapsed_model_shows_in_every_figure() -> None:
    found = measure_diversity(["A dog runs."] * 99 + ["a cat"])
    assert (found.captions, found.distinct_captions, found.distinct_share) == (100, 2, 0.02)
    assert (found.most_frequent, found.most_frequent_share) == ("a dog runs", 0.99)
    assert found.vocabulary_size == 4


def test_distinct_n_divides_distinct_ngrams_by_all() -> None:
    found = measure_diversity(["a b a b", "c"])
    assert found.distinct_1 == pytest.approx(3 / 5)
    assert found.distinct_2 == pytest.approx(2 / 3)
    assert found.mean_length == pytest.approx(5 / 2)


def test_captions_that_differ_in_case_and_punctuation_alone_are_one() -> None:
    assert measure_diversity(["A dog.", "a dog"]).distinct_captions == 1


def test_captions_without_words_are_legal() -> None:
    found = measure_diversity(["", "..."])
    assert (found.most_frequent, found.most_frequent_share) == ("", 1)
    assert (found.distinct_1, found.distinct_2, found.mean_length, found.vocabulary_size) == (0, 0, 0, 0)


def test_no_captions_at_all_are_an_error() -> None:
    with pytest.raises(DataError, match="no captions"):
        measure_diversity([])


@given(st.lists(st.text(alphabet="ab "), min_size=1, max_size=9))
def test_shares_are_fractions_and_know_no_order(captions: list[str]) -> None:
    found = measure_diversity(captions)
    shares = (found.distinct_share, found.distinct_1, found.distinct_2, found.most_frequent_share)
    assert all(0 <= share <= 1 for share in shares)
    again = measure_diversity(captions[::-1])
    assert shares == (again.distinct_share, again.distinct_1, again.distinct_2, again.most_frequent_share)
