"""`torchrun -m myllm train`: several processes train what one trains, and end together."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parents[2]
Torchrun = Callable[..., subprocess.CompletedProcess[str]]
# Dropout inside the network draws other numbers in each process.
OPTIONS = ["--optimizer=muon", "--text.dropout=0", "--word_dropout=0.2", "--word_presence_weight=1", "--quiet"]


@pytest.fixture
def torchrun(scenes: Path, tiny: list[str]) -> Torchrun:
    """torchrun(count, out, *options, when, then): a finished `myllm train` in so many processes.

    Once `when()` is true, `then(process)` is called.
    """

    def run(
        count: int, out: Path, *options: str, when: Callable[[], bool] | None = None,
        then: Callable[[subprocess.Popen[str]], None] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        words = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m", "myllm", "train"]
        data = [] if "--resume" in options else ["--data", str(scenes), *tiny, *OPTIONS]
        path = os.pathsep.join((os.environ["PYTHONPATH"], str(REPOSITORY / "src")))
        process = subprocess.Popen(
            [sys.executable, *words, "--out", str(out), *data, *options], env=os.environ | {"PYTHONPATH": path},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        while when is not None and not when() and process.poll() is None:
            time.sleep(0.02)
        if then is not None:
            then(process)
        output, errors = process.communicate()
        return subprocess.CompletedProcess(words, process.returncode, output, errors)

    return run


def rows_of(run: Path) -> list[dict[str, float]]:
    columns = ("epoch", "step", "train_loss", "val_loss", "CIDEr-D", "gradient_norm")
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [{name: float(row[name]) for name in columns} for row in csv.DictReader(file)]


def state_of(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "last.pt", weights_only=True)["objective"]  # type: ignore[no-any-return]


def children(process: subprocess.Popen[str]) -> list[int]:
    """Return the ids of the processes that torchrun started."""
    return [int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def kill_all(process: subprocess.Popen[str]) -> None:
    for child in (process.pid, *children(process)):
        os.kill(child, signal.SIGKILL)


def kill_second(process: subprocess.Popen[str]) -> None:
    [second] = [child for child in children(process) if b"\0RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes()]
    os.kill(second, signal.SIGKILL)


@pytest.mark.slow
def test_two_processes_train_what_one_trains_and_resume_to_the_bit(
    torchrun: Torchrun, train: Callable[..., int], tmp_path: Path
) -> None:
    steps = ["--max-steps=28", "--epochs=9"]
    assert train(tmp_path / "one", *OPTIONS, *steps) == 0
    finished = torchrun(2, tmp_path / "two", *steps)
    assert finished.returncode == 0, finished.stderr
    for one, two in zip(rows_of(tmp_path / "one")[:3], rows_of(tmp_path / "two")[:3], strict=True):  # 21 steps
        assert two.pop("gradient_norm") == pytest.approx(one.pop("gradient_norm"), rel=1e-2)
        assert two == pytest.approx(one, rel=1e-5)

    killed = tmp_path / "killed"
    torchrun(2, killed, *steps, when=(killed / "metrics.csv").exists, then=kill_all)
    assert len(rows_of(killed)) < 4
    resumed = torchrun(2, killed, "--resume", "--quiet")
    assert resumed.returncode == 0, resumed.stderr
    expected, state = state_of(tmp_path / "two"), state_of(killed)
    assert [name for name in expected if not torch.equal(expected[name], state[name])] == []
    assert rows_of(killed) == rows_of(tmp_path / "two")


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_which_resumes_with_another_number(
    torchrun: Torchrun, train: Callable[..., int], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    ended = torchrun(2, out, "--epochs=4000", when=(out / "last.pt").exists, then=kill_second)
    assert ended.returncode != 0
    assert "another process of this run has ended" in ended.stderr or "Signal 9 (SIGKILL)" in ended.stderr
    step = torch.load(out / "last.pt", weights_only=True)["state"]["step"]
    assert train(out, "--resume", "--epochs=4000", f"--max-steps={step + 3}", *OPTIONS) == 0
    assert rows_of(out)[-1]["step"] == step + 3
