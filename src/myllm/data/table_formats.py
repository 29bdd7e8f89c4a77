"""Reads captions from tables: columns between '|', tabs, commas or semicolons, and JSON objects, one for each row."""

import json
import re
from collections.abc import Collection, Iterator
from functools import cache
from typing import Any

from myllm.config import CaptionsConfig, nearest
from myllm.data.images import PICTURE_SUFFIXES
from myllm.data.records import Findings
from myllm.data.rows import CaptionFile, Row, objects, parse_json, split_name
from myllm.errors import DataError

EXPECTED = "image_name| comment_number| comment"
IMAGE_COLUMNS = (
    "image_name", "image", "file_name", "filename", "file", "path", "image_path", "filepath", "image_file",
    "image_file_name", "img", "picture",
)
CAPTION_COLUMNS = ("comment", "caption", "captions", "text", "sentence", "sentences", "description", "raw")
SPLIT_COLUMN = "split"
TEACHER = "teacher"
"""Key of the rows that `myllm label` writes: the model that was asked, and how."""
SEPARATORS = "|\t,;"
LINE_END = re.compile(r"\r\n|\n|\r")  # not splitlines(), which also splits at a form feed or U+2028


def find_columns(names: Collection[str], captions: CaptionsConfig) -> tuple[str | None, str | None]:
    """Return the picture's and the caption's column: the configured one or a usual one, in any case; None without."""
    by_lower = {name.lower(): name for name in reversed(list(names)) if isinstance(name, str)}

    def find(configured: str | None, usual: tuple[str, ...]) -> str | None:
        if configured is not None and configured not in names and configured not in OLD_DEFAULTS:
            return None
        if configured is not None and configured in names:
            return configured
        return next((by_lower[name] for name in usual if name in by_lower), None)

    return find(captions.image_column, IMAGE_COLUMNS), find(captions.caption_column, CAPTION_COLUMNS)


# Captioners of earlier versions carry these as if they had been given.
OLD_DEFAULTS = ("image_name", "comment")


def columns(file: CaptionFile, position: str, names: Collection[str], captions: CaptionsConfig) -> tuple[str, str]:
    """Return the picture's and the caption's column. Raises DataError if one is missing."""
    image, caption = find_columns(names, captions)
    if image is not None and caption is not None:
        return image, caption
    missing = ("image_column", captions.image_column, IMAGE_COLUMNS, "the picture's name") if image is None else (
        "caption_column", captions.caption_column, CAPTION_COLUMNS, "the caption"
    )
    option, configured, usual, content = missing
    configured = None if configured in OLD_DEFAULTS else configured
    expected = f"column {configured!r}" if configured else f"column with {content}, such as {', '.join(usual[:4])},"
    similar = "".join(nearest(configured or name, names) for name in ([configured] if configured else usual[:1]))
    raise DataError(
        f"{file.path}: {position} has no {expected} among {', '.join(map(str, names))[:200]}{similar}; name the column "
        f"with --captions.{option}"
    )


def is_table(file: CaptionFile, captions: CaptionsConfig) -> bool:
    """Return whether the first line names a column of pictures and one of captions."""
    if file.is_folder or file.text.lstrip().startswith(("{", "[")):
        return False
    header, _ = _header(file, captions)
    return all(find_columns(header, captions))


def read_table(file: CaptionFile, captions: CaptionsConfig, findings: Findings) -> Iterator[Row]:
    """Yield the rows of a table with a header; surplus separators belong to the caption."""
    if not file.text.strip():
        raise DataError(f"{file.path}: the file is empty; expected a header '{EXPECTED}' and a line for each caption")
    header, separator = _header(file, captions)
    if len(header) == 1:
        raise DataError(
            f"{file.path}: line 1, {header[0]!r:.100}, has no separator; expected columns between '|', tabs, commas or "
            f"semicolons, as in '{EXPECTED}'"
        )
    image, caption = (header.index(name) for name in columns(file, "line 1", header, captions))
    split = header.index(SPLIT_COLUMN) if SPLIT_COLUMN in header else None
    rows = split_rows(file.text, separator)
    next(rows)
    is_empty = True
    for line, fields in rows:
        is_empty = False
        values = _fit(fields, len(header), caption, separator)
        if values is None:
            values = _recover(fields, len(header), image, caption)
            faults = findings.unreadable_rows if values is None else findings.recovered_rows
            faults.append(f"line {line:,}: {separator.join(fields).strip()}")
        if values is not None:
            part = split_name(values[split]) if split is not None and values[split] else file.split
            for number, text in enumerate(texts := _listed(values[caption])):
                yield Row(f"line {line:,}" + f", caption {number + 1}" * (len(texts) > 1), values[image], text, part)
    if is_empty:
        raise DataError(f"{file.path}: only the header; expected a line '{EXPECTED}' for each caption below it")


def is_object_table(file: CaptionFile, captions: CaptionsConfig) -> bool:
    """Return whether the file is a JSON list, or JSON lines, whose first object has a picture and a caption."""
    if file.is_folder:
        return False
    first = next(_first_objects(file), None)
    return isinstance(first, dict) and all(find_columns(first, captions))


