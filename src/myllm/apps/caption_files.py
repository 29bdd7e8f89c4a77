"""Forms of captions besides JSONL: text files for pictures, CSV and Parquet."""

import codecs
import csv
import json
from collections.abc import Callable, Iterable, Mapping
from io import TextIOWrapper
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from myllm.apps.caption_options import CaptionOptions
from myllm.apps.picture_search import FoundPicture
from myllm.batched import batched
from myllm.data.images import PICTURE_SUFFIXES
from myllm.data.tables import import_pyarrow
from myllm.errors import DataError, MyLLMError, reason
from myllm.files import StoredImage, atomic_write

PARQUET_ROWS = 10_000
ReadRows = Callable[[], Iterable[Mapping[str, Any]]]
"""Returns the rows of a table; called twice, so that they need not be in memory."""


class Sidecars:
    """A text file for each picture, next to it or at the same place in another folder."""

    def __init__(self, options: CaptionOptions) -> None:
        self.options, self.root = options, None if options.out is None else Path(options.out)
        self.adds = options.append or options.prepend

    def path_of(self, entry: FoundPicture) -> Path:
        """Return the picture's text file. Raises DataError if the picture has no folder."""
        if self.root is not None:
            name = PurePosixPath(entry.name)
            # the name of a row of a table may have a dot and no suffix
            is_whole = isinstance(entry.picture, StoredImage) and name.suffix.lower() not in PICTURE_SUFFIXES
            return self.root / (name.with_name(f"{name.name}.txt") if is_whole else name.with_suffix(".txt"))
        if isinstance(entry.picture, StoredImage):
            raise DataError(f"{entry.picture}: has no folder for a text file; give one by --out")
        return entry.picture.with_suffix(".txt")

    def check(self, path: Path) -> None:
        """Raise DataError if captions are added to texts, and that of this file is UTF-16."""
        if self.adds and _read(path).startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise DataError(f"{path}: is UTF-16, to which nothing is added; save it as UTF-8")

    def text_of(self, row: Mapping[str, Any]) -> str:
        """Return the text for a row of captions: a line for each of them."""
        captions = [row["caption"], *row.get("alternatives", [])[: self.options.n - 1]]
        trigger = "" if self.options.trigger is None else f"{self.options.trigger}, "
        return "\n".join(trigger + self.options.template.replace("{caption}", caption) for caption in captions)

    def is_written(self, path: Path, text: str) -> bool:
        """Return whether the file has the text; if texts are not added to others, whether it has any."""
        content = read_text(path)
        return f", {text}, " in f", {content}, " if self.adds else bool(content)

    def write(self, path: Path, text: str, replaced: str = "") -> None:
        """Write or extend the file, whole or not at all; its other bytes stay. Raises MyLLMError.

        replaced: an earlier text of the same picture, which the file may contain.
        """
        content = _read(path) if self.adds else b""
        mark = codecs.BOM_UTF8 if content.startswith(codecs.BOM_UTF8) else b""
        line_end = b"\r\n" if b"\r\n" in content else b"\n"
        before = b", %b, " % content.removeprefix(mark).strip()
        if replaced:
            before = before.replace(b", %b, " % _encoded(replaced), b", ", 1)
        parts = [before[2:-2], _encoded(text)]
        with atomic_write(path) as file:
            file.write(mark + b", ".join(filter(None, parts if self.options.append else parts[::-1])) + line_end)


def read_text(path: Path) -> str:
    """Return the text of a file without blanks around it; "" if there is no file. Raises MyLLMError."""
    return _read(path).decode("utf-8-sig", "surrogateescape").strip()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise MyLLMError(f"{path}: cannot be read ({error.strerror})") from error


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def write_csv(read_rows: ReadRows, path: Path) -> None:
    """Write rows as CSV with a header; lists are JSON in their cells. Raises MyLLMError."""
    with atomic_write(path) as binary_file:
        file = TextIOWrapper(binary_file, encoding="utf-8", newline="")
        writer = csv.DictWriter(file, _columns(read_rows()), restval="")
        writer.writeheader()
        for row in read_rows():
            writer.writerow({name: _as_text(value) for name, value in row.items() if value is not None})
        file.flush()
        file.detach()


def write_parquet(read_rows: ReadRows, path: Path) -> None:
    """Write rows as a Parquet file.

    Raises ConfigError without pyarrow, DataError if another program wrote a value of a wrong type, and MyLLMError.
    """
    pyarrow = import_pyarrow(path)
    schema = parquet_schema(_columns(read_rows()))
    text_names = [column.name for column in schema if column.type == pyarrow.string()]
    with atomic_write(path) as file, pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for batch in batched(read_rows(), PARQUET_ROWS):
            texts = [{name: _as_text(row[name]) for name in text_names if row.get(name) is not None} for row in batch]
            try:
                cells = [{**row, **text} for row, text in zip(batch, texts, strict=True)]
                table = pyarrow.Table.from_pylist(cells, schema)
            except (TypeError, ValueError) as error:  # bases of pyarrow's errors
                raise DataError(
                    f"{path}: a row of {path}.jsonl has a value of a wrong type ({reason(error):.100}); correct it"
                ) from error
            writer.write_table(table)


def parquet_schema(names: Iterable[str]) -> Any:
    """Return the columns of captions with their types; those that other programs wrote are text."""
    import pyarrow

    text, number = pyarrow.string(), pyarrow.float64()
    kinds = {
        "score": number, "confidence": number, "alternatives": pyarrow.list_(text), "missing": pyarrow.list_(text),
        "words": pyarrow.list_(pyarrow.struct({"text": text, "confidence": number})),
    }
    return pyarrow.schema({name: kinds.get(name, text) for name in names})


def _columns(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of all columns; a row lacks those that it does not need."""
    return list(dict.fromkeys(chain(("image", "caption"), chain.from_iterable(rows))))


def _as_text(value: Any) -> str:
    """Return text, or the JSON of another value; a name that is not UTF-8 is escaped."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode(errors="backslashreplace").decode()


def check_parquet(options: CaptionOptions) -> None:
    """Raise ConfigError if the form is Parquet and its library is missing."""
    if options.form == "parquet":
        import_pyarrow(Path(str(options.out)))
