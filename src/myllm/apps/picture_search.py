"""The pictures that a command line names: in files, folders, globs, archives, tables, files of captions and lists."""

import errno
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from glob import has_magic
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from myllm.apps.folder_walk import matches, split_glob, walk
from myllm.apps.path_lists import STANDARD_INPUT, can_be_read_again, copy_list, read_paths
from myllm.apps.skipped_files import FOLDER_LINK, SkippedFiles, is_output, is_skipped, without_outputs
from myllm.config import CaptionsConfig
from myllm.data.formats import describe_formats
from myllm.data.images import PICTURE_SUFFIXES
from myllm.data.rows import CaptionFile, normal_name, printable, shortened
from myllm.data.sources import name_folders, read_records
from myllm.data.stored import MAC_ATTRIBUTES, Archive, find_inside, is_archive, open_archive
from myllm.data.table_pictures import SUFFIXES as TABLE_SUFFIXES
from myllm.data.table_pictures import PictureRow, read_picture_rows
from myllm.data.tables import is_saved, saved_files
from myllm.errors import ConfigError, DataError, MyLLMError
from myllm.files import Picture

CAPTION_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".txt", ".token")


class FoundPicture(NamedTuple):
    """A picture; `str(picture)` is its identity."""

    picture: Picture
    folder: Path
    """The given folder that it was found in. For a given file, archive or table, the folder that holds it; for a glob,
    the folder before its first wildcard; for a path of a list, the working directory, or / if the path begins there."""
    name: str
    """Path relative to `folder`, with '/': `a/1.jpg`, `shard.tar/a/1.jpg`; of a row of a table, what its name column
    says, or the table's name and the number of the row."""


class UnusablePath(NamedTuple):
    """A path that was given or found, and cannot be captioned."""

    path: str
    error: str
    """A sentence that names the path, the reason, and the fix if there is one."""


Found = FoundPicture | UnusablePath


class PictureSearch:
    """Finds pictures lazily, in a stable order and in flat memory: files as given, all pictures below folders.

    Links to folders are not followed. Nothing ends the search: what cannot be read is an `UnusablePath`.
    """

    def __init__(self, words: Sequence[str], lists: Sequence[str] = ()) -> None:
        """words: paths and globs. lists: files with a path in each line; '-', also as a word, is standard input."""
        self.words = without_outputs([word for word in words if word != STANDARD_INPUT])
        self.lists = [*lists, *(word for word in words if word == STANDARD_INPUT)]
        self.skipped_files = SkippedFiles()

    @property
    def skipped(self) -> Counter[str]:
        """Number of files by suffix that look like pictures and were skipped by the last iteration so far."""
        return self.skipped_files.counts

    def describe_skipped(self) -> str:
        """Return a sentence on each suffix that was skipped, with advice; '' if there is none."""
        return self.skipped_files.describe()

    def __iter__(self) -> Iterator[Found]:
        self.skipped_files = SkippedFiles()
        return self._search(self.skipped_files, is_quick=False)

    def check(self) -> None:
        """Raise DataError for a word that matches nothing, a folder without pictures, or if no word has a picture.

        It ends at a folder's first picture, and looks into no second file. Standard input is not read.
        """
        fault, has_picture = "", bool(self.lists)
        for source in self.lists:
            if can_be_read_again(source) and next(read_paths(source), None) is None:
                raise DataError(f"{source}: has no paths; expected one in each line")
        for word in self.words:
            is_file = os.path.isfile(word)
            if is_file and has_picture:
                continue
            error = _fault(_pictures_of(word, None, SkippedFiles(), is_quick=True))
            if error and not is_file:
                raise DataError(error)
            has_picture, fault = has_picture or not error, fault or error
        if not has_picture:
            raise DataError(fault or "no paths are given")

    def copy_lists(self) -> None:
        """Let lists that can be read only once, such as standard input, be read again; waits for their ends.

        Raises DataError if one cannot be read.
        """
        self.lists = [source if can_be_read_again(source) else copy_list(source) for source in self.lists]

    def count(self, stop: Callable[[], bool] = lambda: False) -> int | None:
        """Return how many pictures and unusable paths the iteration yields, by a quicker search.

        The result is None if a list can be read only once, such as standard input, or if `stop` returns True.
        """
        if not all(map(can_be_read_again, self.lists)):
            return None
        total = 0
        for _ in self._search(SkippedFiles(), is_quick=True):
            total += 1
            if stop():
                return None
        return total

    def _search(self, skipped: SkippedFiles, is_quick: bool) -> Iterator[Found]:
        """is_quick: in any order within a folder, and without the bytes of pictures in tables."""
        for word in self.words:
            yield from _pictures_of(word, None, skipped, is_quick)
        for source in self.lists:
            try:
                for path in read_paths(source):
                    if not is_output(path, os.path.exists):
                        yield from _pictures_of(path, _folder_of_listed(Path(path)), skipped, is_quick)
            except DataError as error:
                yield UnusablePath(source, str(error))


