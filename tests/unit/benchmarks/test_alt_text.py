import pytest
from alt_text import COVERAGES, curve, wilson_interval


def test_curve_counts_false_things_among_the_most_confident_texts() -> None:
    texts = ["A dog on grass", "A red ball", "A horse", "A cat on a beach"]
    references = [["a puppy", "a brown dog on the grass"], ["a blue ball"], ["a dog"], ["a cat"]]
    points = dict(zip(COVERAGES, curve([0.9, 0.8, 0.7, 0.6], texts, references), strict=True))
    assert [points[share].false for share in (0.05, 0.25, 0.5, 0.7, 1)] == [0, 0, 0, 1 / 3, 1 / 4]
    assert [points[share].false_place for share in (0.5, 1)] == [0, 1 / 2]
    assert [points[share].any_false for share in (0.25, 0.5, 1)] == [0, 1 / 2, 3 / 4]
    assert [points[share].min_confidence for share in (0.25, 0.5, 1)] == [0.9, 0.8, 0.6]


def test_wilson_interval_is_that_of_the_textbook() -> None:
    assert wilson_interval(0.1, 100) == pytest.approx((0.0552, 0.1744), abs=1e-4)
