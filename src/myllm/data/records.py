"""Reads a data folder into records: the path of a picture with its captions.

`READERS` is the table of formats. A new format is a function that yields rows, and a line in the table.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

from myllm.config import CaptionsConfig, nearest
from myllm.data.images import PICTURE_SUFFIXES
from myllm.errors import DataError
from myllm.files import read_data

MAX_TEXT_BYTES = 2**31
MAX_NAMES = 3
SEPARATOR = "|"
PICTURE_FOLDERS = ("flickr30k_images", "images")
EXPECTED = "image_name| comment_number| comment"


@dataclass(frozen=True)
class Record:
    """A picture with all its captions."""

    image: Path
    captions: tuple[str, ...]

    @property
    def name(self) -> str:
        """File name without the folder."""
        return self.image.name


def _finding(noun: str, fault: str, plural: str = "") -> list[str]:
    return field(default_factory=list, metadata={"phrases": (f"{noun} {fault}", f"{plural or noun + 's'} {fault}")})


@dataclass
class Findings:
    """What is unusual in the data, by kind. Each list holds the names of pictures, or lines of a file."""

    recovered_rows: list[str] = _finding("row", "recovered")
    unreadable_rows: list[str] = _finding("row", "unreadable and left out")
    empty_captions: list[str] = _finding("empty caption", "left out")
    missing_pictures: list[str] = _finding("captioned picture", "missing")
    unused_pictures: list[str] = _finding("picture", "without captions")
    broken_pictures: list[str] = _finding("broken picture", "left out")
    equal_pictures: list[str] = _finding("group", "of byte-equal pictures")
    dropped_copies: list[str] = _finding("copy", "dropped, as another split has the picture", plural="copies")
    in_two_splits: list[str] = _finding("picture", "named in two splits")
    in_no_split: list[str] = _finding("picture", "in no split and left out")
    unknown_in_splits: list[str] = _finding("unknown picture", "named in splits")
    cut_captions: list[str] = _finding("caption", "cut at the context's end")
    not_english: list[str] = _finding(
        "caption", "not known to be English, so that no picture is flipped and no hue is shifted"
    )
    repaired_features: list[str] = _finding("damaged feature", "recomputed")

    def lines(self) -> list[str]:
        """Return a sentence for each kind of finding: how many there are, and the first names."""
        return [
            counted(names, *kind.metadata["phrases"]) for kind in fields(self) if (names := getattr(self, kind.name))
        ]


def quantity(count: int, noun: str) -> str:
    """Return '1 picture' or '2,000 pictures'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def counted(names: Sequence[str], singular: str, plural: str) -> str:
    """Return how many names there are, with the noun in the right number and the first `MAX_NAMES` names."""
    more = f", and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else ""
    return f"{len(names):,} {plural if len(names) > 1 else singular} ({'; '.join(names[:MAX_NAMES])}{more})"


class Row(NamedTuple):
    """A caption of a picture."""

    position: str
    """Where in the file it is, for messages: "line 3"."""
    image: str
    caption: str