def read_object_table(file: CaptionFile, captions: CaptionsConfig, findings: Findings) -> Iterator[Row]:
    """Yield the rows of a list of JSON objects, or of JSON lines; a row may hold a list of captions.

    In rows of `myllm label`, the alternatives are captions of the same teacher, and `path` says where the picture is.
    """
    for position, entry in _objects(file):
        image, caption = columns(file, position, entry, captions)
        value, split, picture = entry[caption], entry.get(SPLIT_COLUMN), None
        if TEACHER in entry and isinstance(value, str):
            alternatives = entry.get("alternatives")
            value = [value, *(alternatives if isinstance(alternatives, list) else ())]
            path = file.path.parent / str(entry.get("path", ""))
            picture = path if path.is_file() else None  # otherwise the picture was moved, and its name is looked for
        part = split_name(split) if isinstance(split, str) and split else file.split
        for number, text in enumerate(value if isinstance(value, list) else [value], 1):
            position_of_text = position + f", caption {number}" * isinstance(value, list)
            yield Row(position_of_text, entry[image], text, part, picture=picture)


def _first_objects(file: CaptionFile) -> Iterator[Any]:
    if file.json is not None:
        yield from file.json if isinstance(file.json, list) else [file.json]
    elif file.is_json_lines:
        yield parse_json(file.text.lstrip().partition("\n")[0], str(file.path))


def _objects(file: CaptionFile) -> Iterator[tuple[str, dict[str, Any]]]:
    if file.json is not None:
        yield from objects(file.path, file.json if isinstance(file.json, list) else [file.json], "entry")
        return
    for number, line in enumerate(file.text.split("\n"), 1):
        if line.strip():
            entry = parse_json(line, f"{file.path}: line {number:,}")
            if not isinstance(entry, dict):
                raise DataError(f"{file.path}: line {number:,} is {entry!r:.50}; expected an object")
            yield f"line {number:,}", entry


def _header(file: CaptionFile, captions: CaptionsConfig) -> tuple[list[str], str]:
    """Return the column names and the separator: the first that gives both columns, else the one that gives most."""
    best: tuple[list[str], str] = ([], SEPARATORS[0])
    for separator in SEPARATORS:
        _, fields = next(split_rows(file.text, separator), (1, [""]))
        names = [_clean(name) for name in fields]
        if all(find_columns(names, captions)):
            return names, separator
        if len(names) > len(best[0]):
            best = names, separator
    return best


@cache
def _patterns(separator: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return patterns of a field, and of a line inside quotes that begins a row instead."""
    mark = re.escape(separator)
    suffixes = "|".join(suffix[1:] for suffix in PICTURE_SUFFIXES)
    field = rf' *"[^"]*(?:""[^"]*)*" *(?={mark}|[\r\n]|\Z)|[^{mark}\r\n]*'
    return re.compile(field), re.compile(rf'[\r\n] *"?[^{mark}\r\n"]*\.(?:{suffixes})"? *{mark}', re.IGNORECASE)


def split_rows(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the fields, as written, of each row that is not blank.

    A quoted field may contain separators and line ends. A quote that does not end a field is part of its text.
    """
    field, row_inside = _patterns(separator)
    position, line = 0, 1
    while position < len(text):
        fields, first = list[str](), line
        while True:
            match = field.match(text, position)
            assert match is not None  # the second branch matches anything
            value = match[0]
            ends = LINE_END.findall(value)
            if ends and row_inside.search(value):  # a stray quote, and a later one
                value, ends = re.split(r"[\r\n]", value, maxsplit=1)[0].partition(separator)[0], []
            fields.append(value)
            line += len(ends)
            position += len(value)
            if not text.startswith(separator, position):
                break
            position += 1
        end = LINE_END.match(text, position)
        position, line = (end.end() if end else position), line + 1
        if len(fields) > 1 or fields[0].strip():
            yield first, fields


def _clean(value: str) -> str:
    """Remove blanks around a value, and quotes if they surround all of it."""
    value = value.strip()
    if len(value) >= 2 and value[0] == value[-1] == '"' and '"' not in value[1:-1].replace('""', ""):
        return value[1:-1].replace('""', '"').strip()
    return value


def _fit(fields: list[str], width: int, caption: int, separator: str) -> list[str] | None:
    """Return the values of a row, or None if there are too few. If there are too many, the caption has separators."""
    surplus = len(fields) - width
    if surplus < 0:
        return None
    end = caption + surplus + 1
    joined = separator.join(fields[caption:end])
    return [_clean(value) for value in (*fields[:caption], joined, *fields[end:])]


def _recover(fields: list[str], width: int, image: int, caption: int) -> list[str] | None:
    """Return the values of a row without the separator before its last column, as in '1.jpg| 4   A dog runs .'."""
    values = [_clean(value) for value in fields]
    if caption != width - 1 or image >= len(values) - 1 or len(values) != width - 1:
        return None
    match = re.fullmatch(r"(\d+)\s+(\S.*)", values[-1], re.DOTALL)
    return match and [*values[:-1], match[1], _clean(match[2])]


def _listed(caption: str) -> list[str]:
    """Return the captions of a cell: those of a JSON list of texts, or the text itself."""
    if caption.startswith('["') and caption.endswith('"]'):
        try:
            texts = json.loads(caption)
        except ValueError:
            return [caption]
        if all(isinstance(text, str) for text in texts):
            return list(texts)
    return [caption]
