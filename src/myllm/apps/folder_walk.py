"""Walks folders and expands globs lazily, in a stable order, and in flat memory however many files a folder has."""

import heapq
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from fnmatch import translate
from glob import has_magic
from pathlib import Path
from typing import IO, NamedTuple

CHUNK_SIZE = 50_000
BLOCK_BYTES = 2**14
FILE, FOLDER, LINK, OTHER = "f", "d", "l", "o"
Wants = Callable[[str], bool]


class Walked(NamedTuple):
    """A file below a folder, or what cannot be read there."""

    path: str
    """Relative to the folder that is walked, with '/'; empty for this folder itself."""
    fault: OSError | None = None
    """Why a file or folder cannot be read."""
    is_folder_link: bool = False
    """Whether it is a link to a folder; these are not followed."""


class Entry(NamedTuple):
    """A name in a folder."""

    name: str
    kind: str
    """FILE, FOLDER, or LINK: a symbolic link, or what cannot be looked at."""


class EntrySorter:
    """Sorts entries. Past `chunk_size` of them, sorted chunks are in a temporary file until they are merged."""

    def __init__(self, chunk_size: int) -> None:
        self.chunk_size = chunk_size
        self._chunk: list[Entry] = []
        self._file: IO[bytes] | None = None
        self._ends = [0]

    def add(self, entry: Entry) -> None:
        """Add an entry. Raises OSError if the temporary file cannot be written."""
        if len(self._chunk) >= self.chunk_size:
            self._store_chunk()
        self._chunk.append(entry)

    def __iter__(self) -> Iterator[Entry]:
        """Yield the entries in order, once."""
        self._chunk.sort()
        if self._file is None:
            yield from self._chunk
            return
        with self._file:
            stored = (self._read_chunk(*ends) for ends in zip(self._ends, self._ends[1:], strict=False))
            yield from heapq.merge(*stored, self._chunk)

    def _store_chunk(self) -> None:
        self._chunk.sort()
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115, it is closed after the last entry
        # a name may hold a line end, but no slash
        lines = "".join(name.replace("\n", "/") + kind + "\n" for name, kind in self._chunk)
        self._file.write(lines.encode(errors="surrogatepass"))
        self._file.flush()
        self._ends.append(self._file.tell())
        self._chunk.clear()

    def _read_chunk(self, position: int, end: int) -> Iterator[Entry]:
        assert self._file is not None
        rest = b""
        while position < end:
            self._file.seek(position)
            block = self._file.read(min(BLOCK_BYTES, end - position))
            position += len(block)
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                text = line.decode(errors="surrogatepass")
                yield Entry(text[:-1].replace("/", "\n"), text[-1])


def walk(folder: Path, wants: Wants, is_sorted: bool = True) -> Iterator[Walked]:
    """Yield the files below a folder whose names are wanted, sorted by the parts of their paths.

    is_sorted: False yields the files of a folder as they are listed, so that a first one is found at once. Links to
    files are followed, links to folders are not. Devices and pipes are left out.
    """
    stack = [("", _entries(str(folder), wants, is_sorted))]
    while stack:
        prefix, entries = stack[-1]
        entry = next(entries, None)
        if entry is None:
            stack.pop()
        elif isinstance(entry, OSError):
            yield Walked(prefix.removesuffix("/"), entry)
        elif entry.kind == FOLDER:
            path = f"{prefix}{entry.name}"
            stack.append((f"{path}/", _entries(os.path.join(folder, path), wants, is_sorted)))
        elif entry.kind == FILE:
            yield Walked(f"{prefix}{entry.name}")
        else:
            yield from _follow(folder, f"{prefix}{entry.name}", wants(entry.name))


def _entries(folder: str, wants: Wants, is_sorted: bool = True) -> Iterator[Entry | OSError]:
    """Yield the folders, the links and the wanted files in a folder; or the error that ends its listing."""
    sorter = EntrySorter(CHUNK_SIZE)
    try:
        with os.scandir(folder) as listing:
            for item in listing:
                entry = Entry(item.name, _kind(item))
                if entry.kind == OTHER or (entry.kind == FILE and not wants(entry.name)):
                    continue
                if entry.kind == FILE and not is_sorted:
                    yield entry
                else:
                    sorter.add(entry)
    except OSError as error:
        yield error
    yield from sorter


def _kind(item: os.DirEntry[str]) -> str:
    try:
        if item.is_symlink():
            return LINK
        if item.is_dir(follow_symlinks=False):
            return FOLDER
        return FILE if item.is_file(follow_symlinks=False) else OTHER
    except OSError:  # some file systems do not list the kind, and the folder may not be entered
        return LINK


def _follow(folder: Path, path: str, is_wanted: bool) -> Iterator[Walked]:
    try:
        mode = os.stat(os.path.join(folder, path)).st_mode
    except OSError as error:
        if is_wanted:
            yield Walked(path, error)
        return
    if stat.S_ISDIR(mode):
        yield Walked(path, is_folder_link=True)
    elif stat.S_ISREG(mode) and is_wanted:
        yield Walked(path)


def split_glob(pattern: str) -> tuple[Path, tuple[str, ...]]:
    """Return the folder before the first wildcard of a pattern, and the parts from there on.

    The brackets of a folder that is there, such as "[2020]", are no wildcard.
    """
    parts = Path(pattern).parts
    magic = (index for index, part in enumerate(parts) if has_magic(part) and not _is_folder(parts[: index + 1]))
    first = next(magic, len(parts) - 1)
    return Path(*parts[:first]), parts[first:]


def _is_folder(parts: Sequence[str]) -> bool:
    return not {*parts[-1]} & {*"*?"} and os.path.isdir(Path(*parts))


def matches(folder: Path, parts: Sequence[str]) -> Iterator[Path | OSError]:
    """Yield what matches a pattern below a folder, in order, and the errors of folders that cannot be listed.

    "**" is this folder and all below it, without links. As in a shell, "*" does not match names that begin with a dot.
    """
    part, rest = parts[0], parts[1:]
    if not has_magic(part):
        path = folder / part
        if rest:
            yield from matches(path, rest)
        elif os.path.lexists(path):
            yield path
    elif part == "**":
        for below in _folders_below(folder) if rest else [folder]:
            if isinstance(below, OSError):
                yield below
            else:
                yield from matches(below, rest) if rest else [below]
    else:
        for entry in _matching(folder, part):
            path = folder / entry.name if isinstance(entry, Entry) else folder
            if isinstance(entry, OSError):
                yield entry
            elif not rest:
                yield path
            elif entry.kind == FOLDER or (entry.kind == LINK and os.path.isdir(path)):
                yield from matches(path, rest)


def _folders_below(folder: Path) -> Iterator[Path | OSError]:
    yield folder
    stack = [(folder, _matching(folder, "*"))]
    while stack:
        parent, entries = stack[-1]
        entry = next(entries, None)
        if entry is None:
            stack.pop()
        elif isinstance(entry, OSError):
            yield entry
        elif entry.kind == FOLDER:
            yield parent / entry.name
            stack.append((parent / entry.name, _matching(parent / entry.name, "*")))


def _matching(folder: Path, part: str) -> Iterator[Entry | OSError]:
    pattern = re.compile(translate(os.path.normcase(part))).match

    def fits(name: str) -> bool:
        return pattern(os.path.normcase(name)) is not None and (part.startswith(".") or not name.startswith("."))

    for entry in _entries(str(folder), fits):
        if isinstance(entry, OSError):
            if not isinstance(entry, FileNotFoundError | NotADirectoryError):
                yield entry
        elif fits(entry.name):
            yield entry
