"""`myllm train` with next_runs: runs that follow each other, interrupted anywhere, end as if they had not been."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from myllm.apps.cli import main
from myllm.inference.captioner import Captioner

NEXT_RUNS = """
next_runs:
- {lr: 0.002, epochs: 2, vision: {frozen: true}, ema: 0.9}
- {lr: 0.001, epochs: 2, self_critical: {samples: 3, kl_weight: 0.1}, ema: 0.9}
"""
Stopped = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(NEXT_RUNS)
    return path


@pytest.fixture(scope="module")
def whole_run(train: Callable[..., int], recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of three runs, never interrupted; read only."""
    out = tmp_path_factory.mktemp("sequence") / "captioner"
    assert train(out, "--epochs=2", "--quiet", "--config", str(recipe)) == 0
    return out


def assert_same_weights(run: Path, expected: Path) -> None:
    for name in ("run1", "run2", "."):
        content, correct = (torch.load(out / name / "last.pt", weights_only=True) for out in (run, expected))
        for part in ("objective", "average"):
            for key, value in (correct[part] or {}).items():
                assert torch.equal(content[part][key], value), (name, part, key)


@pytest.mark.slow
def test_each_run_leaves_its_folder_and_the_last_one_the_captioner(whole_run: Path) -> None:
    assert {path.parent.name for path in whole_run.rglob("last.pt")} == {"run1", "run2", "captioner"}
    header = (whole_run / "metrics.csv").read_text().splitlines()[0]
    assert "reward" in header and "reward" not in (whole_run / "run2/metrics.csv").read_text()
    assert (whole_run / "metrics.json").exists() and not (whole_run / "run1/metrics.json").exists()
    assert Captioner.load(whole_run).checkpoint.provenance["base"] == str(whole_run / "run2/captioner.pt")


@pytest.mark.slow
def test_config_yaml_of_a_sequence_repeats_all_of_it(whole_run: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((whole_run / "config.yaml").read_text())
    assert [run["epochs"] for run in config["next_runs"]] == [2, 2] and config["base"] is None
    out = tmp_path / "again"
    assert main(["train", "--config", str(whole_run / "config.yaml"), "--out", str(out), "--quiet"]) == 0
    assert_same_weights(out, whole_run)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["run1", "run2", "."])
