import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from myllm.config import CaptionsConfig
from myllm.data.sources import read_records, read_references
from myllm.data.splits import check_both_sides, split_records
from myllm.errors import ConfigError, DataError

CAPTIONS = CaptionsConfig()


def make_folder(folder: Path, rows: str, pictures: str = "") -> Path:
    """Rows are 'NAME CAPTION'; pictures are paths, by default the names of the rows."""
    table = [row.strip().partition(" ") for row in rows.split("|")]
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["image,caption", *(f"{name},{caption}" for name, _, caption in table)]
    (folder / "captions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for path in (folder / name for name in pictures.split() or {name for name, *_ in table}):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(path))
    return folder


def names(*data: Path) -> list[str]:
    return [record.name for record in read_records(data, CAPTIONS)[0]]


def write_list(folder: Path, split: str, *lines: str) -> None:
    (folder / "splits").mkdir(exist_ok=True)
    (folder / "splits" / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def splits_of(folder: Path) -> dict[str, str | None]:
    return {record.name: record.split for record in read_records(folder, CAPTIONS)[0]}


def test_pictures_of_one_name_in_two_folders_are_two_pictures(tmp_path: Path) -> None:
    make_folder(tmp_path, "a/1.png a dog | b/1.png a cat | a/1.png dogs")
    records, _ = read_records(tmp_path, CAPTIONS)
    assert [(r.name, r.image.relative_to(tmp_path).as_posix(), r.captions) for r in records] == [
        ("a/1.png", "a/1.png", ("a dog", "dogs")), ("b/1.png", "b/1.png", ("a cat",))
    ]


@pytest.mark.parametrize("in_file", ["NFC", "NFD"])
@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_composed_and_decomposed_letters_are_one_name(tmp_path: Path, in_file: Any, on_disk: Any) -> None:
    picture = unicodedata.normalize(on_disk, "café/ñ.jpg")
    make_folder(tmp_path, f"{unicodedata.normalize(in_file, 'café/ñ.jpg')} a cup | x.jpg a man", f"{picture} x.jpg")
    write_list(tmp_path, "val", unicodedata.normalize(on_disk, "ñ.jpg"))
    assert splits_of(tmp_path) == {unicodedata.normalize("NFC", "café/ñ.jpg"): "val", "x.jpg": "train"}


def test_names_may_lack_a_suffix_or_have_windows_separators(tmp_path: Path) -> None:
    make_folder(tmp_path, r"1 a dog | a\2.jpg a cat", "images/1.jpg images/a/2.jpg")
    assert names(tmp_path) == ["1", "a/2.jpg"]


def test_a_name_in_two_picture_folders_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path, "1.jpg a dog", "train2014/1.jpg val2014/1.jpg")
    with pytest.raises(DataError, match="two pictures are called 1.jpg: .*train2014/1.jpg and .*val2014/1.jpg"):
        read_records(tmp_path, CAPTIONS)


def test_captions_of_absent_pictures_are_reported_and_left_out(tmp_path: Path) -> None:
    make_folder(tmp_path, "1.jpg a dog | gone.jpg a cat", "images/1.jpg images/2.jpg")
    records, findings = read_records(tmp_path, CAPTIONS)
    assert [record.name for record in records] == ["1.jpg"]
    assert findings.missing_pictures == ["gone.jpg"] and findings.unused_pictures == ["2.jpg"]


def test_pictures_that_captions_of_this_program_name_are_found_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make_folder(tmp_path, "x.jpg a dog", "photos/1.jpg"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/captions.jsonl").write_text(json.dumps({"image": "photos/1.jpg", "caption": "a dog"}))
    assert names(Path("out/captions.jsonl")) == ["photos/1.jpg"]


def test_a_picture_here_is_not_taken_for_one_of_a_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "data", "1.jpg a dog | 2.jpg a cat", "2.jpg")
    (tmp_path / "1.jpg").touch()
    monkeypatch.chdir(tmp_path)
    assert names(folder) == ["2.jpg"]


def test_mixed_folders_keep_pictures_of_one_name_apart(tmp_path: Path) -> None:
    a, b = make_folder(tmp_path / "x/a", "1.jpg a dog"), make_folder(tmp_path / "y/b", "1.jpg a cat | 2.jpg cats")
    assert names(a, b) == ["a/1.jpg", "b/1.jpg", "b/2.jpg"]
    c = make_folder(tmp_path / "y/a", "1.jpg a bird")
    assert names(a, c) == ["x/a/1.jpg", "y/a/1.jpg"]
    assert names(a, a / "../a/captions.csv") == ["1.jpg"]


def test_mixing_moves_no_picture_to_another_split(tmp_path: Path) -> None:
    rows = [" | ".join(f"{kind}{number}.jpg a dog" for number in range(60)) for kind in "ab"]
    a, b = make_folder(tmp_path / "a", rows[0]), make_folder(tmp_path / "b", rows[1])

    def validated(*data: Path) -> set[str]:
        return {record.image.name for record in split_records(*read_records(data, CAPTIONS))["val"]}

    assert validated(a, b) == validated(a) | validated(b)


def test_lists_name_pictures_by_path_bare_name_or_stem(tmp_path: Path) -> None:
    make_folder(tmp_path, "a/1.jpg w | a/2.jpg w | b/3.jpg w | b/4.png w | c/5.jpg w", "")
    write_list(tmp_path, "val", "a/1.jpg", "2.jpg", "images/b/3.jpg", "4")
    assert splits_of(tmp_path) == dict.fromkeys(["a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.png"], "val") | {
        "c/5.jpg": "train"
    }


@pytest.mark.parametrize("line", ["1.png", "1"])
def test_lists_with_a_name_of_two_pictures_are_refused_by_name(tmp_path: Path, line: str) -> None:
    make_folder(tmp_path, "a/1.png a dog | b/1.png a cat | 2.png a bird")
    write_list(tmp_path, "val", "2.png", line)
    with pytest.raises(DataError, match=f"val.txt: line 2, '{line}', may be a/1.png or b/1.png; write the path"):
        read_records(tmp_path, CAPTIONS)


def test_a_list_does_not_mean_a_picture_with_another_suffix_or_number(tmp_path: Path) -> None:
    make_folder(tmp_path, "1.jpg a dog | 2.jpg a cat | 3.jpg a bird")
    write_list(tmp_path, "val", "1.png", "02.jpg", "3.jpg")
    _, findings = read_records(tmp_path, CAPTIONS)
    assert findings.unknown_in_splits == ["1.png in val", "02.jpg in val"]


def test_an_empty_list_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path, "1.jpg a dog | 2.jpg a cat")
    write_list(tmp_path, "val", "")
    with pytest.raises(DataError, match=r"val.txt: names no picture"):
        read_records(tmp_path, CAPTIONS)


