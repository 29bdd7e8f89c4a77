"""Atomic file and folder writes, bounded reads, pictures in files or elsewhere, locks, JSON, and the cache folder."""

import errno
import json
import os
import shutil
import socket
import stat
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, TypeAlias

from myllm.errors import CheckpointError, ConfigError, DataError, MyLLMError, reason

LOCK_FILE = "in-use.lock"
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
"""Errors of file systems that do not lock files, such as Lustre without its option flock."""
_held_locks: set[IO[str]] = set()
MAX_JSON_BYTES = 2**28


class StoredImage(ABC):
    """A picture that is not a separate file, but in an archive or a table.

    It can be compared, hashed, pickled and read in any process; `str` names it in messages.
    """

    __slots__ = ()
    size: int
    """Number of bytes."""

    @abstractmethod
    def read(self) -> bytes:
        """Return its bytes. Raises DataError."""


@dataclass(frozen=True, slots=True)
class ImageBytes(StoredImage):
    """A picture whose bytes are in memory."""

    name: str
    """What it is, for messages."""
    content: bytes = field(repr=False)
    size: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", len(self.content))

    def __str__(self) -> str:
        return self.name

    def read(self) -> bytes:
        """Return its bytes."""
        return self.content


Picture: TypeAlias = Path | StoredImage
"""Where a picture's bytes are."""


@contextmanager
def atomic_write(path: Path, mode: int = 0o644) -> Iterator[IO[bytes]]:
    """Yield a binary file that replaces `path` when the block ends without an error; otherwise `path` is unchanged.

    mode: the file's permissions. Raises MyLLMError if the disk is full or the folder cannot be written to.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # a short name: that of the file may be as long as the file system allows
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:32]}.", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            _set_mode(part, mode)
            os.replace(part, path)
        finally:
            Path(part).unlink(missing_ok=True)


def _set_mode(path: Path | str, mode: int) -> None:
    with suppress(PermissionError):  # on mounts of SMB and exFAT, all files may be those of another user
        os.chmod(path, mode)


def behind_link(path: Path) -> Path:
    """Return the file that a symbolic link leads to, so that `atomic_write` replaces it, and not the link."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that is renamed to `path` when the block ends without an error; otherwise it is removed.

    Raises ConfigError if `path` exists, and MyLLMError if the disk is full or cannot be written to.
    """
    if path.exists() or path.is_symlink():
        raise ConfigError(f"{path} is there already; give another name, or move it away")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name[:32]}.", suffix=".part"))
        try:
            yield part
            for file in (part, *part.rglob("*")):
                if file.is_file():
                    with file.open("rb") as written:
                        os.fsync(written.fileno())
                _set_mode(file, 0o755 if file.is_dir() else 0o644)
            part.rename(path)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Delete what killed processes left of files and folders that they wrote into `folder`; it must be locked."""
    for part in folder.glob(".*.part"):
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise MyLLMError if the operating system, and not our code, is why `path` could not be written."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):  # torch's zip writer wraps the OSError
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        hint = "; the previous content is kept" if path.exists() else ""
        message = cause.strerror or cause
        raise MyLLMError(f"cannot write {path}: {message}{hint}. Make room or choose another folder") from error