def is_collection(path: str) -> bool:
    """Return whether it holds pictures: an archive, a table, or a folder of tables that `save_to_disk` wrote.

    It is not if it only names pictures, which are files of their own.
    """
    if os.path.isfile(path) and is_archive(Path(path)):
        return True
    try:
        tables = [Path(path)] if Path(path).suffix.lower() in TABLE_SUFFIXES else _saved_tables(Path(path))
        first = next(read_picture_rows(tables[0], with_content=False), None) if tables else None
    except DataError:
        return False
    return first is not None and first.image is not None


def pictures_by_name(words: Sequence[str], warn: Callable[[str], object]) -> dict[str, Path]:
    """Return the picture files by their names, each once; `warn` is called with a message on each unusable path.

    Raises ConfigError if different ones share a name, or if they are not files; otherwise as `PictureSearch.check`.
    """
    search, pictures = PictureSearch(words), dict[str, Path]()
    search.check()
    for entry in search:
        if isinstance(entry, UnusablePath):
            warn(entry.error)
            continue
        if not isinstance(entry.picture, Path):
            raise ConfigError(f"{entry.picture}: is not a separate file; unpack the pictures into a folder")
        known = pictures.setdefault(entry.name, entry.picture)
        if known != entry.picture and known.resolve() != entry.picture.resolve():
            raise ConfigError(same_name(entry.name, known, entry.picture))
    if search.skipped:
        warn(search.describe_skipped())
    return pictures


def same_name(name: str, first: Path, second: Path) -> str:
    """Message: two pictures share a name."""
    return (
        f"{first} and {second} would both be called {name}; give the folder above both, so that their names differ, or "
        "write them to two files"
    )


def _fault(pictures: Iterator[Found]) -> str:
    """Return '' at the first picture, or why there is none."""
    fault = ""
    for entry in pictures:
        if isinstance(entry, FoundPicture):
            return ""
        fault = fault or entry.error
    return fault


def _folder_of_listed(path: Path) -> Path:
    """Return the folder that the name of a listed path is relative to, so that equal names are of one path."""
    return path.parent if ".." in path.parts else Path(path.anchor)


def _pictures_of(word: str, folder: Path | None, skipped: SkippedFiles, is_quick: bool) -> Iterator[Found]:
    """Yield the pictures of a path, or of a glob, or why there are none.

    folder: folder that their names are relative to; None: the word is from the command line, and may be a glob.
    """
    path = Path(word)
    try:
        try:
            mode = os.stat(word).st_mode
        except OSError as error:
            yield from _pictures_of_missing(word, folder, skipped, is_quick, error)
            return
        if stat.S_ISDIR(mode):
            yield from _pictures_in_folder(path, folder or path, skipped, is_quick)
        else:
            yield from _pictures_in_file(path, folder or path.parent, skipped, is_quick)
    except MyLLMError as error:
        yield UnusablePath(word, str(error))
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        if getattr(error, "errno", None) == errno.ENAMETOOLONG:  # not a path, but the line of another file
            word, path = shortened(word), Path(shortened(word))
        yield UnusablePath(word, _unreadable(path, error))


