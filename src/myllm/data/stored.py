"""Tar and zip archives, read like folders: an index of their members is made once, and a member is read by its offset.

A path may lead into an archive: `train-000000.tar/000012.txt`. Functions here accept such paths and ordinary ones.
"""

import hashlib
import io
import json
import os
import re
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass
from fnmatch import translate
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath

from myllm.errors import DataError, MyLLMError, reason
from myllm.files import StoredImage, atomic_write, cache_folder, read_data

SUFFIXES = (".tar", ".zip")
INSIDE = re.compile(r"\.(?:tar|zip)(?=[/\\]|$)", re.IGNORECASE)
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
"""Suffixes of archives that are refused, because they cannot be read by offset."""
UNPACKERS = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
MAC_ATTRIBUTES = "._"
"""Beginning of the names of files in which macOS keeps attributes of others: ._a.jpg is not a picture."""
MAX_MEMBER_BYTES = 2**29
MAX_HEADER_BYTES = 2**20
INDEX_VERSION = 2


@dataclass(frozen=True, slots=True)
class ArchiveMember(StoredImage):
    """A file in an archive. It opens the archive for each read, so processes and threads share no position."""

    archive: str
    name: str
    """Its path in the archive, with '/' and in Unicode NFC."""
    offset: int
    packed_size: int
    size: int
    crc: int | None = None
    """Checksum of the content, which zip archives have."""
    is_deflated: bool = False

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"

    def read(self) -> bytes:
        """Return the content. Raises DataError if it is damaged, cut off or too large."""
        if max(self.size, self.packed_size) > MAX_MEMBER_BYTES:
            raise DataError(f"{self}: refused, its {self.size:,} bytes are above the limit of {MAX_MEMBER_BYTES:,}")
        try:
            with open(self.archive, "rb", buffering=0) as file:
                file.seek(self.offset)
                content = file.read(self.packed_size)
            if self.is_deflated:
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, self.size + 1)
        except OSError as error:
            raise DataError(f"{self}: cannot be read ({error.strerror or error})") from None
        except zlib.error as error:
            raise DataError(f"{self}: is damaged ({error}); take another copy of it") from None
        if len(content) != self.size or self.crc not in (None, zlib.crc32(content)):
            raise DataError(f"{self}: is damaged, or the archive has changed; take another copy of it, and start again")
        return content


@dataclass(frozen=True)
class Archive:
    """The members of an archive."""

    path: Path
    members: dict[str, ArchiveMember]
    """Files by their path in the archive, in the archive's order."""
    left_out: tuple[str, ...] = ()
    """Members that cannot be used, each with the reason."""
    cut: str = ""
    """Where the archive ends too early or is damaged; empty if it is whole."""

    @cached_property
    def by_depth(self) -> dict[int, list[str]]:
        """The sorted paths of the members by their number of folders."""
        paths: dict[int, list[str]] = {}
        for name in sorted(self.members):
            paths.setdefault(name.count("/"), []).append(name)
        return paths


def is_archive(path: Path) -> bool:
    """Return whether the path is an existing file named like a tar or zip; `open_archive` refuses compressed ones."""
    return path.name.lower().endswith(SUFFIXES + COMPRESSED) and path.is_file()


def open_archive(path: Path) -> Archive:
    """Return the index of an archive, from the cache if the archive has the same size and time as then.

    Raises DataError if it is compressed as a whole, not an archive, or has two members of one name.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return _open_archive(path, (status.st_size, status.st_mtime_ns))


def walk(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder or an archive, sorted within each folder."""
    inside = find_inside(folder)
    if inside is not None:
        archive, inner = inside
        yield from (archive.path / name for name in sorted(archive.members) if name.startswith(inner))
        return
    for parent, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(parent) / name for name in sorted(names))


def glob(folder: Path, pattern: str) -> list[Path]:
    """Return the files in a folder or an archive that match a pattern of a path below it, sorted."""
    inside = find_inside(folder)
    if inside is None:
        return sorted(folder.glob(pattern))
    archive, inner = inside
    fits = re.compile(re.escape(inner) + translate(pattern)).match
    return [archive.path / name for name in archive.by_depth.get(f"{inner}{pattern}".count("/"), ()) if fits(name)]


def entries(folder: Path) -> dict[str, bool]:
    """Return the names in a folder or an archive, sorted, and whether each is of a folder."""
    inside = find_inside(folder)
    if inside is None:
        return {path.name: path.is_dir() for path in sorted(folder.iterdir())}
    archive, inner = inside
    names = sorted(name.removeprefix(inner) for name in archive.members if name.startswith(inner))
    return {name.partition("/")[0]: "/" in name for name in names}


