"""A file of JSON lines that grows row by row and survives kills and full disks."""

import json
import os
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from myllm.errors import DataError, MyLLMError
from myllm.files import disk_errors

FIRST_KEY = "image"
ROW_BEGINS = f'{{"{FIRST_KEY}": '.encode()


Row = dict[str, Any]


class JsonLines:
    """Appends rows, on disk before `append` returns. What a kill left of a row is cut off; whole rows stay.

    With `replace`, an existing file stays until the first row of the new one is there. If a run ends before that, the
    next one replaces the file, too.
    """

    def __init__(
        self, path: Path, replace: bool = False, on_row: Callable[[Row, int], object] = lambda row, offset: None,
    ) -> None:
        """Read the rows that are there; nothing is changed yet. Raises DataError for a file of another kind.

        on_row: called with each row and its offset in bytes.
        """
        self.path, self._part = path, path.with_name(f".{path.name}.part")
        self.replace = replace or self._part.exists()
        self.size, self._ends_in_row = 0, False
        self._file: IO[bytes] | None = None
        if not self.replace:
            self._read(on_row)

    def _read(self, on_row: Callable[[Row, int], object]) -> None:
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})") from error
        with file:
            for number, line in enumerate(file, 1):
                row, is_whole = parse_row(line), line.endswith(b"\n")
                if row is not None:
                    on_row(row, self.size)
                    self.size += len(line)
                    self._ends_in_row = not is_whole  # only its line end is missing
                elif is_whole:
                    raise not_a_row(self.path, number, line)
                elif not ROW_BEGINS.startswith(line[: len(ROW_BEGINS)]):
                    raise DataError(
                        f"{self.path}: ends with {line[:50]!r}, which is not a row of captions; give another file"
                    )

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, *rows: Row) -> list[int]:
        """Write rows, whose first key is `FIRST_KEY`; return their offsets. If that fails, the file is as before.

        Raises MyLLMError.
        """
        lines = [line_of(row) for row in rows]
        assert all(line.startswith(ROW_BEGINS) for line in lines)
        offset = self.size + self._ends_in_row
        with disk_errors(self.path):
            if self._file is None:
                self._open(b"".join(lines))
            else:
                self._check_is_there(self._file)
                self._write(b"".join(lines))
        return list(accumulate(map(len, lines[:-1]), initial=offset))

    def read_at(self, offset: int) -> Row:
        """Return the row that begins at an offset."""
        with self.path.open("rb") as file:
            file.seek(offset)
            row = parse_row(file.readline())
        assert row is not None
        return row

    def _check_is_there(self, file: IO[bytes]) -> None:
        try:
            is_there = os.path.samestat(self.path.stat(), os.fstat(file.fileno()))
        except (FileNotFoundError, NotADirectoryError):
            is_there = False
        if not is_there:
            raise MyLLMError(f"{self.path}: was moved, removed or replaced while it was written; start again")

    def begin(self) -> None:
        """Remove what a kill left of a row, or note on disk that the file is to be replaced. Raises MyLLMError."""
        if self.path.exists():
            with disk_errors(self.path):
                if self.replace:
                    self._part.touch()
                else:
                    self._open()

    def _open(self, line: bytes = b"") -> None:
        """Open the file and write a first line into it; only then a file that is replaced is gone."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._part.open("wb", buffering=0) if self.replace else self.path.open("ab", buffering=0)
        self._file.truncate(self.size)
        self._write(b"\n" * self._ends_in_row + line)
        self._ends_in_row = False
        if self.replace:
            os.replace(self._part, self.path)

    def _write(self, content: bytes) -> None:
        assert self._file is not None
        try:
            rest = memoryview(content)
            while rest:  # a disk that gets full takes a part, and refuses the next
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(self.size)
            raise
        self.size += len(content)


def line_of(row: Row) -> bytes:
    """Return the line of a row; a name that is not UTF-8 is escaped, as JSON allows."""
    return json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def not_a_row(path: Path, number: int, line: bytes) -> DataError:
    """Return the error of a line that is not a row."""
    begin = line[:50].rstrip()
    return DataError(f"{path}: line {number:,} is not a row of captions, {begin!r}; correct or remove it")


def parse_row(line: bytes) -> Row | None:
    """Return the row of a line; None if it is not one."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get(FIRST_KEY), str) else None
