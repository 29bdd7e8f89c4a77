from collections.abc import Callable

import pytest
from leaks import chart, digit, false_copies
from PIL import Image


@pytest.mark.parametrize("draw", [digit, chart])
def test_different_digits_and_charts_are_taken_for_copies_less_than_once_in_a_hundred(
    draw: Callable[[int], Image.Image]
) -> None:
    assert false_copies(draw, 200) <= 0.01
