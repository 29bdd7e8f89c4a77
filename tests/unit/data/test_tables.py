"""Parquet files and what the library datasets saves."""

import pickle
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from myllm.config import CaptionsConfig
from myllm.data import tables
from myllm.data.sources import read_records, read_references
from myllm.data.tables import TableImage
from myllm.errors import ConfigError, DataError

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
PICTURES = [{"bytes": b"p1", "path": "1.jpg"}, {"bytes": b"p2!", "path": "a/2.jpg"}]
BOTH = [("1.jpg", ("a dog", "dogs"), b"p1"), ("a/2.jpg", ("a cat",), b"p2!")]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MYLLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(path: Path, columns: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path, row_group_size=1)
    return path


def read(*data: Path, **options: Any) -> list[tuple[str, tuple[str, ...], bytes]]:
    records, _ = read_records(data, CaptionsConfig(**options))
    return [
        (r.name, r.captions, r.image.read() if isinstance(r.image, TableImage) else r.image.read_bytes())  # type: ignore[union-attr]
        for r in records
    ]


@pytest.mark.parametrize("columns", [
    {"image": PICTURES, "caption": [["a dog", "dogs"], ["a cat"]]},
    {"image": PICTURES, "caption_0": ["a dog", "a cat"], "caption_1": ["dogs", None]},
    {"image": [PICTURES[0], *PICTURES], "text": ["a dog", "dogs", "a cat"]},
    {"jpg": [b"p1", b"p2!"], "file_name": ["1.jpg", "a/2.jpg"], "sentences": [["a dog", "dogs"], ["a cat"]]},
    {"image": PICTURES, "sentences": [[{"raw": "a dog"}, {"raw": "dogs"}], [{"raw": "a cat"}]]},
], ids=["list", "numbered", "a row for each caption", "bytes", "objects"])
def test_pictures_and_captions_are_read_from_columns(tmp_path: Path, columns: dict[str, Any]) -> None:
    assert read(write(tmp_path / "x.parquet", columns)) == BOTH


def test_a_column_of_paths_names_files_in_the_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", {"filename": ["1.jpg", "a/2.jpg"], "caption": [["a dog", "dogs"], ["a cat"]]})
    (tmp_path / "images/a").mkdir(parents=True)
    (tmp_path / "images/1.jpg").write_bytes(b"p1")
    (tmp_path / "images/a/2.jpg").write_bytes(b"p2!")
    assert read(path) == read(tmp_path) == BOTH
    assert read_references(path, None, CaptionsConfig())[0].captions["1.jpg"] == ["a dog", "dogs"]


def test_columns_are_named_by_options(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", {
        "small": [b"x", b"y"], "large": [b"p1", b"p2"], "name": ["1", "2"], "answer": ["a dog", "a cat"],
    })
    options = {"image_column": "large", "caption_column": "answer"}
    assert read(path, **options) == [("x/000001", ("a dog",), b"p1"), ("x/000002", ("a cat",), b"p2")]
    with pytest.raises(DataError, match=r"the table has no column 'title' among .*--captions.caption_column"):
        read(path, caption_column="title")
    with pytest.raises(DataError, match=r"the table has no column with the caption.* answer; name the column"):
        read(path)


def test_pictures_without_a_name_or_with_a_placeholder_are_named_by_their_row(tmp_path: Path) -> None:
    images = [{"bytes": b"p1", "path": "image.png"}, {"bytes": b"p2!", "path": "image.png"}]
    path = write(tmp_path / "train-00000-of-00001.parquet", {"image": images, "caption": ["a dog", "a cat"]})
    assert [name for name, *_ in read(path)] == [f"train-00000-of-00001/00000{row}" for row in (1, 2)]


def test_files_and_folders_are_named_after_splits_and_a_column_decides_first(tmp_path: Path) -> None:
    write(tmp_path / "data/train-0.parquet", {"image": [b"a"], "caption": ["a"]})
    write(tmp_path / "data/valid-0.parquet", {"image": [b"b", b"c"], "caption": ["b", "c"], "split": ["test", None]})
    write(tmp_path / "test/0.parquet", {"image": [b"d"], "caption": ["d"]})
    assert [r.split for r in read_records(tmp_path, CaptionsConfig())[0]] == ["train", "test", "val", "test"]


