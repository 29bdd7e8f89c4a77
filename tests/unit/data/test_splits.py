import random
from pathlib import Path

import pytest

from myllm.config import CaptionsConfig
from myllm.data.records import Findings, Record, read_records
from myllm.data.splits import copies_left_out_of_training, name_hash, split_records
from myllm.errors import DataError

FLICKR8K = Path(__file__).parents[4] / "shared/data/flickr8k"


def make_records(folder: Path, contents: dict[str, str]) -> list[Record]:
    for name, content in contents.items():
        (folder / name).write_text(content)
    return [Record(folder / name, ("a",)) for name in contents]


def numbered(folder: Path, count: int) -> list[Record]:
    return make_records(folder, {f"{number}.jpg": f"picture {number}" for number in range(count)})


def write_splits(folder: Path, **splits: str) -> None:
    (folder / "splits").mkdir()
    for name, names in splits.items():
        (folder / "splits" / f"{name}.txt").write_text("\n".join(names.split()) + "\n")


def names(sides: dict[str, list[Record]]) -> dict[str, list[str]]:
    return {side: [record.name for record in records] for side, records in sides.items()}


def test_a_tenth_validates_and_each_picture_is_on_one_side(tmp_path: Path) -> None:
    records = numbered(tmp_path, 1000)
    sides = split_records(records, tmp_path, Findings())
    assert 70 < len(sides["val"]) < 130
    assert sorted(names(sides)["train"] + names(sides)["val"]) == sorted(record.name for record in records)


def test_the_hash_is_the_same_for_ever() -> None:
    assert name_hash("1000268201_693b08cb0e.jpg") == 0x8461104CAC719868  # printf NAME | b2sum -l 64


def test_adding_pictures_and_reordering_rows_move_none(tmp_path: Path) -> None:
    records = numbered(tmp_path, 300)
    before = names(split_records(records[:200], tmp_path, Findings()))
    random.Random(0).shuffle(records)
    after = names(split_records(records, tmp_path, Findings()))
    assert all(set(before[side]) <= set(after[side]) for side in ("train", "val"))


@pytest.mark.parametrize("count", range(2, 12))
def test_the_smallest_sets_have_both_sides(tmp_path: Path, count: int) -> None:
    sides = split_records(numbered(tmp_path, count), tmp_path, Findings())
    assert sides["train"] and sides["val"]


def test_byte_equal_pictures_are_on_one_side_and_reported(tmp_path: Path) -> None:
    records = make_records(tmp_path, {f"{number}.jpg": f"picture {number // 4:03}" for number in range(400)})
    findings = Findings()
    sides = split_records(records, tmp_path, findings)
    shown = [{record.image.read_text() for record in sides[side]} for side in ("train", "val")]
    assert not shown[0] & shown[1]
    assert len(sides["train"]) + len(sides["val"]) == 400
    assert len(findings.equal_pictures) == 100
    assert findings.equal_pictures[0] == "0.jpg = 1.jpg = 2.jpg = 3.jpg"


@pytest.mark.parametrize("contents", [{"1.jpg": "a"}, {"1.jpg": "a", "2.jpg": "a"}])
def test_one_picture_cannot_be_split(tmp_path: Path, contents: dict[str, str]) -> None:
    with pytest.raises(DataError, match="too few different ones"):
        split_records(make_records(tmp_path, contents), tmp_path, Findings())


def test_official_files_decide_under_any_name(tmp_path: Path) -> None:
    records = numbered(tmp_path, 6)
    write_splits(tmp_path, train="0.jpg 5.jpg", val="1.jpg", test="2.jpg", heldout="3.jpg 77.jpg")
    findings = Findings()
    sides = split_records(records, tmp_path, findings)
    assert names(sides) == {"train": ["0.jpg", "5.jpg"], "val": ["1.jpg"], "test": ["2.jpg"], "heldout": ["3.jpg"]}
    assert findings == Findings(in_no_split=["4.jpg"], unknown_in_splits=["77.jpg in heldout"])


