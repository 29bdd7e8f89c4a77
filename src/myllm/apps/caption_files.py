"""Forms of captions besides JSONL: text files for pictures, CSV and Parquet."""

import codecs
import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from io import TextIOWrapper
from pathlib import Path, PurePosixPath
from typing import Any

from myllm.apps.caption_options import CaptionOptions
from myllm.apps.picture_search import FoundPicture
from myllm.batched import batched
from myllm.data.tables import import_pyarrow
from myllm.errors import ConfigError, DataError, MyLLMError
from myllm.files import StoredImage, atomic_write

PARQUET_ROWS = 10_000


class Sidecars:
    """A text file for each picture, next to it or at the same place in another folder."""

    def __init__(self, options: CaptionOptions) -> None:
        self.options, self.root = options, None if options.out is None else Path(options.out)
        self.adds = options.append or options.prepend

    def path_of(self, found: FoundPicture) -> Path:
        """Return the picture's text file. Raises DataError if the picture has no folder."""
        if self.root is not None:
            return self.root / PurePosixPath(found.name).with_suffix(".txt")
        if isinstance(found.picture, StoredImage):
            raise DataError(f"{found.picture}: has no folder for a text file; give one by --out")
        return found.picture.with_suffix(".txt")

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


def write_csv(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write rows as CSV with a header; lists are JSON in their cells. Raises MyLLMError."""
    with atomic_write(path) as binary_file:
        file = TextIOWrapper(binary_file, encoding="utf-8", errors="backslashreplace", newline="")
        writer = None
        for row in rows:
            cells = {
                name: json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
                for name, value in row.items()
            }
            if writer is None:
                writer = csv.DictWriter(file, list(cells), restval="", extrasaction="ignore")
                writer.writeheader()
            writer.writerow(cells)
        file.flush()
        file.detach()


def write_parquet(rows: Iterator[Mapping[str, Any]], path: Path) -> None:
    """Write rows as a Parquet file. Raises ConfigError without pyarrow, and MyLLMError."""
    pyarrow = import_pyarrow(path)
    with atomic_write(path) as file:
        writer = None
        for batch in batched(rows, PARQUET_ROWS):
            # a name that is not UTF-8 has no place in Parquet
            clean = [{**row, "image": row["image"].encode(errors="backslashreplace").decode()} for row in batch]
            table = pyarrow.Table.from_pylist(clean, None if writer is None else writer.schema)
            writer = writer or pyarrow.parquet.ParquetWriter(file, table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()


def check_parquet(options: CaptionOptions) -> None:
    """Raise ConfigError if the form is Parquet and its library is missing."""
    if options.form == "parquet":
        if options.out is None:
            raise ConfigError("--to parquet needs --out, a file")
        import_pyarrow(Path(options.out))
