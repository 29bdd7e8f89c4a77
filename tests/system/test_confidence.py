"""Confidence that means something: learned at the end of a run, or by `myllm evaluate --calibrate`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from myllm.apps.cli import main
from myllm.checkpoints import native
from myllm.inference.captioner import Captioner

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def more_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of which 150 are for validation, enough to learn from."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    assert main(["scenes", "--out", str(folder), "--count", "3000", "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def calibrated_run(train: Callable[..., int], more_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended with a calibration."""
    out = tmp_path_factory.mktemp("run") / "captioner"
    assert train(out, "--max_steps=200", "--quiet", data=more_scenes) == 0
    return out


def test_a_run_ends_calibrated_on_its_validation_pictures(calibrated_run: Path, capfd: Capture) -> None:
    learned = native.load(calibrated_run).calibration
    assert learned is not None
    assert learned.calibrated_on["split"] == "val" and learned.calibrated_on["pictures"] == 150
    assert learned.calibrated_on["data"] == "scenes" and "a" in learned.common_words
    assert main(["info", str(calibrated_run)]) == 0
    assert "confidence  calibrated on 150 pictures of scenes, split val" in capfd.readouterr().out


def test_too_few_validation_pictures_leave_a_run_whole_and_uncalibrated(tiny_run: Path, capfd: Capture) -> None:
    assert native.load(tiny_run).calibration is None
    assert main(["info", str(tiny_run)]) == 0
    assert "confidence  not calibrated" in capfd.readouterr().out


def test_rows_of_captions_hold_the_calibrated_confidence(
    calibrated_run: Path, more_scenes: Path, capfd: Capture
) -> None:
    picture = more_scenes / "flickr30k_images/val_000000.png"
    assert main(["caption", str(picture), "--model", str(calibrated_run), "--json", "--quiet"]) == 0
    row = json.loads(capfd.readouterr().out)
    caption = Captioner.load(calibrated_run).caption(picture)
    assert row["confidence"] == pytest.approx(caption.confidence, abs=1e-6)
    assert caption.calibration is not None and caption.words[0].confidence is not None


def test_evaluate_calibrates_a_captioner_that_is_there(
    calibrated_run: Path, more_scenes: Path, tmp_path: Path, capfd: Capture
) -> None:
    model = tmp_path / "model"
    assert main(["export", str(calibrated_run), "--to", "safetensors", "--out", str(model), "--quiet"]) == 0
    words = ["evaluate", "--model", str(model), "--data", str(more_scenes), "--split", "heldout"]
    assert main(words) == 0
    before = native.load(model).calibration
    assert before is not None and before.calibrated_on["split"] == "val"
    capfd.readouterr()
    assert main([*words, "--calibrate"]) == 0
    assert "the more confident half of the captions has CIDEr-D" in capfd.readouterr().out
    after = native.load(model).calibration
    assert after is not None and after.calibrated_on["split"] == "heldout"


def test_an_evaluation_tells_what_confidence_is_worth_by_other_pictures(
    calibrated_run: Path, more_scenes: Path, tmp_path: Path, capfd: Capture
) -> None:
    words = ["evaluate", "--model", str(calibrated_run), "--data", str(more_scenes), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert "confidence by a calibration of other pictures" in capfd.readouterr().out
    held = json.loads((tmp_path / "out/metrics.json").read_text())["confidence"]
    assert held["cross_fitted"] and 0 <= held["word_calibration_error"] <= 1 and held["coverage"].keys() >= {"50%"}
    rows = [json.loads(line) for line in (tmp_path / "out/captions.jsonl").read_text().splitlines()]
    pictures = [more_scenes / "flickr30k_images" / row["image"] for row in rows[:5]]
    own = Captioner.load(calibrated_run).caption_batch(pictures)
    for row, caption in zip(rows, own, strict=False):
        assert row["caption"] == caption.text and row["confidence"] != pytest.approx(caption.confidence, abs=1e-6)
    for name in ("reliability.png", "reliability.svg", "coverage.png", "report.html"):
        assert (tmp_path / "out" / name).stat().st_size > 1000


def test_what_cannot_be_calibrated_is_told_before_anything_is_captioned(
    calibrated_run: Path, more_scenes: Path, tmp_path: Path, capfd: Capture
) -> None:
    exported = tmp_path / "onnx"
    assert main(["export", str(calibrated_run), "--to", "onnx", "--out", str(exported), "--quiet"]) == 0
    for model, told in ((str(exported), "is an ONNX export"), ("someone/captioner", "is one on a hub")):
        assert main(["evaluate", "--model", model, "--data", str(more_scenes), "--calibrate"]) == 2
        assert told in capfd.readouterr().err


def test_too_few_pictures_leave_the_captioner_as_it_was(
    calibrated_run: Path, more_scenes: Path, tmp_path: Path, capfd: Capture
) -> None:
    model = Path(shutil.copytree(calibrated_run, tmp_path / "run"))
    before = (model / "captioner.pt").read_bytes()
    words = ["--model", str(model), "--data", str(more_scenes), "--limit=3", "--calibrate"]
    assert main(["evaluate", *words]) == 1
    assert "at least 100 are needed to learn from" in capfd.readouterr().err
    assert (model / "captioner.pt").read_bytes() == before