def read_file(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file or of a member of an archive. Raises DataError if it cannot be read."""
    inside = find_inside(path)
    if inside is None:
        return read_data(path, max_bytes)
    archive, inner = inside
    return archive.members[inner.removesuffix("/")].read()


def find_inside(path: Path) -> tuple[Archive, str] | None:
    """Return the archive that a path leads into, and the part of the path in it with '/' behind; None without one.

    Raises DataError as `open_archive` does.
    """
    text = os.fspath(path)
    for match in INSIDE.finditer(text):
        if os.path.isfile(text[: match.end()]):
            inner = text[match.end() + 1 :].replace(os.sep, "/")
            return open_archive(Path(text[: match.end()])), f"{inner}/" if inner else ""
    return None


@lru_cache(maxsize=2)  # a picture search reads one archive while it counts another; an index may be large
def _open_archive(path: Path, stamp: tuple[int, int]) -> Archive:
    resolved = path.resolve()
    key = hashlib.blake2b(os.fsencode(resolved), digest_size=12).hexdigest()
    index = cache_folder() / "archives" / f"{key}.json"
    head = [INDEX_VERSION, os.fspath(resolved), *stamp]
    with suppress(OSError, ValueError, TypeError, KeyError):  # no index yet, or a damaged one
        stored = json.loads(index.read_bytes())
        if stored["of"] == head:
            members = [ArchiveMember(str(path), *values) for values in stored["members"]]
            return Archive(path, {member.name: member for member in members}, tuple(stored["left_out"]), stored["cut"])
    archive = _read_index(path)
    facts = {
        "of": head, "left_out": archive.left_out, "cut": archive.cut,
        "members": [astuple(member)[1:] for member in archive.members.values()],
    }
    with suppress(MyLLMError), atomic_write(index) as file:  # without it, the index is made again next time
        file.write(json.dumps(facts).encode())
    return archive


def _read_index(path: Path) -> Archive:
    with path.open("rb") as file:
        start = file.read(8)
        for magic, program in UNPACKERS.items():
            if start.startswith(magic):
                raise DataError(
                    f"{path}: is compressed as a whole, so that no picture can be read without all before it; unpack "
                    f"it once: '{program} -c {path.name} > {path.name.split('.')[0]}.tar'"
                )
        collect = _Collector(path)
        try:
            cut = _read_zip(file, collect) if start.startswith(b"PK") or path.suffix.lower() == ".zip" else (
                _read_tar(path, collect)
            )
        except DataError:
            raise
        except Exception as error:  # damaged headers raise many kinds of errors
            kind, hint = ("zip", f"; 'zip -FF {path.name} --out whole.zip' may repair it") if (
                path.suffix.lower() == ".zip"
            ) else ("tar", "")
            raise DataError(
                f"{path}: is no {kind} archive, or it is cut or damaged ({reason(error)}); take another copy{hint}"
            ) from None
    return Archive(path, collect.members, tuple(collect.left_out), cut)


class _Collector:
    """Collects the members of an archive that can be used, and the reasons for leaving out others."""

    def __init__(self, path: Path) -> None:
        self.path, self.bytes = path, path.stat().st_size
        self.members: dict[str, ArchiveMember] = {}
        self.left_out: list[str] = []

    def leave_out(self, written: str, why: str) -> None:
        self.left_out.append(f"{self.path}/{_printable(written)}: {why}")

    def add(
        self, written: str, offset: int, packed_size: int, size: int, crc: int | None = None, is_deflated: bool = False
    ) -> None:
        """Add a member. Raises DataError if there is one of its name."""
        name = PurePosixPath(unicodedata.normalize("NFC", _printable(written)).replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or re.match("[A-Za-z]:", str(name)):
            self.leave_out(written, "its path leads out of the archive")
        elif "__MACOSX" in name.parts or name.name == ".DS_Store" or name.name.startswith(MAC_ATTRIBUTES):
            pass  # what macOS adds to every archive
        elif offset + packed_size > self.bytes:
            self.leave_out(written, "the archive ends inside it")
        elif name.as_posix() in self.members:
            raise DataError(f"{self.path}: holds {name.as_posix()} twice; write the archive again, each name once")
        else:
            self.members[name.as_posix()] = ArchiveMember(
                str(self.path), name.as_posix(), offset, packed_size, size, crc, is_deflated
            )


class _Headers(io.FileIO):
    """An archive from which only headers are read: a header that claims gigabytes is refused."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size) or b""


def _read_tar(path: Path, collect: _Collector) -> str:
    """Collect the members; return where the archive ends too early or is damaged."""
    last, fault = "its beginning", ""
    with _Headers(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        while True:
            try:
                info = tar.next()
            except tarfile.TarError as error:
                fault = reason(error)
                break
            if info is None:
                break
            last = _printable(info.name)
            if info.isreg() and info.offset_data + info.size > collect.bytes:
                return f"{path} ends inside {last}"
            target = collect.members.get(PurePosixPath(info.linkname).as_posix()) if info.islnk() else None
            if target is not None:
                collect.add(info.name, target.offset, target.packed_size, target.size)
            elif info.isreg() and not info.issparse():
                collect.add(info.name, info.offset_data, info.size, info.size)
            elif not info.isdir():
                collect.leave_out(info.name, "it is a link or a special file")
        file.seek(tar.offset)
        # tarfile ends without an error at a damaged header; a whole archive has a block of zeros there
        if fault or file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            return f"{path} is cut or damaged after {last}" + f" ({fault})" * bool(fault)
    return ""


def _read_zip(file: io.BufferedReader, collect: _Collector) -> str:
    """Collect the members; a zip archive that is cut cannot be read at all, because its index is at the end."""
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            file.seek(info.header_offset)
            header = file.read(30)
            if info.is_dir():
                continue
            if info.flag_bits & 1:
                collect.leave_out(info.filename, "it is encrypted")
            elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                collect.leave_out(info.filename, f"compression {info.compress_type} is not read; use deflate or none")
            elif len(header) < 30 or not header.startswith(b"PK\3\4"):
                collect.leave_out(info.filename, "it is not where the archive's index says")
            else:
                offset = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
                is_deflated = info.compress_type == zipfile.ZIP_DEFLATED
                collect.add(info.filename, offset, info.compress_size, info.file_size, info.CRC, is_deflated)
    return ""


def _printable(name: str) -> str:
    """Return the name without bytes that are not UTF-8, which tarfile keeps as lone surrogates."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
