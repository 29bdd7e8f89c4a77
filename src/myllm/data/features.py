"""Features of a frozen backbone, computed once and kept on disk, so that an epoch runs only the decoder.

Rows are looked up by the picture's bytes and have checksums: missing, truncated and damaged rows are computed again.
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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from myllm.batched import batched
from myllm.data.records import Findings
from myllm.data.splits import picture_digest
from myllm.errors import DataError, MyLLMError
from myllm.files import Picture, atomic_write
from myllm.progress import Progress, no_progress

# Batches between two writes of the index: what an interruption can cost.
BATCHES_PER_SAVE = 20
Encode = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Features:
    """Features of pictures, read from the disk when they are used."""

    array: np.memmap[Any, Any]
    """(rows, outputs, S, C): the backbone has one output in mode last, and one for each decoder block in layerwise."""
    row_of: np.ndarray[Any, Any]
    """Row of each picture, by the picture's index."""

    def rows(self, index: Tensor) -> tuple[Tensor, ...]:
        """Return the features (B, S, C) float32 of pictures (B,) int64, one tensor for each output of the backbone."""
        return torch.from_numpy(self.array[self.row_of[index.numpy()]]).float().unbind(1)


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

    def features(
        self, pictures: Sequence[Picture], images: Callable[[Sequence[int]], Tensor], encode: Encode,
        findings: Findings, batch_size: int = 16, progress: Progress = no_progress,
    ) -> Features:
        """Return the features of all `pictures`; those that are not on disk are computed.

        images: returns (B, 3, H, W) for indexes of pictures; called in a thread while the previous batch is encoded.
        encode: returns (B, S, C) for each output of the backbone. Raises MyLLMError if the disk is full.
        """
        digests = [picture_digest(path) for path in pictures]
        index = self._checked_index(findings)
        missing = {digest: number for number, digest in enumerate(digests) if digest not in index.rows}
        self._extract(list(missing.values()), digests, index, images, encode, batch_size, progress)
        count = 1 + max(row for row, _ in index.rows.values())
        array: Any = np.memmap(self._bin, self.dtype, "r", shape=(count, *index.shape))
        return Features(array, np.array([index.rows[digest][0] for digest in digests]))

    def known(self, pictures: Sequence[Picture]) -> set[Picture]:
        """Return the pictures that have a row, so that they need no decoding; checksums are not verified."""
        rows = self._read_index(Findings()).rows
        known = set[Picture]()
        for path in pictures if rows else ():
            with suppress(DataError):  # `check_pictures` reports it
                known |= {path} if picture_digest(path) in rows else set()
        return known

    def _read_index(self, findings: Findings) -> "_Index":
        """Return the index on disk, or an empty one; an index that cannot be read is listed in the findings."""
        try:
            index = _Index(**json.loads(self._index.read_text(encoding="utf-8")))
            numbers = [*index.shape, *(number for row, checksum in index.rows.values() for number in (row, checksum))]
            if index.key == self.key and len(index.shape) == 3 and all(type(n) is int and n >= 0 for n in numbers):
                return index
            raise ValueError("not an index of these features")
        except FileNotFoundError:
            return _Index(self.key)
        except (OSError, ValueError, TypeError, AttributeError):
            findings.repaired_features.append(f"{self._index}: unreadable, all features are computed anew")
            return _Index(self.key)

    def _checked_index(self, findings: Findings) -> "_Index":
        """Return the index without rows that are missing or differ from what was written; the findings list these."""
        index = self._read_index(findings)
        row_bytes = math.prod(index.shape) * self.dtype.itemsize
        with self._bin.open("rb") if self._bin.is_file() else io.BytesIO() as file:
            for digest, (row, checksum) in sorted(index.rows.items(), key=lambda item: item[1][0]):
                file.seek(row * row_bytes)
                content = file.read(row_bytes)
                if len(content) != row_bytes or _checksum(digest, content) != checksum:
                    findings.repaired_features.append(f"{self._bin}: row {row}")
                    del index.rows[digest]
        return index

    def _extract(
        self, missing: Sequence[int], digests: Sequence[str], index: "_Index",
        images: Callable[[Sequence[int]], Tensor], encode: Encode, batch_size: int, progress: Progress,
    ) -> None:
        batches = list(batched(missing, batch_size))
        if not batches:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        used = {row for row, _ in index.rows.values()}
        free_rows = (row for row in itertools.count() if row not in used)  # gaps first
        try:
            with ThreadPoolExecutor(1) as pool, open(os.open(self._bin, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
                next_images = pool.submit(images, batches[0])
                for number, batch in enumerate(batches, start=1):
                    pictures = next_images.result()
                    if number < len(batches):
                        next_images = pool.submit(images, batches[number])
                    for picture, values in zip(batch, self._encode(pictures, encode, index), strict=True):
                        content = values.tobytes()
                        row = next(free_rows)
                        file.seek(row * len(content))
                        file.write(content)
                        index.rows[digests[picture]] = (row, _checksum(digests[picture], content))
                    if number % BATCHES_PER_SAVE == 0 or number == len(batches):
                        file.flush()
                        os.fsync(file.fileno())
                        with atomic_write(self._index) as index_file:
                            index_file.write(json.dumps(asdict(index)).encode())
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


def _checksum(digest: str, content: bytes) -> int:
    """Return a checksum of the row and of the picture that it belongs to."""
    return zlib.crc32(content, zlib.crc32(digest.encode()))


@dataclass
class _Index:
    key: str
    shape: list[int] = field(default_factory=list)
    """Outputs, S and C of a row."""
    rows: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Row and checksum by the digest of the picture's bytes."""