def is_of_one_file(error: MyLLMError) -> bool:
    """Return whether a file could not be read or written for a reason of its own, so that others may still be."""
    reasons = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP)
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in reasons


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Reserve `folder` for this process until the block ends. A missing folder is made, and removed if it stays empty.

    Raises as `lock_file` does.
    """
    try:
        with lock_file(folder / LOCK_FILE, str(folder), "folder"):
            yield
    finally:
        with suppress(OSError):  # it is not empty
            folder.rmdir()


@contextmanager
def lock_file(path: Path, reserved: str, noun: str) -> Iterator[None]:
    """Lock a resource by the lock file `path` until the block ends; then the lock file is removed.

    reserved, noun: names for messages: "runs/a", "folder". The lock is released when the process ends, even if it
    is killed. Systems without fcntl (Windows) and some file systems lock nothing. Raises ConfigError with the id of the
    process that holds the lock, and MyLLMError if the disk refuses.
    """
    if find_spec("fcntl") is None:  # Windows, where an open lock file could not be removed
        yield
        return
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    with file:
        try:
            _lock(file)
        except OSError:
            file.seek(0)
            owner = file.read() or "another process"
            raise ConfigError(f"{reserved} is in use by {owner}; wait until it ends, or give another {noun}") from None
        if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            # another process removed its lock file after we opened it and before we locked it
            raise ConfigError(f"{reserved} was in use until now; start again")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        _held_locks.add(file)
        try:
            yield
        finally:
            _held_locks.discard(file)
            path.unlink(missing_ok=True)


@contextmanager
def wait_for_lock(path: Path, on_wait: Callable[[], object]) -> Iterator[None]:
    """Hold the lock file `path` until the block ends; if another process holds it, call `on_wait` and wait for it.

    The lock is released when the process ends, even if it is killed; its file stays. Systems without fcntl (Windows)
    and some file systems lock nothing. Raises MyLLMError if the disk refuses.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    with file:
        with disk_errors(path):
            try:
                _lock(file)
            except BlockingIOError:
                on_wait()
                _lock(file, waits=True)
        _held_locks.add(file)
        try:
            yield
        finally:
            _held_locks.discard(file)


def _lock(file: IO[str], waits: bool = False) -> None:
    """Lock an open file where that is possible. Raises OSError, also if another process holds the lock."""
    with suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise


def _close_locks() -> None:
    """Close a forked process's copies: one that outlives a killed parent would hold its lock."""
    for file in _held_locks:
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_locks)


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file or pipe, without ever reading more than `max_bytes`.

    Raises OSError if it cannot be read, is larger, or is a device.
    """
    status = path.stat()
    if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        raise OSError(errno.EINVAL, "is a device, not a file")
    if status.st_size <= max_bytes:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
        if len(content) <= max_bytes:
            return content
    raise OSError(errno.EFBIG, f"larger than the limit of {max_bytes:,} bytes")


def read_data(path: Path | str, max_bytes: int) -> bytes:
    """Return the content of a file with data, as `read_bytes` does. Raises DataError if it cannot be read."""
    try:
        return read_bytes(Path(path), max_bytes)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def read_picture(picture: Picture | str, max_bytes: int) -> bytes:
    """Return a picture's bytes. Raises DataError if they cannot be read, or are more than `max_bytes`."""
    if not isinstance(picture, StoredImage):
        return read_data(picture, max_bytes)
    if picture.size > max_bytes:
        raise DataError(f"{picture}: refused, its {picture.size:,} bytes are above the limit of {max_bytes:,}")
    return picture.read()


def picture_size(picture: Picture) -> int:
    """Return the number of bytes of a picture. Raises OSError if its file is not there."""
    return picture.size if isinstance(picture, StoredImage) else picture.stat().st_size


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises CheckpointError if it is missing or holds something else."""
    try:
        facts = json.loads(read_bytes(path, MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({reason(error)})") from error
    if not isinstance(facts, dict):
        raise CheckpointError(f"{path}: holds a {type(facts).__name__}; expected an object of names and values")
    return facts


def json_text(facts: Mapping[str, Any]) -> str:
    """Return indented JSON; values that JSON does not know are written as text."""
    return json.dumps(facts, indent=2, ensure_ascii=False, default=str) + "\n"


def write_json(facts: Mapping[str, Any], path: Path) -> None:
    """Write `json_text(facts)` in UTF-8, not atomically."""
    path.write_text(json_text(facts), encoding="utf-8")


def cache_folder() -> Path:
    """Return the folder for what can be computed again: MYLLM_CACHE, or `myllm` in the user's cache folder."""
    user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MYLLM_CACHE") or Path(user_cache) / "myllm")
