import os
import stat
from pathlib import Path

import pytest
import torch

from myllm.batched import batched
from myllm.device import autocast, choose_device, choose_precision
from myllm.errors import ConfigError, MyLLMError
from myllm.files import atomic_folder, atomic_write, cache_folder

CPU = torch.device("cpu")


def test_a_file_appears_when_the_block_ends_and_not_before(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "new/a.txt") as file:
        file.write(b"whole")
        assert not (tmp_path / "new/a.txt").exists()
    assert (tmp_path / "new/a.txt").read_bytes() == b"whole"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]


def test_the_file_can_be_read_by_others(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.txt") as file:
        file.write(b"whole")
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MyLLMError])
def test_what_was_there_stays_where_the_block_fails(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a.txt").write_bytes(b"before")
    with pytest.raises(error), atomic_write(tmp_path / "a.txt") as file:
        file.write(b"half")
        raise error("in the middle")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.txt": b"before"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_told_with_what_is_still_there(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"before")
    message = rf"cannot write {tmp_path}/a.txt: No space left on device; what was there before is still there"
    with pytest.raises(MyLLMError, match=message), atomic_write(tmp_path / "a.txt") as file:
        file.write(b"half")
        Path("/dev/full").write_bytes(b"the rest")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.txt": b"before"}


def test_a_folder_appears_whole_and_can_be_read_by_others(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "new/a") as part:
        (part / "b.txt").write_text("whole")
        assert not (tmp_path / "new/a").exists()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["new", "new/a", "new/a/b.txt"]
    assert stat.S_IMODE((tmp_path / "new/a").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "new/a/b.txt").stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MyLLMError])
def test_nothing_of_a_folder_stays_where_the_block_fails(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), atomic_folder(tmp_path / "a") as part:
        (part / "b.txt").write_text("half")
        raise error("in the middle")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_not_put_over_another(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="a is there already"), atomic_folder(tmp_path / "a"):
        pass


def test_a_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = r"cannot write .*file/a.txt: .*choose another folder"
    with pytest.raises(MyLLMError, match=message), atomic_write(tmp_path / "file/a.txt"):
        pass


@pytest.mark.parametrize("has_gpu", [False, True])
def test_auto_takes_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch, has_gpu: bool) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    assert choose_device("auto").type == ("cuda" if has_gpu else "cpu")
    assert choose_device("cpu").type == "cpu"


def test_a_device_that_is_unknown_or_absent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"devices cuda: this machine has no usable GPU; take --devices cpu or auto"):
        choose_device("cuda")
    with pytest.raises(ConfigError, match=r"devices 'tpu': expected auto, cpu or cuda"):
        choose_device("tpu")


def test_a_cpu_computes_in_fp32_unless_asked() -> None:
    assert [choose_precision(name, CPU) for name in ("auto", "fp32", "bf16")] == ["fp32", "fp32", "bf16"]
    with pytest.raises(ConfigError, match=r"precision fp16: a CPU does not train in it; take fp32 or bf16"):
        choose_precision("fp16", CPU)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_computes_in_the_precision(precision: str, dtype: torch.dtype) -> None:
    with autocast(precision, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"MYLLM_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/myllm"),
        ({}, os.path.expanduser("~/.cache/myllm")),
    ],
)
def test_the_cache_is_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    for name in ("MYLLM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)


def test_batched_leaves_nothing_out() -> None:
    assert list(batched(range(5), 2)) == [[0, 1], [2, 3], [4]]
