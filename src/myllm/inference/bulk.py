"""Captions of many pictures: threads read, decode and caption at the same time; results come in the pictures' order."""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import Any, Generic, Protocol, TypeVar

from myllm.batched import batched
from myllm.caption import Caption, CaptionerProtocol
from myllm.data.images import MAX_BYTES
from myllm.data.splits import name_hash, picture_digest
from myllm.errors import DataError
from myllm.files import ImageBytes, Picture, read_picture


class HasPicture(Protocol):
    """Anything with a picture."""

    @property
    def picture(self) -> Picture: ...


Item = TypeVar("Item", bound=HasPicture)


@dataclass(frozen=True)
class Result(Generic[Item]):
    """What became of a picture."""

    item: Item
    digest: str = ""
    """Hash of the picture's bytes; empty if they cannot be read."""
    caption: Caption | None = None
    """None if there is an error, or if the picture is a copy of another one."""
    error: str = ""


@dataclass(frozen=True)
class BulkCaptioner(Generic[Item]):
    """Captions many pictures in several threads."""

    captioner: CaptionerProtocol
    batch_size: int
    threads: int
    """Pictures are decoded, and batches captioned, in so many threads; a captioner that computes with one thread each
    keeps as many cores busy."""
    seed: int | None = None
    """Random seed of `do_sample`; a picture's samples depend on it and on the picture's bytes."""
    claim: Callable[[str], bool] = lambda digest: True
    """Called with the hash of a picture that is about to be captioned; if it returns False, the picture is a copy and
    is not captioned."""
    is_stopped: Callable[[], bool] = lambda: False
    """When it returns True, batches that are not begun are dropped."""

    def caption(self, items: Iterable[Item]) -> Generator[list[Result[Item]], None, None]:
        """Yield the results of batches of pictures, in order; `items` are taken as they are needed.

        The first batches are smaller, so that captions come soon. In each turn, all threads get batches of one size: a
        few pictures, and the last ones, keep all threads busy.
        """
        with ThreadPoolExecutor(self.threads, "caption") as pool:
            running = deque[Future[list[Result[Item]]]]()
            try:
                for batch in _make_batches(items, self.batch_size, self.threads):
                    # before a batch is captioned, all of its pictures are being decoded: threads take jobs in order
                    decoded = [pool.submit(self._decode, item) for item in batch]
                    running.append(pool.submit(self._caption_batch, decoded))
                    if len(running) > self.threads:
                        yield running.popleft().result()
                while running:
                    future = running.popleft()
                    if not (self.is_stopped() and future.cancel()):
                        yield future.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _decode(self, item: Item) -> tuple[Result[Item], Any]:
        """Return the result so far, and the captioner's input; None if the picture cannot be read."""
        digest = ""
        try:
            image = ImageBytes(str(item.picture), read_picture(item.picture, MAX_BYTES))
            digest = picture_digest(image)
            return Result(item, digest), self.captioner.preprocess(image)
        except DataError as error:
            return Result(item, digest, error=str(error)), None

    def _caption_batch(self, decoded: Sequence[Future[tuple[Result[Item], Any]]]) -> list[Result[Item]]:
        pairs = [future.result() for future in decoded]
        results = [result for result, _ in pairs]
        chosen = [i for i, (result, pixels) in enumerate(pairs) if pixels is not None and self.claim(result.digest)]
        if chosen:
            seeds = None
            if self.seed is not None:
                seeds = [name_hash("caption", self.seed, results[index].digest) % 2**62 for index in chosen]
            images = [pairs[index][1] for index in chosen]
            captions = self.captioner.caption_tensors(images, self.captioner.decode, seeds=seeds)
            for index, caption in zip(chosen, captions, strict=True):
                result = results[index]
                results[index] = Result(result.item, result.digest, None if caption.error else caption, caption.error)
        return results


def _make_batches(items: Iterable[Item], batch_size: int, threads: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    for share in chain((4, 2), repeat(1)):
        turn = list(islice(iterator, threads * max(1, batch_size // share)))
        if not turn:
            return
        yield from batched(turn, math.ceil(len(turn) / threads))
