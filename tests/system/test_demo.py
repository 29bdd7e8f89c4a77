"""`myllm demo`: from nothing to a judged captioner, honest about it, and on from where it was interrupted."""

import json
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


def test_the_folder_holds_a_run_its_scenes_and_a_captioner(finished: Path) -> None:
    assert all((finished / name).stat().st_size for name in FILES)
    assert len(list((finished / "scenes/flickr30k_images").iterdir())) == 40
    assert isinstance(Captioner.load(finished).caption(finished / "scenes/flickr30k_images/val_000000.png").text, str)


def test_the_report_judges_seen_and_held_out_pairs(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    assert report.keys() == {"seen pairs", "held-out pairs"}
    for figures in report.values():
        assert figures.keys() - {"placed"} == {
            "true", "complete", "invented", "miscoloured", "miscounted", "CIDEr-D", "CIDEr-D_shuffled"
        }
        assert 0 <= figures["complete"] <= figures["true"] <= 1


def test_steps_take_the_place_of_minutes() -> None:
    config = demo_config(DemoOptions(max_steps=7), "scenes")
    assert (config.max_steps, config.max_minutes) == (7, None)


@pytest.mark.slow
def test_an_interrupted_demo_goes_on_with_the_same_command(
    stopped: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    longer = "--minutes=0.1"
    process = stopped(["demo", "--out", str(out), *SMALL, longer], signal.SIGINT, (out / "metrics.csv").exists)
    assert process.returncode == 130, process.stderr
    assert "The same command goes on with the demo." in process.stdout
    drawn = (out / "scenes/results.csv").stat().st_mtime_ns
    assert demo(out, longer) == 0
    told = capsys.readouterr().out
    assert "Going on from epoch" in told and "4 fresh scenes each" in told
    assert (out / "scenes/results.csv").stat().st_mtime_ns == drawn  # not drawn again
    assert (out / "report.json").is_file()
    assert f"  {out}/report.html" in told.partition("Look at:")[2]


def test_a_run_of_ones_own_is_not_replaced_by_a_demo(
    tiny_captioner_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tiny_captioner_file.read_bytes()
    assert demo(tiny_captioner_file.parent) == 2
    assert f"--out {tiny_captioner_file.parent} holds a run already" in capsys.readouterr().err
    assert tiny_captioner_file.read_bytes() == before
    assert [path.name for path in tiny_captioner_file.parent.iterdir()] == ["captioner.pt"]


@pytest.mark.parametrize("option", ["--minutes=0", "--judged=0", "--count=5", "--max-steps=0"])
def test_what_cannot_be_shown_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert main(["demo", "--out", str(tmp_path / "demo"), option]) == 2
    assert option.split("=")[0] in capsys.readouterr().err