def _pictures_of_missing(
    word: str, folder: Path | None, skipped: SkippedFiles, is_quick: bool, error: OSError
) -> Iterator[Found]:
    """Yield the pictures at a path in an archive, or those that match a glob; raise DataError if there are none.

    error: why the path as it is cannot be looked at, which is raised if it says more than that nothing is there.
    """
    inside = find_inside(Path(word))
    if inside is not None:
        archive, inner = inside
        yield from _pictures_in_archive(archive, folder or archive.path.parent, skipped, inner)
        return
    if folder is None and has_magic(word):
        base, parts = split_glob(word)
        is_empty, has_outputs = True, False
        for match in matches(base, parts):
            if isinstance(match, Path) and is_output(str(match), os.path.exists):
                has_outputs = True
                continue
            is_empty = False
            if isinstance(match, Path):
                yield from _pictures_of(str(match), base, skipped, is_quick)
            else:
                yield UnusablePath(str(match.filename), _unreadable(Path(match.filename), match))
        if not is_empty:
            return
        if has_outputs:
            raise DataError(f"{word}: matches only files that `myllm caption` wrote; give pictures, or one such file")
    if "://" in word:
        raise DataError(f"{word}: web addresses are not downloaded; save the picture and give its path")
    if os.path.islink(word) or not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
    of_list = "" if os.path.isabs(word) else "; paths of a list start from the current folder"
    as_glob = ", and no file matches it as a glob" if folder is None else of_list
    raise DataError(f"{word}: no such file or folder{as_glob}")


def _pictures_in_folder(path: Path, folder: Path, skipped: SkippedFiles, is_quick: bool) -> Iterator[Found]:
    """Yield the pictures below a folder, or in the tables of one that `save_to_disk` wrote. Raises DataError."""
    if tables := _saved_tables(path):
        for table in tables:
            yield from _pictures_in_table(table, folder, is_quick)
        return
    is_empty, skipped_here = True, SkippedFiles(skipped)
    base = _relative(path, folder)
    prefix = "" if base == "." else f"{base}/"
    for file in walk(path, _is_named_like_picture, is_sorted=not is_quick):
        full = path / file.path
        if file.is_folder_link:
            skipped_here.add(FOLDER_LINK, full)
        elif file.fault is not None:
            is_empty = False
            yield UnusablePath(str(full), _unreadable(full, file.fault))
        elif (suffix := full.suffix.lower()) in PICTURE_SUFFIXES:
            is_empty = False
            yield FoundPicture(full, folder, prefix + file.path)
        else:
            skipped_here.add(suffix, full)
    if is_empty:
        raise DataError(f"{path}: no pictures in this folder or its subfolders; {_looked_for(skipped_here)}")


def _looked_for(skipped: SkippedFiles) -> str:
    return skipped.describe() or f"looked for {', '.join(sorted(PICTURE_SUFFIXES))}"


def _is_named_like_picture(name: str) -> bool:
    suffix = os.path.splitext(name)[1].lower()
    return not name.startswith(MAC_ATTRIBUTES) and (suffix in PICTURE_SUFFIXES or is_skipped(suffix))


def _unreadable(path: Path, error: OSError | ValueError) -> str:
    """Message: why a path cannot be read."""
    why = getattr(error, "strerror", None) or error
    if os.path.islink(path):
        return f"{path}: is a link to {os.readlink(path)}, which cannot be reached ({why}); correct or remove it"
    hint = "; change the permissions, or give other paths" if isinstance(error, PermissionError) else ""
    return f"{path}: cannot be read ({why}){hint}"


def _saved_tables(path: Path) -> list[Path]:
    """Return the Arrow files of a folder that `save_to_disk` wrote, with one or several splits; [] for another."""
    parts = [path]
    if os.path.isfile(path / "dataset_dict.json"):
        parts = sorted(path.iterdir())
    names = ("state.json", "dataset_info.json")
    files = [CaptionFile(part / names[0], path) for part in parts if all(os.path.isfile(part / name) for name in names)]
    return [table for file in files if is_saved(file, CaptionsConfig()) for table in saved_files(file)]


def _pictures_in_file(path: Path, folder: Path, skipped: SkippedFiles, is_quick: bool) -> Iterator[Found]:
    """Yield the pictures in an archive, a table or a file of captions, or the file itself. Raises MyLLMError."""
    suffix = path.suffix.lower()
    if is_archive(path):
        yield from _pictures_in_archive(open_archive(path), folder, skipped)
    elif suffix in TABLE_SUFFIXES:
        yield from _pictures_in_table(path, folder, is_quick)
    elif suffix in CAPTION_SUFFIXES:
        yield from _captioned_pictures(path)
    else:
        yield FoundPicture(path, folder, _relative(path, folder))


