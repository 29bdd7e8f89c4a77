import numpy as np
import pytest

from myllm.metrics.bleu import bleu
from myllm.metrics.result import mean_of

CANDIDATES = [["a", "b", "c"], ["a", "x"], ["q"], ["a", "b", "c", "d", "e"]]
REFERENCES = [[["a", "b", "c"]], [["a", "b"], ["x", "x", "x"]], [["r"]], [["a", "b", "d", "e", "f"]]]


def test_a_mean_is_the_mean_of_all_or_some_pictures() -> None:
    figure = mean_of([1.0, 2.0, 6.0])
    assert figure.corpus == 3 and figure.of([0, 1]) == 1.5
    assert figure.of(np.array([False, True, True])) == 4


@pytest.mark.parametrize("pictures", [[0], [0, 3], [1, 2, 3]])
def test_value_of_some_pictures_equals_scoring_only_them(pictures: list[int]) -> None:
    separately = bleu([CANDIDATES[index] for index in pictures], [REFERENCES[index] for index in pictures])
    for name, figure in bleu(CANDIDATES, REFERENCES).items():
        assert figure.of(pictures) == pytest.approx(separately[name].corpus, abs=1e-12)


def test_a_picture_drawn_twice_counts_twice() -> None:
    twice = bleu([CANDIDATES[0], CANDIDATES[1], CANDIDATES[1]], [REFERENCES[0], REFERENCES[1], REFERENCES[1]])
    for name, figure in bleu(CANDIDATES, REFERENCES).items():
        assert figure.of([0, 1, 1]) == pytest.approx(twice[name].corpus, abs=1e-12)
