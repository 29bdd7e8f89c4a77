import pytest

from myllm.metrics.wilson import wilson_interval


@pytest.mark.parametrize(
    ("right", "count", "interval"),
    [  # Newcombe 1998, table I, method 3
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_interval_equals_published_values(right: int, count: int, interval: tuple[float, float]) -> None:
    assert wilson_interval(right / count, count) == pytest.approx(interval, abs=1e-4)
