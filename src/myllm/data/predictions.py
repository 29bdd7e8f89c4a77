"""Reads captions from files (predictions) and captions to compare them with (references), and matches them by picture.

`PREDICTIONS` and `REFERENCES` are the tables of formats. The format of a file is recognised by its content.
"""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from myllm.config import CaptionsConfig
from myllm.data.records import (
    PICTURE_FOLDERS,
    SEPARATOR,
    Findings,
    Record,
    counted,
    decode_text,
    read_records,
    read_results_csv,
)
from myllm.data.splits import one_split, split_records
from myllm.errors import DataError

MAX_CHARACTERS = 100_000
PICTURE_KEYS = ("image", "image_id", "file_name", "filename")
CAPTION = "caption"
KNOWN_PREDICTIONS = (
    'COCO results (a JSON list of {"image_id": ..., "caption": ...}), JSONL ({"image": ..., "caption": ...} on each '
    "line), or CSV with columns image and caption"
)
KNOWN_REFERENCES = (
    "COCO annotations (JSON with images and annotations), Karpathy's JSON (images with sentences), a results.csv of "
    "lines 'image_name| comment_number| comment', or a data folder"
)


@dataclass(frozen=True)
class References:
    """Captions that people wrote, by picture."""

    captions: dict[str, list[str]]
    """Captions by the picture's name."""
    ids: dict[str, str]
    """Names by the ids of the pictures in the file, as text."""
    source: str
    """The file or folder, for messages."""


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
    text = _text(path)
    reader = PREDICTIONS["csv"]
    if text.lstrip()[:1] in ("[", "{"):
        reader = PREDICTIONS["coco" if text.lstrip()[0] == "[" else "jsonl"]
    captions: dict[str, str] = {}
    repeated: list[str] = []
    for position, picture, caption in reader(path, text):
        name = _picture_name(path, position, picture)
        if name in captions:
            repeated.append(name)
        captions[name] = _caption(path, position, name, caption)
    if repeated:
        raise DataError(
            f"{path}: {counted(repeated, 'picture has two captions', 'pictures have two captions')}; leave one for each"
        )
    if not captions:
        raise DataError(f"{path}: holds no caption; expected {KNOWN_PREDICTIONS}")
    return captions


def read_references(path: Path, split: str | None, captions: CaptionsConfig) -> References:
    """Return the references in a file or data folder, of a split if one is named. Raises DataError or ConfigError."""
    if path.is_dir():
        return _read_folder(path, split, captions)
    text = _text(path)
    if text.lstrip()[:1] in ("{", "["):
        content = _json(path, text)
        for matches, reader in REFERENCES.values():
            if isinstance(content, dict) and matches(content):
                return reader(path, content, split)
        raise DataError(f"{path}: not references in a known format; expected {KNOWN_REFERENCES}")
    if SEPARATOR not in text.partition("\n")[0]:
        raise DataError(f"{path}: not references in a known format; expected {KNOWN_REFERENCES}")
    if split is not None:
        return _read_folder(path.parent, split, captions)
    collected = _Collected(path)
    for row in read_results_csv(path, captions, Findings()):
        if row.caption.strip():
            collected.captions[row.image].append(row.caption)
    return collected.references()


def match(predictions: Mapping[str, str], references: References) -> Matched:
    """Match captions with references by the picture's name, its id, or the end of its path, with or without suffix.

    Two paths are of one picture if one is the end of the other: `data/a/1.jpg` and `a/1.jpg`, but not `b/1.jpg`.
    Raises DataError if two captions are of one picture, or no caption is of any picture with references.
    """
    index = _NameIndex(references)
    matched: dict[str, str] = {}
    unknown = []
    for name, caption in predictions.items():
        picture = index.find(name)
        if picture is None:
            unknown.append(name)
        elif picture in matched:
            raise DataError(f"{picture} has two captions, one of them as {name!r}; leave one of them")
        else:
            matched[picture] = caption
    if not matched:
        raise DataError(
            f"none of the {len(predictions):,} captions is of a picture with references: they are of pictures such as "
            f"{next(iter(predictions))!r}, {references.source} has such as {next(iter(references.captions))!r}"
        )
    names = [name for name in references.captions if name in matched]
    missing = [name for name in references.captions if name not in matched]
    texts = [references.captions[name] for name in names]
    return Matched(names, [matched[name] for name in names], texts, missing, unknown)


