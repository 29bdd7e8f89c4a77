"""Which suffixes are read, which are skipped with a message, and which are of something else."""

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

from myllm.apps.skipped_files import SkippedFiles, is_skipped
from myllm.data.images import PICTURE_SUFFIXES

# documents, films and data that Pillow finds pictures in, or only writes
NOT_PICTURES = {".pdf", ".ps", ".mpg", ".mpeg", ".h5", ".hdf", ".bufr", ".grib", ".iim"}


def test_every_suffix_that_pillow_knows_is_read_or_named_as_skipped() -> None:
    Image.init()
    suffixes = set(Image.registered_extensions()) - NOT_PICTURES
    assert {suffix for suffix in suffixes if suffix not in PICTURE_SUFFIXES and not is_skipped(suffix)} == set()
    assert not any(is_skipped(suffix) for suffix in (*PICTURE_SUFFIXES, *NOT_PICTURES, ".txt", ""))


def test_heic_is_read_or_the_message_says_what_to_install() -> None:
    has_heif = importlib.util.find_spec("pillow_heif") is not None
    assert (".heic" in PICTURE_SUFFIXES) == has_heif == (not is_skipped(".heic"))


def test_the_description_names_counts_first_files_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/x.tar").touch()
    monkeypatch.chdir(tmp_path)
    total = SkippedFiles()
    part = SkippedFiles(total)
    assert total.describe() == ""
    total.add(".heic", "a/1.heic")
    for name in ("b/2.heic", "b/3.heic", "b/x.tar"):
        part.add(name[3:], name)
    assert part.counts == {".heic": 2, ".tar": 1}
    heic, tar = total.describe().split("; skipped ")
    assert heic.startswith("skipped 3 .heic files, the first is a/1.heic: ") and heic.endswith("install pillow-heif")
    assert tar == "1 .tar file, which is b/x.tar: to read it, give the path b/*.tar"