def test_without_a_train_file_the_rest_trains(tmp_path: Path) -> None:
    records = numbered(tmp_path, 4)
    write_splits(tmp_path, val="1.jpg", test="2.jpg")
    assert names(split_records(records, tmp_path, Findings()))["train"] == ["0.jpg", "3.jpg"]


def test_without_a_val_file_a_share_of_the_training_pictures_validates(tmp_path: Path) -> None:
    records = numbered(tmp_path, 100)
    write_splits(tmp_path, test=" ".join(f"{number}.jpg" for number in range(50)))
    sides = split_records(records, tmp_path, Findings())
    assert names(sides)["test"] == [f"{number}.jpg" for number in range(50)]
    assert sides["val"] and len(sides["train"]) + len(sides["val"]) == 50


def test_a_picture_in_two_files_judges(tmp_path: Path) -> None:
    records = numbered(tmp_path, 3)
    write_splits(tmp_path, train="0.jpg 1.jpg", val="1.jpg 2.jpg", test="2.jpg")
    findings = Findings()
    sides = split_records(records, tmp_path, findings)
    assert names(sides) == {"train": ["0.jpg"], "val": ["1.jpg"], "test": ["2.jpg"]}
    assert findings.in_two_splits == ["2.jpg in val and test, kept in test", "1.jpg in train and val, kept in val"]


@pytest.mark.parametrize("has_train_file", [True, False])
def test_copies_left_out_of_training_are_the_dropped_training_pictures(tmp_path: Path, has_train_file: bool) -> None:
    contents = {"a.jpg": "x", "b.jpg": "x", "c.jpg": "y", "d.jpg": "z", "e.jpg": "z", "f.jpg": "z"}
    records = make_records(tmp_path, contents)
    train = {"train": "a.jpg c.jpg f.jpg"} if has_train_file else {}
    write_splits(tmp_path, **train, val="b.jpg", test="d.jpg e.jpg")
    splits = split_records(records, tmp_path, Findings())
    copies = copies_left_out_of_training(records, tmp_path, splits)
    assert [record.name for record in copies] == ["a.jpg", "f.jpg"]


def test_the_training_copy_of_a_judging_picture_is_dropped(tmp_path: Path) -> None:
    records = make_records(tmp_path, {"a.jpg": "same", "b.jpg": "same", "c.jpg": "else", "d.jpg": "same"})
    write_splits(tmp_path, train="a.jpg c.jpg", val="b.jpg d.jpg")
    findings = Findings()
    assert names(split_records(records, tmp_path, findings)) == {"train": ["c.jpg"], "val": ["b.jpg", "d.jpg"]}
    assert findings.dropped_copies == ["a.jpg of train, equal to one of val"]


def test_split_files_of_another_data_set_are_refused(tmp_path: Path) -> None:
    write_splits(tmp_path, train="x.jpg", val="y.jpg")
    with pytest.raises(DataError, match="none of the 2 names, such as 'y.jpg'"):
        split_records(numbered(tmp_path, 3), tmp_path, Findings())


def test_a_split_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    write_splits(tmp_path, train="0.jpg")
    (tmp_path / "splits" / "val.txt").write_bytes(b"\xff\xfe1")
    with pytest.raises(DataError, match="val.txt: cannot be read"):
        split_records(numbered(tmp_path, 3), tmp_path, Findings())


@pytest.mark.skipif(not FLICKR8K.is_dir(), reason="needs ../shared")
def test_flickr8k_has_its_official_split() -> None:
    records, findings = read_records(FLICKR8K, CaptionsConfig())
    sides = split_records(records, FLICKR8K, findings)
    assert {side: len(members) for side, members in sides.items()} == {"train": 6000, "val": 1000}
    assert findings.lines() == [
        "1 group of byte-equal pictures (2851198725_37b6027625.jpg = 3050606344_af711c726c.jpg)"
    ]
