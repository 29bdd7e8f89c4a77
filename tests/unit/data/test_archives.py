"""Data in archives: WebDataset shards, and data folders in tar or zip files."""

import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from myllm.config import CaptionsConfig
from myllm.data.sources import read_records, read_references
from myllm.data.stored import ArchiveMember
from myllm.errors import DataError

CAPTIONS = CaptionsConfig()


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYLLM_CACHE", str(tmp_path_factory.mktemp("cache")))


def pack(archive: Path, files: dict[str, Any]) -> Path:
    """Write an archive, in the form that its suffix says, of files whose content is text or JSON."""
    with tarfile.open(archive, "w") if archive.suffix == ".tar" else zipfile.ZipFile(archive, "w") as file:
        for name, content in files.items():
            text = (content if isinstance(content, str) else json.dumps(content)).encode()
            if isinstance(file, zipfile.ZipFile):
                file.writestr(name, text)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(text)
                file.addfile(info, io.BytesIO(text))
    return archive


def records(*data: Path) -> list[tuple[str, tuple[str, ...], str | None]]:
    return [(r.name, r.captions, r.split) for r in read_records(data, CAPTIONS)[0]]


@pytest.mark.parametrize("suffix", ["tar", "zip"])
def test_shards_are_grouped_by_key_and_their_names_say_the_split(tmp_path: Path, suffix: str) -> None:
    pack(tmp_path / f"train-000000.{suffix}", {"000.jpg": "p0", "000.txt": "a dog\ndogs\n", "000.json": {"width": 3}})
    pack(tmp_path / f"train-000001.{suffix}", {"a/001.png": "p1", "a/001.json": {"caption": ["a cat", "cats"]}})
    pack(tmp_path / f"val-000000.{suffix}", {"002.jpg": "p2", "002.caption": "a bird"})
    read, findings = read_records(tmp_path, CAPTIONS)
    assert [(r.name, r.captions, r.split) for r in read] == [
        ("000.jpg", ("a dog", "dogs"), "train"), ("a/001.png", ("a cat", "cats"), "train"),
        ("002.jpg", ("a bird",), "val"),
    ]
    assert findings.formats == [f"tar or zip archive: {tmp_path}/train-000000.{suffix} and 2 more"]
    assert [read_bytes(r.image) for r in read] == [b"p0", b"p1", b"p2"] and findings.lines() == []


def read_bytes(image: Any) -> bytes:
    assert isinstance(image, ArchiveMember)
    return image.read()


def test_shards_are_named_one_by_one_too_and_give_references(tmp_path: Path) -> None:
    paths = [pack(tmp_path / f"{n}.tar", {f"{n}.jpg": f"p{n}", f"{n}.txt": f"Caption {n}"}) for n in range(3)]
    assert records(paths[0], paths[2]) == [("0.jpg", ("caption 0",), None), ("2.jpg", ("caption 2",), None)]
    assert read_references(paths[1], None, CAPTIONS)[0].captions == {"1.jpg": ["Caption 1"]}


def test_other_pictures_of_one_name_in_two_shards_get_the_shards_name(tmp_path: Path) -> None:
    for shard, number, picture in (("a", 0, "x"), ("b", 0, "y"), ("c", 0, "zz"), ("c", 1, "x"), ("d", 1, "x")):
        with zipfile.ZipFile(tmp_path / f"{shard}.zip", "a") as archive:
            archive.writestr(f"{number}.jpg", picture)
            archive.writestr(f"{number}.txt", f"{shard}{number}")
    assert {name: captions for name, captions, _ in records(tmp_path)} == {
        "a/0.jpg": ("a0",), "b/0.jpg": ("b0",), "c/0.jpg": ("c0",), "1.jpg": ("c1", "d1"),
    }


def test_members_without_captions_or_without_a_picture_are_reported(tmp_path: Path) -> None:
    shard = pack(tmp_path / "x.tar", {"0.jpg": "", "0.txt": "a dog", "1.jpg": "", "2.txt": "lost", "3.jpg": "",
                                      "3.txt": "\n"})
    _, findings = read_records(shard, CAPTIONS)
    assert findings.unused_pictures == [f"{shard}/1.jpg"] and findings.missing_pictures == [f"{shard}/2.txt"]
    assert findings.empty_captions == ["3.txt: 3.jpg"]


