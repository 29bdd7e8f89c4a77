"""Shares, stability and files of the division into splits."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm.data.records import Findings, Record
from myllm.data.split_lists import check_no_lists, divide, write_lists
from myllm.data.splits import split_records
from myllm.errors import ConfigError, DataError

SHARES = {"val": 0.1, "test": 0.2}


def alone(count: int) -> list[list[Record]]:
    return [[Record(f"{number}.jpg", Path("x"), ("a",))] for number in range(count)]


def names(splits: dict[str, list[Record]]) -> dict[str, set[str]]:
    return {name: {record.name for record in records} for name, records in splits.items()}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_divide_gives_about_the_shares(seed: int) -> None:
    splits = names(divide(alone(10_000), SHARES, seed))
    assert len(set().union(*splits.values())) == sum(map(len, splits.values())) == 10_000
    assert abs(len(splits["val"]) - 1_000) < 150 and abs(len(splits["test"]) - 2_000) < 200


@given(st.integers(4, 60), st.integers(0, 60), st.integers(0, 3))
def test_divide_never_moves_a_training_picture_if_some_are_added(count: int, added: int, seed: int) -> None:
    before, after = (names(divide(alone(size), SHARES, seed)) for size in (count, count + added))
    assert before["train"] <= after["train"]
    if count > 50:  # val and test have a picture of their own, not only the nearest
        assert all(before[name] <= after[name] for name in before)


def test_divide_does_not_depend_on_the_order_of_the_data() -> None:
    assert divide(alone(50), SHARES, 0) == divide(alone(50)[::-1], SHARES, 0)


def test_divide_with_another_share_moves_pictures_between_that_split_and_train_only() -> None:
    a, b = (names(divide(alone(500), {"val": val, "test": 0.2}, 0)) for val in (0.1, 0.3))
    assert a["test"] == b["test"] and a["val"] < b["val"]


def test_divide_keeps_a_group_where_its_shortest_name_is_alone() -> None:
    groups = alone(100)
    pairs = [[*group, Record(f"copy of {group[0].name}", Path("y"), ("a",))] for group in groups]
    splits = names(divide(pairs, SHARES, 0))
    for name, before in names(divide(groups, SHARES, 0)).items():
        assert splits[name] == before | {f"copy of {picture}" for picture in before}


def test_divide_for_val_only_is_the_split_of_data_without_lists(tmp_path: Path) -> None:
    records = [Record(f"{number}.jpg", tmp_path / f"{number}.jpg", ("a",)) for number in range(100)]
    for record in records:
        Path(str(record.image)).write_text(record.name)
    without = split_records(records, Findings())
    assert names(divide([[record] for record in records], {"val": 0.1, "test": 0.0}, 0)) == names(without)


def test_divide_of_too_few_pictures_is_refused() -> None:
    assert {name: len(part) for name, part in divide(alone(3), SHARES, 0).items()} == {"train": 1, "val": 1, "test": 1}
    with pytest.raises(DataError, match="2 pictures that are not copies of each other: too few"):
        divide(alone(2), SHARES, 0)


def write(folder: Path, records: Sequence[Record]) -> None:
    write_lists({"train": records}, folder)


def test_lists_replace_all_that_were_there(tmp_path: Path) -> None:
    folder = tmp_path / "splits"
    folder.mkdir()
    (folder / "heldout.txt").write_text("1.jpg\n")
    with pytest.raises(ConfigError, match="heldout.txt already; replace the lists by --overwrite"):
        check_no_lists(folder, overwrite=False)
    check_no_lists(folder, overwrite=True)
    write(folder, [record for group in alone(2) for record in group])
    assert [path.name for path in tmp_path.iterdir()] == ["splits"]
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"train.txt": "0.jpg\n1.jpg\n"}


def test_lists_that_cannot_be_written_leave_the_old_ones(tmp_path: Path) -> None:
    write(tmp_path / "splits", alone(1)[0])
    with pytest.raises(DataError, match="a list cannot hold a name with a line end"):
        write(tmp_path / "splits", [Record("a\nb.jpg", Path("x"), ("a",))])
    assert (tmp_path / "splits/train.txt").read_text() == "0.jpg\n"
    assert [path.name for path in tmp_path.iterdir()] == ["splits"]


def test_lists_are_not_written_into_a_folder_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "results.csv").touch()
    with pytest.raises(ConfigError, match="holds results.csv, which is not a list of a split"):
        check_no_lists(tmp_path, overwrite=True)
