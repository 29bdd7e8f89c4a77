"""Progress reports of long jobs."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with the activity ("reading pictures"), the number of items done, and the number of all items."""


def no_progress(activity: str, done: int, total: int) -> None:
    """Ignore a progress report: the default of jobs that nobody watches."""
