"""What is written in any format is read back with the same names, captions, splits and bytes."""

import csv
import json
import sys
import tarfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from myllm.config import CaptionsConfig
from myllm.data.convert import WRITERS, convert, write_parquet, write_webdataset
from myllm.data.records import Record
from myllm.data.sources import read_records
from myllm.errors import ConfigError, DataError
from myllm.files import read_picture
from myllm.progress import no_progress

AS_WRITTEN = CaptionsConfig(lowercase=False)
NEEDS_PYARROW = pytest.mark.skipif(find_spec("pyarrow") is None, reason="needs pyarrow")
FORMATS = [pytest.param(to, marks=NEEDS_PYARROW if to == "parquet" else ()) for to in WRITERS]
Contents = dict[str, tuple[tuple[str, ...], str | None]]


def contents(records: Sequence[Record]) -> Contents:
    return {record.name: (record.captions, record.split) for record in records}


def source(folder: Path, rows: Sequence[tuple[str, Sequence[str], str | None]]) -> list[Record]:
    """Records of pictures whose bytes are their names; captions are as a file of JSON lines may have them."""
    folder.mkdir(parents=True)
    for name, _, _ in rows:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * 100)
    lines = [json.dumps({"image": name, "captions": texts, "split": split}) for name, texts, split in rows]
    (folder / "all.jsonl").write_text("\n".join(lines) + "\n")
    return read_records(folder, AS_WRITTEN)[0]


ROWS = (
    ("b/1.png", ["A dog runs .", "Zwei, \"Hunde\""], "train"),
    ("a/1.png", ["  leading | blanks; ", "two\nlines"], "val"),
    ("a/1.jpg", ["собака", "犬がいる", "a\tb"], "train"),
    ("1.v2.webp", ["[\"a\", \"b\"]"], "heldout"),
)


@pytest.mark.parametrize("to", FORMATS)
def test_convert_keeps_names_captions_splits_and_bytes(to: str, tmp_path: Path) -> None:
    records = source(tmp_path / "data", ROWS)
    assert convert(records, to, tmp_path / "out") == []
    result, findings = read_records(tmp_path / "out", AS_WRITTEN)
    assert contents(result) == contents(records) and findings.lines() == []
    bytes_of = {record.name: read_picture(record.image, 10_000) for record in result}
    assert bytes_of == {record.name: read_picture(record.image, 10_000) for record in records}


UNCHECKED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
MARKS = "\"'|,;\t\n\r\\ #[]ab\ufeff\u2028\x85\x1c"
captions = st.text(st.characters(codec="utf-8"), max_size=12) | st.text(MARKS, max_size=8)
words = st.lists(captions.filter(str.strip), min_size=1, max_size=3)


