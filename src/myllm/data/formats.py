"""The table of formats of captions: how each is recognised, and what reads it.

A new format is a function that yields rows, one that recognises its files, and a line in `FORMATS`.
"""

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from myllm.config import CaptionsConfig
from myllm.data.folder_formats import (
    SIDECAR_SUFFIXES,
    is_metadata,
    is_sidecar_folder,
    is_tokens,
    read_metadata,
    read_sidecars,
    read_tokens,
)
from myllm.data.images import PICTURE_SUFFIXES
from myllm.data.json_formats import is_coco, is_karpathy, read_coco, read_karpathy
from myllm.data.names import NameIndex
from myllm.data.records import Findings
from myllm.data.rows import CaptionFile, Row, normal_name
from myllm.data.splits import named_splits, split_lists
from myllm.data.stored import COMPRESSED, Archive, entries, glob, is_archive, open_archive
from myllm.data.table_formats import (
    EXPECTED,
    SEPARATORS,
    is_object_table,
    is_table,
    read_object_table,
    read_table,
    split_rows,
)
from myllm.data.tables import is_parquet, is_saved, read_parquet, read_saved
from myllm.errors import DataError

Fits = Callable[[CaptionFile, CaptionsConfig], bool]
Read = Callable[[CaptionFile, CaptionsConfig, Findings], Iterator[Row]]


class Format(NamedTuple):
    """A format of captions."""

    name: str
    files: tuple[str, ...]
    """Names or patterns of its files in a data folder; "." is the folder itself."""
    expected: str
    """What a file of it has, for messages."""
    fits: Fits
    read: Read
    is_in_parts: bool = False
    """Whether several files of it in a folder belong together, whatever their names are."""


def fits_archive(file: CaptionFile, captions: CaptionsConfig) -> bool:
    """Return whether the file is a tar or zip archive, by its name."""
    return is_archive(file.path)


def read_archive(file: CaptionFile, captions: CaptionsConfig, findings: Findings) -> Iterator[Row]:
    """Yield the rows of an archive, which is like a data folder, or is a shard of one.

    A shard's name may begin with its split.
    """
    archive = open_archive(file.path)
    findings.left_out_members += archive.left_out
    findings.cut_archives += [archive.cut] * bool(archive.cut)
    files = _find_in_archive(archive, captions)
    rows = list(_archive_rows(archive, files, captions, findings))
    used = {row.picture for row in rows}
    findings.unused_pictures += [
        str(member) for name, member in archive.members.items() if _is_picture(name) and member not in used
    ]
    root = files[0][1].root
    if split_lists(root):
        from_rows = {normal_name(row.image): row.split for row in rows if isinstance(row.image, str)}
        splits = named_splits(list(from_rows), from_rows, root, findings)
        rows = [row._replace(split=splits[name]) for row in rows if (name := normal_name(str(row.image))) in splits]
    yield from (row._replace(split=row.split or file.split) for row in rows)


def _archive_rows(
    archive: Archive, files: Sequence[tuple[Format, CaptionFile]], captions: CaptionsConfig, findings: Findings
) -> Iterator[Row]:
    """Yield the rows of the files with captions that are in an archive, with the members that are their pictures."""
    for form, inner in files:
        if inner.is_folder:
            findings.missing_pictures += _without_picture(archive)
            member_of = {archive.path / name: member for name, member in archive.members.items()}
            for row in form.read(inner, captions, findings):
                assert isinstance(row.picture, Path)  # in the folder of its captions
                yield row._replace(picture=member_of[row.picture])
            continue
        findings.formats.append(f"{form.name}: {inner.path}")
        index, known = NameIndex(name for name in archive.members if _is_picture(name)), dict[str, set[str]]()
        for row in form.read(inner, captions, findings):
            name = row.image if isinstance(row.image, str) else ""
            if name not in known:
                known[name] = index.find_path(name) if name else set()
            position = f"{inner.name}, {row.position}"
            if len(known[name]) > 1:
                paths = " or ".join(sorted(known[name])[:2])
                raise DataError(f"{archive.path}: {position}: {name} may be {paths}; write the folder in {inner.name}")
            picture = next((archive.members[member] for member in known[name]), None)
            yield row._replace(position=position, picture=picture)


def _find_in_archive(archive: Archive, captions: CaptionsConfig) -> list[tuple[Format, CaptionFile]]:
    """Return the files with captions in an archive, or in the only folder in it. Raises DataError."""
    try:
        return _find_in_folder(archive.path, captions)
    except DataError:
        names = entries(archive.path)
        if list(names.values()) != [True]:
            raise
    return _find_in_folder(archive.path / next(iter(names)), captions)


def _without_picture(archive: Archive) -> list[str]:
    """Return the files of captions that have no picture of the same name."""
    pictures = {base for name in archive.members if _is_picture(name) for base in (name, name.rpartition(".")[0])}
    return [
        str(member) for name, member in archive.members.items()
        if name.endswith(SIDECAR_SUFFIXES) and name.rpartition(".")[0] not in pictures
    ]