def test_a_cut_shard_is_reported_and_its_whole_members_are_used(tmp_path: Path) -> None:
    shard = pack(tmp_path / "x.tar", {f"{n}.{kind}": kind * 99 for n in range(3) for kind in ("jpg", "txt")})
    shard.write_bytes(shard.read_bytes()[: 4 * 1024 + 550])
    read, findings = read_records(shard, CAPTIONS)
    assert len(read) == 2 and f"{shard} ends inside" in findings.cut_archives[0]
    assert "1 archive that is cut or damaged, of which the whole members are used (" in findings.lines()[-1]


def test_a_shard_without_captions_is_named(tmp_path: Path) -> None:
    pack(tmp_path / "0.tar", {"0.jpg": "p", "0.txt": "a dog"})
    pack(tmp_path / "1.tar", {"1.jpg": "p"})
    with pytest.raises(DataError, match=r"1.tar: holds no captions in a known format. Found only 1.jpg"):
        read_records(tmp_path, CAPTIONS)


def test_a_compressed_shard_in_a_folder_is_refused_with_the_fix(tmp_path: Path) -> None:
    pack(tmp_path / "x.tar", {"0.jpg": "p", "0.txt": "a dog"})
    shutil.make_archive(str(tmp_path / "x"), "gztar", tmp_path, "x.tar")
    (tmp_path / "x.tar").unlink()
    with pytest.raises(DataError, match=r"x.tar.gz: is compressed as a whole.*gunzip"):
        read_records(tmp_path, CAPTIONS)


FOLDERS: list[dict[str, Any]] = [
    {"results.csv": "image_name| comment_number| comment\n1.jpg| 0| a dog\n2.jpg| 0| a cat\n",
     "flickr30k_images/1.jpg": "p1", "flickr30k_images/2.jpg": "p2", "splits/val.txt": "2.jpg\n"},
    {"dataset.json": {"images": [{"filename": f"{n}.jpg", "split": split, "sentences": [{"raw": text}]}
                                 for n, split, text in ((1, "train", "a dog"), (2, "val", "a cat"))]},
     "images/1.jpg": "p1", "images/2.jpg": "p2"},
]


@pytest.mark.parametrize("top", ["", "data/"])
@pytest.mark.parametrize("suffix", ["tar", "zip"])
@pytest.mark.parametrize("files", FOLDERS, ids=["results.csv", "Karpathy"])
def test_an_archive_of_a_data_folder_is_read_like_the_folder(
    tmp_path: Path, files: dict[str, Any], suffix: str, top: str
) -> None:
    path = pack(tmp_path / f"x.{suffix}", {f"{top}{name}": content for name, content in files.items()})
    read, findings = read_records(path, CAPTIONS)
    assert records(path) == [("1.jpg", ("a dog",), "train"), ("2.jpg", ("a cat",), "val")]
    assert [read_bytes(r.image) for r in read] == [b"p1", b"p2"] and findings.lines() == []
    assert findings.formats[1].endswith(f"{path}/{top}{next(iter(files))}")


def test_pictures_are_found_in_an_archive_beside_the_captions(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("image,caption\n1.jpg,a dog\n2.jpg,a cat\n")
    pack(tmp_path / "Images.zip", {"Images/1.jpg": "p1", "Images/2.jpg": "p2"})
    read, findings = read_records(tmp_path, CAPTIONS)
    assert [(r.name, read_bytes(r.image)) for r in read] == [("1.jpg", b"p1"), ("2.jpg", b"p2")]
    assert findings.lines() == []


def test_a_name_of_two_pictures_in_an_archive_is_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip", {"a.csv": "image,caption\n1.jpg,a dog\n", "a/1.jpg": "p", "b/1.jpg": "q"})
    with pytest.raises(DataError, match=r"x.zip: a.csv, line 2: 1.jpg may be a/1.jpg or b/1.jpg; write the folder"):
        read_records(path, CAPTIONS)


def test_faults_of_captions_in_an_archive_name_their_line(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip", {"a.json": [{"image": "1.jpg", "caption": 5}], "1.jpg": "p"})
    with pytest.raises(DataError, match=r"x.zip: a.json, entry 1, picture 1.jpg: the caption is 5"):
        read_records(path, CAPTIONS)
