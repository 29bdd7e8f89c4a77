"""A file of JSON lines that grows row by row and survives kills and full disks."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from myllm.errors import DataError
from myllm.files import disk_errors

FIRST_KEY = "image"
ROW_BEGINS = f'{{"{FIRST_KEY}": '.encode()


class JsonLines:
    """Appends rows, each on disk before `append` returns. What a kill left of a row is cut off; whole rows stay.

    With `replace`, an existing file stays until the first row of the new one is there.
    """

    def __init__(self, path: Path, replace: bool = False) -> None:
        """Read the rows that are there; nothing is changed yet. Raises DataError for a file of another kind."""
        self.path, self.replace = path, replace
        self.rows: list[dict[str, Any]] = []
        """Rows that were in the file when it was opened."""
        self._size, self._ends_in_row = 0, False
        self._file: IO[bytes] | None = None
        if not replace:
            self._read()

    def _read(self) -> None:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})") from error
        *lines, last = content.split(b"\n")
        for number, line in enumerate(lines, 1):
            row = _parse(line)
            if row is None:
                raise DataError(
                    f"{self.path}: line {number:,} is no row of captions, {line[:50]!r}; correct or remove it"
                )
            self.rows.append(row)
        self._size = len(content) - len(last)
        row = _parse(last)
        if row is not None:  # only its line end is missing
            self.rows.append(row)
            self._size, self._ends_in_row = len(content), True
        elif not ROW_BEGINS.startswith(last[: len(ROW_BEGINS)]):
            raise DataError(f"{self.path}: ends with {last[:50]!r}, which is no row of captions; give another file")

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, row: dict[str, Any]) -> None:
        """Write a row, whose first key is `FIRST_KEY`. If that fails, the file is as before. Raises MyLLMError."""
        line = json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
        assert line.startswith(ROW_BEGINS)
        with disk_errors(self.path):
            if self._file is None:
                self._open(line)
            else:
                self._write(line)

    def cut_torn_row(self) -> None:
        """Remove what a kill left of a row. Raises MyLLMError."""
        if not self.replace and self.path.exists():
            with disk_errors(self.path):
                self._open()

    def _open(self, line: bytes = b"") -> None:
        """Open the file and write a first line into it; only then a file that is replaced is gone."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f".{self.path.name}.part") if self.replace else self.path
        self._file = part.open("wb" if self.replace else "ab", buffering=0)
        try:
            self._file.truncate(self._size)
            self._write(b"\n" * self._ends_in_row + line)
            if self.replace:
                os.replace(part, self.path)
        except OSError:
            if self.replace:
                part.unlink(missing_ok=True)
            raise

    def _write(self, content: bytes) -> None:
        assert self._file is not None
        try:
            rest = memoryview(content)
            while rest:  # a disk that gets full takes a part, and refuses the next
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(self._size)
            raise
        self._size += len(content)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get(FIRST_KEY), str) else None