def read_records(folder: Path, captions: CaptionsConfig) -> tuple[list[Record], Findings]:
    """Return the records of a data folder in the order of its rows; missing pictures are only in the findings.

    Raises DataError with the fix if the folder, its captions or all of its pictures cannot be used.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; give the folder with results.csv and {PICTURE_FOLDERS[0]}/ as --data, "
            "or draw one with 'myllm scenes --out data --count 2000'"
        )
    name = next((name for name in READERS if (folder / name).is_file()), None)
    if name is None:
        raise DataError(f"{folder}: holds no {' or '.join(READERS)}; expected a file of lines '{EXPECTED}'")
    findings = Findings()
    texts = read_captions(folder / name, captions, findings)
    candidates = [folder / name for name in PICTURE_FOLDERS]
    pictures = next((path for path in candidates if path.is_dir()), None)
    if pictures is None:
        raise DataError(f"{folder}: no picture folder; looked for {' and '.join(map(str, candidates))}")
    findings.missing_pictures = [name for name in texts if not (pictures / name).is_file()]
    missing = set(findings.missing_pictures)
    if len(missing) == len(texts):
        raise DataError(
            f"{folder}: all {len(texts):,} captioned pictures are missing; looked in {pictures} for "
            f"{next(iter(texts))!r} and the others; put the pictures there under the names of the captions file"
        )
    files = (path for path in pictures.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file())
    findings.unused_pictures = sorted({path.relative_to(pictures).as_posix() for path in files} - texts.keys())
    return [Record(pictures / name, tuple(texts[name])) for name in texts if name not in missing], findings


def read_captions(path: Path, captions: CaptionsConfig, findings: Findings) -> dict[str, list[str]]:
    """Return the captions of each picture in a captions file, stripped, in the order of the rows.

    The name of the file decides its format; a file of another name is read as results.csv. Raises DataError.
    """
    read = READERS.get(path.name, read_results_csv)
    texts: dict[str, list[str]] = {}
    for position, image, written in read(path, captions, findings):
        caption = written.strip().lower() if captions.lowercase else written.strip()
        if caption:
            texts.setdefault(image, []).append(caption)
        else:
            findings.empty_captions.append(f"{position}: {image}")
    if not texts:
        raise DataError(f"{path}: no row holds a caption; all are empty or cannot be read")
    return texts


def read_results_csv(path: Path, captions: CaptionsConfig, findings: Findings) -> Iterator[Row]:
    """Yield the rows of `results.csv` as Flickr30k has it: a header, and '|' between the columns."""
    # splitlines() would also split at a form feed or U+2028, which a caption may contain
    lines = re.split(r"\r\n|\n|\r", decode_text(path))
    if not any(line.strip() for line in lines):
        raise DataError(f"{path}: the file is empty; expected a header '{EXPECTED}' and a line for each caption")
    header = [_clean(name) for name in lines[0].split(SEPARATOR)]
    image_column, caption_column = _columns(path, lines[0], header, captions)
    if not any(line.strip() for line in lines[1:]):
        raise DataError(f"{path}: only the header; expected a line '{EXPECTED}' for each caption below it")
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        values = _split_row(line, len(header), caption_column)
        if values is None:
            values = _recover(line, header, image_column, caption_column)
            rows = findings.unreadable_rows if values is None else findings.recovered_rows
            rows.append(f"line {number:,}: {line.strip()}")
        if values is not None:
            yield Row(f"line {number:,}", values[image_column], values[caption_column])


READERS: dict[str, Callable[[Path, CaptionsConfig, Findings], Iterator[Row]]] = {
    "results.csv": read_results_csv,
}
"""Readers of captions files by the file's name; a data folder is read by the first whose file it has."""


def decode_text(path: Path) -> str:
    """Return the text of a UTF-8 file, without a byte order mark. Raises DataError for other or unreadable files."""
    content = read_data(path, MAX_TEXT_BYTES)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        encoding = "UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "LATIN1"
        raise DataError(
            f"{path}: line {line:,} holds byte 0x{content[error.start]:02x}, which is not UTF-8; convert the file, "
            f"for example 'iconv -f {encoding} -t UTF-8 {path.name} > utf8.csv', and put the result in its place"
        ) from None


def _clean(value: str) -> str:
    """Remove blanks around a value, and quotes if they surround all of it."""
    value = value.strip()
    if len(value) >= 2 and value[0] == value[-1] == '"' and '"' not in value[1:-1].replace('""', ""):
        return value[1:-1].replace('""', '"').strip()
    return value


def _columns(path: Path, line: str, header: list[str], captions: CaptionsConfig) -> tuple[int, int]:
    """Return the indexes of the picture's and the caption's column."""
    if len(header) == 1:
        others = {",": "commas", "\t": "tabs", ";": "semicolons"}
        separator = next((others[mark] for mark in others if mark in line), None)
        problem = f"has {separator} between its columns" if separator else "has no separator"
        raise DataError(
            f"{path}: line 1, {line.strip()!r}, {problem}; expected '{SEPARATOR}', as in '{EXPECTED}': "
            f"save the file with '{SEPARATOR}' as its separator"
        )
    for option, column in (("image_column", captions.image_column), ("caption_column", captions.caption_column)):
        if column not in header:
            raise DataError(
                f"{path}: no column {column!r} among {', '.join(header)}{nearest(column, header)}; "
                f"name the column with --captions.{option}"
            )
    return header.index(captions.image_column), header.index(captions.caption_column)


def _split_row(line: str, width: int, caption_column: int) -> list[str] | None:
    """Return the values of a row, or None if there are too few. If there are too many, the caption contains a '|'."""
    values = line.split(SEPARATOR)
    surplus = len(values) - width
    if surplus < 0:
        return None
    end = caption_column + surplus + 1
    values[caption_column:end] = [SEPARATOR.join(values[caption_column:end])]
    return [_clean(value) for value in values]


def _recover(line: str, header: list[str], image_column: int, caption_column: int) -> list[str] | None:
    """Return the values of a row without the separator before its last column, as in '1.jpg| 4   A dog runs .'."""
    values = [_clean(value) for value in line.split(SEPARATOR)]
    if caption_column != len(header) - 1 or image_column >= len(values) - 1 or len(values) != len(header) - 1:
        return None
    match = re.fullmatch(r"(\d+)\s+(\S.*)", values[-1], re.DOTALL)
    return match and [*values[:-1], match[1], _clean(match[2])]
