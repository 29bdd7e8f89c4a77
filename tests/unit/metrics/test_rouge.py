from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm.metrics.rouge import _common_lengths, rouge_l

words = st.lists(st.sampled_from("abcd"), max_size=9)


def per_image(candidate: str, *references: str) -> float:
    return rouge_l([candidate.split()], [[reference.split() for reference in references]])["ROUGE-L"].per_image[0]


def test_recall_outweighs_precision() -> None:
    # Common subsequence "police the gunman": precision 3/4, recall 3/5.
    score = per_image("police kill the gunman", "police shot at the gunman")
    assert score == pytest.approx((1 + 1.44) * (3 / 4) * (3 / 5) / (3 / 5 + 1.44 * 3 / 4))


def test_precision_and_recall_come_from_their_best_references() -> None:
    # Precision 2/2 against the first, recall 1/1 against the second.
    assert per_image("a b", "a x b y", "a") == pytest.approx(1)


@pytest.mark.parametrize(("candidate", "reference"), [("", "a"), ("a", ""), ("a", "b")])
def test_nothing_in_common_scores_0(candidate: str, reference: str) -> None:
    assert per_image(candidate, reference) == 0


def test_captions_without_words_are_equal_as_in_pycocoevalcap() -> None:
    assert per_image("", "a dog", "") == pytest.approx(1)


def test_the_corpus_is_the_mean_over_pictures() -> None:
    figure = rouge_l([["a"], ["b"]], [[["a"]], [["c"]]])["ROUGE-L"]
    assert figure.corpus == 0.5 and figure.per_image.tolist() == [1, 0]


@given(words.filter(bool), st.lists(words, max_size=3))
def test_a_caption_equal_to_a_reference_scores_1(candidate: list[str], others: list[list[str]]) -> None:
    assert rouge_l([candidate], [[*others, candidate]])["ROUGE-L"].corpus == pytest.approx(1)


@given(words, words)
def test_bit_parallel_lengths_are_those_of_the_recursion(left: list[str], right: list[str]) -> None:
    @cache
    def longest(i: int, j: int) -> int:
        if not i or not j:
            return 0
        if left[i - 1] == right[j - 1]:
            return longest(i - 1, j - 1) + 1
        return max(longest(i - 1, j), longest(i, j - 1))

    assert _common_lengths(left, [right]) == [longest(len(left), len(right))]
