import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm.errors import DataError
from myllm.metrics.diversity import measure_diversity, repeating_share, self_cider, unusual_endings


def test_a_collapsed_model_has_low_diversity() -> None:
    diversity = measure_diversity(["A dog runs."] * 99 + ["a cat"])
    assert (diversity.captions, diversity.distinct_captions, diversity.distinct_share) == (100, 2, 0.02)
    assert (diversity.most_frequent, diversity.most_frequent_share) == ("a dog runs", 0.99)
    assert diversity.vocabulary_size == 4


def test_distinct_n_divides_distinct_ngrams_by_all() -> None:
    diversity = measure_diversity(["a b a b", "c"])
    assert diversity.distinct_1 == pytest.approx(3 / 5)
    assert diversity.distinct_2 == pytest.approx(2 / 3)
    assert diversity.distinct_3 == pytest.approx(2 / 2)
    assert diversity.mean_length == pytest.approx(5 / 2)


def test_captions_that_differ_only_in_case_and_punctuation_are_equal() -> None:
    assert measure_diversity(["A dog.", "a dog"]).distinct_captions == 1


def test_a_caption_of_two_pictures_counts_as_repeated_for_both() -> None:
    assert measure_diversity(["a dog", "A dog .", "a cat", "a cow"]).repeated_share == 2 / 4


def test_captions_are_unseen_if_no_training_caption_has_the_same_words() -> None:
    captions = ["A dog runs.", "a cat", "a cat", "a cow"]
    assert measure_diversity(captions, training=["a dog runs", "a cow eats"]).unseen_share == 3 / 4
    assert measure_diversity(captions, training=set(captions)).unseen_share == 0


def test_without_training_captions_unseen_share_is_none() -> None:
    assert measure_diversity(["a dog"]).unseen_share is None


def test_captions_without_words_are_measured() -> None:
    diversity = measure_diversity(["", "..."])
    assert (diversity.most_frequent, diversity.most_frequent_share) == ("", 1)
    assert diversity.distinct_1 == diversity.distinct_2 == 0
    assert diversity.mean_length == diversity.vocabulary_size == 0


def test_no_captions_at_all_are_an_error() -> None:
    with pytest.raises(DataError, match="no captions"):
        measure_diversity([])


@given(st.lists(st.text(alphabet="ab "), min_size=1, max_size=9))
def test_shares_are_fractions_and_independent_of_order(captions: list[str]) -> None:
    diversity = measure_diversity(captions)
    shares = (
        diversity.distinct_share, diversity.repeated_share,
        diversity.distinct_1, diversity.distinct_2, diversity.distinct_3,
    )
    assert all(0 <= share <= 1 for share in shares)
    again = measure_diversity(captions[::-1])
    assert shares == (
        again.distinct_share, again.repeated_share, again.distinct_1, again.distinct_2, again.distinct_3
    )


GROUPS = [
    ["a dog runs on the grass", "a brown dog runs fast", "the dog plays"],
    ["two men on a red boat", "two men on a red boat", "people sit in a boat on the water"],
    ["a girl", "a girl jumps over a rock by the sea", "a child leaps"],
]


def spread_by_singular_values(group: list[str], corpus: list[list[str]]) -> float:
    """Return self-CIDEr by another way: from singular values of the captions' TF-IDF vectors, normalized by order."""

    def grams(caption: str, n: int) -> list[str]:
        words = caption.split()
        return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]

    def weight(gram: str, n: int) -> float:
        pictures = sum(any(gram in grams(caption, n) for caption in captions) for captions in corpus)
        return math.log(len(corpus) / max(1, pictures))

    rows = []
    for caption in group:
        row: list[float] = []
        for n in (1, 2, 3, 4):
            vocabulary = sorted({gram for other in group for gram in grams(other, n)})
            block = [grams(caption, n).count(gram) * weight(gram, n) for gram in vocabulary]
            row += [value / (math.hypot(*block) or 1) / 2 for value in block]
        rows.append(row)
    values = np.linalg.svd(np.array(rows), compute_uv=False)
    return -math.log(values[0] / values.sum()) / math.log(len(group))


def test_self_cider_is_the_spread_of_singular_values() -> None:
    diversity = self_cider(GROUPS)
    assert diversity.per_image == pytest.approx([spread_by_singular_values(group, GROUPS) for group in GROUPS])
    assert diversity.corpus == pytest.approx(diversity.per_image.mean())


def test_self_cider_can_take_its_frequencies_from_references() -> None:
    references = [["a dog"], ["a boat on water", "a red boat"], ["a girl jumps"], ["the sea"]]
    expected = [spread_by_singular_values(group, references) for group in GROUPS]
    assert self_cider(GROUPS, references).per_image == pytest.approx(expected)


def test_self_cider_is_0_for_equal_captions_and_1_if_nothing_is_shared() -> None:
    same, different = ["a dog runs on grass"] * 4, ["red boats sail far away", "one two three four", "we all sing loud"]
    assert self_cider([same, different]).per_image == pytest.approx([0, 1], abs=1e-6)


def test_self_cider_compares_by_words() -> None:
    assert self_cider([["A dog runs.", "a dog runs"], ["a cat", "one cow"]]).per_image[0] == pytest.approx(0, abs=1e-6)


def test_captions_without_words_are_not_diverse() -> None:
    assert self_cider([["", ""], ["a cat", "one cow"]]).per_image[0] == 0


def test_self_cider_needs_several_captions_of_each_picture() -> None:
    with pytest.raises(DataError, match="picture 2 of 2 has 1 captions"):
        self_cider([["a dog", "a cat"], ["a dog"]])


def test_repeating_share_counts_captions_in_which_three_words_come_twice() -> None:
    captions = ["A man in a hat. A man in a coat", "a dog and a dog", "a dog and a dog and a cat", "a", ""]
    assert repeating_share(captions) == pytest.approx(2 / 5)
    assert repeating_share(captions, 2) == pytest.approx(3 / 5)


def test_unusual_endings_are_last_words_that_references_hardly_have() -> None:
    references = ["a dog on a hill ."] * 999 + ["a dog on a"]
    captions = ["a dog on a hill", "a dog on a", "a dog with", "a dog with the"]
    assert unusual_endings(captions, references) == {"a": 0.25, "with": 0.25, "the": 0.25}
