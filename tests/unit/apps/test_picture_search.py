"""What a command line names, compared with what was written; and that nothing ends a search."""

import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from myllm.apps.picture_search import (
    FoundPicture,
    PictureSearch,
    UnusablePath,
    is_collection,
    pictures_by_name,
)
from myllm.data.images import PICTURE_SUFFIXES
from myllm.errors import ConfigError, DataError
from myllm.files import StoredImage


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with pics/a.png, pics/deep/a.png, other/a.png and other/b.JPG."""
    monkeypatch.setenv("MYLLM_CACHE", str(tmp_path.parent / f"{tmp_path.name}-cache"))
    for name in ("pics/a.png", "pics/deep/a.png", "other/a.png", "other/b.JPG", "other/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def open_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, which every user may read; the test is run by a user who is not root."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    monkeypatch.chdir(path)
    yield path
    if os.getuid() == 0:
        os.seteuid(0)
    for folder in path.rglob("*"):
        if folder.is_dir():
            folder.chmod(0o700)
    shutil.rmtree(path)


def found(*words: str, lists: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """Return the identities and names of the pictures; all must be usable, and counted."""
    search = PictureSearch(words, lists)
    search.check()
    pictures = list(search)
    assert search.count() == len(pictures)
    assert all(isinstance(picture, FoundPicture) for picture in pictures), pictures
    return [(str(picture.picture), picture.name) for picture in pictures if isinstance(picture, FoundPicture)]


def errors(*words: str, lists: tuple[str, ...] = ()) -> list[str]:
    return [path.error for path in PictureSearch(words, lists) if isinstance(path, UnusablePath)]


def write_tar(path: Path, *names: str) -> None:
    with tarfile.open(path, "w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())


def test_a_picture_is_named_by_its_path_in_the_given_folder(folder: Path) -> None:
    assert found("pics/", "other/b.JPG", "other/?.png", "*/**/*.png") == [
        ("pics/a.png", "a.png"), ("pics/deep/a.png", "deep/a.png"), ("other/b.JPG", "b.JPG"), ("other/a.png", "a.png"),
        ("other/a.png", "other/a.png"), ("pics/a.png", "pics/a.png"), ("pics/deep/a.png", "pics/deep/a.png"),
    ]
    assert [name for _, name in found(".")] == ["other/a.png", "other/b.JPG", "pics/a.png", "pics/deep/a.png"]


def test_every_suffix_that_is_read_is_found_in_a_folder(folder: Path) -> None:
    for suffix in PICTURE_SUFFIXES:
        (folder / f"pics/all/{suffix}").mkdir(parents=True)
        (folder / f"pics/all/{suffix}/x{suffix.upper()}").touch()
    assert len(found("pics/all")) == len(PICTURE_SUFFIXES)


def test_strange_names_are_found_as_they_are(folder: Path) -> None:
    names = ["-a.png", "--my-pic.jpg", "a b.png", "a\nb.png", "[1].png", "A.png", "a.png", "caf\udce9.png", "😀.png",
             unicodedata.normalize("NFC", "é.png"), unicodedata.normalize("NFD", "é.png"), "x" * 250 + ".png"]
    for name in names:
        (folder / "strange").mkdir(exist_ok=True)
        (folder / "strange" / name).touch()
    assert [name for _, name in found("strange")] == sorted(names)
    os.chdir("strange")
    assert found("[1].png", "--my-pic.jpg") == [("[1].png", "[1].png"), ("--my-pic.jpg", "--my-pic.jpg")]


def test_archives_are_read_in_place(folder: Path) -> None:
    write_tar(folder / "pics/s-1.tar", "a/1.jpg", "a/1.txt", "2.png")
    with zipfile.ZipFile(folder / "pics/s-2.ZIP", "w") as archive:
        archive.writestr("3.gif", b"gif")
    assert found("pics/s-1.tar", "p*/s-*") == [
        ("pics/s-1.tar/a/1.jpg", "s-1.tar/a/1.jpg"), ("pics/s-1.tar/2.png", "s-1.tar/2.png"),
        ("pics/s-1.tar/a/1.jpg", "pics/s-1.tar/a/1.jpg"), ("pics/s-1.tar/2.png", "pics/s-1.tar/2.png"),
        ("pics/s-2.ZIP/3.gif", "pics/s-2.ZIP/3.gif"),
    ]
    (picture,) = PictureSearch(["pics/s-2.ZIP/3.gif"])
    assert isinstance(picture, FoundPicture) and isinstance(picture.picture, StoredImage)
    assert picture.picture.read() == b"gif"
    assert found("pics/s-1.tar/a") == [("pics/s-1.tar/a/1.jpg", "s-1.tar/a/1.jpg")]


def test_the_rest_of_a_cut_archive_is_reported(folder: Path) -> None:
    write_tar(folder / "s.tar", "1.jpg", "2.jpg")
    os.truncate(folder / "s.tar", 700)
    assert errors("s.tar") == ["s.tar is cut or damaged after 1.jpg; take another copy of it"]


def test_tables_name_pictures_or_hold_them(folder: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    names = ["x/1.jpg", "../1.jpg", None]
    parquet.write_table(pa.table({"jpg": [b"1", b"2", b"3"], "file_name": names}), "other/t.parquet")
    assert found("other/t.parquet") == [
        ("other/t.parquet, row 1", "x/1.jpg"), ("other/t.parquet, row 2", "t/000002"),
        ("other/t.parquet, row 3", "t/000003"),
    ]
    parquet.write_table(pa.table({"image": ["a.png", "a.png", "pics/a.png", "gone.png"]}), "other/p.parquet")
    search = PictureSearch(["other/p.parquet"])
    assert [str(path.picture) if isinstance(path, FoundPicture) else path.error for path in search] == [
        "other/a.png", "pics/a.png", "other/p.parquet, row 4: names gone.png, which is not a file in other",
    ]
    assert search.count() == 3


def test_a_folder_of_save_to_disk_is_read_by_its_rows(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    part = datasets.Dataset.from_dict({"image": [b"1", b"2"], "n": [1, 2]})
    part.save_to_disk(folder / "saved")
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(folder / "both")
    assert [name for _, name in found("saved")] == ["data-00000-of-00001/000001", "data-00000-of-00001/000002"]
    assert [identity for identity, _ in found("both")] == [
        f"both/{split}/data-00000-of-00001.arrow, row {row}" for split in ("test", "train") for row in (1, 2)
    ]


@pytest.mark.parametrize(("name", "content"), [
    ("c.csv", "image,caption\na.png,a dog\nb.JPG,\ngone.png,no"),
    ("c.jsonl", '{"image": "a.png", "caption": "a dog"}\n{"image": "b.JPG", "caption": ""}\n'
                '{"image": "gone.png", "caption": "x"}'),
])
def test_a_file_of_captions_names_pictures_with_and_without_captions(folder: Path, name: str, content: str) -> None:
    (folder / "other" / name).write_text(content)
    assert [str(path.picture) for path in PictureSearch([f"other/{name}"]) if isinstance(path, FoundPicture)] == [
        "other/a.png", "other/b.JPG",
    ]
    assert errors(f"other/{name}") == [
        f"gone.png: named in other/{name}, but the picture is missing; put it into other"
    ]


def test_entries_of_a_list_are_named_from_the_working_directory(folder: Path) -> None:
    (folder / "list").write_text(f"pics/a.png\nother\n{folder}/pics/a.png\n")
    assert found(lists=("list",)) == [
        ("pics/a.png", "pics/a.png"), ("other/a.png", "other/a.png"), ("other/b.JPG", "other/b.JPG"),
        (f"{folder}/pics/a.png", f"{folder}/pics/a.png"[1:]),
    ]


def test_an_entry_of_a_list_that_is_not_there_is_unusable_and_no_glob(folder: Path) -> None:
    (folder / "list").write_text(f"gone.png\npics/?.png\n{'x' * 300}\npics/a.png")
    assert errors(lists=("list",)) == [
        "gone.png: no such file or folder; paths of a list start from the current folder",
        "pics/?.png: no such file or folder; paths of a list start from the current folder",
        f"{'x' * 50} ... {'x' * 50}: cannot be read (File name too long)",
    ]


def test_standard_input_is_a_list_that_is_not_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"other/a.png\nother/b.JPG\n")))
    search = PictureSearch(["pics", "-"])
    search.check()
    assert search.count() is None
    assert [path.name for path in search if isinstance(path, FoundPicture)] == [
        "a.png", "deep/a.png", "other/a.png", "other/b.JPG"
    ]


def test_standard_input_that_is_copied_is_read_twice_and_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"other/a.png\nother/b.JPG\n")))
    search = PictureSearch(["-"])
    search.copy_lists()
    assert list(search) == list(search) and search.count() == 2


def write_outputs(folder: Path) -> list[str]:
    """Write what `myllm caption` adds to pics/; return all paths in it, as a shell expands pics/*."""
    for name in ("a.txt", "o.jsonl", "o.csv", "o.csv.jsonl", "o.jsonl.errors.jsonl"):
        (folder / "pics" / name).write_text('{"image": "gone.png"}\n')
    for name in ("o.jsonl", "o.csv", "ray"):
        (folder / f"pics/{name}.run.json").write_text("{}")
    for name in ("ray", "ray.checkpoint"):
        (folder / "pics" / name).mkdir()
    return [f"pics/{name}" for name in sorted(os.listdir("pics"))]


def test_outputs_in_a_glob_or_in_the_words_of_a_shell_are_passed_over(folder: Path) -> None:
    words = write_outputs(folder)
    pictures = ["pics/a.png", "pics/deep/a.png"]
    assert [identity for identity, _ in found("pics/*")] == [identity for identity, _ in found(*words)] == pictures


def test_an_output_that_is_given_by_its_name_names_pictures(folder: Path) -> None:
    write_outputs(folder)
    (folder / "pics/o.jsonl").write_text('{"image": "a.png", "caption": "a dog"}\n')
    assert [identity for identity, _ in found("pics/o.jsonl")] == ["pics/a.png"]
    with pytest.raises(DataError, match=r"matches only files that `myllm caption` wrote"):
        PictureSearch(["pics/o*"]).check()


def test_errors_quote_little_of_a_file(folder: Path) -> None:
    (folder / "other/notes.txt").write_text("a dog runs\n" * 1000)
    (folder / "other/c.csv").write_text("image,caption\na.png,a\n" + "x" * 9000 + "\n" + "y" * 200 + ".png,a\n")
    (folder / "list").write_text("z" * 9000)
    messages = errors("other/*", lists=("list",))
    assert len(messages) == 4 and all(len(message) < 300 for message in messages), messages


def test_a_table_that_names_files_is_no_collection(folder: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"image": ["a.png"]}), "other/names.parquet")
    parquet.write_table(pa.table({"image": [b"1"]}), "other/pictures.parquet")
    (folder / "other/bad.parquet").touch()
    write_tar(folder / "other/s.tar", "a.jpg")
    assert [path for path in sorted(map(str, Path("other").iterdir())) if is_collection(path)] == [
        "other/pictures.parquet", "other/s.tar",
    ]


def test_a_listed_path_with_dots_is_named_by_its_last_part_and_is_no_glob(folder: Path) -> None:
    (folder / "list").write_text("../other/a.png\n../other/?.png\n")
    os.chdir("pics")
    search = PictureSearch([], ["../list"])
    assert [path.name if isinstance(path, FoundPicture) else path.error for path in search] == [
        "a.png", "../other/?.png: no such file or folder; paths of a list start from the current folder",
    ]


def test_a_count_can_be_stopped(folder: Path) -> None:
    stops = iter([False, True])
    assert PictureSearch(["pics"]).count(lambda: next(stops)) is None


@pytest.mark.parametrize(("word", "message"), [
    ("gone.png", "gone.png: no such file or folder, and no file matches it as a glob"),
    ("no*.png", "no.*: no such file or folder, and no file matches it as a glob"),
    ("x" * 300, "x: cannot be read .File name too long."),
    ("https://example.org/a.png", "web addresses are not downloaded; save the picture"),
    ("loop", "loop: is a link to loop, which cannot be reached"),
    ("empty", "empty: no pictures in this folder or its subfolders; looked for .apng, "),
    ("shards", "skipped 2 .tar files, the first is shards/[12].tar: to read it, give the path shards/.*.tar"),
    ("other/bad.tar", "other/bad.tar: is no tar archive"),
    ("other/notes.txt", "notes.txt: the file is empty.* A file that lists pictures, .* is given by --from"),
])
def test_a_word_that_names_no_picture_is_refused_at_the_start(folder: Path, word: str, message: str) -> None:
    (folder / "loop").symlink_to("loop")
    (folder / "empty").mkdir()
    (folder / "shards").mkdir()
    (folder / "other/bad.tar").write_bytes(b"bad" * 1000)
    for number in (2, 1):
        write_tar(folder / f"shards/{number}.tar", "a.jpg")
    with pytest.raises(DataError, match=message):
        PictureSearch([word]).check()


def test_other_files_among_the_words_do_not_end_the_run(folder: Path) -> None:
    PictureSearch(["pics/a.png", "other/notes.txt"]).check()
    PictureSearch(["other/notes.txt", "pics/a.png"]).check()


def test_skipped_files_are_counted_while_pictures_are_found(folder: Path) -> None:
    for name in ("pics/1.svg", "pics/deep/2.SVG", "other/3.cr2", "other/4.tar"):
        (folder / name).touch()
    (folder / "pics/link").symlink_to("../other")
    search = PictureSearch(["pics", "other"])
    search.check()
    assert search.describe_skipped() == ""
    assert len(list(search)) == len(list(search)) == 4
    assert search.skipped == {".svg": 2, "link to a folder": 1, ".cr2": 1, ".tar": 1}
    assert "skipped 2 .svg files, the first is pics/1.svg: this format is not read; convert it to PNG or JPEG" in (
        search.describe_skipped()
    )


def test_unreadable_folders_do_not_end_the_search(open_folder: Path) -> None:
    for name in ("a/1.png", "b/2.png", "c/3.png", "d/4.png"):
        (open_folder / name).parent.mkdir()
        (open_folder / name).touch()
    (open_folder / "a/link.png").symlink_to("1.png")
    (open_folder / "a").chmod(0o444)  # can be listed, but not entered
    (open_folder / "b").chmod(0)
    (open_folder / "c").chmod(0o111)  # can be entered, but not listed
    if os.getuid() == 0:
        os.seteuid(65534)
    results = list(PictureSearch(["."]))
    assert [path.name if isinstance(path, FoundPicture) else path.error for path in results] == [
        "a/1.png",  # the folder says that it is a picture; that it cannot be read is found when it is opened
        "a/link.png: cannot be read (Permission denied); change the permissions, or give other paths",
        "b: cannot be read (Permission denied); change the permissions, or give other paths",
        "c: cannot be read (Permission denied); change the permissions, or give other paths",
        "d/4.png",
    ]
    with pytest.raises(DataError, match="b: cannot be read .Permission denied."):
        PictureSearch(["b"]).check()
    assert [path.name for path in PictureSearch(["c/3.png"]) if isinstance(path, FoundPicture)] == ["3.png"]
    assert [error.partition(":")[0] for error in errors("*/*.png")] == ["a/1.png", "a/link.png", "b", "c"]