def test_a_list_of_absent_validation_pictures_does_not_validate_on_others(tmp_path: Path) -> None:
    make_folder(tmp_path, " | ".join(f"{number}.jpg w" for number in range(50)))
    write_list(tmp_path, "val", "gone.jpg")
    write_list(tmp_path, "test", "1.jpg")
    splits = split_records(*read_records(tmp_path, CAPTIONS))
    with pytest.raises(DataError, match="no picture to validate on: of 50 pictures, 49 in train, 0 in val, 1 in test"):
        check_both_sides(splits)


def test_references_need_no_pictures_and_keep_their_case(tmp_path: Path) -> None:
    make_folder(tmp_path, "1.jpg A Dog | 2.jpg a cat", "other.jpg")
    write_list(tmp_path, "test", "2")
    assert read_references(tmp_path, None, CAPTIONS)[0].captions == {"1.jpg": ["A Dog"], "2.jpg": ["a cat"]}
    assert read_references(tmp_path, "test", CAPTIONS)[0].captions == {"2.jpg": ["a cat"]}
    with pytest.raises(ConfigError, match="--split 'dev': .* has "):
        read_references(tmp_path, "dev", CAPTIONS)


def test_references_of_a_split_are_the_pictures_that_are_evaluated(tmp_path: Path) -> None:
    make_folder(tmp_path, " | ".join(f"{number}.jpg w" for number in range(40)))
    judged = split_records(*read_records(tmp_path, CAPTIONS))["val"]
    assert list(read_references(tmp_path, "val", CAPTIONS)[0].captions) == [record.name for record in judged]


def test_data_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone: no such folder or file; give a folder"):
        read_records([make_folder(tmp_path, "1.jpg a"), tmp_path / "gone"], CAPTIONS)
