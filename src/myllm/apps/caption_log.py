"""The captions that runs have written: a JSONL file, and an index of it on disk, so that memory does not grow."""

import json
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, NamedTuple

from myllm.apps.json_lines import JsonLines, Row, line_of, not_a_row, parse_row
from myllm.errors import ConfigError, MyLLMError
from myllm.files import atomic_write, json_text, read_json

TABLE = """
CREATE TABLE captions (image BLOB PRIMARY KEY, digest TEXT, offset INTEGER, file BLOB) WITHOUT ROWID;
CREATE INDEX digests ON captions (digest);
CREATE INDEX files ON captions (file);
CREATE TABLE names (image BLOB PRIMARY KEY) WITHOUT ROWID;
"""
DIGEST = "digest"
"""Key of a row: hash of the picture's bytes."""
SIDECAR = "sidecar"
"""Key of a row: the text file of its picture."""

OVERWRITING = ("overwrite", "only", "first_offset", "removes")
"""Facts of a run with --overwrite: whether it is unfinished, its --only, where its rows begin in the log, and whether
all rows before that are removed in the end, because they were made in another way."""
NOT_COMPARED = ("myllm", "model", "form", *OVERWRITING)


class Logged(NamedTuple):
    """A row of the log: the hash of its picture's bytes, and where the row begins."""

    digest: str
    offset: int


class CaptionLog:
    """Rows of captions by picture. If the file has several rows of a picture, the last one counts.

    The index is a temporary SQLite database, made from the file; threads may share it.
    """

    def __init__(self, path: Path, replace: bool = False) -> None:
        """Read the rows that are there; nothing is changed yet. Raises DataError for a file of another kind."""
        self._index, self._lock = sqlite3.connect("", check_same_thread=False), Lock()  # "": a temporary file
        self._index.executescript(TABLE)
        self.count, self.has_old_rows = 0, False
        self.last_offsets = deque[int](maxlen=1024)
        """Where the rows of the last `append` begin, or the last rows of the file that was opened."""
        self.path = path
        self._lines = JsonLines(path, replace, self._add)

    def __enter__(self) -> "CaptionLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.__exit__(kind, error, trace)
        self._index.close()

    def find(self, image: str) -> Logged | None:
        """Return where the picture's row is; None if it has none."""
        row = self._execute("SELECT digest, offset FROM captions WHERE image = ?", _key(image))
        return None if row is None else Logged(*row)

    def find_copy(self, digest: str, first_offset: int) -> int | None:
        """Return the offset of the row of a picture with the same bytes, at least `first_offset`; None without one."""
        query = "SELECT offset FROM captions WHERE digest = ? AND offset >= ? LIMIT 1"
        row = self._execute(query, digest, first_offset)
        return None if row is None else int(row[0])

    def find_file(self, file: str) -> str | None:
        """Return the picture whose row names a text file; None if none does."""
        row = self._execute("SELECT image FROM captions WHERE file = ?", _key(file))
        return None if row is None else os.fsdecode(row[0])

    @property
    def is_replaced(self) -> bool:
        """Whether the first row that is written replaces the whole file."""
        return self._lines.replace

    @property
    def size(self) -> int:
        """Number of bytes of the rows."""
        return self._lines.size

    def row_at(self, offset: int) -> Row:
        """Return the row that begins at an offset."""
        return self._lines.read_at(offset)

    def rows(self, first_offset: int = 0) -> Iterator[Row]:
        """Yield the rows that count and begin at `first_offset` or later, in the order of the file."""
        if not self.count:
            return
        with self.path.open("rb") as file:
            offset = 0
            for line in file:
                row = json.loads(line)
                logged = self.find(row["image"])
                if logged is not None and logged.offset == offset >= first_offset:
                    yield row
                offset += len(line)

    def append(self, rows: Sequence[Row]) -> None:
        """Write rows, on disk when this returns. Raises MyLLMError."""
        if rows:
            self.last_offsets.clear()
            for row, offset in zip(rows, self._lines.append(*rows), strict=True):
                self._add(row, offset)

    def begin(self) -> None:
        """Remove what a kill left of a row, or note on disk that the file is to be replaced. Raises MyLLMError."""
        self._lines.begin()

    def remove_old_rows(self, first_offset: int = 0) -> None:
        """Rewrite the file without rows that later ones replace, and those that begin before `first_offset`.

        The offsets of the others are then no longer known. Raises MyLLMError.
        """
        if self.has_old_rows or first_offset:
            with atomic_write(self.path) as file:
                for row in self.rows(first_offset):
                    file.write(line_of(row))

    def choose(self, names: Iterable[str]) -> None:
        """Set the pictures that `is_chosen` is true of."""
        for name in names:
            self._execute("INSERT OR IGNORE INTO names VALUES (?)", _key(name))

    def unchoose(self, image: str) -> None:
        """Take a picture out of those that were chosen."""
        self._execute("DELETE FROM names WHERE image = ?", _key(image))

    def is_chosen(self, image: str) -> bool:
        """Return whether the picture is one of those that were chosen."""
        return self._execute("SELECT 1 FROM names WHERE image = ?", _key(image)) is not None

    def _execute(self, command: str, *values: Any) -> Any:
        """Return the first row of the index that the command gives, or None. Raises MyLLMError."""
        with self._lock:
            try:
                return self._index.execute(command, values).fetchone()
            except sqlite3.Error as error:
                raise MyLLMError(
                    f"{self.path}: its index, a temporary file, cannot be written ({error}); make room, or name "
                    "another folder by the environment variable SQLITE_TMPDIR"
                ) from error

    def _add(self, row: Row, offset: int) -> None:
        key = _key(row["image"])
        is_old = self._execute("SELECT 1 FROM captions WHERE image = ?", key) is not None
        file = _key(row[SIDECAR]) if SIDECAR in row else None
        self._execute("REPLACE INTO captions VALUES (?, ?, ?, ?)", key, str(row.get(DIGEST, "")), offset, file)
        self.count += not is_old
        self.has_old_rows |= is_old
        self.last_offsets.append(offset)