def test_pictures_by_name_takes_a_picture_that_is_given_twice_once(folder: Path) -> None:
    (folder / "link").symlink_to("pics")
    pictures = pictures_by_name(["pics", "pics/a.png", str(folder / "pics"), "link"], print)
    assert pictures == {"a.png": Path("pics/a.png"), "deep/a.png": Path("pics/deep/a.png")}


def test_pictures_by_name_refuses_two_pictures_of_one_name(folder: Path) -> None:
    with pytest.raises(ConfigError, match="pics/a.png and other/a.png would both be called a.png; give"):
        pictures_by_name(["pics", "other"], print)
    assert list(pictures_by_name(["."], print)) == ["other/a.png", "other/b.JPG", "pics/a.png", "pics/deep/a.png"]


def test_pictures_by_name_warns_of_what_it_leaves_out_and_refuses_archives(folder: Path) -> None:
    warnings: list[Any] = []
    (folder / "pics/broken.png").symlink_to("gone.png")
    (folder / "pics/1.svg").write_text(json.dumps({}))
    assert len(pictures_by_name(["pics"], warnings.append)) == 2
    assert [warning.partition(":")[0] for warning in warnings] == [
        "pics/broken.png", "skipped 1 .svg file, which is pics/1.svg",
    ]
    write_tar(folder / "s.tar", "1.jpg")
    with pytest.raises(ConfigError, match="s.tar/1.jpg: is not a separate file; unpack"):
        pictures_by_name(["s.tar"], print)