def test_a_sequence_killed_in_any_run_resumes_to_the_same_weights(
    stopped: Stopped, tiny: list[str], scenes: Path, recipe: Path, whole_run: Path, run: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = ["train", "--data", str(scenes), "--out", str(out), *tiny, "--epochs=2", "--config", str(recipe)]
    process = stopped(words, signal.SIGKILL, out / run / "last.pt")
    assert process.returncode == -signal.SIGKILL
    assert main(["train", "--out", str(out), "--resume", "--quiet"]) == 0
    assert_same_weights(out, whole_run)


@pytest.mark.slow
def test_a_sequence_that_is_stopped_names_the_command_that_resumes_it(
    stopped: Stopped, tiny: list[str], scenes: Path, recipe: Path, whole_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = ["train", "--data", str(scenes), "--out", str(out), *tiny, "--epochs=2", "--config", str(recipe)]
    process = stopped(words, signal.SIGTERM, out / "run1/last.pt")
    assert process.returncode == 143 and f"myllm train --out {out} --resume" in process.stdout


@pytest.mark.slow
def test_overwrite_begins_with_the_first_run_and_removes_the_captioners_of_all(
    train: Callable[..., int], recipe: Path, whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    for folder in (out / "run2", out):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "last.pt").write_bytes((whole_run / "run2/last.pt").read_bytes())
    assert train(out, "--epochs=2", "--quiet", "--config", str(recipe)) == 2
    assert "holds a run already (run2/last.pt, last.pt)" in capsys.readouterr().err
    assert train(out, "--epochs=2", "--quiet", "--config", str(recipe), "--overwrite") == 0
    assert_same_weights(out, whole_run)


@pytest.mark.slow
def test_options_given_with_a_preset_hold_for_all_its_runs(
    train: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from myllm import presets

    preset = {"epochs": 3, "next_runs": ({"epochs": 5, "lr": 0.002},)}
    monkeypatch.setitem(presets.PRESETS, "photos-fast", preset)
    assert train(tmp_path / "run", "--preset=photos-fast", "--epochs=1", "--quiet") == 0
    rows = [(tmp_path / "run" / name / "metrics.csv").read_text().splitlines() for name in ("run1", ".")]
    assert [len(row) for row in rows] == [2, 2]


@pytest.mark.slow
def test_minutes_that_a_run_does_not_need_are_left_to_the_next(
    train: Callable[..., int], recipe: Path, tmp_path: Path
) -> None:
    limits = tmp_path / "limits.yaml"
    limits.write_text("max_minutes: 5\nnext_runs:\n- {max_minutes: 3}\n- {max_minutes: null}\n")
    out = tmp_path / "run"
    assert train(out, "--epochs=1", "--quiet", "--config", str(limits)) == 0
    states = [torch.load(out / name / "last.pt", weights_only=True) for name in ("run1", "run2", ".")]
    needed = states[0]["state"]["seconds"] / 60
    assert 0 < needed < 5
    assert [state["config"]["max_minutes"] for state in states] == [5, pytest.approx(8 - needed), None]


@pytest.mark.slow
def test_a_run_resumed_with_its_preset_keeps_the_minutes_left_to_it(
    train: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from myllm import presets

    preset = {"max_minutes": 5.0, "next_runs": ({"max_minutes": 3.0},)}
    monkeypatch.setitem(presets.PRESETS, "photos-fast", preset)
    assert train(tmp_path / "run", "--preset=photos-fast", "--epochs=1", "--quiet") == 0
    before = torch.load(tmp_path / "run/last.pt", weights_only=True)["config"]["max_minutes"]
    assert train(tmp_path / "run", "--preset=photos-fast", "--epochs=1", "--quiet", "--resume") == 0
    assert torch.load(tmp_path / "run/last.pt", weights_only=True)["config"]["max_minutes"] == before > 7
    assert "max_minutes" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_sequence_that_was_moved_resumes_with_the_next_runs_that_are_given(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("next_runs:\n- {weight_decay: 0.1}\n")
    assert train(tmp_path / "run", "--epochs=1", "--quiet", "--config", str(recipe)) == 0
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    recipe.write_text("next_runs:\n- {weight_decay: 0.2}\n")
    assert train(moved, "--epochs=1", "--quiet", "--resume", "--config", str(recipe)) == 0
    assert "weight_decay is 0.2 from here on; it was 0.1" in capsys.readouterr().out
    recipe.write_text("next_runs:\n- {word_dropout: 0.5}\n")
    assert train(moved, "--epochs=1", "--quiet", "--resume", "--config", str(recipe)) == 2
    assert "word_dropout is 0.5, and the run began with 0.0" in capsys.readouterr().err


@pytest.mark.slow
def test_base_share_leaves_the_mean_of_the_base_and_the_run_however_often_it_is_finished(
    train: Callable[..., int], tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--base", str(tiny_run), "--epochs=1", "--quiet")
    assert train(tmp_path / "run", *words) == 0
    assert train(tmp_path / "mean", *words, "--base_share=0.25") == 0
    assert main(["train", "--out", str(tmp_path / "mean"), "--resume", "--quiet"]) == 0
    base, run, mean = (
        Captioner.load(folder).model.state_dict() for folder in (tiny_run, tmp_path / "run", tmp_path / "mean")
    )
    for name, value in mean.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.25 * base[name] + 0.75 * run[name])
    assert any(not torch.equal(value, run[name]) for name, value in mean.items())
    (tmp_path / "recipe.yaml").write_text("next_runs:\n- {base_share: 0}\n")
    recipe = ("--base_share=0.25", "--config", str(tmp_path / "recipe.yaml"))
    assert train(tmp_path / "two", *words, *recipe) == 0  # the second run starts from the mean
    assert Captioner.load(tmp_path / "two/run1").weights_hash() == Captioner.load(tmp_path / "mean").weights_hash()
    assert train(tmp_path / "other", "--base_share=0.5") == 2
    assert "base_share 0.5 without base: give a captioner by --base" in capsys.readouterr().err
