"""Archives read by offset, compared with what tarfile and zipfile read."""

import gc
import gzip
import io
import pickle
import random
import resource
import struct
import tarfile
import unicodedata
import weakref
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm.data import stored
from myllm.data.stored import ArchiveMember, open_archive
from myllm.errors import DataError
from myllm.files import read_picture

Entries = Sequence[tuple[str, bytes]]
LETTERS = st.characters(codec="utf-8", exclude_characters="\\/\0:._", exclude_categories=("C", "Z", "M"))
NAMES = st.text(LETTERS, min_size=1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MYLLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_tar(path: Path, entries: Entries, form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_zip(path: Path, entries: Entries, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


WRITERS = [
    write_tar,
    lambda path, entries: write_tar(path, entries, tarfile.GNU_FORMAT),
    lambda path, entries: write_zip(path, entries, zipfile.ZIP_STORED),
    write_zip,
]
PICTURES = [(f"a/{number}.jpg", random.Random(number).randbytes(700 * number)) for number in range(5)]


def contents(path: Path) -> dict[str, bytes]:
    return {name: member.read() for name, member in open_archive(path).members.items()}


@pytest.mark.parametrize("write", WRITERS, ids=["pax", "gnu", "stored", "deflated"])
@given(entries=st.dictionaries(st.lists(NAMES, min_size=1, max_size=4).map("/".join), st.binary(max_size=2000)))
def test_members_are_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, write: Callable[[Path, Entries], Path], entries: dict[str, bytes]
) -> None:
    path = tmp_path_factory.mktemp("archive") / ("x.zip" if WRITERS.index(write) > 1 else "x.tar")
    composed = {unicodedata.normalize("NFC", name): content for name, content in entries.items()}
    assert contents(write(path, list(composed.items()))) == composed


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_are_read(tmp_path: Path, form: int) -> None:
    name = f"{'folder/' * 40}{'x' * 150}.jpg"
    assert contents(write_tar(tmp_path / "x.tar", [(name, b"1"), ("2.jpg", b"2")], form)) == {name: b"1", "2.jpg": b"2"}


def test_the_index_is_kept_and_made_again_if_the_archive_changes(tmp_path: Path, cache: Path) -> None:
    path = write_tar(tmp_path / "x.tar", PICTURES)
    first = open_archive(path)
    [index] = cache.rglob("*.json")
    stored._open_archive.cache_clear()
    written = index.stat().st_mtime_ns
    assert open_archive(path) == first and index.stat().st_mtime_ns == written
    write_tar(path, PICTURES[:2])
    assert contents(path) == dict(PICTURES[:2])


def test_indexes_of_earlier_archives_do_not_stay_in_memory(tmp_path: Path) -> None:
    archives = [weakref.ref(open_archive(write_tar(tmp_path / f"{number}.tar", PICTURES))) for number in range(9)]
    gc.collect()
    assert sum(archive() is not None for archive in archives) <= 2


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"of": 1}'])
def test_a_damaged_index_is_made_again(tmp_path: Path, cache: Path, damage: str) -> None:
    path = write_tar(tmp_path / "x.tar", PICTURES)
    open_archive(path)
    [index] = cache.rglob("*.json")
    index.write_text(damage)
    stored._open_archive.cache_clear()
    assert contents(path) == dict(PICTURES)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_members_are_read_by_many_processes_and_threads_at_once(tmp_path: Path, method: str) -> None:
    members = list(open_archive(write_zip(tmp_path / "x.zip", PICTURES)).members.values()) * 20
    expected = [content for _, content in PICTURES] * 20
    with ProcessPoolExecutor(2, get_context(method)) as pool:
        assert list(pool.map(ArchiveMember.read, members)) == expected
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ArchiveMember.read, members)) == expected
    assert pickle.loads(pickle.dumps(members)) == members and len(set(members)) == 5


def test_a_tar_cut_anywhere_keeps_its_whole_members_and_names_the_cut_one(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", [("1.jpg", b"1" * 600), ("2.jpg", b"2" * 600)]).read_bytes()
    path = tmp_path / "cut.tar"
    for size in range(1, len(whole) + 1, 37):
        path.write_bytes(whole[:size])
        if size < 512:
            with pytest.raises(DataError, match="cut.tar: is no tar archive, or it is cut"):
                open_archive(path)
            continue
        archive = open_archive(path)
        assert list(archive.members) == ["1.jpg", "2.jpg"][: (size >= 512 + 600) + (size >= 2048 + 600)]
        if size < 512 + 600:
            assert archive.cut == f"{path} ends inside 1.jpg"
        elif size < 2048:
            assert archive.cut == f"{path} is cut or damaged after 1.jpg" + archive.cut.partition("1.jpg")[2]
        elif size < 2048 + 600:
            assert archive.cut == f"{path} ends inside 2.jpg"
        assert bool(archive.cut) == (size < 3072 + 512)


def test_a_damaged_header_is_named_and_members_before_it_are_used(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("1.jpg", b"1"), ("2.jpg", b"2"), ("3.jpg", b"3")])
    content = bytearray(path.read_bytes())
    content[1024 + 148] ^= 1  # the checksum of the second header
    path.write_bytes(content)
    archive = open_archive(path)
    assert list(archive.members) == ["1.jpg"] and archive.cut == f"{path} is cut or damaged after 1.jpg"


