"""Lists of paths in files and pipes, such as those that `find` writes."""

import atexit
import codecs
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from myllm.errors import DataError

STANDARD_INPUT = "-"
BLOCK_BYTES = 2**16


def read_paths(source: str) -> Iterator[str]:
    """Yield the paths in a file, a line each, or between zero bytes if it has any (`find -print0`); as they arrive.

    source: the file, or '-' for standard input. Blank lines and a byte order mark are left out. Raises DataError if the
    file cannot be read.
    """
    try:
        with _open(source) as file:
            rest, separator = b"", b""
            while block := file.read1(BLOCK_BYTES):
                rest += block
                if not separator:
                    if rest.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                        raise DataError(f"{source}: is UTF-16; save the list of paths as UTF-8")
                    rest = rest.removeprefix(codecs.BOM_UTF8)
                    separator = next((mark for mark in (b"\0", b"\n") if mark in rest), b"")
                if separator:
                    *lines, rest = rest.split(separator)
                    yield from _paths(lines, separator)
            yield from _paths([rest], separator)
    except OSError as error:
        raise DataError(f"{source}: this list of paths cannot be read ({error.strerror or error})") from error


def _open(source: str) -> AbstractContextManager[Any]:
    if source != STANDARD_INPUT:
        return open(source, "rb")
    if sys.stdin is None:
        raise DataError(f"{source}: standard input is closed; expected a path in each line")
    return nullcontext(sys.stdin.buffer)


def _paths(lines: list[bytes], separator: bytes) -> Iterator[str]:
    for line in lines:
        name = line if separator == b"\0" else line.removesuffix(b"\r")
        if name.strip():
            yield os.fsdecode(name)


def can_be_read_again(source: str) -> bool:
    """Return whether the list is a file, not a pipe; a file that is not there counts as one."""
    try:
        return source != STANDARD_INPUT and not stat.S_ISFIFO(os.stat(source).st_mode)
    except OSError:
        return True


def copy_list(source: str) -> str:
    """Return a temporary file with the paths of a list that can be read only once; it is removed when Python ends.

    Waits for the list's end. Raises DataError if the list cannot be read.
    """
    handle, path = tempfile.mkstemp(prefix="myllm-list-")
    atexit.register(Path(path).unlink, missing_ok=True)
    with os.fdopen(handle, "wb") as copy:
        copy.writelines(os.fsencode(name) + b"\0" for name in read_paths(source))
    return path
