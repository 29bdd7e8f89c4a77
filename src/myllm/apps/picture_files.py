"""The pictures that a command line names: files, folders and globs."""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from myllm.data.images import PICTURE_SUFFIXES
from myllm.errors import ConfigError, DataError


class PictureFile(NamedTuple):
    """A picture file, and the given folder that it was found in; the folder that holds it if the file was given."""

    path: Path
    folder: Path

    @property
    def name(self) -> str:
        """The path relative to the folder, with '/'."""
        return self.path.relative_to(self.folder).as_posix()


def find_pictures(words: Sequence[str]) -> Iterator[PictureFile]:
    """Yield the pictures in order: files as given, all pictures below folders, and the matches of globs.

    Raises DataError for a word that matches no picture.
    """
    for word in words:
        try:
            yield from _pictures_of(word)
        except OSError as error:
            raise DataError(f"{word}: cannot be read ({error.strerror})") from error


def pictures_by_name(words: Sequence[str]) -> dict[str, Path]:
    """Return the pictures by their names, each once. Raises ConfigError if different ones share a name."""
    pictures: dict[str, Path] = {}
    for picture in find_pictures(words):
        known = pictures.setdefault(picture.name, picture.path)
        if known != picture.path and known.resolve() != picture.path.resolve():
            raise ConfigError(same_name(picture.name, known, picture.path))
    return pictures


def same_name(name: str, first: Path, second: Path) -> str:
    """Message: two pictures share a name."""
    return (
        f"{first} and {second} would both be called {name}; give the folder above both, so that their names differ, or "
        "write them to two files"
    )


def _pictures_of(word: str) -> list[PictureFile]:
    path = Path(word)
    if path.is_dir():
        pictures = [file for file in path.rglob("*") if file.suffix.lower() in PICTURE_SUFFIXES and file.is_file()]
        if not pictures:
            suffixes = ", ".join(sorted(PICTURE_SUFFIXES))
            raise DataError(f"{path}: no pictures in this folder or its subfolders; looked for {suffixes}")
        return [PictureFile(picture, path) for picture in sorted(pictures)]
    if path.exists():
        return [PictureFile(path, path.parent)]
    if matches := sorted(glob.glob(word, recursive=True)):
        return [PictureFile(Path(match), Path(match).parent) for match in matches]
    if "://" in word:
        raise DataError(f"{word}: web addresses are not downloaded; save the picture and give its path")
    raise DataError(f"{word}: no such file or folder, and no file matches it as a glob")
