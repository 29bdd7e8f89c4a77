import pytest

from myllm.apps.dry_run_text import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2123, "0.212 s"), (59.96, "60 s"), (185, "3 min 5 s"), (45000, "12 h 30 min"), (3599.9, "1 h 0 min")],
)
def test_durations_in_the_units_that_people_use(seconds: float, text: str) -> None:
    assert duration(seconds) == text
