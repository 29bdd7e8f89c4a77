"""Pictures in the rows of Parquet and Arrow files, for a single pass in flat memory; captions are not needed."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from myllm.config import CaptionsConfig
from myllm.data.tables import import_pyarrow, picture_columns, table_errors
from myllm.errors import DataError
from myllm.files import ImageBytes

SUFFIXES = (".parquet", ".arrow")
BATCH_ROWS = 16  # with a camera's pictures, these are 100 MB


class PictureRow(NamedTuple):
    """A row of a table with a picture, or the path of one."""

    position: str
    """The file and row, for messages."""
    name: str
    """What the name column says, as it is; otherwise the default name."""
    default_name: str
    """The file's stem and the number of the row."""
    image: ImageBytes | None
    """Its bytes, because a row cannot be read on its own."""
    path: str | None
    """The picture's path if the row has no bytes; None if it has neither."""


def read_picture_rows(path: Path, with_content: bool = True) -> Iterator[PictureRow]:
    """Yield the rows of a Parquet or Arrow file.

    with_content: False reads no bytes of pictures, and gives each row of a table with pictures an empty one. Raises
    DataError if the file is damaged, or has no column with pictures or their paths; ConfigError without pyarrow.
    """
    import_pyarrow(path)
    with table_errors(path):
        table = _open(path)
    picture, name = picture_columns(table.schema, CaptionsConfig())
    if picture is None and name is None:
        raise DataError(
            f"{path}: has no column with pictures, or with their paths, among {', '.join(table.schema.names)[:200]}; "
            "call it 'image'"
        )
    columns = [column for column in (picture if with_content else None, name) if column is not None]
    batches, number = table.batches(columns), 0
    while True:
        with table_errors(path):
            batch = next(batches, None)
            if batch is None:
                return
            rows = batch.to_pylist() if columns else [{}] * batch.num_rows
        for row in rows:
            number += 1
            position = f"{path}, row {number:,}"
            value = row.get(picture, b"")
            content, stored_path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
            named = row[name] if name is not None and isinstance(row[name], str) and row[name].strip() else None
            default_name = f"{path.stem}/{number:06d}"
            image = None if picture is None or content is None else ImageBytes(position, content)
            image_path = named or stored_path if image is None else None
            yield PictureRow(position, named or default_name, default_name, image, image_path)


class _Table(NamedTuple):
    schema: Any
    batches: Any
    """Function from the names of columns to the batches of their rows."""


def _open(path: Path) -> _Table:
    import pyarrow
    import pyarrow.parquet

    if path.suffix.lower() == ".parquet":
        # without a separate buffer, a whole group of rows is read at once: gigabytes
        table = pyarrow.parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False)
        return _Table(table.schema_arrow, lambda columns: table.iter_batches(BATCH_ROWS, columns=columns))
    stream = pyarrow.ipc.open_stream(pyarrow.memory_map(str(path)))

    def batches(columns: Sequence[str]) -> Iterator[Any]:
        for batch in stream:
            for start in range(0, batch.num_rows, BATCH_ROWS):
                yield batch.slice(start, BATCH_ROWS).select(columns)

    return _Table(stream.schema, batches)
