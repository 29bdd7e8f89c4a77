"""Captions of anyone's, and what to hold them against: predictions and references, matched by picture.

`PREDICTIONS` and `REFERENCES` are the tables of formats; which one a file is in, its content tells.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from myllm.config import CaptionsConfig
from myllm.data.records import SEPARATOR, Findings, counted, decode_text, read_records, read_results_csv
from myllm.data.splits import one_split, split_records
from myllm.errors import DataError

MAX_CHARACTERS = 100_000
PICTURE_KEYS = ("image", "image_id", "file_name", "filename")
CAPTION = "caption"
KNOWN_PREDICTIONS = (
    'COCO results (a JSON list of {"image_id": ..., "caption": ...}), JSONL ({"image": ..., "caption": ...} a line), '
    "or CSV with columns image and caption"
)
KNOWN_REFERENCES = (
    "COCO annotations (JSON with images and annotations), Karpathy's JSON (images with sentences), a results.csv of "
    "lines 'image_name| comment_number| comment', or a data folder"
)


@dataclass(frozen=True)
class References:
    """Captions that people wrote, by picture."""

    captions: dict[str, list[str]]
    """By the picture's name."""
    ids: dict[str, str]
    """Names by the numbers that the file gives pictures, as text."""
    source: str


@dataclass(frozen=True)
class Matched:
    """A caption and the references of each picture that has both."""

    names: list[str]
    captions: list[str]
    references: list[list[str]]
    missing: list[str]
    """Pictures with references and no caption."""
    unknown: list[str]
    """Captions of pictures that have no references."""


def read_predictions(path: Path) -> dict[str, str]:
    """A caption by picture, which is called as the file calls it. Raises DataError."""
    text = _text(path)
    reader = PREDICTIONS["csv"]
    if text.lstrip()[:1] in ("[", "{"):
        reader = PREDICTIONS["coco" if text.lstrip()[0] == "[" else "jsonl"]
    found: dict[str, str] = {}
    twice: list[str] = []
    for place, picture, caption in reader(path, text):
        name = _picture(path, place, picture)
        if name in found:
            twice.append(name)
        found[name] = _caption(path, place, name, caption)
    if twice:
        raise DataError(
            f"{path}: {counted(twice, 'picture has two captions', 'pictures have two captions')}; leave one for each"
        )
    if not found:
        raise DataError(f"{path}: holds no caption; expected {KNOWN_PREDICTIONS}")
    return found


def read_references(path: Path, split: str | None, captions: CaptionsConfig) -> References:
    """The captions of all pictures in the file or folder, or of those of a split. Raises DataError."""
    if path.is_dir():
        return _of_folder(path, split, captions)
    text = _text(path)
    if text.lstrip()[:1] in ("{", "["):
        content = _json(path, text)
        for is_one, reader in REFERENCES.values():
            if isinstance(content, dict) and is_one(content):
                return reader(path, content, split)
        raise DataError(f"{path}: not references in a form that is known; expected {KNOWN_REFERENCES}")
    if SEPARATOR not in text.partition("\n")[0]:
        raise DataError(f"{path}: not references in a form that is known; expected {KNOWN_REFERENCES}")
    if split is not None:
        return _of_folder(path.parent, split, captions)
    found: dict[str, list[str]] = {}
    for row in read_results_csv(path, captions, Findings()):
        if row.caption.strip():
            found.setdefault(row.image, []).append(row.caption)
    return _checked(path, found, {})


def match(predictions: Mapping[str, str], references: References) -> Matched:
    """Bring both together: by the picture's name, its number, its file's name without folders, or without suffix.

    Raises DataError where two captions turn out to be of one picture, or none of any.
    """
    ways = _ways(references)
    chosen: dict[str, str] = {}
    unknown = []
    for name, caption in predictions.items():
        picture = _found(name, ways)
        if picture is None:
            unknown.append(name)
        elif picture in chosen:
            raise DataError(f"{picture} has two captions, one of them as {name!r}; leave one of them")
        else:
            chosen[picture] = caption
    if not chosen:
        raise DataError(
            f"none of the {len(predictions):,} captions is of a picture with references: they are of pictures such as "
            f"{next(iter(predictions))!r}, {references.source} has such as {next(iter(references.captions))!r}"
        )
    names = [name for name in references.captions if name in chosen]
    missing = [name for name in references.captions if name not in chosen]
    told = [references.captions[name] for name in names]
    return Matched(names, [chosen[name] for name in names], told, missing, unknown)


def _found(name: str, ways: Sequence[Mapping[str, str]]) -> str | None:
    last = PurePath(name.replace("\\", "/"))
    for called, way in zip((name, name, last.name, last.stem), ways, strict=True):
        if called in way:
            return way[called]
    return None


def _ways(references: References) -> tuple[Mapping[str, str], ...]:
    """From what a picture may be called to its name; what two pictures share calls neither."""
    names = list(references.captions)

    def unique(called: Sequence[str]) -> dict[str, str]:
        times = Counter(called)
        return {one: name for one, name in zip(called, names, strict=True) if times[one] == 1}

    paths = [PurePath(name) for name in names]
    return (
        {name: name for name in names},
        references.ids,
        unique([one.name for one in paths]),
        unique([one.stem for one in paths]),
    )


