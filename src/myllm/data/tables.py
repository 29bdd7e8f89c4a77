"""Parquet files, and folders that `save_to_disk` of the library datasets wrote, with pictures or names of pictures.

Arrow files are memory-mapped, and a picture is read by its row; a Parquet file is copied into one in the cache.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from myllm.config import CaptionsConfig
from myllm.data.records import Findings
from myllm.data.rows import CaptionFile, Row, objects, split_name
from myllm.data.table_formats import OLD_DEFAULTS, SPLIT_COLUMN, columns, find_columns
from myllm.errors import ConfigError, DataError, install_command, reason
from myllm.files import StoredImage, atomic_write, cache_folder

BATCH_ROWS = 256
NUMBERED_CAPTION = re.compile(r"(caption|comment|sentence|text|description)s?[_ ]?\d+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TableImage(StoredImage):
    """A picture in a row of an Arrow file."""

    file: str
    column: str
    row: int
    size: int
    label: str
    """The table and row, for messages."""

    def __str__(self) -> str:
        return self.label

    def read(self) -> bytes:
        """Return its bytes. Raises DataError if the Arrow file is gone."""
        try:
            return bytes(_content(self.file, self.column)[self.row].as_py())
        except OSError as error:
            raise DataError(f"{self}: {self.file} cannot be read ({reason(error)}); start again") from None


def is_parquet(file: CaptionFile, captions: CaptionsConfig) -> bool:
    """Return whether it is a Parquet file, by its name."""
    return file.path.suffix.lower() == ".parquet" and file.path.is_file()


def read_parquet(file: CaptionFile, captions: CaptionsConfig, findings: Findings) -> Iterator[Row]:
    """Yield the rows of a Parquet file, whose split is in its name or its folder's."""
    split = file.split or CaptionFile(file.path.parent, file.root).split
    yield from _rows(file, [_arrow_copy(file.path)], file.path.stem, split, captions, findings)


def is_saved(file: CaptionFile, captions: CaptionsConfig) -> bool:
    """Return whether it is the file state.json of a folder that `save_to_disk` wrote."""
    return file.path.name == "state.json" and isinstance(file.json, dict) and "_data_files" in file.json


def read_saved(file: CaptionFile, captions: CaptionsConfig, findings: Findings) -> Iterator[Row]:
    """Yield the rows of a folder that `save_to_disk` wrote; a folder in the data folder is named after its split."""
    folder = file.path.parent
    written = folder.name if folder != file.root else file.json.get("_split")
    split = split_name(written) if isinstance(written, str) else None
    files = [str(path) for path in saved_files(file)]
    yield from _rows(file, files, split or folder.resolve().name, split, captions, findings)


def saved_files(file: CaptionFile) -> list[Path]:
    """Return the Arrow files that a file state.json names. Raises DataError if one is not there."""
    folder = file.path.parent
    names = [part.get("filename") for _, part in objects(file.path, file.json["_data_files"], "_data_file")]
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
            raise DataError(f"{file.path}: names {name!r:.100}, which is not a file in {folder}; save the data again")
    return [folder / str(name) for name in names]


def _arrow_copy(path: Path) -> str:
    """Return the cached Arrow file with the rows of a Parquet file, written now if there is none.

    Parquet is compressed by groups of rows, so that no single picture can be read from it.
    """
    pyarrow = import_pyarrow(path)
    status = path.stat()
    stamp = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    target = cache_folder() / "tables" / f"{hashlib.blake2b(stamp.encode(), digest_size=12).hexdigest()}.arrow"
    if not target.is_file():
        with table_errors(path):
            table = pyarrow.parquet.ParquetFile(path)
        with table, atomic_write(target) as file, pyarrow.ipc.new_stream(file, table.schema_arrow) as stream:
            batches = table.iter_batches(BATCH_ROWS)
            while True:
                with table_errors(path):
                    batch = next(batches, None)
                if batch is None:
                    break
                stream.write_batch(batch)
    return str(target)


@contextmanager
def table_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, ArithmeticError, TypeError, LookupError) as error:  # bases of pyarrow's errors
        raise DataError(f"{path}: no table of its kind, or damaged ({reason(error)}); take another copy") from None


