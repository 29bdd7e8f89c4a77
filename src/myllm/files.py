"""Atomic file and folder writes, JSON files, and the cache folder."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from myllm.errors import CheckpointError, ConfigError, MyLLMError, reason


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends well; until then, and if not, `path` stays.

    Raises MyLLMError where the disk is full or the folder can't be written to.
    """
    name = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException as error:
        if name is not None:
            Path(name).unlink(missing_ok=True)
        _raise_if_of_disk(error, path)
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty folder that gets the name `path` when the block ends well; until then, and if not, there is none.

    Raises ConfigError where `path` is there already, and MyLLMError where the disk is full or can't be written to.
    """
    if path.exists() or path.is_symlink():
        raise ConfigError(f"{path} is there already; give another name, or move it away")
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
        yield part
        for file in part.rglob("*"):
            if file.is_dir():
                file.chmod(0o755)
                continue
            with file.open("rb") as written:
                os.fsync(written.fileno())
            file.chmod(0o644)
        part.chmod(0o755)
        part.rename(path)
    except BaseException as error:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)
        _raise_if_of_disk(error, path)
        raise


def _raise_if_of_disk(error: BaseException, path: Path) -> None:
    """Raises MyLLMError where the disk, and not our code, is why `path` could not be written."""
    disk = _disk_error(error)
    if disk is not None:
        kept = "; what was there before is still there" if path.exists() else ""
        told = disk.strerror or disk
        raise MyLLMError(f"cannot write {path}: {told}{kept}. Make room or choose another folder") from error


def _disk_error(error: BaseException | None) -> OSError | None:
    """The OSError behind an error; torch's zip writer raises a RuntimeError of its own over it."""
    if not isinstance(error, OSError | RuntimeError):
        return None
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises CheckpointError where it is missing or anything else."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({reason(error)})") from error
    if not isinstance(facts, dict):
        raise CheckpointError(f"{path}: holds a {type(facts).__name__}; expected an object of names and values")
    return facts


def json_text(facts: Mapping[str, Any]) -> str:
    """Names and values as JSON for people, what JSON does not know as text."""
    return json.dumps(facts, indent=2, ensure_ascii=False, default=str) + "\n"


def write_json(facts: Mapping[str, Any], path: Path) -> None:
    path.write_text(json_text(facts), encoding="utf-8")


def cache_folder() -> Path:
    """Where what can be computed again is kept between runs: MYLLM_CACHE, else the user's own cache folder."""
    own = os.environ.get("MYLLM_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(base) / "myllm"
