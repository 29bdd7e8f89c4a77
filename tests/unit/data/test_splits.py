import random
from dataclasses import replace
from pathlib import Path

import pytest

from myllm.config import CaptionsConfig
from myllm.data.records import Findings, Record
from myllm.data.sources import read_records
from myllm.data.splits import (
    check_both_sides,
    copies_left_out_of_training,
    name_hash,
    named_splits,
    split_records,
)
from myllm.errors import DataError

FLICKR8K = Path(__file__).parents[4] / "shared/data/flickr8k"


def make_records(folder: Path, contents: dict[str, str]) -> list[Record]:
    for name, content in contents.items():
        (folder / name).write_text(content)
    return [Record(name, folder / name, ("a",)) for name in contents]


def numbered(folder: Path, count: int) -> list[Record]:
    return make_records(folder, {f"{number}.jpg": f"picture {number}" for number in range(count)})


def write_splits(folder: Path, **splits: str) -> None:
    (folder / "splits").mkdir()
    for name, names in splits.items():
        (folder / "splits" / f"{name}.txt").write_text("\n".join(names.split()) + "\n")


def with_splits(records: list[Record], folder: Path, findings: Findings) -> list[Record]:
    """Return the records with the splits that the folder's lists say."""
    splits = named_splits([record.name for record in records], {r.name: r.split for r in records}, folder, findings)
    return [replace(record, split=splits[record.name]) for record in records if record.name in splits]


def split(records: list[Record], folder: Path, findings: Findings) -> dict[str, list[Record]]:
    return split_records(with_splits(records, folder, findings), findings)


def names(splits: dict[str, list[Record]]) -> dict[str, list[str]]:
    return {split: [record.name for record in records] for split, records in splits.items()}


def test_split_records_validates_on_a_tenth_and_puts_each_picture_into_one_split(tmp_path: Path) -> None:
    records = numbered(tmp_path, 1000)
    splits = split(records, tmp_path, Findings())
    assert 70 < len(splits["val"]) < 130
    assert sorted(names(splits)["train"] + names(splits)["val"]) == sorted(record.name for record in records)


def test_name_hash_never_changes() -> None:
    assert name_hash("1000268201_693b08cb0e.jpg") == 0x8461104CAC719868  # printf NAME | b2sum -l 64


def test_split_records_moves_no_picture_if_others_are_added_or_rows_reordered(tmp_path: Path) -> None:
    records = numbered(tmp_path, 300)
    before = names(split(records[:200], tmp_path, Findings()))
    random.Random(0).shuffle(records)
    after = names(split(records, tmp_path, Findings()))
    assert all(set(before[split]) <= set(after[split]) for split in ("train", "val"))


@pytest.mark.parametrize("count", range(2, 12))
def test_split_records_of_few_pictures_has_both_splits(tmp_path: Path, count: int) -> None:
    splits = split(numbered(tmp_path, count), tmp_path, Findings())
    assert splits["train"] and splits["val"]


def test_split_records_puts_byte_equal_pictures_into_one_split(tmp_path: Path) -> None:
    records = make_records(tmp_path, {f"{number}.jpg": f"picture {number // 4:03}" for number in range(400)})
    findings = Findings()
    splits = split(records, tmp_path, findings)
    train, val = ({record.image.read_text() for record in splits[name]} for name in ("train", "val"))
    assert not train & val
    assert len(splits["train"]) + len(splits["val"]) == 400
    assert len(findings.equal_pictures) == 100
    assert findings.equal_pictures[0] == "0.jpg = 1.jpg = 2.jpg = 3.jpg"


@pytest.mark.parametrize("contents", [{"1.jpg": "a"}, {"1.jpg": "a", "2.jpg": "a"}])
def test_split_records_refuses_a_single_picture(tmp_path: Path, contents: dict[str, str]) -> None:
    splits = split(make_records(tmp_path, contents), tmp_path, Findings())
    with pytest.raises(DataError, match="no picture to validate on: .*too few different ones"):
        check_both_sides(splits)


def test_split_files_decide_under_any_name(tmp_path: Path) -> None:
    records = numbered(tmp_path, 6)
    write_splits(tmp_path, train="0.jpg 5.jpg", val="1.jpg", test="2.jpg", heldout="3.jpg 77.jpg")
    findings = Findings()
    splits = split(records, tmp_path, findings)
    assert names(splits) == {"train": ["0.jpg", "5.jpg"], "val": ["1.jpg"], "test": ["2.jpg"], "heldout": ["3.jpg"]}
    assert findings == Findings(in_no_split=["4.jpg"], unknown_in_splits=["77.jpg in heldout"])


