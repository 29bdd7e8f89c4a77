"""Features of a frozen backbone, computed once and kept on disk, so that an epoch runs only the decoder.

Rows are looked up by the picture's bytes and are verified at the start and whenever they are read: missing, truncated
and damaged rows are computed again, and no other picture's row is used. Processes share a folder; one at a time writes.
"""

import hashlib
import io
import itertools
import json
import math
import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from myllm.batched import batched
from myllm.data.records import Findings
from myllm.data.splits import picture_digest
from myllm.errors import DataError, MyLLMError
from myllm.files import Picture, atomic_write, wait_for_lock
from myllm.progress import Progress, no_progress

# Batches between two writes of the index: what an interruption can cost.
BATCHES_PER_SAVE = 20
Encode = Callable[[Tensor], tuple[Tensor, ...]]
Content = bytes | memoryview


class _Row(NamedTuple):
    """The row of a picture in `features.bin`."""

    digest: str
    """Hash of the picture's bytes."""
    number: int
    checksum: int
    """Checksum of the row and the digest."""

    def verifies(self, content: Content) -> bool:
        """Return whether `content` is unchanged since it was written for this picture."""
        return _checksum(self.digest, content) == self.checksum


@dataclass(frozen=True)
class Features:
    """Features of pictures, read from the disk when they are used: the system's file cache is shared by processes."""

    path: Path
    """The file of rows."""
    shape: tuple[int, ...]
    """(outputs, S, C) of a row: one output in mode last, and one for each decoder block in layerwise."""
    dtype: np.dtype[Any]
    pictures: tuple[_Row, ...]
    """The row of each picture, by the picture's index."""

    def rows(self, index: Tensor) -> tuple[Tensor, ...]:
        """Return the features (B, S, C) float32 of pictures (B,) int64, one tensor for each output of the backbone.

        Raises DataError if a row cannot be read, or is not the one that was written for its picture.
        """
        values = np.empty((len(index), *self.shape), self.dtype)
        try:
            with self.path.open("rb") as file:
                for content, picture in zip(values, map(self.pictures.__getitem__, index.tolist()), strict=True):
                    file.seek(picture.number * content.nbytes)
                    file.readinto(content)
                    if not picture.verifies(content.data):
                        raise DataError(
                            f"{self.path}: row {picture.number} has changed since it was written; "
                            "start again, and it is computed anew"
                        )
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror or error})") from error
        return torch.from_numpy(values).float().unbind(1)


