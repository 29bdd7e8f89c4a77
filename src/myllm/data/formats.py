"""The table of formats of captions: how each is recognised, and what reads it.

A new format is a function that yields rows, one that recognises its files, and a line in `FORMATS`.
"""

from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import NamedTuple

from myllm.config import CaptionsConfig
from myllm.data.folder_formats import (
    is_metadata,
    is_sidecar_folder,
    is_tokens,
    read_metadata,
    read_sidecars,
    read_tokens,
)
from myllm.data.images import PICTURE_SUFFIXES
from myllm.data.json_formats import is_coco, is_karpathy, read_coco, read_karpathy
from myllm.data.records import Findings
from myllm.data.rows import CaptionFile, Row
from myllm.data.table_formats import (
    EXPECTED,
    SEPARATORS,
    is_object_table,
    is_table,
    read_object_table,
    read_table,
    split_rows,
)
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
           "file_name and a caption beside the pictures", is_metadata, read_metadata),
    Format("JSON lines", ("*.jsonl", "*.json"), "objects with an image and a caption", is_object_table,
           read_object_table),
    Format("table", ("*.csv", "*.tsv"), "a header with columns for image and caption", is_table, read_table),
    Format("captions beside pictures", (".",), ".txt, .caption or .json files named like pictures",
           is_sidecar_folder, read_sidecars),
)
"""A folder is read in the first format whose files it has; a file in the first that it fits, by its name if it can."""


def find_captions(path: Path, captions: CaptionsConfig) -> list[tuple[Format, CaptionFile]]:
    """Return the files with captions in a data folder, or the file itself, each with its format. Raises DataError."""
    if not path.is_dir():
        file = CaptionFile(path, path.parent)
        return [(recognise(file, captions), file)]
    pictures = {entry.name for entry in path.iterdir() if entry.suffix.lower() in PICTURE_SUFFIXES}
    beside_pictures = pictures | {Path(name).stem for name in pictures}
    open_file = cache(lambda match: CaptionFile(match, path))
    for form in FORMATS:
        found: list[tuple[Format, CaptionFile]] = []
        for pattern in form.files:
            for match in [path] if pattern == "." else sorted(path.glob(pattern)):
                file = open_file(match)
                if match.parent == path and match.stem in beside_pictures:
                    continue  # captions of one picture
                if form.fits(file, captions):
                    found.append((form, file))
                elif "*" not in pattern and pattern != ".":
                    found.append((recognise(file, captions), file))  # the name promises captions: says what is wrong
            if found:
                check_distinct(path, [file for _, file in found])
                return found
    names = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
    contents = f"only {', '.join(names[:8])}" + ", ..." * (len(names) > 8) if names else "nothing"
    raise DataError(f"{path}: holds no captions in a known format. Found {contents}. {describe_formats()}")


def recognise(file: CaptionFile, captions: CaptionsConfig) -> Format:
    """Return the format of a file. Raises DataError, saying what was found and what each format expects."""
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
        found = f"a JSON object with {', '.join(file.json)[:100]}"
    elif file.json is not None or file.is_json_lines:
        return objects  # which names the columns
    elif any(mark in file.text.lstrip().partition("\n")[0] for mark in SEPARATORS):
        return table
    else:
        _, fields = next(split_rows(file.text, SEPARATORS[0]))
        found = f"text that begins {fields[0][:50]!r}"
    raise DataError(f"{file.path}: holds no captions in a known format. Found {found}. {describe_formats()}")


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