def _pictures_in_archive(
    archive: Archive, folder: Path, skipped: SkippedFiles, inner: str = ""
) -> Iterator[Found]:
    """Yield the pictures of an archive. inner: only this member, or those in this folder. Raises DataError."""
    is_empty, skipped_here = True, SkippedFiles(skipped)
    inner = unicodedata.normalize("NFC", inner)
    member = archive.members.get(inner.removesuffix("/"))
    for picture in [member] if member is not None else archive.members.values():
        suffix = PurePosixPath(picture.name).suffix.lower()
        if not picture.name.startswith(inner) and picture is not member:
            continue
        if suffix in PICTURE_SUFFIXES:
            is_empty = False
            yield FoundPicture(picture, folder, f"{_relative(archive.path, folder)}/{picture.name}")
        elif is_skipped(suffix):
            skipped_here.add(suffix, str(picture))
    if not inner:
        for line in archive.left_out:
            path, _, _ = line.rpartition(": ")
            if PurePosixPath(path).suffix.lower() in PICTURE_SUFFIXES:
                yield UnusablePath(path, line)
        if archive.cut:
            yield UnusablePath(str(archive.path), f"{archive.cut}; take another copy of it")
    if is_empty:
        where = f"{archive.path}/{inner}".removesuffix("/")
        raise DataError(f"{where}: no pictures in this archive; {_looked_for(skipped_here)}")


def _pictures_in_table(path: Path, folder: Path, is_quick: bool) -> Iterator[Found]:
    """Yield the pictures of the rows; their bytes are not read if `is_quick`. Raises MyLLMError."""
    is_empty, last = True, ""
    for row in read_picture_rows(path, with_content=not is_quick):
        is_empty = False
        if row.image is not None:
            yield FoundPicture(row.image, folder, _inner_name(row.name, row.default_name))
        elif row.path is None:
            yield UnusablePath(row.position, f"{row.position}: has no picture")
        elif row.path != last:  # a row for each caption
            yield _named_in_table(path, row, row.path)
        last = row.path or ""
    if is_empty:
        raise DataError(f"{path}: has no rows")


def _named_in_table(table: Path, row: PictureRow, name: str) -> Found:
    """Return the picture that a row of a table names, which is looked for as `train` does."""
    quoted = shortened(name)
    if "://" in name:
        return UnusablePath(
            row.position, f"{row.position}: {quoted}: web addresses are not downloaded; save the picture"
        )
    near, others = name_folders(table.parent, [table])
    picture = next((folder / name for folder in (*near, *others) if os.path.isfile(folder / name)), None)
    if picture is not None:
        return FoundPicture(picture, table.parent, _inner_name(row.name, row.default_name))
    return UnusablePath(row.position, f"{row.position}: names {quoted}, which is not a file in {table.parent}")


def _captioned_pictures(path: Path) -> Iterator[Found]:
    """Yield the pictures that a file of captions names. Raises DataError."""
    try:
        records, findings = read_records(path, CaptionsConfig(), use_lists=False, keep_uncaptioned=True)
    except DataError as error:
        fault = str(error).removesuffix(f". {describe_formats()}")  # these are a thousand characters
        raise DataError(f"{fault}. A file that lists pictures, a path in each line, is given by --from") from None
    for record in records:
        yield FoundPicture(record.image, path.parent, _inner_name(record.name, PurePosixPath(record.name).name))
    for name in map(shortened, findings.missing_pictures):
        yield UnusablePath(name, f"{name}: named in {path}, but the picture is missing; put it into {path.parent}")
    for row in map(shortened, findings.unreadable_rows):
        yield UnusablePath(f"{path}, {row}", f"{path}, {row}: cannot be read; correct the row")


def _inner_name(name: str, default: str) -> str:
    """Return a name that a file gives its picture, in normal form; the default if it is a path that leads elsewhere."""
    path = PurePosixPath(normal_name(printable(name)))
    return default if path.is_absolute() or ".." in path.parts or path.name == "" else path.as_posix()


def _relative(path: Path, folder: Path) -> str:
    """Return the path relative to the folder, with '/'; only the last part if it is not below it."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
