"""A frozen backbone's features, computed once and kept on disk, so that an epoch costs only the decoder.

A row is found by its picture's bytes and carries a checksum: what is missing, cut short or damaged is computed again.
"""

import hashlib
import itertools
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from myllm.data.records import Findings
from myllm.data.splits import picture_digest
from myllm.errors import DataError, MyLLMError
from myllm.files import atomic_write

# The index is written this often (in batches): at most so much work is lost when extraction is interrupted.
BATCHES_A_SAVE = 20
Encode = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Features:
    """Features of pictures by position, read from the disk as they are asked for."""

    array: np.memmap[Any, Any]
    """(rows, readings, S, C)."""
    row_of: np.ndarray[Any, Any]
    """The row of each position."""

    def rows(self, positions: Tensor) -> tuple[Tensor, ...]:
        """(B,) int64 -> (B, S, C) float32 for each reading of the backbone."""
        return torch.from_numpy(self.array[self.row_of[positions.numpy()]]).float().unbind(1)


class FeatureCache:
    """Rows of features in `folder`/`features.bin`, and in `index.json` which picture each is of and its checksum."""

    def __init__(self, folder: Path, key: str, half: bool = False) -> None:
        """key: the backbone, the hash of its weights and the preprocessing in words; another key is another folder."""
        self.key = f"{key} {'float16' if half else 'float32'}"
        self.dtype = np.dtype(np.float16 if half else np.float32)
        self.folder = folder / hashlib.blake2b(self.key.encode(), digest_size=8).hexdigest()
        self._bin = self.folder / "features.bin"
        self._index = self.folder / "index.json"

    def features(
        self, pictures: Sequence[Path], images: Callable[[Sequence[int]], Tensor], encode: Encode, findings: Findings,
        batch_size: int = 16, progress: Callable[[int, int], None] | None = None,
    ) -> Features:
        """Features of all `pictures`; those that are not on disk are computed.

        images: positions -> (B, 3, H, W), prepared beside the encoding of the batch before.
        encode: (B, 3, H, W) -> (B, S, C) for each reading. progress: called with (pictures done, pictures in all).
        """
        digests = [picture_digest(path) for path in pictures]
        index = self._checked_index(findings)
        first = {digest: at for at, digest in reversed(list(enumerate(digests)))}
        missing = sorted(at for digest, at in first.items() if digest not in index.rows)
        self._extract(missing, digests, index, images, encode, batch_size, progress)
        array: Any = np.memmap(self._bin, self.dtype, "r", shape=(index.count, *index.shape))
        return Features(array, np.array([index.rows[digest][0] for digest in digests]))

    def known(self, pictures: Sequence[Path]) -> set[Path]:
        """Those of `pictures` that have a row: they were decoded well once. Its checksum is not looked at."""
        rows = self._checked_index(Findings(), check_rows=False).rows
        return {path for path in pictures if picture_digest(path) in rows} if rows else set()

    def _checked_index(self, findings: Findings, check_rows: bool = True) -> "_Index":
        """What is on disk without its damaged rows. They are reported, and computed and appended again."""
        try:
            index = _Index(**json.loads(self._index.read_text(encoding="utf-8")))
            index.check(self.key)
        except FileNotFoundError:
            return _Index(self.key)
        except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):
            findings.repaired_features.append(f"{self._index}: unreadable, all features are computed anew")
            return _Index(self.key)
        for digest in self._damaged(index) if check_rows else ():
            findings.repaired_features.append(f"{self._bin}: row {index.rows.pop(digest)[0]}")
        return index

    def _damaged(self, index: "_Index") -> list[str]:
        """Digests of the pictures whose rows are gone or not what was written."""
        if not self._bin.is_file():
            return list(index.rows)
        row_bytes = math.prod(index.shape) * self.dtype.itemsize
        damaged = []
        with self._bin.open("rb") as file:
            for digest, (row, checksum) in sorted(index.rows.items(), key=lambda item: item[1][0]):
                file.seek(row * row_bytes)
                content = file.read(row_bytes)
                if len(content) != row_bytes or _checksum(digest, content) != checksum:
                    damaged.append(digest)
        return damaged

    def _extract(
        self, missing: Sequence[int], digests: Sequence[str], index: "_Index",
        images: Callable[[Sequence[int]], Tensor], encode: Encode, batch_size: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        batches = [missing[at : at + batch_size] for at in range(0, len(missing), batch_size)]
        if not batches:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        free = index.free_rows()
        try:
            with ThreadPoolExecutor(1) as pool, open(os.open(self._bin, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
                coming = pool.submit(images, batches[0])
                for number, batch in enumerate(batches, start=1):
                    pictures = coming.result()
                    if number < len(batches):
                        coming = pool.submit(images, batches[number])
                    for at, values in zip(batch, self._encoded(pictures, encode, index), strict=True):
                        content = values.tobytes()
                        row = next(free)
                        file.seek(row * len(content))
                        file.write(content)
                        index.rows[digests[at]] = (row, _checksum(digests[at], content))
                    if number % BATCHES_A_SAVE == 0 or number == len(batches):
                        file.flush()
                        os.fsync(file.fileno())
                        self._save(index)
                    if progress is not None:
                        progress(len(digests) - len(missing) + min(number * batch_size, len(missing)), len(digests))
        except OSError as error:
            raise MyLLMError(
                f"cannot write {self._bin}: {error.strerror or error}. Make room and run again: what was done is kept"
            ) from error

    def _encoded(self, pictures: Tensor, encode: Encode, index: "_Index") -> np.ndarray[Any, Any]:
        """(B, readings, S, C) in the cache's precision."""
        with torch.inference_mode():
            stacked = torch.stack(encode(pictures), dim=1).float().cpu().numpy()
        with np.errstate(over="ignore"):  # looked for in the next line
            values = stacked.astype(self.dtype)
        if not np.isfinite(values).all():
            raise DataError("the backbone's features are not finite in this precision; leave half_features off")
        index.shape = index.shape or list(values.shape[1:])
        assert index.shape == list(values.shape[1:]), "the key says too little: another shape under the same key"
        return values

    def _save(self, index: "_Index") -> None:
        with atomic_write(self._index) as file:
            file.write(json.dumps(asdict(index)).encode())


def _checksum(digest: str, content: bytes) -> int:
    """Of the row and of whose it is."""
    return zlib.crc32(content, zlib.crc32(digest.encode()))


@dataclass
class _Index:
    key: str
    shape: list[int] = field(default_factory=list)
    """Of one row: readings, S, C."""
    rows: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Digest of a picture's bytes -> its row and checksum."""

    @property
    def count(self) -> int:
        return 1 + max(row for row, _ in self.rows.values())

    def free_rows(self) -> Iterator[int]:
        """Places of damaged rows first, then beyond the end."""
        used = {row for row, _ in self.rows.values()}
        return (row for row in itertools.count() if row not in used)

    def check(self, key: str) -> None:
        """Raises ValueError where this is not what `key` and the format say."""
        rows = [number for pair in self.rows.values() for number in pair]
        if self.key != key or len(self.shape) != 3 or not all(type(n) is int and n >= 0 for n in [*self.shape, *rows]):
            raise ValueError("not an index of features")