def test_null_pictures_and_captions_are_left_out_by_row(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", {
        "image": [*PICTURES, None, {"bytes": None, "path": None}], "caption": [["a dog", None], None, ["x"], ["y"]],
    })
    records, findings = read_records(path, CaptionsConfig())
    assert [(r.name, r.captions) for r in records] == [("1.jpg", ("a dog",))]
    assert findings.unreadable_rows == [f"x.parquet, row {row}: has no picture" for row in (3, 4)]
    assert findings.empty_captions == ["row 1: 1.jpg", "row 2: a/2.jpg"]


@pytest.mark.parametrize(("columns", "message"), [
    ({"image": [b"p"], "caption": [5]}, "row 1, picture x/000001: the caption is 5; expected text"),
    ({"image": [b"p"], "caption": [{"a": 1}]}, "the caption is {'a': 1}; expected text"),
    ({"image": [[1]], "caption": ["a"]}, r"row 1 calls its picture \[1\]; expected a name"),
    ({"caption": ["a"]}, "the table has no column with the picture's name"),
    ({"image": [b"p"]}, "the table has no column with the caption"),
    ({"image": pa.array([], pa.binary()), "caption": pa.array([], pa.string())}, "no row holds a caption"),
    ({"image": [b"p", b"other"], "file_name": ["1.jpg"] * 2, "caption": ["a", "b"]},
     "row 2 is a second picture called 1.jpg"),
])
def test_hostile_columns_are_refused_with_the_row(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "x.parquet", columns)
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"hello", "cut", "pages"])
def test_damaged_files_are_refused_and_leave_nothing_in_the_cache(tmp_path: Path, cache: Path, damage: Any) -> None:
    path = write(tmp_path / "x.parquet", {"image": [bytes(range(256)) * 50] * 3, "caption": ["a", "b", "c"]})
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-50], "pages": content[:4] + b"\xff" * 200 + content[204:]}.get(damage, damage))
    with pytest.raises(DataError, match=r"x.parquet: no table of its kind, or damaged .*; take another copy"):
        read(path)
    assert not [file for file in cache.rglob("*") if file.is_file()]


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", {"image": PICTURES, "caption": [["a dog", "dogs"], ["a cat"]]})
    assert read(path) == BOTH
    write(path, {"image": PICTURES[:1], "caption": ["new"]})
    assert read(path) == [("1.jpg", ("new",), b"p1")]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_pictures_are_read_by_other_processes(tmp_path: Path, method: str) -> None:
    path = write(tmp_path / "x.parquet", {"image": PICTURES, "caption": ["a", "b"]})
    images = [r.image for r in read_records(path, CaptionsConfig())[0]]
    assert pickle.loads(pickle.dumps(images)) == images and len({*images}) == 2
    with ProcessPoolExecutor(2, get_context(method)) as pool:
        assert list(pool.map(TableImage.read, images * 20)) == [b"p1", b"p2!"] * 20  # type: ignore[arg-type]


def test_a_picture_of_an_arrow_file_that_is_gone_gives_an_error(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "x.parquet", {"image": PICTURES, "caption": ["a", "b"]})
    [image, _] = [r.image for r in read_records(path, CaptionsConfig())[0]]
    next(cache.rglob("*.arrow")).unlink()
    tables._arrow.cache_clear()
    tables._content.cache_clear()
    with pytest.raises(DataError, match=r"x.parquet, row 1: .*arrow cannot be read"):
        image.read()  # type: ignore[union-attr]


def test_without_pyarrow_the_command_that_installs_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.parquet", {"image": PICTURES, "caption": ["a", "b"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"x.parquet: tables need pyarrow; install it: .*pip install pyarrow"):
        read(path)


@pytest.mark.parametrize("folder", ["", "train/"])
def test_what_datasets_saves_is_read(tmp_path: Path, folder: str) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"image": PICTURES, "caption": [["a dog", "dogs"], ["a cat"]]}
    saved = datasets.Dataset.from_dict(rows, split="train")
    (datasets.DatasetDict({"train": saved}) if folder else saved).save_to_disk(str(tmp_path / "saved"))
    assert read(tmp_path / "saved") == read(tmp_path / "saved" / folder / "state.json") == BOTH
    assert read_records(tmp_path / "saved", CaptionsConfig())[0][0].split == "train"
    (tmp_path / f"saved/{folder}data-00000-of-00001.arrow").unlink()
    with pytest.raises(DataError, match=r"state.json: names 'data-00000-of-00001.arrow', which is not a file"):
        read(tmp_path / "saved")