def _is_picture(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES


FORMATS = (
    Format("results.csv", ("results.csv",), f"lines '{EXPECTED}'", is_table, read_table),
    Format("Flickr8k token file", ("*.token.txt", "*.token", "*/*.token.txt", "captions.txt"),
           "lines 'NAME.jpg#0<tab>CAPTION'", is_tokens, read_tokens),
    Format("captions.txt", ("captions.txt",), "a header 'image,caption'", is_table, read_table),
    Format("COCO captions", ("annotations/captions_*.json", "captions_*.json", "*.json"),
           "JSON with images and annotations", is_coco, read_coco),
    Format("Karpathy JSON", ("dataset*.json", "*.json"), "JSON with images that have sentences", is_karpathy,
           read_karpathy),
    Format("Hugging Face metadata", ("metadata.jsonl", "metadata.csv", "*/metadata.jsonl", "*/metadata.csv"),
           "file_name and a caption, next to the pictures", is_metadata, read_metadata),
    Format("JSON lines", ("*.jsonl", "*.json"), "objects with an image and a caption", is_object_table,
           read_object_table),
    Format("table", ("*.csv", "*.tsv"), "a header with columns for image and caption", is_table, read_table),
    Format("tar or zip archive", ("*.tar", "*.zip", *(f"*{suffix}" for suffix in COMPRESSED), "*/*.tar"),
           "shards of pictures with captions next to them, or a data folder", fits_archive,
           read_archive, is_in_parts=True),
    Format("Parquet", ("*.parquet", "*/*.parquet"), "columns for image and caption", is_parquet, read_parquet,
           is_in_parts=True),
    Format("saved by datasets", ("*state.json", "*/state.json"), "a folder of save_to_disk", is_saved, read_saved,
           is_in_parts=True),
    Format("captions next to pictures", (".",), ".txt, .caption or .json files named like pictures",
           is_sidecar_folder, read_sidecars),
)
"""A folder is read in the first format whose files it has; a file in the first that it fits, by its name if it can."""


def find_captions(path: Path, captions: CaptionsConfig) -> list[tuple[Format, CaptionFile]]:
    """Return the files with captions in a data folder, or the file itself, each with its format. Raises DataError."""
    if path.is_dir():
        return _find_in_folder(path, captions)
    file = CaptionFile(path, path.parent)
    return [(recognise(file, captions), file)]


def _find_in_folder(path: Path, captions: CaptionsConfig) -> list[tuple[Format, CaptionFile]]:
    """Return the files with captions in a folder, or in an archive. Raises DataError if there are none."""
    names = entries(path)
    pictures = {name for name in names if PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES}
    beside_pictures = pictures | {Path(name).stem for name in pictures}
    open_file = cache(lambda match: CaptionFile(match, path))
    for form in FORMATS:
        files: list[tuple[Format, CaptionFile]] = []
        for pattern in form.files:
            for match in [path] if pattern == "." else glob(path, pattern):
                file = open_file(match)
                if match.parent == path and match.stem in beside_pictures:
                    continue  # captions of one picture
                if form.fits(file, captions):
                    files.append((form, file))
                elif "*" not in pattern and pattern != ".":
                    files.append((recognise(file, captions), file))  # raises: by its name it has captions
            if files:
                if not form.is_in_parts:
                    check_distinct(path, [file for _, file in files])
                return files
    contained = [name + "/" * is_folder for name, is_folder in names.items()]
    contents = f"only {', '.join(contained[:8])}" + ", ..." * (len(contained) > 8) if contained else "nothing"
    raise DataError(f"{path}: holds no captions in a known format. Found {contents}. {describe_formats()}")


def recognise(file: CaptionFile, captions: CaptionsConfig) -> Format:
    """Return the format of a file. Raises DataError, with the content and what each format expects."""
    name = file.path.name
    by_name = sorted(FORMATS, key=lambda form: not any(fnmatch(name, pattern.split("/")[-1]) for pattern in form.files))
    form = next((form for form in by_name if form.fits(file, captions)), None)
    if form is not None:
        return form
    table = next(form for form in FORMATS if form.read is read_table)
    objects = next(form for form in FORMATS if form.read is read_object_table)
    if not file.text.strip():
        return table  # which says that the file is empty
    if isinstance(file.json, dict):
        content = f"a JSON object with {', '.join(file.json)[:100]}"
    elif file.json is not None or file.is_json_lines:
        return objects  # which names the columns
    elif any(mark in file.text.lstrip().partition("\n")[0] for mark in SEPARATORS):
        return table
    else:
        _, fields = next(split_rows(file.text, SEPARATORS[0]))
        content = f"text that begins {fields[0][:50]!r}"
    raise DataError(f"{file.path}: holds no captions in a known format. Found {content}. {describe_formats()}")


def check_distinct(folder: Path, files: list[CaptionFile]) -> None:
    """Raise DataError if several files may be alternatives: neither their names nor their folders' say a split."""
    parents = [CaptionFile(file.path.parent, folder) for file in files]
    has_split = (
        file.split or (parent.path != folder and parent.split) for file, parent in zip(files, parents, strict=True)
    )
    if len(files) > 1 and not all(has_split):
        raise DataError(
            f"{folder}: {' and '.join(file.name for file in files[:4])} hold captions; give the file to read as "
            "--data, or each of them"
        )


def describe_formats() -> str:
    """Return what each format expects."""
    return "Expected one of: " + "; ".join(
        f"{form.name} ({'' if form.files == ('.',) else form.files[0] + ': '}{form.expected})" for form in FORMATS
    )