def test_files_in_which_macos_keeps_attributes_are_no_pictures(folder: Path) -> None:
    (folder / "pics/._a.png").write_bytes(b"\0\5\x16\7")
    with tarfile.open("pics.tar", "w") as tar:
        for name in ("pics/a.png", "pics/._a.png"):
            tar.add(name)
    assert [name for _, name in found("pics", "pics.tar")] == ["a.png", "deep/a.png", "pics.tar/pics/a.png"]


def test_lists_leave_out_what_captioning_wrote(folder: Path) -> None:
    written = ("pics/a.txt", "out.jsonl", "out.jsonl.run.json", "out.jsonl.errors.jsonl")
    for name in written:
        (folder / name).write_text("{}")
    (folder / "list.txt").write_text("\n".join(["pics/a.png", *written]))
    assert found(lists=("list.txt",)) == [("pics/a.png", "pics/a.png")]


def test_a_missing_path_of_a_list_says_where_paths_start(folder: Path) -> None:
    (folder / "other/list.txt").write_text("b.JPG\n/gone.png\n")
    assert [str(path.error) for path in PictureSearch([], ["other/list.txt"]) if isinstance(path, UnusablePath)] == [
        "b.JPG: no such file or folder; paths of a list start from the current folder",
        "/gone.png: no such file or folder",
    ]
