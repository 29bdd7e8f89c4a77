import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from myllm.batched import batched
from myllm.errors import ConfigError, MyLLMError
from myllm.files import atomic_folder, atomic_write, cache_folder, lock_folder, read_bytes, wait_for_lock


def test_atomic_write_shows_the_file_only_when_the_block_ends(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "new/a.txt") as file:
        file.write(b"whole")
        assert not (tmp_path / "new/a.txt").exists()
    assert (tmp_path / "new/a.txt").read_bytes() == b"whole"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]


def test_files_are_written_where_permissions_are_fixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chmod(path: object, mode: int, **options: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))  # as on a mount of SMB that belongs to root

    monkeypatch.setattr(os, "chmod", chmod)
    with atomic_write(tmp_path / "a.txt") as file, atomic_folder(tmp_path / "b") as folder:
        file.write(b"whole")
        (folder / "c.txt").write_bytes(b"whole")
    assert (tmp_path / "a.txt").read_bytes() == (tmp_path / "b/c.txt").read_bytes() == b"whole"


def test_atomic_write_makes_files_that_others_can_read(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.txt") as file:
        file.write(b"whole")
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MyLLMError])
def test_atomic_write_keeps_the_old_file_if_the_block_fails(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a.txt").write_bytes(b"before")
    with pytest.raises(error), atomic_write(tmp_path / "a.txt") as file:
        file.write(b"half")
        raise error("in the middle")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.txt": b"before"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_atomic_write_reports_a_full_disk_and_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"before")
    message = rf"cannot write {tmp_path}/a.txt: No space left on device; the previous content is kept"
    with pytest.raises(MyLLMError, match=message), atomic_write(tmp_path / "a.txt") as file:
        file.write(b"half")
        Path("/dev/full").write_bytes(b"the rest")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.txt": b"before"}


def test_atomic_write_reports_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = r"cannot write .*file/a.txt: .*choose another folder"
    with pytest.raises(MyLLMError, match=message), atomic_write(tmp_path / "file/a.txt"):
        pass


def test_atomic_folder_shows_the_whole_folder_and_others_can_read_it(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "new/a") as part:
        (part / "b.txt").write_text("whole")
        assert not (tmp_path / "new/a").exists()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["new", "new/a", "new/a/b.txt"]
    assert stat.S_IMODE((tmp_path / "new/a").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "new/a/b.txt").stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MyLLMError])
def test_atomic_folder_leaves_nothing_if_the_block_fails(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), atomic_folder(tmp_path / "a") as part:
        (part / "b.txt").write_text("half")
        raise error("in the middle")
    assert list(tmp_path.iterdir()) == []


def test_atomic_folder_refuses_a_name_that_exists(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="a is there already"), atomic_folder(tmp_path / "a"):
        pass


LOCKED = "import sys, pathlib, myllm.files\nwith myllm.files.lock_folder(pathlib.Path(sys.argv[1])): print('locked')"


def test_lock_folder_refuses_a_second_process_and_names_the_first(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOCKED, str(tmp_path / "run")]
    with lock_folder(tmp_path / "run"):
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert second.returncode == 1 and f"ConfigError: {tmp_path}/run is in use by process {os.getpid()} on " in (
            second.stderr
        )
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "locked\n"


def test_lock_folder_ends_with_a_killed_process(tmp_path: Path) -> None:
    code = LOCKED.replace("print('locked')", "print('locked', flush=True), sys.stdin.read()")
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"locked\n"
        with pytest.raises(ConfigError, match=f"process {process.pid} "), lock_folder(tmp_path):
            pass
        process.kill()
    with lock_folder(tmp_path):
        pass


def test_file_systems_that_lock_nothing_are_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))  # as Lustre without its option flock

    monkeypatch.setattr("fcntl.flock", flock)
    with lock_folder(tmp_path / "run"), wait_for_lock(tmp_path / "run/lock", lambda: pytest.fail("waits")):
        (tmp_path / "run/file").touch()


def test_a_system_without_fcntl_locks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with lock_folder(tmp_path), lock_folder(tmp_path), wait_for_lock(tmp_path / "lock", lambda: pytest.fail("waits")):
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]


WAITING = """
import functools, pathlib, sys, myllm.files
say = functools.partial(print, flush=True)
with myllm.files.wait_for_lock(pathlib.Path(sys.argv[1]), lambda: say("waiting")): say("locked"), input()
"""


def test_wait_for_lock_waits_for_another_process_that_ends_or_is_killed(tmp_path: Path) -> None:
    command, waits = [sys.executable, "-c", WAITING, str(tmp_path / "lock")], list[str]()
    with wait_for_lock(tmp_path / "lock", lambda: waits.append("first")):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"waiting\n"
    assert process.stdout.readline() == b"locked\n"

    def kill() -> None:
        waits.append("second")
        process.kill()

    with wait_for_lock(tmp_path / "lock", kill):
        assert waits == ["second"] and process.wait() == -9
    process.communicate()


FORKED = """
import os, pathlib, sys, time, myllm.files
with myllm.files.lock_folder(pathlib.Path(sys.argv[1])):
    if os.fork() == 0:
        print("locked", flush=True)
    time.sleep(30)
"""


def test_lock_folder_ends_with_a_killed_process_whose_forked_process_lives_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORKED, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"locked\n"
        process.kill()
        process.wait()
        with lock_folder(tmp_path):
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_lock_folder_leaves_files_and_removes_what_it_made(tmp_path: Path) -> None:
    with lock_folder(tmp_path / "empty"), lock_folder(tmp_path / "run"):
        (tmp_path / "run/last.pt").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["run", "run/last.pt"]


def test_lock_folder_reports_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = r"cannot write .*file/run.*choose another folder"
    with pytest.raises(MyLLMError, match=message), lock_folder(tmp_path / "file/run"):
        pass


def test_read_bytes_reads_no_more_than_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(OSError, match="larger than the limit of 4 bytes"):
        read_bytes(path, 4)
    os.truncate(path, 60 * 2**30)  # sparse: it takes no room on the disk
    with pytest.raises(OSError, match="larger than the limit"):
        read_bytes(path, 2**20)
    with pytest.raises(OSError, match="is a device"):
        read_bytes(Path("/dev/zero"), 2**20)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"MYLLM_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/myllm"),
        ({}, os.path.expanduser("~/.cache/myllm")),
    ],
)
def test_cache_folder_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    for name in ("MYLLM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)


def test_batched_leaves_nothing_out() -> None:
    assert list(batched(range(5), 2)) == [[0, 1], [2, 3], [4]]