@pytest.mark.parametrize("to", FORMATS)
@settings(suppress_health_check=UNCHECKED, max_examples=15, deadline=None)
@given(texts=st.lists(words, min_size=1, max_size=3), data=st.data())
def test_convert_keeps_captions_of_any_characters(
    to: str, texts: list[list[str]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    splits = [data.draw(st.sampled_from(["train", "val", "test"])) for _ in texts]
    rows = [(f"{index}.png", texts[index], split) for index, split in enumerate(splits)]
    records = source(folder / "data", rows)
    convert(records, to, folder / "out")
    assert contents(read_records(folder / "out", AS_WRITTEN)[0]) == contents(records)


@pytest.mark.parametrize("to", FORMATS)
def test_convert_keeps_data_without_splits_without(to: str, tmp_path: Path) -> None:
    records = source(tmp_path / "data", [(f"{index}.png", ["a dog"], None) for index in range(3)])
    convert(records, to, tmp_path / "out")
    result, findings = read_records(tmp_path / "out", AS_WRITTEN)
    assert contents(result) == contents(records) and findings.splits == []


def test_convert_to_csv_is_read_by_the_csv_module(tmp_path: Path) -> None:
    convert(source(tmp_path / "data", ROWS[:1]), "csv", tmp_path / "out")
    with (tmp_path / "out/captions.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [
            ["image", "caption", "split"], ["b/1.png", "A dog runs .", "train"],
            ["b/1.png", 'Zwei, "Hunde"', "train"],
        ]


@pytest.mark.parametrize("to", FORMATS)
def test_convert_gives_a_name_without_suffix_that_of_its_picture_only_if_the_format_has_no_other(
    to: str, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/1.png").write_bytes(b"picture")
    (tmp_path / "data/captions.csv").write_text("image,caption\n1,a dog\n")
    records, _ = read_records(tmp_path / "data", AS_WRITTEN)
    changes = convert(records, to, tmp_path / "out")
    assert changes == (["1 is now 1.png"] if WRITERS[to].needs_suffix else [])


def test_convert_writes_nothing_outside_and_says_how_names_changed(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"picture")
    (tmp_path / "y.png").write_bytes(b"picture")
    records = [Record(name, tmp_path / "x.png", ("a dog",)) for name in ("../x.png", f"{tmp_path}/y.png")]
    changes = convert(records, "jsonl", tmp_path / "out")
    assert changes == ["../x.png is now x.png", f"{tmp_path}/y.png is now {str(tmp_path)[1:]}/y.png"]
    assert (tmp_path / "out/images/x.png").is_file()
    with pytest.raises(DataError, match="would both be called x.png"):
        convert([*records, Record("x.png", tmp_path / "x.png", ("a",))], "jsonl", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("to", ["sidecar", "webdataset"])
def test_convert_refuses_a_split_that_would_be_a_path(to: str, tmp_path: Path) -> None:
    records = source(tmp_path / "data", [("1.png", ["a dog"], "../../train")])
    with pytest.raises(DataError, match="cannot be the name of a list"):
        convert(records, to, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_convert_refuses_a_folder_that_exists(tmp_path: Path) -> None:
    records = source(tmp_path / "data", ROWS)
    with pytest.raises(ConfigError, match="is there already"):
        convert(records, "csv", tmp_path / "data")
    assert not (tmp_path / "data/captions.csv").exists()


def test_convert_that_fails_leaves_nothing(tmp_path: Path) -> None:
    records = source(tmp_path / "data", ROWS)
    (tmp_path / "data/b/1.png").unlink()
    with pytest.raises(DataError, match="b/1.png: cannot be read"):
        convert(records, "csv", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


@pytest.mark.parametrize("to", FORMATS)
def test_convert_of_pictures_in_a_split_and_in_none_keeps_both_or_is_refused(to: str, tmp_path: Path) -> None:
    records = source(tmp_path / "data", [("1.png", ["a dog"], "train"), ("2.png", ["a cat"], None)])
    if to == "sidecar":
        with pytest.raises(DataError, match=r"picture 2\.png is in no split, but others are"):
            convert(records, to, tmp_path / "out")
    else:
        convert(records, to, tmp_path / "out")
        assert contents(read_records(tmp_path / "out", AS_WRITTEN)[0]) == contents(records)


def test_webdataset_has_shards_of_each_split_with_the_same_bytes_each_time(tmp_path: Path) -> None:
    records = source(tmp_path / "data", [(f"a/{index}.png", ["a dog", "犬"], "train") for index in range(5)])
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        write_webdataset(records, folder, no_progress, shard_bytes=1000)
    shards = sorted((tmp_path / "first").glob("*.tar"))
    assert [shard.name for shard in shards] == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    assert all(shard.read_bytes() == (tmp_path / "second" / shard.name).read_bytes() for shard in shards)
    with tarfile.open(shards[0]) as tar:
        assert tar.getnames() == ["a/0.png", "a/0.txt", "a/1.png", "a/1.txt"]
        members = [tar.extractfile(name) for name in ("a/0.png", "a/0.txt")]
        assert [member and member.read() for member in members] == [b"a/0.png" * 100, "a dog\n犬\n".encode()]


def test_parquet_without_pyarrow_names_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match="out.*: tables need pyarrow; install it: .*pip install pyarrow"):
        convert(source(tmp_path / "data", ROWS), "parquet", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parquet_has_the_pictures_captions_and_splits(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    records = source(tmp_path / "data", ROWS)
    write_parquet(records, tmp_path, no_progress)
    (path,) = tmp_path.glob("train-*.parquet")
    assert path.name == "train-00000-of-00001.parquet"
    assert parquet.read_table(path).to_pylist() == [
        {"image": {"bytes": read_picture(record.image, 10_000), "path": record.name}, "captions": list(record.captions),
         "split": "train"}
        for record in records if record.split == "train"
    ]


def test_parquet_is_read_by_hugging_face_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)  # it would report each use to its makers
    records = source(tmp_path / "data", ROWS)
    convert(records, "parquet", tmp_path / "out")
    files = {"train": [str(path) for path in (tmp_path / "out").glob("*.parquet")]}
    table = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))["train"]
    assert type(table.features["image"]).__name__ == "Image"
    assert sorted(map(list, table["captions"])) == sorted(list(record.captions) for record in records)