def test_a_cut_zip_is_refused_with_the_command_that_repairs_it(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", PICTURES)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="x.zip: is no zip archive, or it is cut.*'zip -FF x.zip --out whole.zip'"):
        open_archive(path)


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.tar"])
def test_a_compressed_tar_is_refused_with_the_command_that_unpacks_it(tmp_path: Path, name: str) -> None:
    content = gzip.compress(write_tar(tmp_path / "plain.tar", PICTURES).read_bytes())
    (tmp_path / name).write_bytes(content)
    assert stored.is_archive(tmp_path / name)
    with pytest.raises(DataError, match=f"{name}: is compressed as a whole.* 'gunzip -c {name} > x.tar'"):
        open_archive(tmp_path / name)


@pytest.mark.parametrize("write", [write_tar, write_zip])
@pytest.mark.parametrize("name", ["../up.jpg", "a/../../up.jpg", "/root.jpg", "C:\\up.jpg", "..\\up.jpg"])
def test_members_outside_of_the_archive_are_left_out_by_name(
    tmp_path: Path, write: Callable[[Path, Entries], Path], name: str
) -> None:
    archive = open_archive(write(tmp_path / "x.tar", [(name, b"bad"), ("1.jpg", b"good")]))
    assert list(archive.members) == ["1.jpg"]
    assert [line.endswith(": its path leads out of the archive") for line in archive.left_out] == [True]


@pytest.mark.parametrize("write", [write_tar, write_zip])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(tmp_path: Path, write: Callable[[Path, Entries], Path]) -> None:
    path = write(tmp_path / "x.tar", [("1.jpg", b"1"), ("./1.jpg" if write is write_tar else "1.jpg", b"2")])
    with pytest.raises(DataError, match=r"x.tar: holds 1.jpg twice"):
        open_archive(path)


def test_links_and_devices_are_left_out_and_hard_links_are_followed(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind, target in (
            ("1.jpg", tarfile.REGTYPE, ""), ("hard.jpg", tarfile.LNKTYPE, "1.jpg"),
            ("soft.jpg", tarfile.SYMTYPE, "/etc/passwd"), ("device.jpg", tarfile.CHRTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            info.size = 3 * (kind == tarfile.REGTYPE)
            archive.addfile(info, io.BytesIO(b"one"))
    assert contents(path) == {"1.jpg": b"one", "hard.jpg": b"one"}
    assert [line.split("/")[-1] for line in open_archive(path).left_out] == [
        f"{name}.jpg: it is a link or a special file" for name in ("soft", "device")
    ]


def test_headers_that_claim_gigabytes_use_no_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("1.jpg")
    info.size = 2**40
    long_name = tarfile.TarInfo("././@LongLink")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 2**35
    good = write_tar(tmp_path / "good.tar", [("0.jpg", b"0")]).read_bytes()[:1024]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, header in enumerate((info, long_name)):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(good + header.tobuf(tarfile.GNU_FORMAT) + b"x" * 512)
        archive = open_archive(path)
        assert list(archive.members) == ["0.jpg"] and archive.cut
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KiB


def changed_sizes(path: Path, size: int) -> Path:
    """Write another uncompressed size into the index of a zip with one member."""
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.index(b"PK\1\2") + 24, size)
    path.write_bytes(content)
    return path


def test_a_zip_bomb_is_read_only_up_to_the_size_in_its_index(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", [("1.jpg", bytes(2**26))])
    with pytest.raises(DataError, match=r"x.zip/1.jpg: is damaged"):
        open_archive(changed_sizes(path, 10)).members["1.jpg"].read()
    with pytest.raises(DataError, match=r"x.zip/1.jpg: refused, its 4,000,000,000 bytes are above the limit"):
        open_archive(changed_sizes(path, 4_000_000_000)).members["1.jpg"].read()
    with pytest.raises(DataError, match="refused, its .* bytes are above the limit of 100"):
        read_picture(open_archive(changed_sizes(path, 2**26)).members["1.jpg"], 100)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_bytes_in_a_zip_are_found(tmp_path: Path, method: int) -> None:
    path = write_zip(tmp_path / "x.zip", [("1.jpg", random.Random(0).randbytes(300))], method)
    content = bytearray(path.read_bytes())
    content[200] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match="x.zip/1.jpg: is damaged"):
        contents(path)


def test_what_zip_members_cannot_be_read_is_said(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", [("1.jpg", b"1"), ("2.jpg", b"2")], zipfile.ZIP_BZIP2)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1  # encrypted
    path.write_bytes(content)
    assert [line.partition(": ")[2] for line in open_archive(path).left_out] == [
        "it is encrypted", "compression 12 is not read; use deflate or none"
    ]


def test_an_archive_that_shrinks_later_gives_an_error_for_its_pictures(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", PICTURES)
    member = open_archive(path).members["a/4.jpg"]
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"x.tar/a/4.jpg: is damaged, or the archive has changed"):
        member.read()
    path.unlink()
    with pytest.raises(DataError, match=r"x.tar/a/4.jpg: cannot be read"):
        member.read()
