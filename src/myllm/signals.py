"""Ctrl-C and SIGTERM that let work in hand be finished."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def caught_signals(on_signal: Callable[[], object] = bool) -> Iterator[list[int]]:
    """Yield a list that gets the numbers of SIGINT (Ctrl-C) and SIGTERM when they arrive.

    Another Ctrl-C raises KeyboardInterrupt. on_signal: called after each signal that is added.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield received
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        on_signal()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
