"""Remembers which pictures were decoded without a fault, so that a large data set is checked only once."""

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from PIL import __version__ as pillow_version

from myllm.files import Picture


class CheckedPictures:
    """A file with a line for each good picture: a hash of its path, size and time of change.

    Lines are only appended, so processes can share the file; a line that was cut short matches no picture.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = set[str]()
        with suppress(OSError, UnicodeDecodeError):  # then all pictures are checked
            self._lines = set(path.read_text(encoding="ascii").split())

    def known(self, pictures: Iterable[Picture]) -> set[Picture]:
        """Return the pictures that were good and have not changed since."""
        return {picture for picture in pictures if _line(picture) in self._lines}

    def add(self, pictures: Iterable[Picture]) -> None:
        """Remember good pictures. If the file cannot be written, they are checked again next time."""
        new = {line for picture in pictures if (line := _line(picture))} - self._lines
        self._lines |= new
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="ascii") as file:
                file.writelines(f"\n{line}" for line in sorted(new))


def _line(picture: Picture) -> str:
    """Return the picture's hash, or '' if its file cannot be found, or it is in an archive or a table."""
    if not isinstance(picture, Path):
        return ""
    try:
        status = picture.stat()
    except OSError:
        return ""
    text = f"{picture.absolute()} {status.st_size} {status.st_mtime_ns} {pillow_version}"
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