class FeatureCache:
    """Features in `features.bin`, with the picture and the checksum of each row in `index.json`."""

    def __init__(self, folder: Path, key: str, half: bool = False) -> None:
        """Choose the subfolder for `key`: text with all that features depend on (backbone, weights, preprocessing).

        half: keep float16 instead of float32.
        """
        self.key = f"{key} {'float16' if half else 'float32'}"
        self.dtype = np.dtype(np.float16 if half else np.float32)
        self.folder = folder / hashlib.blake2b(self.key.encode(), digest_size=8).hexdigest()
        self._bin = self.folder / "features.bin"
        self._index = self.folder / "index.json"
        self._digest = cache(picture_digest)  # a picture is read once for `known` and `features`

    def features(
        self, pictures: Sequence[Picture], images: Callable[[Sequence[int]], Tensor], encode: Encode,
        findings: Findings, batch_size: int = 16, progress: Progress = no_progress, views: Sequence[str] = (),
    ) -> Features:
        """Return the features of all `pictures`; those that are not on disk are computed.

        views: if pictures are changed before they are encoded, for each a text that says how, or "".
        images: returns (B, 3, H, W) for indexes of pictures; called in a thread while the previous batch is encoded.
        encode: returns (B, S, C) for each output of the backbone. Raises MyLLMError if the disk is full.
        """
        digests = [self._digest(path) for path in pictures]
        if views:
            digests = [_view_digest(digest, view) for digest, view in zip(digests, views, strict=True)]
        index = self._checked_index(Findings())  # without the lock, as others may be using the features for hours
        if not index.rows.keys() >= set(digests):
            wait = partial(progress, "waiting for another process that computes features", 0, len(digests))
            with wait_for_lock(self.folder / "writing.lock", wait):
                index = self._checked_index(findings)
                missing = {digest: number for number, digest in enumerate(digests) if digest not in index.rows}
                self._extract(list(missing.values()), digests, index, images, encode, batch_size, progress)
        rows = tuple(_Row(digest, *index.rows[digest]) for digest in digests)
        return Features(self._bin, tuple(index.shape), self.dtype, rows)

    def known(self, pictures: Sequence[Picture]) -> set[Picture]:
        """Return the pictures that have a row, so that they need no decoding; checksums are not verified."""
        rows = self._read_index(Findings()).rows
        known = set[Picture]()
        for path in pictures if rows else ():
            with suppress(DataError):  # `check_pictures` reports it
                known |= {path} if self._digest(path) in rows else set()
        return known

    def _read_index(self, findings: Findings) -> "_Index":
        """Return the index on disk, or an empty one; an index that cannot be read is listed in the findings."""
        try:
            index = _Index(**json.loads(self._index.read_text(encoding="utf-8")))
            numbers = [*index.shape, *(number for row, checksum in index.rows.values() for number in (row, checksum))]
            are_numbers = all(type(number) is int and number >= 0 for number in numbers)
            is_one_to_one = len({row for row, _ in index.rows.values()}) == len(index.rows)
            if index.key == self.key and len(index.shape) == 3 and are_numbers and is_one_to_one:
                return index
            raise ValueError("not an index of these features")
        except FileNotFoundError:
            return _Index(self.key)
        except (OSError, ValueError, TypeError, AttributeError):
            findings.repaired_features.append(f"{self._index}: unreadable, all features are computed anew")
            return _Index(self.key)

    def _checked_index(self, findings: Findings) -> "_Index":
        """Return the index; rows that have changed since they were written are `damaged` there, and in the findings."""
        index = self._read_index(findings)
        row_bytes = math.prod(index.shape) * self.dtype.itemsize
        with self._bin.open("rb") if self._bin.is_file() else io.BytesIO() as file:
            for digest, (row, checksum) in sorted(index.rows.items(), key=lambda item: item[1][0]):
                file.seek(row * row_bytes)
                if not _Row(digest, row, checksum).verifies(file.read(row_bytes)):
                    findings.repaired_features.append(f"{self._bin}: row {row}")
                    index.damaged[digest] = row
                    del index.rows[digest]
        return index

    def _extract(
        self, missing: Sequence[int], digests: Sequence[str], index: "_Index",
        images: Callable[[Sequence[int]], Tensor], encode: Encode, batch_size: int, progress: Progress,
    ) -> None:
        batches = list(batched(missing, batch_size))
        if not batches:
            return
        # a row stays its picture's for ever, because another process may be reading it
        known_rows = (*index.damaged.values(), *(row for row, _ in index.rows.values()))
        new_rows = itertools.count(1 + max(known_rows, default=-1))
        try:
            with ThreadPoolExecutor(1) as pool, open(os.open(self._bin, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
                next_images = pool.submit(images, batches[0])
                for number, batch in enumerate(batches, start=1):
                    pictures = next_images.result()
                    if number < len(batches):
                        next_images = pool.submit(images, batches[number])
                    for picture, values in zip(batch, self._encode(pictures, encode, index), strict=True):
                        content, digest = values.tobytes(), digests[picture]
                        row = index.damaged[digest] if digest in index.damaged else next(new_rows)
                        file.seek(row * len(content))
                        file.write(content)
                        index.rows[digest] = (row, _checksum(digest, content))
                    if number % BATCHES_PER_SAVE == 0 or number == len(batches):
                        file.flush()
                        os.fsync(file.fileno())
                        with atomic_write(self._index) as index_file:
                            saved = {"key": index.key, "shape": index.shape, "rows": index.rows}
                            index_file.write(json.dumps(saved).encode())
                    done = len(digests) - len(missing) + min(number * batch_size, len(missing))
                    progress("encoding pictures", done, len(digests))
        except OSError as error:
            raise MyLLMError(
                f"cannot write {self._bin}: {error.strerror or error}. Make room and run again; finished features stay"
            ) from error

    def _encode(self, pictures: Tensor, encode: Encode, index: "_Index") -> np.ndarray[Any, Any]:
        """Return the features (B, outputs, S, C) in the cache's precision."""
        with torch.inference_mode():
            stacked = torch.stack(encode(pictures), dim=1).float().cpu().numpy()
        with np.errstate(over="ignore"):  # checked below
            values = stacked.astype(self.dtype)
        if not np.isfinite(values).all():
            raise DataError("the backbone's features are not finite in this precision; leave half_features off")
        index.shape = index.shape or list(values.shape[1:])
        assert index.shape == list(values.shape[1:]), "the key is incomplete: two shapes under one key"
        return values


def _view_digest(digest: str, view: str) -> str:
    return hashlib.blake2b(f"{digest} {view}".encode(), digest_size=16).hexdigest() if view else digest


def _checksum(digest: str, content: Content) -> int:
    """Return a checksum of the row and of the picture that it belongs to."""
    return zlib.crc32(content, zlib.crc32(digest.encode()))


@dataclass
class _Index:
    key: str
    shape: list[int] = field(default_factory=list)
    """Outputs, S and C of a row."""
    rows: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Row and checksum by the digest of the picture's bytes."""
    damaged: dict[str, int] = field(default_factory=dict)
    """Rows to be written again, by the digest; not saved."""