def _coco_results(path: Path, text: str) -> Iterator[tuple[str, Any, Any]]:
    for number, entry in enumerate(_json(path, text), 1):
        yield _entry(path, f"entry {number:,}", entry)


def _jsonl(path: Path, text: str) -> Iterator[tuple[str, Any, Any]]:
    try:
        whole = json.loads(text)
    except ValueError:
        whole = None
    if isinstance(whole, dict) and CAPTION not in whole:
        told = ", ".join(list(whole)[:5])
        raise DataError(f"{path}: one JSON object with {told}, no predictions; expected {KNOWN_PREDICTIONS}")
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}: line {number:,} is no JSON ({error}); expected {KNOWN_PREDICTIONS}") from None
            yield _entry(path, f"line {number:,}", entry)


def _csv(path: Path, text: str) -> Iterator[tuple[str, Any, Any]]:
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
            yield _entry(path, f"line {rows.line_num:,}", dict(zip(header, row, strict=False)))


PREDICTIONS: dict[str, Callable[[Path, str], Iterator[tuple[str, Any, Any]]]] = {
    "coco": _coco_results, "jsonl": _jsonl, "csv": _csv,
}


def _entry(path: Path, place: str, entry: Any) -> tuple[str, Any, Any]:
    if isinstance(entry, dict):
        picture = next((entry[key] for key in PICTURE_KEYS if key in entry), None)
        if picture is not None and CAPTION in entry:
            return place, picture, entry[CAPTION]
    found = f"has {', '.join(list(entry)[:5])}" if isinstance(entry, dict) else f"is {str(entry)[:50]!r}"
    raise DataError(f"{path}: {place} {found}; expected a picture and a caption: {KNOWN_PREDICTIONS}")


def _picture(path: Path, place: str, value: Any) -> str:
    """A picture's name, or its number as text: 42, 42.0 and "42" are one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise DataError(f"{path}: {place} calls its picture {value!r}; expected a name or a whole number")
    return str(value).strip()


def _caption(path: Path, place: str, name: str, value: Any) -> str:
    if not isinstance(value, str):
        told = "null" if value is None else f"{value!r}"[:50]
        raise DataError(f"{path}: {place}, picture {name}: the caption is {told}; expected text, which may be empty")
    if len(value) > MAX_CHARACTERS:
        raise DataError(
            f"{path}: {place}, picture {name}: the caption has {len(value):,} characters; a caption has at most "
            f"{MAX_CHARACTERS:,}, so mend or remove it"
        )
    return value


def _coco_annotations(path: Path, content: dict[str, Any], split: str | None) -> References:
    if split is not None:
        raise DataError(f"{path}: COCO's annotations have no splits; leave out --split {split}")
    names = {entry.get("id"): str(entry.get("file_name", entry.get("id"))) for entry in content["images"]}
    found: dict[str, list[str]] = {name: [] for name in names.values()}
    for number, entry in enumerate(content["annotations"], 1):
        place = f"annotation {number:,}"
        if entry.get("image_id") not in names:
            raise DataError(f"{path}: {place} is of picture {entry.get('image_id')!r}, which `images` does not list")
        name = names[entry["image_id"]]
        found[name].append(_caption(path, place, name, entry.get(CAPTION)))
    return _checked(path, found, {str(number): name for number, name in names.items()})


def _karpathy(path: Path, content: dict[str, Any], split: str | None) -> References:
    splits = sorted({str(entry.get("split")) for entry in content["images"]})
    if split is not None and split not in splits:
        raise DataError(f"{path}: has no split {split!r}; it has {', '.join(splits)}")
    found, ids = {}, {}
    for number, entry in enumerate(content["images"], 1):
        if split is None or entry.get("split") == split:
            name = str(entry.get("filename", entry.get("imgid", number)))
            place = f"picture {number:,}"
            found[name] = [_caption(path, place, name, one.get("raw")) for one in entry["sentences"]]
            ids[str(entry.get("cocoid", entry.get("imgid")))] = name
    return _checked(path, found, ids)


REFERENCES: dict[
    str, tuple[Callable[[dict[str, Any]], bool], Callable[[Path, dict[str, Any], str | None], References]]
] = {
    "coco": (lambda content: {"images", "annotations"} <= content.keys(), _coco_annotations),
    "karpathy": (
        lambda content: bool(content.get("images")) and "sentences" in content["images"][0], _karpathy
    ),
}


def _of_folder(folder: Path, split: str | None, captions: CaptionsConfig) -> References:
    records, findings = read_records(folder, captions)
    if split is not None:
        records = one_split(split_records(records, folder, findings), split, folder)
    return _checked(folder, {record.name: list(record.captions) for record in records}, {})


def _checked(path: Path, found: dict[str, list[str]], ids: dict[str, str]) -> References:
    kept = {name: captions for name, captions in found.items() if captions}
    if not kept:
        raise DataError(f"{path}: holds no reference caption; expected {KNOWN_REFERENCES}")
    return References(kept, ids, str(path))


def _text(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    return decode_text(path)


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: no JSON ({error})") from None
    except RecursionError:
        raise DataError(f"{path}: JSON that is nested too deeply for captions") from None
