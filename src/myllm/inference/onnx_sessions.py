"""ONNX Runtime sessions that share the cores."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Generic, TypeVar

import onnxruntime
import torch

from myllm.device import count_cores

T = TypeVar("T")


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Return options of a session that computes with so many threads, next to torch and other sessions."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # otherwise its threads keep the cores busy for a while after a run, and torch's threads wait for them
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


class Sessions(Generic[T]):
    """Sessions of one graph: with torch's number of threads, or with all cores for a picture by itself.

    A server computes batches side by side, each on one core. A lone picture would leave the other cores idle; with two
    threads for every batch, steps of many captions would take a quarter longer. Threads may share it.
    """

    def __init__(self, make: Callable[[int], T], threads: int | None = None) -> None:
        """make: returns a session with so many threads; called when it is first used. threads: always so many."""
        self._make, self._threads = make, threads
        self._made: dict[int, T] = {}
        self._making, self._lone = Lock(), Lock()

    @contextmanager
    def session(self, is_lone: bool) -> Iterator[T]:
        """Use a session. is_lone: for a picture by itself, which gets all cores unless another one has them now."""
        is_lone = is_lone and self._threads is None and self._lone.acquire(blocking=False)
        try:
            threads = self._threads or max(torch.get_num_threads(), count_cores() if is_lone else 1)
            with self._making:
                if threads not in self._made:
                    self._made[threads] = self._make(threads)
            yield self._made[threads]
        finally:
            if is_lone:
                self._lone.release()