class _NameIndex:
    """Finds the name of a reference by the name of a prediction."""

    def __init__(self, references: References) -> None:
        self.references = references
        self.by_path: dict[tuple[str, ...], str | None] = {}
        """Names by their path, with and without suffix; None if two pictures share it."""
        self.by_end: dict[tuple[str, ...], str | None] = {}
        """The same for each end of a path."""
        for name in references.captions:
            for parts in _paths(name):
                _add(self.by_path, parts, name)
                for start in range(len(parts)):
                    _add(self.by_end, parts[start:], name)

    def find(self, name: str) -> str | None:
        if name in self.references.captions:
            return name
        if name in self.references.ids:
            return self.references.ids[name]
        for parts in _paths(name):
            ends = (self.by_path.get(parts[start:]) for start in range(1, len(parts)))
            if result := self.by_end.get(parts) or next(filter(None, ends), None):
                return result
        return None


def _paths(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the parts of a path with its suffix, and without."""
    path = PurePath(name.replace("\\", "/"))
    return path.parts, (*path.parts[:-1], path.stem)


def _add(names: dict[tuple[str, ...], str | None], parts: tuple[str, ...], name: str) -> None:
    names[parts] = name if names.get(parts, name) == name else None


def _read_coco_results(path: Path, text: str) -> Iterator[tuple[str, Any, Any]]:
    for number, entry in enumerate(_json(path, text), 1):
        yield _prediction(path, f"entry {number:,}", entry)


def _read_jsonl(path: Path, text: str) -> Iterator[tuple[str, Any, Any]]:
    try:
        whole = json.loads(text)
    except ValueError:
        whole = None
    if isinstance(whole, dict) and CAPTION not in whole:
        keys = ", ".join(list(whole)[:5])
        raise DataError(f"{path}: one JSON object with {keys}, not predictions; expected {KNOWN_PREDICTIONS}")
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise DataError(
                    f"{path}: line {number:,} is not JSON ({error}); expected {KNOWN_PREDICTIONS}"
                ) from None
            yield _prediction(path, f"line {number:,}", entry)


def _read_csv(path: Path, text: str) -> Iterator[tuple[str, Any, Any]]:
    csv.field_size_limit(2**31 - 1)
    rows = csv.reader(io.StringIO(text, newline=""))
    header = [name.strip() for name in next(rows, [])]
    picture = next((key for key in PICTURE_KEYS if key in header), None)
    if picture is None or CAPTION not in header:
        raise DataError(
            f"{path}: the columns are {', '.join(header)[:100]!r}, none is {' or '.join(PICTURE_KEYS)}, or none is "
            f"caption; expected {KNOWN_PREDICTIONS}"
        )
    for row in rows:
        if row:
            yield _prediction(path, f"line {rows.line_num:,}", dict(zip(header, row, strict=False)))


PREDICTIONS: dict[str, Callable[[Path, str], Iterator[tuple[str, Any, Any]]]] = {
    "coco": _read_coco_results, "jsonl": _read_jsonl, "csv": _read_csv,
}
"""Functions that yield the position in the file, the picture and the caption of each prediction."""


def _prediction(path: Path, position: str, entry: Any) -> tuple[str, Any, Any]:
    if isinstance(entry, dict):
        picture = next((entry[key] for key in PICTURE_KEYS if key in entry), None)
        if picture is not None and CAPTION in entry:
            return position, picture, entry[CAPTION]
    content = f"has {', '.join(list(entry)[:5])}" if isinstance(entry, dict) else f"is {str(entry)[:50]!r}"
    raise DataError(f"{path}: {position} {content}; expected a picture and a caption: {KNOWN_PREDICTIONS}")


def _picture_name(path: Path, position: str, value: Any) -> str:
    """Return a picture's name, or its id as text: 42, 42.0 and "42" are the same."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise DataError(f"{path}: {position} calls its picture {value!r:.50}; expected a name or a whole number")
    return _printable(str(value).strip())


def _caption(path: Path, position: str, name: str, value: Any) -> str:
    if not isinstance(value, str):
        content = "null" if value is None else f"{value!r:.50}"
        raise DataError(f"{path}: {position}, picture {name}: the caption is {content}; expected text (may be empty)")
    if len(value) > MAX_CHARACTERS:
        raise DataError(
            f"{path}: {position}, picture {name}: the caption has {len(value):,} characters; a caption has at most "
            f"{MAX_CHARACTERS:,}, so mend or remove it"
        )
    return _printable(value)


def _printable(text: str) -> str:
    """Replace lone surrogates, which JSON can contain and no file or terminal can encode, by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@dataclass(frozen=True)
class _Collected:
    """References while they are read; refuses names and ids of two pictures."""

    path: Path
    captions: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    ids: dict[str, str] = field(default_factory=dict)

    def add_picture(self, name: Any, identity: Any, position: str) -> str:
        """Add a picture without captions, and return its name."""
        name = _picture_name(self.path, position, name)
        if name in self.captions:
            raise DataError(f"{self.path}: {position} is a second picture called {name}; add folders to their names")
        self.captions[name] = []
        if identity is not None:
            other = self.ids.setdefault(_picture_name(self.path, position, identity), name)
            if other != name:
                raise DataError(f"{self.path}: {position}, {name}, has the id {identity}, as {other} has")
        return name

    def references(self) -> References:
        """Return the pictures that have captions. Raises DataError if there are none."""
        captions = {_printable(name): texts for name, texts in self.captions.items() if texts}
        if not captions:
            raise DataError(f"{self.path}: holds no reference caption; expected {KNOWN_REFERENCES}")
        return References(captions, {key: name for key, name in self.ids.items() if name in captions}, str(self.path))


def _objects(path: Path, value: Any, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the position and content of each object of a JSON list. Raises DataError if it is anything else."""
    if not isinstance(value, list):
        raise DataError(f"{path}: {what}s is {value!r:.50}; expected a list of objects")
    for number, entry in enumerate(value, 1):
        if not isinstance(entry, dict):
            raise DataError(f"{path}: {what} {number:,} is {entry!r:.50}; expected an object of names and values")
        yield f"{what} {number:,}", entry


def _read_coco_annotations(path: Path, content: dict[str, Any], split: str | None) -> References:
    if split is not None:
        raise DataError(f"{path}: COCO annotations have no splits; leave out --split {split}")
    collected = _Collected(path)
    for position, entry in _objects(path, content["images"], "image"):
        collected.add_picture(entry.get("file_name", entry.get("id")), entry.get("id"), position)
    for position, entry in _objects(path, content["annotations"], "annotation"):
        identity = _picture_name(path, position, entry.get("image_id"))
        if identity not in collected.ids:
            raise DataError(f"{path}: {position} is of picture {identity}, which is not listed in images")
        name = collected.ids[identity]
        collected.captions[name].append(_caption(path, position, name, entry.get(CAPTION)))
    return collected.references()


def _read_karpathy(path: Path, content: dict[str, Any], split: str | None) -> References:
    entries = list(_objects(path, content["images"], "image"))
    splits = sorted({str(entry.get("split")) for _, entry in entries})
    if split is not None and split not in splits:
        raise DataError(f"{path}: has no split {split!r}; it has {', '.join(splits)}")
    collected = _Collected(path)
    for position, entry in entries:
        if split is None or entry.get("split") == split:
            identity = entry.get("cocoid", entry.get("imgid"))
            name = collected.add_picture(entry.get("filename", identity), identity, position)
            for sentence_position, sentence in _objects(path, entry.get("sentences"), f"{position}, sentence"):
                collected.captions[name].append(_caption(path, sentence_position, name, sentence.get("raw")))
    return collected.references()


def _is_karpathy(content: dict[str, Any]) -> bool:
    images = content.get("images")
    return isinstance(images, list) and any(isinstance(entry, dict) and "sentences" in entry for entry in images)


REFERENCES: dict[
    str, tuple[Callable[[dict[str, Any]], bool], Callable[[Path, dict[str, Any], str | None], References]]
] = {
    "coco": (lambda content: {"images", "annotations"} <= content.keys(), _read_coco_annotations),
    "karpathy": (_is_karpathy, _read_karpathy),
}
"""For each format, whether a JSON object has it, and the function that reads it."""


def _read_folder(folder: Path, split: str | None, captions: CaptionsConfig) -> References:
    records, findings = read_records(folder, captions)
    if split is not None:
        records = one_split(split_records(records, folder, findings), split, folder)
    collected = _Collected(folder)
    for record in records:
        collected.captions[_name_in_folder(record, folder)] += record.captions
    return collected.references()


def _name_in_folder(record: Record, folder: Path) -> str:
    """Return the picture's path below its picture folder, as in the captions file."""
    parents = [folder / name for name in PICTURE_FOLDERS if record.image.is_relative_to(folder / name)]
    return record.image.relative_to(parents[0]).as_posix() if parents else str(record.image)


def _text(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    return decode_text(path)


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    except RecursionError:
        raise DataError(f"{path}: JSON that is nested too deeply for captions") from None
