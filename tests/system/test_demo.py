"""`myllm demo`: draws, trains, judges; resumes after an interruption, and replaces nothing without --overwrite."""

import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from myllm.apps.cli import main
from myllm.apps.demo import demo_config
from myllm.apps.options import DemoOptions
from myllm.inference.captioner import Captioner

SMALL = ["--count=40", "--minutes=0.05", "--judged=4"]
FILES = (
    "captioner.pt", "last.pt", "metrics.csv", "metrics.json", "loss.png", "perplexity.png", "samples.png",
    "report.html",
)


def demo(out: Path, *options: str) -> int:
    return main(["demo", "--out", str(out), *SMALL, *options])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "runs/demo"
    assert demo(out, "--quiet") == 0
    return out


def test_demo_folder_has_a_run_its_scenes_and_a_captioner(finished: Path) -> None:
    assert all((finished / name).stat().st_size for name in FILES)
    assert len(list((finished / "scenes/flickr30k_images").iterdir())) == 40
    assert isinstance(Captioner.load(finished).caption(finished / "scenes/flickr30k_images/val_000000.png").text, str)


def test_demo_report_judges_seen_and_held_out_pairs(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    assert report.keys() == {"seen pairs", "held-out pairs"}
    for figures in report.values():
        assert figures.keys() - {"placed"} == {
            "pictures", "true", "complete", "invented", "miscoloured", "miscounted", "CIDEr-D", "CIDEr-D_shuffled"
        }
        assert figures["pictures"] == 4 and 0 <= figures["complete"] <= figures["true"] <= 1


def test_demo_report_page_has_true_complete_and_held_out_captions(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "was held out of training" in page and "True, held out" in page and "Complete, held out" in page


def test_demo_trains_by_steps_instead_of_minutes() -> None:
    config = demo_config(DemoOptions(max_steps=7), "scenes")
    assert (config.max_steps, config.max_minutes) == (7, None)


@pytest.mark.slow
def test_interrupted_demo_is_resumed_by_the_same_command(
    stopped: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    longer = "--max-steps=24"
    process = stopped(["demo", "--out", str(out), *SMALL, longer], signal.SIGINT, out / "metrics.csv")
    assert process.returncode == 130, process.stderr
    assert "The same command resumes the demo." in process.stdout
    drawn_at = (out / "scenes/results.csv").stat().st_mtime_ns
    assert demo(out, longer) == 0
    output = capsys.readouterr().out
    assert "Resuming at epoch" in output and "4 new scenes each" in output
    assert (out / "scenes/results.csv").stat().st_mtime_ns == drawn_at  # not drawn again
    assert (out / "report.json").is_file()
    assert f"  {out}/report.html" in output.partition("Look at:")[2]


def test_demo_does_not_replace_another_run(
    tiny_captioner_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tiny_captioner_file.read_bytes()
    assert demo(tiny_captioner_file.parent) == 2
    assert f"--out {tiny_captioner_file.parent} holds a run already" in capsys.readouterr().err
    assert tiny_captioner_file.read_bytes() == before
    assert [path.name for path in tiny_captioner_file.parent.iterdir()] == ["captioner.pt"]


@pytest.mark.parametrize("option", ["--minutes=0", "--judged=0", "--count=5", "--max-steps=0"])
def test_demo_refuses_options_that_cannot_work(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert main(["demo", "--out", str(tmp_path / "demo"), option]) == 2
    assert option.split("=")[0].replace("-", "_").lstrip("_") in capsys.readouterr().err


def state_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("option", ["--seed=1", "--count=60", "--count=5"])
def test_demo_with_other_options_keeps_an_earlier_demo_unless_overwritten(
    finished: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    before = state_of(finished)
    assert demo(finished, option) == 2
    assert f"--out {finished} holds a demo with other options" in capsys.readouterr().err
    assert state_of(finished) == before


def test_demo_with_too_few_scenes_keeps_an_earlier_demo_even_with_overwrite(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state_of(finished)
    assert demo(finished, "--count=5", "--overwrite") == 2
    assert "--count 5: at least 20" in capsys.readouterr().err
    assert state_of(finished) == before


def test_finished_demo_is_not_repeated_by_the_same_command(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state_of(finished)
    assert demo(finished) == 0
    assert f"{finished} holds this demo already" in capsys.readouterr().out
    assert state_of(finished) == before


@pytest.mark.slow
def test_demo_with_overwrite_replaces_an_earlier_demo(finished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "demo"))
    assert demo(out, "--count=60", "--overwrite", "--quiet") == 0
    assert len(list((out / "scenes/flickr30k_images").iterdir())) == 60
    assert (out / "captioner.pt").read_bytes() != (finished / "captioner.pt").read_bytes()
