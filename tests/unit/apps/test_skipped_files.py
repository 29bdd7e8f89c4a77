"""Which suffixes are read, which are skipped with a message, and which are of something else."""

import importlib.util

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


def test_the_description_names_counts_first_files_and_what_to_do() -> None:
    first, later = SkippedFiles(), SkippedFiles()
    assert first.describe() == ""
    first.add(".heic", "a/1.heic")
    for name in ("b/2.heic", "b/3.heic"):
        later.add(".heic", name)
    later.add(".tar", "b/x.tar")
    first.update(later)
    heic, tar = first.describe().split("; skipped ")
    assert heic.startswith("skipped 3 .heic files, the first is a/1.heic: ") and heic.endswith("install pillow-heif")
    assert tar == "1 .tar file, which is b/x.tar: give such files as paths of their own, like b/*.tar"
