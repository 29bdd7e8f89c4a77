import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm.metrics.bleu import bleu

words = st.lists(st.sampled_from("abcd"), min_size=4, max_size=9)


def per_image(candidate: str, *references: str) -> dict[str, float]:
    scores = bleu([candidate.split()], [[reference.split() for reference in references]])
    return {name: figure.per_image[0] for name, figure in scores.items()}


def test_a_repeated_word_counts_as_often_as_one_reference_has_it() -> None:
    # Papineni et al. 2002, example 2: 2 of 7.
    scores = per_image("the the the the the the the", "the cat is on the mat", "there is a cat on the mat")
    assert scores["BLEU-1"] == pytest.approx(2 / 7)


def test_precisions_multiply_to_their_geometric_mean() -> None:
    scores = per_image("a b c d e", "a b c x e")  # 4 of 5 words, 2 of 4 pairs, 1 of 3 triples
    assert scores["BLEU-2"] == pytest.approx(math.sqrt(4 / 5 * 2 / 4))
    assert scores["BLEU-3"] == pytest.approx((4 / 5 * 2 / 4 * 1 / 3) ** (1 / 3))


def test_a_short_caption_pays_for_brevity() -> None:
    assert per_image("a b", "a b c d")["BLEU-1"] == pytest.approx(math.exp(1 - 4 / 2))


def test_of_two_equally_close_references_the_shorter_gives_the_length() -> None:
    assert per_image("a b c", "a b c d", "a b")["BLEU-1"] == pytest.approx(1)


def test_the_corpus_adds_counts_before_it_divides() -> None:
    figure = bleu([["a"], ["b", "b", "b"]], [[["a"]], [["c", "c", "c"]]])["BLEU-1"]
    assert figure.per_image == pytest.approx([1, 0])
    assert figure.corpus == pytest.approx(1 / 4)


def test_an_empty_candidate_scores_exactly_0() -> None:
    assert set(per_image("", "a b c d").values()) == {0.0}


@given(words, st.lists(words, max_size=3))
def test_a_caption_equal_to_a_reference_scores_1(candidate: list[str], others: list[list[str]]) -> None:
    scores = bleu([candidate], [[*others, candidate]])
    assert [figure.corpus for figure in scores.values()] == pytest.approx([1] * 4)
