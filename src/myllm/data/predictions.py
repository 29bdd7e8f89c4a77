"""Reads captions that a model wrote (predictions), and matches them with references by picture.

The format of a file is recognised by its content: `PREDICTIONS` is the table of formats.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from myllm.data.names import NameIndex
from myllm.data.records import counted
from myllm.data.rows import checked_caption, checked_name, decode_text, parse_json
from myllm.data.sources import References
from myllm.errors import DataError

PICTURE_KEYS = ("image", "image_id", "file_name", "filename")
CAPTION = "caption"
KNOWN_PREDICTIONS = (
    'COCO results (a JSON list of {"image_id": ..., "caption": ...}), JSONL ({"image": ..., "caption": ...} on each '
    "line), or CSV with columns image and caption"
)
Entry = tuple[str, Any]
"""Position in the file ("line 3"), and the value at it."""


@dataclass(frozen=True)
class Matched:
    """Pictures with a caption and references, in the order of the references."""

    names: list[str]
    captions: list[str]
    references: list[list[str]]
    missing: list[str]
    """Names of pictures with references and no caption."""
    unknown: list[str]
    """Names of pictures with a caption and no references."""


def read_predictions(path: Path) -> dict[str, str]:
    """Return the captions in a file by the names, or ids as text, that it gives the pictures. Raises DataError."""
    text = decode_text(path)
    read = PREDICTIONS.get(text.lstrip()[:1], _read_csv)
    captions: dict[str, str] = {}
    repeated: list[str] = []
    for position, entry in read(path, text):
        keys = list(entry) if isinstance(entry, dict) else []
        picture = next((key for key in PICTURE_KEYS if key in keys), None)
        if picture is None or CAPTION not in keys:
            content = f"has {', '.join(keys[:5])}" if keys else f"is {str(entry)[:50]!r}"
            raise DataError(f"{path}: {position} {content}; expected a picture and a caption: {KNOWN_PREDICTIONS}")
        name = checked_name(path, position, entry[picture])
        if name in captions:
            repeated.append(name)
        captions[name] = checked_caption(path, position, name, entry[CAPTION])
    if repeated:
        raise DataError(
            f"{path}: {counted(repeated, 'picture has two captions', 'pictures have two captions')}; keep one for each"
        )
    if not captions:
        raise DataError(f"{path}: holds no caption; expected {KNOWN_PREDICTIONS}")
    return captions


def match(predictions: Mapping[str, str], references: References) -> Matched:
    """Match captions with references by the picture's name, its id, or the end of its path, with or without suffix.

    Two paths are of one picture if one is the end of the other: `data/a/1.jpg` and `a/1.jpg`, but not `b/1.jpg`.
    Raises DataError if two captions are of one picture, or no caption is of any picture with references.
    """
    index = NameIndex(references.captions, references.ids)
    matched: dict[str, str] = {}
    unknown = []
    for name, caption in predictions.items():
        picture = index.find(name)
        if picture is None:
            unknown.append(name)
        elif picture in matched:
            raise DataError(f"{picture} has two captions, one of them as {name!r}; remove one of them")
        else:
            matched[picture] = caption
    if not matched:
        raise DataError(
            f"none of the {len(predictions):,} captions is of a picture with references: the captions are of pictures "
            f"such as {next(iter(predictions))!r}, {references.source} of such as {next(iter(references.captions))!r}"
        )
    names = [name for name in references.captions if name in matched]
    missing = [name for name in references.captions if name not in matched]
    texts = [references.captions[name] for name in names]
    return Matched(names, [matched[name] for name in names], texts, missing, unknown)


def _read_coco_results(path: Path, text: str) -> Iterator[Entry]:
    return ((f"entry {number:,}", entry) for number, entry in enumerate(parse_json(text, str(path)), 1))


def _read_jsonl(path: Path, text: str) -> Iterator[Entry]:
    with suppress(ValueError, RecursionError):  # several lines are not JSON together
        content = json.loads(text)
        if CAPTION not in content:
            keys = ", ".join(list(content)[:5])
            raise DataError(f"{path}: one JSON object with {keys}, not predictions; expected {KNOWN_PREDICTIONS}")
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number:,}", parse_json(line, f"{path}: line {number:,}")


def _read_csv(path: Path, text: str) -> Iterator[Entry]:
    csv.field_size_limit(2**31 - 1)
    rows = csv.DictReader(io.StringIO(text, newline=""))
    rows.fieldnames = header = [name.strip() for name in rows.fieldnames or ()]
    if CAPTION not in header or not set(PICTURE_KEYS) & set(header):
        raise DataError(f"{path}: the columns are {', '.join(header)[:100]!r}; expected {KNOWN_PREDICTIONS}")
    for row in rows:
        yield f"line {rows.line_num:,}", row


PREDICTIONS = {"[": _read_coco_results, "{": _read_jsonl}
"""Readers of the entries of a file by its first character; other files are CSV."""
