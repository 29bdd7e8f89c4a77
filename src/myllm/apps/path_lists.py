"""Lists of paths in files and pipes, such as those that `find` writes."""

import codecs
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import nullcontext
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
        stdin: Any = sys.stdin.buffer  # it has read1, which its type does not say
        with nullcontext(stdin) if source == STANDARD_INPUT else open(source, "rb") as file:
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
