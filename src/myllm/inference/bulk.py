"""Captions of many pictures: threads read, decode and caption at the same time; results come in the pictures' order."""

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

from myllm.batched import batched
from myllm.caption import Caption, CaptionerProtocol
from myllm.config import DecodeConfig
from myllm.data.images import MAX_BYTES
from myllm.data.splits import name_hash
from myllm.errors import DataError
from myllm.files import Picture, StoredImage, read_picture


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


@dataclass(frozen=True, slots=True)
class _ReadImage(StoredImage):
    """A picture that was read already, so that its hash is of the bytes that are captioned."""

    name: str
    content: bytes

    def __str__(self) -> str:
        return self.name

    @property
    def size(self) -> int:  # type: ignore[override]
        """Number of bytes."""
        return len(self.content)

    def read(self) -> bytes:
        """Return its bytes."""
        return self.content


def caption_many(
    captioner: CaptionerProtocol, items: Iterable[Item], decode: DecodeConfig, batch_size: int, threads: int,
    seed: int | None = None, claim: Callable[[str], bool] = lambda digest: True,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Generator[list[Result[Item]], None, None]:
    """Yield the results of batches of pictures, in order; `items` are taken as they are needed.

    threads: pictures are decoded, and batches captioned, in so many threads; a captioner that computes with one thread
    each keeps as many cores busy.
    seed: random seed of `do_sample`; a picture's samples depend on it and on the picture's bytes.
    claim: called with the hash of a picture that is about to be captioned; if it returns False, the picture is a copy
    and is not captioned.
    is_stopped: when it returns True, batches that are not begun are dropped.

    The first batches are smaller, so that captions come soon, and a few pictures keep all threads busy.
    """
    caption = partial(_caption_batch, captioner, decode, seed, claim)
    with ThreadPoolExecutor(threads, "caption") as pool:
        running = deque[Future[list[Result[Item]]]]()
        try:
            for batch in _growing_batches(items, batch_size, threads):
                # before a batch is captioned, all of its pictures are being decoded: threads take jobs in order
                decoded = [pool.submit(_decode, captioner, item) for item in batch]
                running.append(pool.submit(caption, decoded))
                if len(running) > threads:
                    yield running.popleft().result()
            while running:
                future = running.popleft()
                if not (is_stopped() and future.cancel()):
                    yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _growing_batches(items: Iterable[Item], batch_size: int, threads: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    for share in (4, 2):
        for _ in range(threads):
            if batch := list(islice(iterator, max(1, batch_size // share))):
                yield batch
    yield from batched(iterator, batch_size)


def _decode(captioner: CaptionerProtocol, item: Item) -> tuple[Result[Item], Any]:
    """Return the result so far, and the captioner's input; None if the picture cannot be read."""
    digest = ""
    try:
        content = read_picture(item.picture, MAX_BYTES)
        digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        return Result(item, digest), captioner.preprocess(_ReadImage(str(item.picture), content))
    except DataError as error:
        return Result(item, digest, error=str(error)), None


def _caption_batch(
    captioner: CaptionerProtocol, decode: DecodeConfig, seed: int | None, claim: Callable[[str], bool],
    decoded: Sequence[Future[tuple[Result[Item], Any]]],
) -> list[Result[Item]]:
    pairs = [future.result() for future in decoded]
    results = [result for result, _ in pairs]
    chosen = [index for index, (result, pixels) in enumerate(pairs) if pixels is not None and claim(result.digest)]
    if chosen:
        seeds = None if seed is None else [name_hash("caption", seed, results[i].digest) % 2**62 for i in chosen]
        captions = captioner.caption_tensors([pairs[index][1] for index in chosen], decode, seeds=seeds)
        for index, caption in zip(chosen, captions, strict=True):
            result = results[index]
            results[index] = Result(result.item, result.digest, None if caption.error else caption, caption.error)
    return results
