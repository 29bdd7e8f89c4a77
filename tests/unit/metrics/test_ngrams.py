from myllm.metrics.ngrams import ngrams


def test_ngrams_come_short_ones_first_and_in_order() -> None:
    assert list(ngrams(["a", "b", "c"], max_n=2)) == [("a",), ("b",), ("c",), ("a", "b"), ("b", "c")]


def test_a_caption_shorter_than_n_has_no_ngram_of_that_order() -> None:
    assert list(ngrams(["a", "b"], max_n=4)) == [("a",), ("b",), ("a", "b")]
    assert list(ngrams([], max_n=4)) == []
