"""`myllm compare`: two models, or files of captions, on the same pictures."""

import json
from pathlib import Path

import pytest

from myllm.apps.cli import main
from myllm.inference.captioner import Captioner

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def right(scenes: Path, tmp_path: Path) -> Path:
    """What people say of each picture of the split val."""
    said: dict[str, str] = {}
    for line in (scenes / "results.csv").read_text().splitlines()[1:]:
        name, _, caption = line.split("| ")
        if name.startswith("val_"):
            said.setdefault(name, caption)
    path = tmp_path / "right.jsonl"
    path.write_text("".join(json.dumps({"image": name, "caption": text}) + "\n" for name, text in said.items()))
    return path


def compare(a: Path, b: Path, scenes: Path, *options: str) -> int:
    return main(["compare", str(a), str(b), "--data", str(scenes), "--devices=cpu", "--quiet", *options])


def test_a_model_beside_right_captions(
    tiny_run: Path, right: Path, scenes: Path, tmp_path: Path, capfd: Capture
) -> None:
    assert compare(tiny_run, right, scenes, "--out", str(tmp_path / "out")) == 0
    told = capfd.readouterr().out
    assert f"A: {tiny_run} (greedy)" in told and f"B: {right} (captions from a file)" in told
    assert "95 % interval" in told and "Split val, 3 pictures" in told and "CIDEr-D" in told
    held = json.loads((tmp_path / "out/comparison.json").read_text())
    assert held["a"]["protocol"]["model"] == Captioner.load(tiny_run).weights_hash()
    assert held["a"]["protocol"]["data"] == held["b"]["protocol"]["data"] and "model" not in held["b"]["protocol"]
    assert held["b"]["BLEU-1"] == pytest.approx(1, abs=1e-6) and held["differences"]["BLEU-1"]["difference"] > 0


def test_a_model_beside_itself_differs_in_nothing(tiny_run: Path, scenes: Path, capfd: Capture) -> None:
    assert compare(tiny_run, tiny_run, scenes, "--json") == 0
    held = json.loads(capfd.readouterr().out)
    assert held["differences"]["CIDEr-D"]["difference"] == 0 and held["differences"]["CIDEr-D"]["p"] is None
    assert "fewer than 10 pictures" in held["sentence"]


def test_a_file_that_lacks_pictures_stops_unless_allowed(
    tiny_run: Path, right: Path, scenes: Path, capfd: Capture
) -> None:
    right.write_text("".join(right.read_text().splitlines(keepends=True)[:2]))
    assert compare(tiny_run, right, scenes) == 1
    assert "1 picture has no caption" in capfd.readouterr().err
    assert compare(tiny_run, right, scenes, "--allow-missing") == 0
    assert "compared on 2 of 3 pictures" in capfd.readouterr().out


def test_figures_that_are_there_are_kept(right: Path, scenes: Path, tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "comparison.json").write_text("mine")
    assert compare(right, right, scenes, "--out", str(tmp_path)) == 2
    assert "holds comparison.json already" in capfd.readouterr().err
    assert (tmp_path / "comparison.json").read_text() == "mine"
    assert compare(right, right, scenes, "--out", str(tmp_path), "--overwrite") == 0


def test_two_are_needed(right: Path, scenes: Path, capfd: Capture) -> None:
    assert main(["compare", str(right), "--data", str(scenes)]) == 2
    assert "takes two captioners, or files of captions; 1 were given" in capfd.readouterr().err
