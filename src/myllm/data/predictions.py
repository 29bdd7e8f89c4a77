"""Reads captions from files (predictions) and captions to compare them with (references), and matches them by picture.

The format of a file is recognised by its content: `PREDICTIONS` and `REFERENCES` are the tables of formats.
"""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from myllm.config import CaptionsConfig
from myllm.data.records import SEPARATOR, Findings, counted, decode_text, read_captions, read_records
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
Entry = tuple[str, Any]
"""Position in the file ("line 3"), and what is there."""


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
        name = _picture_name(path, position, entry[picture])
        if name in captions:
            repeated.append(name)
        captions[name] = _caption(path, position, name, entry[CAPTION])
    if repeated:
        raise DataError(
            f"{path}: {counted(repeated, 'picture has two captions', 'pictures have two captions')}; keep one for each"
        )
    if not captions:
        raise DataError(f"{path}: holds no caption; expected {KNOWN_PREDICTIONS}")
    return captions


def read_references(path: Path, split: str | None, captions: CaptionsConfig) -> References:
    """Return the references in a file or data folder, of a split if one is named. Raises DataError or ConfigError."""
    if path.is_dir():
        return _read_folder(path, split, captions)
    text = decode_text(path)
    if text.lstrip()[:1] in ("{", "["):
        content = _json(text, str(path))
        for required_keys, read in REFERENCES:
            if isinstance(content, dict) and required_keys <= content.keys():
                return _collect(path, read(path, content, split))
    elif SEPARATOR in text.partition("\n")[0]:
        if split is not None:
            return _read_folder(path.parent, split, captions)
        return _references(path, read_captions(path, replace(captions, lowercase=False), Findings()))
    raise DataError(f"{path}: not references in a known format; expected {KNOWN_REFERENCES}")


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


class _NameIndex:
    """Finds the name of a reference by the name of a prediction."""

    def __init__(self, references: References) -> None:
        self.exact = references.ids | {name: name for name in references.captions}
        paths = [(parts, name) for name in references.captions for parts in _paths(name)]
        self.by_path = _unambiguous(paths)
        self.by_end = _unambiguous((parts[start:], name) for parts, name in paths for start in range(len(parts)))

    def find(self, name: str) -> str | None:
        candidates = [self.exact.get(name)]
        for parts in _paths(name):
            candidates += [self.by_end.get(parts), *(self.by_path.get(parts[start:]) for start in range(1, len(parts)))]
        return next(filter(None, candidates), None)