def _key(image: str) -> bytes:
    return os.fsencode(image)


def check_same_run(
    path: Path, facts: Mapping[str, Any], has_rows: bool, is_mixed: bool, out: str, anew: str = "--overwrite"
) -> None:
    """Check that captions that are there were made as `facts` and the file `path` say.

    has_rows: whether there are any captions. is_mixed: whether captions made in other ways may stay. anew: how to
    caption all again, for the message. Raises ConfigError with what differs.
    """
    if has_rows and not is_mixed:
        if not path.exists():
            raise ConfigError(
                f"--out {out} is there already, without {path.name}, which says how its captions were made; give "
                f"another name, --mixed to keep its captions, or {anew} to replace them"
            )
        before = read_json(path)
        for name, value in differences(before, facts):
            now, then = f"{name} is {json.dumps(value)}", f"with {json.dumps(before[name])}"
            if name == "weights":
                now, then = f"--model {facts['model']} is another model", f"by {before.get('model')}"
            raise ConfigError(
                f"{now}, but the captions in --out {out} were made {then}; give that, another --out, --mixed to keep "
                f"them beside the new ones, or {anew} to make them again"
            )


def differences(before: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of facts that were others, and on which captions depend."""
    for name, value in json.loads(json_text(facts)).items():
        if name not in NOT_COMPARED and before.get(name, value) != value:
            yield name, value


def write_facts(path: Path, facts: Mapping[str, Any]) -> None:
    """Write how captions were made; names that are not UTF-8 are escaped, as JSON allows. Raises MyLLMError."""
    with atomic_write(path) as file:
        file.write(json_text(facts).encode(errors="backslashreplace"))


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the whole rows of a JSONL file, which need not exist. Raises DataError for a line that is not a row."""
    if path.exists():
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    row = parse_row(line)
                    if row is None:
                        raise not_a_row(path, number, line)
                    yield row


def keep_rows(path: Path, is_kept: Callable[[Row], bool], end: int | None = None) -> None:
    """Remove the other rows of a JSONL file, and the file if none stays; all that begin at byte `end` or later stay.

    Raises MyLLMError.
    """

    def kept_lines() -> Iterator[bytes]:
        offset = 0
        for row in read_rows(path):
            line = line_of(row)
            if (end is not None and offset >= end) or is_kept(row):
                yield line
            offset += len(line)

    if not any(kept_lines()):
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as file:
        file.writelines(kept_lines())
