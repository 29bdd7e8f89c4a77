from myllm.metrics.ngrams import ngrams


def test_ngrams_are_ordered_by_length_then_by_position() -> None:
    assert list(ngrams(["a", "b", "c"], max_n=2)) == [("a",), ("b",), ("c",), ("a", "b"), ("b", "c")]


def test_ngrams_longer_than_the_caption_do_not_exist() -> None:
    assert list(ngrams(["a", "b"], max_n=4)) == [("a",), ("b",), ("a", "b")]
    assert list(ngrams([], max_n=4)) == []
