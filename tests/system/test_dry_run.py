"""`myllm train --dry-run`: the figures of a run that does not begin."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Train = Callable[..., int]
LINES = (
    "parameters", "encoder", "decoder", "cross-attention", "total", "memory of a step", "weights", "gradients",
    "optimizer", "activations", "largest batch", "FLOPs of a step", "time of a step", "waiting for data",
    "time of the run",
)


def test_dry_run_prints_all_lines_and_makes_no_folder(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "--epochs=2", "--stages=new,all", "--dry-run") == 0
    printed = capsys.readouterr().out
    beginnings = [line.strip() for line in printed.splitlines()]
    assert [name for name in LINES if not any(line.startswith(name) for line in beginnings)] == []
    assert "Steps are those of stage all" in printed and list(tmp_path.iterdir()) == []


def test_dry_run_with_json_prints_the_same_figures(
    train: Train, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_run.iterdir()}
    assert train(tiny_run, "--dry-run", "--json", "--epochs=4") == 0  # beside a run, which stays as it is
    figures = json.loads(capsys.readouterr().out)
    assert {"parameters", "trained", "memory", "largest_batch", "step", "times", "assumptions"} <= figures.keys()
    times = figures["times"]
    assert times["steps"] == 4 * 7 and times["total"] > times["training"] > 0 and figures["step"]["flops"] > 10**6
    assert {path: path.stat().st_mtime_ns for path in tiny_run.iterdir()} == before


def test_dry_run_names_next_runs_and_limits_of_minutes(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = "{epochs: 7, max_minutes: 90, lr: 1.0e-05, self_critical: {samples: 2}}"
    later = f"--next_runs=[{reward}, {{epochs: 1, max_minutes: null}}]"
    assert train(tmp_path / "run", "--epochs=1", "--max_minutes=18", later, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["assumptions"][-3:] == [
        "Training takes at most 18 minutes (--max_minutes).",
        "Not included: run 2 of 3, 7 epochs, at most 90 minutes of training and what the run before leaves.",
        "Not included: run 3 of 3, 1 epoch.",
    ]


def test_dry_run_does_not_resume(train: Train, tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tiny_run, "--dry-run", "--resume") == 2
    assert "--dry-run with --resume" in capsys.readouterr().err
