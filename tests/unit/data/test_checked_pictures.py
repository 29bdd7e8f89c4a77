import os
from pathlib import Path

import pytest

from myllm.data.checked_pictures import CheckedPictures


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.jpg" for number in range(4)]
    for path in paths:
        path.write_bytes(b"picture")
    return paths


def test_checked_pictures_are_known_to_later_runs(tmp_path: Path, pictures: list[Path]) -> None:
    CheckedPictures(tmp_path / "cache/checked").add(pictures[:2])
    CheckedPictures(tmp_path / "cache/checked").add(pictures[1:3])
    assert CheckedPictures(tmp_path / "cache/checked").known(pictures) == set(pictures[:3])


def test_checked_pictures_forget_what_changed_and_what_is_gone(tmp_path: Path, pictures: list[Path]) -> None:
    CheckedPictures(tmp_path / "checked").add(pictures)
    pictures[0].write_bytes(b"longer picture")
    os.utime(pictures[1], ns=(1, 1))
    pictures[2].unlink()
    assert CheckedPictures(tmp_path / "checked").known(pictures) == {pictures[3]}


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"x" * 99])
def test_checked_pictures_survive_a_damaged_file(tmp_path: Path, pictures: list[Path], content: bytes) -> None:
    (tmp_path / "checked").write_bytes(content)
    assert CheckedPictures(tmp_path / "checked").known(pictures) == set()


def test_checked_pictures_do_not_know_the_picture_of_a_line_cut_short(tmp_path: Path, pictures: list[Path]) -> None:
    CheckedPictures(tmp_path / "checked").add(pictures)
    os.truncate(tmp_path / "checked", (tmp_path / "checked").stat().st_size - 5)
    CheckedPictures(tmp_path / "checked").add([])
    assert len(CheckedPictures(tmp_path / "checked").known(pictures)) == 3


def test_checked_pictures_go_on_without_a_file_that_can_be_written(tmp_path: Path, pictures: list[Path]) -> None:
    (tmp_path / "file").touch()
    checked = CheckedPictures(tmp_path / "file/checked")
    checked.add(pictures)
    assert CheckedPictures(tmp_path / "file/checked").known(pictures) == set()
