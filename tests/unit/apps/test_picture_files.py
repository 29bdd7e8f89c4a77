from pathlib import Path

import pytest

from myllm.apps.picture_files import find_pictures, pictures_by_name
from myllm.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with pics/a.png, pics/deep/a.png, other/a.png and other/b.JPG."""
    for name in ("pics/a.png", "pics/deep/a.png", "other/a.png", "other/b.JPG", "other/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_picture_is_named_by_its_path_in_the_given_folder(folder: Path) -> None:
    names = [(picture.name, str(picture.path)) for picture in find_pictures(["pics/", "other/b.JPG", "other/?.png"])]
    assert names == [("a.png", "pics/a.png"), ("deep/a.png", "pics/deep/a.png"), ("b.JPG", "other/b.JPG"),
                     ("a.png", "other/a.png")]


def test_pictures_by_name_takes_a_picture_that_is_given_twice_once(folder: Path) -> None:
    (folder / "link").symlink_to("pics")
    pictures = pictures_by_name(["pics", "pics/a.png", str(folder / "pics"), "link"])
    assert pictures == {"a.png": Path("pics/a.png"), "deep/a.png": Path("pics/deep/a.png")}


def test_pictures_by_name_refuses_two_pictures_of_one_name(folder: Path) -> None:
    with pytest.raises(ConfigError, match="pics/a.png and other/a.png would both be called a.png; give"):
        pictures_by_name(["pics", "other"])
    assert list(pictures_by_name(["."])) == ["other/a.png", "other/b.JPG", "pics/a.png", "pics/deep/a.png"]