def _rows(
    file: CaptionFile, arrow_files: Sequence[str], label: str, split: str | None, captions: CaptionsConfig,
    findings: Findings,
) -> Iterator[Row]:
    """Yield a row for each caption. label: beginning of the names of pictures without a name."""
    pyarrow = import_pyarrow(file.path)
    with table_errors(file.path):
        tables = [_arrow(path) for path in arrow_files]
    schema = tables[0].schema if tables else pyarrow.schema([])
    if any(table.schema != schema for table in tables):
        raise DataError(f"{file.path}: its files have different columns; save the data again")
    picture_column, name_column = picture_columns(schema, captions)
    caption_columns = _caption_columns(file, schema, captions, picture_column, name_column)
    pictures = [entry for path in arrow_files for entry in _pictures(path, picture_column)]
    # an embedded path is often a placeholder, such as image.png for all rows
    sizes: dict[str | None, int | None] = {}
    has_paths = all(sizes.setdefault(picture.path, picture.size) == picture.size for picture in pictures)
    columns = [name for name in schema.names if name in (*caption_columns, name_column, SPLIT_COLUMN)]
    batches = (batch for table in tables for batch in table.select(columns).to_batches(BATCH_ROWS))
    read = (row for batch in batches for row in batch.to_pylist())
    for number, (row, picture) in enumerate(zip(read, pictures, strict=True), 1):
        position = f"row {number:,}"
        name = row[name_column] if name_column is not None else (
            picture.path if has_paths or picture.size is None else None
        )
        if name is None and picture.size is None:
            findings.unreadable_rows.append(f"{file.name}, {position}: has no picture")
            continue
        image = None if picture.size is None else TableImage(
            picture.file, picture_column or "", picture.row, picture.size, f"{file.path}, {position}"
        )
        part = row.get(SPLIT_COLUMN)
        texts = [text for column in caption_columns for text in _texts(row[column], captions)]
        for text in texts or [""]:
            yield Row(
                position, f"{label}/{number:06d}" if name is None else name, text,
                split_name(part) if isinstance(part, str) and part else split, picture=image,
            )


class _StoredRow(NamedTuple):
    file: str
    row: int
    size: int | None
    """Number of bytes; None if the row has none."""
    path: str | None
    """What the row itself calls its picture."""


def _pictures(file: str, column: str | None) -> Iterator[_StoredRow]:
    """Yield the picture of each row of an Arrow file."""
    import pyarrow.compute

    values = _arrow(file)
    if column is None:
        yield from (_StoredRow(file, row, None, None) for row in range(values.num_rows))
        return
    sizes = pyarrow.compute.binary_length(_content(file, column)).to_pylist()
    is_struct = pyarrow.types.is_struct(values[column].type)
    names = [field.name for field in values[column].type] if is_struct else []
    paths = pyarrow.compute.struct_field(values[column], "path").to_pylist() if "path" in names else [None] * len(sizes)
    yield from (_StoredRow(file, row, *pair) for row, pair in enumerate(zip(sizes, paths, strict=True)))


@cache
def _arrow(file: str) -> Any:
    """Return the table in an Arrow file, memory-mapped."""
    import pyarrow

    with pyarrow.memory_map(file) as source:
        return pyarrow.ipc.open_stream(source).read_all()


@cache
def _content(file: str, column: str) -> Any:
    """Return the bytes of a column of pictures."""
    import pyarrow.compute

    values = _arrow(file)[column]
    return pyarrow.compute.struct_field(values, "bytes") if pyarrow.types.is_struct(values.type) else values


def picture_columns(schema: Any, captions: CaptionsConfig) -> tuple[str | None, str | None]:
    """Return the column with the pictures' bytes, and the one with their names or paths."""
    stored = [field.name for field in schema if _holds_bytes(field.type)]
    others = [name for name in schema.names if name not in stored]
    any_column = replace(captions, image_column=None)
    picture = find_columns(stored, any_column)[0] or next(iter(stored), None)
    if captions.image_column in stored:
        return captions.image_column, find_columns(others, any_column)[0]
    return picture, find_columns(others, captions)[0]


def _holds_bytes(kind: Any) -> bool:
    """Return whether an Arrow type is of pictures: bytes, or an object with them."""
    from pyarrow import types

    if types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _caption_columns(
    file: CaptionFile, schema: Any, captions: CaptionsConfig, picture: str | None, name: str | None
) -> list[str]:
    """Return the columns with captions: the configured or usual one, or several with numbers, such as caption_0.

    Raises DataError if there is none, or no column with pictures or names.
    """
    names = [column for column in schema.names if column != picture]
    caption = find_columns(names, captions)[1]
    numbered = [column for column in names if NUMBERED_CAPTION.fullmatch(column)] if caption is None else [caption]
    if not numbered or captions.caption_column not in (None, *OLD_DEFAULTS, *names) or picture is name is None:
        if picture is not None or name is not None:
            names, captions = ["image", *names], replace(captions, image_column=None)
        columns(file, "the table", names, captions)  # raises the error that names the missing column
    return numbered


def _texts(value: Any, captions: CaptionsConfig) -> list[Any]:
    """Return the captions in a value: a text, a list, or an object with either; null is an empty caption."""
    if isinstance(value, dict):
        column = find_columns(value, captions)[1]
        return _texts(value[column], captions) if column is not None else [value]
    if isinstance(value, list):
        return [text for part in value for text in _texts(part, captions)]
    return ["" if value is None else value]


def import_pyarrow(path: Path) -> Any:
    """Return the library pyarrow. Raises ConfigError with the command that installs it."""
    try:
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(f"{path}: tables need pyarrow; install it: {install_command('pyarrow')}") from None
    return pyarrow
