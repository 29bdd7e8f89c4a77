"""Tables of captions: columns and types are those of all rows, not of the first."""

import csv
from pathlib import Path
from typing import Any

import pytest

from myllm.apps import caption_files
from myllm.apps.caption_files import Sidecars, write_csv, write_parquet
from myllm.apps.caption_options import CaptionOptions
from myllm.apps.picture_search import FoundPicture
from myllm.errors import ConfigError, DataError
from myllm.files import ImageBytes

ROWS: list[dict[str, Any]] = [
    {"image": "caf\udce9.png", "caption": "a", "score": None, "alternatives": []},
    {"image": "b.png", "caption": "b", "score": -1.5, "alternatives": ["c", "d"], "missing": ["dog"]},
    {"image": "c.png", "caption": "c", "words": [{"text": "c", "confidence": None}], "mine": {"number": 3}},
]
COLUMNS = ["image", "caption", "score", "alternatives", "missing", "words", "mine"]


def test_csv_has_the_columns_of_all_rows(tmp_path: Path) -> None:
    write_csv(lambda: ROWS, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == COLUMNS
    assert rows == [
        ["caf\\udce9.png", "a", "", "[]", "", "", ""], ["b.png", "b", "-1.5", '["c", "d"]', '["dog"]', "", ""],
        ["c.png", "c", "", "", "", '[{"text": "c", "confidence": null}]', '{"number": 3}'],
    ]


def test_parquet_has_the_columns_of_all_rows_with_the_same_types_in_each_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(caption_files, "PARQUET_ROWS", 1)
    write_parquet(lambda: ROWS, tmp_path / "out.parquet")
    expected = [dict.fromkeys(COLUMNS) | row for row in ROWS]
    expected[0]["image"], expected[2]["mine"] = "caf\\udce9.png", '{"number": 3}'
    assert parquet.read_table(tmp_path / "out.parquet").to_pylist() == expected


def test_parquet_without_rows_is_a_table(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    write_parquet(list, tmp_path / "out.parquet")
    assert parquet.read_table(tmp_path / "out.parquet").column_names == ["image", "caption"]


def test_parquet_with_a_value_of_a_wrong_type_says_where_to_correct_it(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    rows = [{"image": "a.png", "caption": "a", "score": "high" * 1000}]
    with pytest.raises(DataError, match="a row of .*out.parquet.jsonl has a value of a wrong type") as caught:
        write_parquet(lambda: rows, tmp_path / "out.parquet")
    assert len(str(caught.value)) < 400 and not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.jpg", "a.txt"), ("b/c.JPEG", "b/c.txt"), ("10.1000/fig.1", "10.1000/fig.1.txt"),
     ("10.1000/fig.2", "10.1000/fig.2.txt"), ("data.v2/000001", "data.v2/000001.txt")],
)
def test_rows_of_a_table_whose_names_have_dots_and_no_suffix_have_a_text_file_each(name: str, expected: str) -> None:
    sidecars = Sidecars(CaptionOptions(paths=("a.parquet",), model="captioner", to="txt", out="texts"))
    found = FoundPicture(ImageBytes("a.parquet, row 1", b""), Path(), name)
    assert sidecars.path_of(found) == Path("texts", expected)


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_a_form_that_is_written_to_a_file_needs_out(form: Any) -> None:
    with pytest.raises(ConfigError, match=f"--to {form} needs --out"):
        CaptionOptions(paths=("pics",), model="captioner", to=form)
