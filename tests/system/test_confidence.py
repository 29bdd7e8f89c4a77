"""Calibrated confidence, learned at the end of a run or by `myllm evaluate --calibrate`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from myllm.apps.cli import main
from myllm.checkpoints import native
from myllm.inference.captioner import Captioner

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.slow  # the run that is calibrated takes a minute


@pytest.fixture(scope="module")
def more_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes with 150 validation pictures, enough to learn a calibration from."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    assert main(["scenes", "--out", str(folder), "--count", "3000", "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def calibrated_run(train: Callable[..., int], more_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose captioner is calibrated."""
    out = tmp_path_factory.mktemp("run") / "captioner"
    assert train(out, "--max_steps=80", "--quiet", data=more_scenes) == 0
    return out


def test_a_run_from_a_base_is_calibrated_anew(
    train: Callable[..., int], calibrated_run: Path, more_scenes: Path, tmp_path: Path
) -> None:
    options = [f"--base={calibrated_run}/captioner.pt", "--max_steps=20", "--lr=0.05", "--quiet"]
    assert train(tmp_path / "run", *options, data=more_scenes) == 0
    first, second = (native.load(run).calibration for run in (calibrated_run, tmp_path / "run"))
    assert second is not None and second != first


def test_training_calibrates_confidence_on_the_validation_pictures(calibrated_run: Path, capfd: Capture) -> None:
    calibration = native.load(calibrated_run).calibration
    assert calibration is not None
    assert calibration.calibrated_on["split"] == "val" and calibration.calibrated_on["pictures"] == 150
    assert calibration.calibrated_on["data"] == "scenes" and "a" in calibration.common_words
    assert main(["info", str(calibrated_run)]) == 0
    assert "confidence  calibrated on 150 pictures of scenes, split val" in capfd.readouterr().out


def test_training_on_few_validation_pictures_leaves_confidence_uncalibrated(tiny_run: Path, capfd: Capture) -> None:
    assert native.load(tiny_run).calibration is None
    assert main(["info", str(tiny_run)]) == 0
    assert "confidence  not calibrated" in capfd.readouterr().out


def test_caption_writes_the_calibrated_confidence(
    calibrated_run: Path, more_scenes: Path, capfd: Capture
) -> None:
    picture = more_scenes / "flickr30k_images/val_000000.png"
    assert main(["caption", str(picture), "--model", str(calibrated_run), "--json", "--quiet"]) == 0
    row = json.loads(capfd.readouterr().out)
    caption = Captioner.load(calibrated_run).caption(picture)
    assert row["confidence"] == pytest.approx(caption.confidence, abs=1e-6)
    assert caption.calibration is not None and caption.words[0].confidence is not None


def test_evaluate_calibrate_replaces_the_calibration_of_a_captioner(
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


def test_evaluate_judges_confidence_by_a_calibration_of_other_pictures(
    calibrated_run: Path, more_scenes: Path, tmp_path: Path, capfd: Capture
) -> None:
    words = ["evaluate", "--model", str(calibrated_run), "--data", str(more_scenes), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert "confidence by a calibration of other pictures" in capfd.readouterr().out
    confidence = json.loads((tmp_path / "out/metrics.json").read_text())["confidence"]
    assert confidence["cross_fitted"] and 0 <= confidence["word_calibration_error"] <= 1
    assert confidence["coverage"].keys() >= {"50%"}
    rows = [json.loads(line) for line in (tmp_path / "out/captions.jsonl").read_text().splitlines()]
    pictures = [more_scenes / "flickr30k_images" / row["image"] for row in rows[:5]]
    captions = Captioner.load(calibrated_run).caption_batch(pictures)
    for row, caption in zip(rows, captions, strict=False):
        assert row["caption"] == caption.text and row["confidence"] != pytest.approx(caption.confidence, abs=1e-6)
    for name in ("reliability.png", "reliability.svg", "coverage.png", "report.html"):
        assert (tmp_path / "out" / name).stat().st_size > 1000


def test_evaluate_calibrate_refuses_exports_and_hub_captioners_before_captioning(
    calibrated_run: Path, more_scenes: Path, tmp_path: Path, capfd: Capture
) -> None:
    exported = tmp_path / "onnx"
    assert main(["export", str(calibrated_run), "--to", "onnx", "--out", str(exported), "--quiet"]) == 0
    for model, message in ((str(exported), "is an ONNX export"), ("someone/captioner", "is on a hub")):
        assert main(["evaluate", "--model", model, "--data", str(more_scenes), "--calibrate"]) == 2
        assert message in capfd.readouterr().err


def test_evaluate_calibrate_on_too_few_pictures_leaves_the_captioner_unchanged(
    calibrated_run: Path, more_scenes: Path, tmp_path: Path, capfd: Capture
) -> None:
    model = Path(shutil.copytree(calibrated_run, tmp_path / "run"))
    before = (model / "captioner.pt").read_bytes()
    words = ["--model", str(model), "--data", str(more_scenes), "--limit=3", "--calibrate"]
    assert main(["evaluate", *words]) == 0
    assert "at least 100 are needed to learn from" in "".join(capfd.readouterr())
    assert (model / "captioner.pt").read_bytes() == before
