"""`myllm compare`: two models, or files of captions, on the same pictures."""

import json
from pathlib import Path

import pytest

from myllm.apps.cli import main
from myllm.inference.captioner import Captioner

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def right(scenes: Path, tmp_path: Path) -> Path:
    """A file with a reference of each picture of the split val as its caption."""
    captions: dict[str, str] = {}
    for line in (scenes / "results.csv").read_text().splitlines()[1:]:
        name, _, caption = line.split("| ")
        if name.startswith("val_"):
            captions.setdefault(name, caption)
    path = tmp_path / "right.jsonl"
    path.write_text("".join(json.dumps({"image": name, "caption": text}) + "\n" for name, text in captions.items()))
    return path


def compare(a: Path, b: Path, scenes: Path, *options: str) -> int:
    return main(["compare", str(a), str(b), "--data", str(scenes), "--devices=cpu", "--quiet", *options])


def test_compare_prints_and_writes_figures_of_a_model_and_a_file(
    tiny_run: Path, right: Path, scenes: Path, tmp_path: Path, capfd: Capture
) -> None:
    assert compare(tiny_run, right, scenes, "--out", str(tmp_path / "out")) == 0
    output = capfd.readouterr().out
    assert f"A: {tiny_run} (greedy)" in output and f"B: {right} (captions from a file)" in output
    assert "95 % interval" in output and "Split val, 3 pictures" in output and "CIDEr-D" in output
    content = json.loads((tmp_path / "out/comparison.json").read_text())
    assert content["a"]["protocol"]["model"] == Captioner.load(tiny_run).weights_hash()
    assert content["a"]["protocol"]["data"] == content["b"]["protocol"]["data"]
    assert "model" not in content["b"]["protocol"]
    assert content["b"]["BLEU-1"] == pytest.approx(1, abs=1e-6) and content["differences"]["BLEU-1"]["difference"] > 0


def test_compare_of_a_model_with_itself_finds_no_difference(tiny_run: Path, scenes: Path, capfd: Capture) -> None:
    assert compare(tiny_run, tiny_run, scenes, "--json") == 0
    content = json.loads(capfd.readouterr().out)
    assert content["differences"]["CIDEr-D"]["difference"] == 0 and content["differences"]["CIDEr-D"]["p"] is None
    assert "fewer than 10 pictures" in content["sentence"]


def test_compare_refuses_a_file_that_lacks_pictures_unless_allowed(
    tiny_run: Path, right: Path, scenes: Path, capfd: Capture
) -> None:
    right.write_text("".join(right.read_text().splitlines(keepends=True)[:2]))
    assert compare(tiny_run, right, scenes) == 1
    assert "1 picture has no caption" in capfd.readouterr().err
    assert compare(tiny_run, right, scenes, "--allow-missing") == 0
    assert "compared on 2 of 3 pictures" in capfd.readouterr().out


def test_compare_keeps_an_existing_comparison_unless_overwritten(
    right: Path, scenes: Path, tmp_path: Path, capfd: Capture
) -> None:
    (tmp_path / "comparison.json").write_text("mine")
    assert compare(right, right, scenes, "--out", str(tmp_path)) == 2
    assert "holds comparison.json already" in capfd.readouterr().err
    assert (tmp_path / "comparison.json").read_text() == "mine"
    assert compare(right, right, scenes, "--out", str(tmp_path), "--overwrite") == 0


def test_compare_needs_two(right: Path, scenes: Path, capfd: Capture) -> None:
    assert main(["compare", str(right), "--data", str(scenes)]) == 2
    assert "takes two captioners, or files of captions; got 1" in capfd.readouterr().err
