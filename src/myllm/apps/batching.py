"""A bounded queue of pictures, and the threads that caption them in batches.

A batch forms while the last one computes: a thread that becomes free takes the oldest picture, and with it those that
wait for the same captioner with the same options. So an idle server begins at once, and a busy one fills its batches.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Any

from myllm.caption import Caption, CaptionerProtocol, Follower
from myllm.config import DecodeConfig


class QueueFull(Exception):
    """As many pictures as are allowed wait or are being captioned."""


@dataclass(eq=False)
class Job:
    """One picture to caption. Cancelling its future removes it from the queue, or ends its search after a step."""

    captioner: CaptionerProtocol
    pixels: Any
    """The preprocessed picture."""
    decode: DecodeConfig
    seed: int
    """Random seed of `do_sample`."""
    show: Callable[[str], object] | None = None
    """Called with the text so far, in the thread that computes; see `Follower`."""
    future: Future[Caption] = field(default_factory=Future)
    submitted: float = field(default_factory=time.monotonic)

    def fits(self, other: "Job") -> bool:
        """Return whether both can be captioned in one batch."""
        return self.captioner is other.captioner and self.decode == other.decode

    def finish(self, caption: Caption) -> None:
        """Set the result, unless the job was cancelled."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(caption)

    def fail(self, error: BaseException) -> None:
        """Set the error, unless the job was cancelled."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class Observer:
    """Is called about what happens in a `Batcher`; does nothing by itself."""

    def batch_begins(self, waited: Sequence[float]) -> None:
        """A batch begins, whose pictures have waited so many seconds each."""

    def batch_ends(self, seconds: float) -> None:
        """A batch has been computed."""

    def step_ends(self, is_wanted: bool) -> None:
        """A decoding step of a picture has been computed; is_wanted: whether somebody waits for its caption."""


class Batcher:
    """Captions jobs in batches of at most `max_batch`, in several threads."""

    def __init__(self, threads: int, max_batch: int, max_places: int, observer: Observer | None = None) -> None:
        """max_places: limit of the pictures that wait or are being captioned, see `place`."""
        self.max_batch, self.max_places, self.observer = max_batch, max_places, observer or Observer()
        self.places_taken = 0
        self._jobs: list[Job] = []
        self._is_closed = False
        self._changed = Condition()
        self._threads = [Thread(target=self._work, name=f"batch-{index}", daemon=True) for index in range(threads)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Number of jobs that are not yet in a batch."""
        return len(self._jobs)

    @property
    def is_full(self) -> bool:
        """Whether every place is taken."""
        return self.places_taken >= self.max_places

    @contextmanager
    def place(self) -> Iterator[None]:
        """Take a place for one picture until the block ends. Raises QueueFull if none is free."""
        with self._changed:
            if self.is_full:
                raise QueueFull
            self.places_taken += 1
        try:
            yield
        finally:
            with self._changed:
                self.places_taken -= 1

    def submit(self, job: Job) -> Future[Caption]:
        """Return the future of the job's caption. Raises RuntimeError after `close`."""
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the batcher is closed")
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Finish all jobs, then end the threads."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            begin = time.monotonic()
            self.observer.batch_begins([begin - job.submitted for job in batch])
            self._caption(batch)
            self.observer.batch_ends(time.monotonic() - begin)

    def _next_batch(self) -> list[Job]:
        """Wait for jobs and take some that fit together; none if the batcher is closed and all are done."""
        with self._changed:
            while True:
                self._jobs = [job for job in self._jobs if not job.future.cancelled()]
                if self._jobs or self._is_closed:
                    break
                self._changed.wait()
            batch = [job for job in self._jobs if job.fits(self._jobs[0])][: self.max_batch]
            self._jobs = [job for job in self._jobs if job not in batch]
            return batch

    def _caption(self, batch: Sequence[Job]) -> None:
        """Caption the jobs together; if that fails, each by itself, so that only those at fault fail."""
        captioner, decode = batch[0].captioner, batch[0].decode
        pixels, seeds = [job.pixels for job in batch], [job.seed for job in batch]
        try:
            followers = [self._follower(job) for job in batch]
            captions = captioner.caption_tensors(pixels, decode, seeds=seeds, followers=followers)
        except BaseException as error:  # a thread that ends would leave its jobs without an answer
            if len(batch) == 1:
                batch[0].fail(error)
            else:
                for job in batch:
                    if not job.future.cancelled():
                        self._caption([job])
            return
        for job, caption in zip(batch, captions, strict=True):
            job.finish(caption)

    def _follower(self, job: Job) -> Follower:
        def has_left() -> bool:
            is_left = job.future.cancelled()
            self.observer.step_ends(not is_left)
            return is_left

        return Follower(has_left, job.show)
