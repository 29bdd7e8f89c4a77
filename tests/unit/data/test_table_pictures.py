"""Rows with pictures in Parquet and Arrow files, as pyarrow and datasets write them."""

from pathlib import Path
from typing import Any

import pytest

from myllm.data import table_pictures
from myllm.data.table_pictures import read_picture_rows
from myllm.errors import DataError

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_pictures, "BATCH_ROWS", 2)


def write(path: Path, columns: dict[str, Any]) -> Path:
    table = pa.table(columns)
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=3)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=3)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("column", ["bytes", "struct"])
def test_a_row_has_the_bytes_of_its_picture(tmp_path: Path, suffix: str, column: str) -> None:
    contents = [b"p%d" % number for number in range(7)]
    values = contents if column == "bytes" else [{"bytes": content, "path": "x.png"} for content in contents]
    path = write(tmp_path / f"t{suffix}", {"image": values, "other": list(range(7))})
    rows = list(read_picture_rows(path))
    assert [row.image and row.image.read() for row in rows] == contents
    assert [row.name for row in rows] == [f"t/{number:06d}" for number in range(1, 8)]
    assert str(rows[6].image) == f"{path}, row 7"
    assert [(row.name, str(row.image)) for row in read_picture_rows(path, with_content=False)] == [
        (row.name, str(row.image)) for row in rows
    ]


def test_a_row_without_bytes_has_a_path(tmp_path: Path) -> None:
    stored = {"image": [{"bytes": b"p", "path": None}, {"bytes": None, "path": "a.png"}, None],
              "file_name": ["n.png", None, None]}
    rows = list(read_picture_rows(write(tmp_path / "t.parquet", stored)))
    assert [(row.name, row.image and row.image.content, row.path) for row in rows] == [
        ("n.png", b"p", None), ("t/000002", None, "a.png"), ("t/000003", None, None),
    ]
    named = list(read_picture_rows(write(tmp_path / "n.parquet", {"path": ["a.png", "b.png"]}), with_content=False))
    assert [(row.name, row.path) for row in named] == [("a.png", "a.png"), ("b.png", "b.png")]


def test_a_table_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="t.parquet: has no column with pictures, or with .* among x; call it"):
        list(read_picture_rows(write(tmp_path / "t.parquet", {"x": [1]})))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="bad.parquet: no table of its kind, or damaged"):
        list(read_picture_rows(tmp_path / "bad.parquet"))