def test_split_records_without_a_train_file_trains_on_the_rest(tmp_path: Path) -> None:
    records = numbered(tmp_path, 4)
    write_splits(tmp_path, val="1.jpg", test="2.jpg")
    assert names(split(records, tmp_path, Findings()))["train"] == ["0.jpg", "3.jpg"]


def test_split_records_without_a_val_file_validates_on_training_pictures(tmp_path: Path) -> None:
    records = numbered(tmp_path, 100)
    write_splits(tmp_path, test=" ".join(f"{number}.jpg" for number in range(50)))
    splits = split(records, tmp_path, Findings())
    assert names(splits)["test"] == [f"{number}.jpg" for number in range(50)]
    assert splits["val"] and len(splits["train"]) + len(splits["val"]) == 50


def test_split_records_keeps_a_picture_of_two_files_out_of_training(tmp_path: Path) -> None:
    records = numbered(tmp_path, 3)
    write_splits(tmp_path, train="0.jpg 1.jpg", val="1.jpg 2.jpg", test="2.jpg")
    findings = Findings()
    splits = split(records, tmp_path, findings)
    assert names(splits) == {"train": ["0.jpg"], "val": ["1.jpg"], "test": ["2.jpg"]}
    assert findings.in_two_splits == ["2.jpg in val and test, kept in test", "1.jpg in train and val, kept in val"]


@pytest.mark.parametrize("has_train_file", [True, False])
def test_copies_left_out_of_training_are_the_dropped_training_pictures(tmp_path: Path, has_train_file: bool) -> None:
    contents = {"a.jpg": "x", "b.jpg": "x", "c.jpg": "y", "d.jpg": "z", "e.jpg": "z", "f.jpg": "z"}
    records = make_records(tmp_path, contents)
    train = {"train": "a.jpg c.jpg f.jpg"} if has_train_file else {}
    write_splits(tmp_path, **train, val="b.jpg", test="d.jpg e.jpg")
    records = with_splits(records, tmp_path, Findings())
    copies = copies_left_out_of_training(records, split_records(records, Findings()))
    assert [record.name for record in copies] == ["a.jpg", "f.jpg"]


def test_split_records_drops_training_copies_of_validation_pictures(tmp_path: Path) -> None:
    records = make_records(tmp_path, {"a.jpg": "same", "b.jpg": "same", "c.jpg": "else", "d.jpg": "same"})
    write_splits(tmp_path, train="a.jpg c.jpg", val="b.jpg d.jpg")
    findings = Findings()
    assert names(split(records, tmp_path, findings)) == {"train": ["c.jpg"], "val": ["b.jpg", "d.jpg"]}
    assert findings.dropped_copies == ["a.jpg of train, equal to one of val"]


def test_split_files_of_another_data_set_are_refused(tmp_path: Path) -> None:
    write_splits(tmp_path, train="x.jpg", val="y.jpg")
    with pytest.raises(DataError, match="none of the 2 names, such as y.jpg in val, is a captioned picture"):
        split(numbered(tmp_path, 3), tmp_path, Findings())


def test_split_files_that_are_not_text_are_refused(tmp_path: Path) -> None:
    write_splits(tmp_path, train="0.jpg")
    (tmp_path / "splits" / "val.txt").write_bytes(b"\xff\xfe1")
    with pytest.raises(DataError, match="val.txt: line 1 holds byte 0xff, which is not UTF-8"):
        split(numbered(tmp_path, 3), tmp_path, Findings())


@pytest.mark.skipif(not FLICKR8K.is_dir(), reason="needs ../shared")
def test_split_records_of_flickr8k_is_its_official_split() -> None:
    records, findings = read_records(FLICKR8K, CaptionsConfig())
    splits = split_records(records, findings)
    assert {split: len(members) for split, members in splits.items()} == {"train": 6000, "val": 1000}
    assert findings.lines() == [
        "1 group of byte-equal pictures (2851198725_37b6027625.jpg = 3050606344_af711c726c.jpg)"
    ]


@pytest.mark.parametrize("count", range(2, 40))
def test_adding_a_picture_never_validates_on_a_training_picture_and_moves_none_once_a_tenth_is_used(
    tmp_path: Path, count: int
) -> None:
    findings = Findings()
    records = numbered(tmp_path, count + 1)
    before, after = (names(split_records(part, findings)) for part in (records[:-1], records))
    assert set(before["train"]) <= set(after["train"])
    if not findings.lone_validation:
        assert set(before["val"]) <= set(after["val"])