def _paths(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the parts of a path with its suffix, and without."""
    path = PurePath(name.replace("\\", "/"))
    return path.parts, (*path.parts[:-1], path.stem)


def _unambiguous(names: Iterable[tuple[tuple[str, ...], str]]) -> dict[tuple[str, ...], str | None]:
    """Return names by their key; None if two names share the key."""
    result: dict[tuple[str, ...], str | None] = {}
    for key, name in names:
        result[key] = name if result.get(key, name) == name else None
    return result


def _read_coco_results(path: Path, text: str) -> Iterator[Entry]:
    return ((f"entry {number:,}", entry) for number, entry in enumerate(_json(text, str(path)), 1))


def _read_jsonl(path: Path, text: str) -> Iterator[Entry]:
    with suppress(ValueError, RecursionError):  # several lines are not JSON together
        content = json.loads(text)
        if CAPTION not in content:
            keys = ", ".join(list(content)[:5])
            raise DataError(f"{path}: one JSON object with {keys}, not predictions; expected {KNOWN_PREDICTIONS}")
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number:,}", _json(line, f"{path}: line {number:,}")


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
            f"{MAX_CHARACTERS:,}, so correct or remove it"
        )
    return _printable(value)


def _printable(text: str) -> str:
    """Replace lone surrogates, which JSON can contain and no file or terminal can encode, by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class _Picture(NamedTuple):
    """A picture as a file of references describes it."""

    position: str
    name: Any
    identity: Any
    captions: list[Entry]


def _collect(path: Path, pictures: Iterable[_Picture]) -> References:
    """Return the references of the pictures. Raises DataError if two have one name or id, or none has a caption."""
    captions: dict[str, list[str]] = {}
    ids: dict[str, str] = {}
    for picture in pictures:
        name = _picture_name(path, picture.position, picture.name)
        if name in captions:
            raise DataError(f"{path}: {picture.position} is a second picture called {name}; add folders to their names")
        captions[name] = [_caption(path, position, name, caption) for position, caption in picture.captions]
        if picture.identity is not None:
            other = ids.setdefault(_picture_name(path, picture.position, picture.identity), name)
            if other != name:
                raise DataError(f"{path}: {picture.position}, {name}, has the id {picture.identity}, as {other} has")
    return _references(path, captions, ids)


def _references(path: Path, captions: Mapping[str, list[str]], ids: Mapping[str, str] | None = None) -> References:
    """Return the pictures that have captions. Raises DataError if there are none."""
    captions = {name: texts for name, texts in captions.items() if texts}
    if not captions:
        raise DataError(f"{path}: holds no reference caption; expected {KNOWN_REFERENCES}")
    return References(captions, {key: name for key, name in (ids or {}).items() if name in captions}, str(path))


def _objects(path: Path, value: Any, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the position and content of each object of a JSON list. Raises DataError if it is anything else."""
    if not isinstance(value, list):
        raise DataError(f"{path}: {what}s is {value!r:.50}; expected a list of objects")
    for number, entry in enumerate(value, 1):
        if not isinstance(entry, dict):
            raise DataError(f"{path}: {what} {number:,} is {entry!r:.50}; expected an object of names and values")
        yield f"{what} {number:,}", entry


def _read_coco_annotations(path: Path, content: dict[str, Any], split: str | None) -> Iterator[_Picture]:
    if split is not None:
        raise DataError(f"{path}: COCO annotations have no splits; leave out --split {split}")
    images = list(_objects(path, content["images"], "image"))
    captions: dict[str, list[Entry]] = defaultdict(list)
    for position, entry in _objects(path, content["annotations"], "annotation"):
        captions[_picture_name(path, position, entry.get("image_id"))].append((position, entry.get(CAPTION)))
    for position, entry in images:
        identity = entry.get("id")
        texts = captions.pop(_picture_name(path, position, identity), [])
        yield _Picture(position, entry.get("file_name", identity), identity, texts)
    for identity, texts in captions.items():
        raise DataError(f"{path}: {texts[0][0]} is of picture {identity}, which is not listed in images")


def _read_karpathy(path: Path, content: dict[str, Any], split: str | None) -> Iterator[_Picture]:
    entries = list(_objects(path, content["images"], "image"))
    splits = sorted({str(entry.get("split")) for _, entry in entries})
    if split is not None and split not in splits:
        raise DataError(f"{path}: has no split {split!r}; it has {', '.join(splits)}")
    for position, entry in entries:
        if split in (None, entry.get("split")):
            sentences = _objects(path, entry.get("sentences"), f"{position}, sentence")
            texts = [(sentence_position, sentence.get("raw")) for sentence_position, sentence in sentences]
            identity = entry.get("cocoid", entry.get("imgid"))
            yield _Picture(position, entry.get("filename", identity), identity, texts)


REFERENCES: tuple[tuple[set[str], Callable[[Path, dict[str, Any], str | None], Iterator[_Picture]]], ...] = (
    ({"images", "annotations"}, _read_coco_annotations),
    ({"images"}, _read_karpathy),
)
"""Keys of a JSON object in each format, and the reader of its pictures; the first format that fits is taken."""


def _read_folder(folder: Path, split: str | None, captions: CaptionsConfig) -> References:
    records, findings = read_records(folder, captions)
    if split is not None:
        records = one_split(split_records(records, folder, findings), split, folder)
    texts: dict[str, list[str]] = defaultdict(list)
    for record in records:
        texts[_name_in(folder, record.image)] += record.captions
    return _references(folder, texts)


def _name_in(folder: Path, image: Path) -> str:
    """Return the picture's path below the picture folder, as in the captions file."""
    return "/".join(image.relative_to(folder).parts[1:]) if image.is_relative_to(folder) else str(image)


def _json(text: str, source: str) -> Any:
    """Return the content of JSON. source: the file, or its line, for messages."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{source} is not JSON ({error})") from None
    except RecursionError:
        raise DataError(f"{source} is JSON that is nested too deeply for captions") from None
