"""Walking folders and expanding globs, compared with pathlib and glob."""

import glob
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm.apps import folder_walk
from myllm.apps.folder_walk import FILE, Entry, EntrySorter, Walked, matches, split_glob, walk

# os.fsdecode gives lone surrogates for bytes that are not UTF-8
NAMES = st.binary(min_size=1).filter(lambda name: not {0, 47} & set(name)).map(os.fsdecode)


@pytest.fixture(params=[3, 1000])
def chunk_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_walk, "CHUNK_SIZE", request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files in several folders; names differ in case, have line ends, dots or bytes that are not UTF-8."""
    for name in ("b/1.x", "b/a/2.x", "b.x", "B.x", "b!/3.x", ".hid/4.x", "-5.x", "a\nb.x", "caf\udce9.x", "é.x", "é.x",
                 "😀.x", "c d.x", "b/no.y", "z/z/z/.6.x", "z/z/7.x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@given(st.lists(NAMES, unique=True), st.integers(1, 4))
def test_entry_sorter_equals_sorted(names: list[str], size: int) -> None:
    sorter = EntrySorter(size)
    for name in names:
        sorter.add(Entry(name, FILE))
    assert [entry.name for entry in sorter] == sorted(names)


@pytest.mark.usefixtures("chunk_size")
@pytest.mark.parametrize("is_sorted", [True, False])
def test_walk_finds_the_files_that_pathlib_finds(folder: Path, is_sorted: bool) -> None:
    walked = [file.path for file in walk(folder, lambda name: name.endswith(".x"), is_sorted)]
    expected = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.x"))]
    assert (walked if is_sorted else sorted(walked, key=lambda path: Path(path).parts)) == expected


def test_walk_follows_links_to_files_and_says_which_are_broken_or_of_folders(tmp_path: Path) -> None:
    (tmp_path / "1.x").touch()
    for name, target in {"2.x": "1.x", "3.x": "gone", "4.x": "4.x", "up": ".", "notes": "gone"}.items():
        (tmp_path / name).symlink_to(target)
    os.mkfifo(tmp_path / "pipe.x")
    walked = list(walk(tmp_path, lambda name: name.endswith(".x")))
    assert [(file.path, file.is_folder_link, type(file.fault)) for file in walked] == [
        ("1.x", False, type(None)), ("2.x", False, type(None)), ("3.x", False, FileNotFoundError),
        ("4.x", False, OSError), ("up", True, type(None)),
    ]


def test_walk_resumes_after_a_folder_that_vanished(folder: Path) -> None:
    walked = walk(folder, lambda name: name in ("1.x", "3.x", "7.x"))
    assert next(walked) == Walked("b/1.x")  # the folder is listed
    shutil.rmtree(folder / "b!")
    assert [(file.path, type(file.fault)) for file in walked] == [("b!", FileNotFoundError), ("z/z/7.x", type(None))]


def test_walk_enters_folders_of_any_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    depth = 1000  # as deep as Python's calls may be nested
    for _ in range(depth):
        os.mkdir("d")
        os.chdir("d")
    Path("1.x").touch()
    walked = list(walk(tmp_path, lambda name: True))
    os.remove("1.x")
    for _ in range(depth):  # pytest cannot remove them
        os.chdir("..")
        os.rmdir("d")
    assert [len(file.path.split("/")) for file in walked] == [depth + 1]


@pytest.mark.parametrize(("pattern", "expected"), [("*.x", ["[20]/1.x"]), ("gone.x", []), ("1.x", ["[20]/1.x"])])
def test_brackets_of_a_folder_that_is_there_are_no_wildcard(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    for name in ("[20]", "2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.x").touch()
    found = [os.path.relpath(str(path), tmp_path) for path in matches(*split_glob(f"{tmp_path}/[20]/{pattern}"))]
    assert found == expected


@pytest.mark.usefixtures("chunk_size")
@pytest.mark.parametrize("pattern", [
    "*.x", "?/*.x", "**/*.x", "*/**/*.x", "b/*", "b/a/[0-9].x", "*/a/2.x", ".*/*.x", "b/**/2.x", "no*", "*/no*",
    "[!b]*",
])
def test_glob_matches_what_the_glob_module_finds(folder: Path, pattern: str) -> None:
    found = [str(path) for path in matches(*split_glob(f"{folder}/{pattern}"))]
    assert sorted(found) == sorted(set(glob.glob(f"{folder}/{pattern}", recursive=True)))
    assert found == [str(path) for path in matches(*split_glob(f"{folder}/{pattern}"))]
