"""Calibrations are stored in both formats of a captioner, and dropped if its weights change."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from myllm.caption import Calibration
from myllm.checkpoints import lora, native
from myllm.checkpoints.average import average
from myllm.checkpoints.native import Checkpoint
from myllm.errors import CheckpointError, MyLLMError
from myllm.inference.captioner import Captioner

CALIBRATED_ON = {"data": "birds", "pictures": 9, "decode": {}}
CALIBRATION = Calibration(0.5, 2.0, 1.5, {"ball": 1.0, "a": 3.0}, ("a",), CALIBRATED_ON, 1.25, -0.5)
FORMATS = pytest.mark.parametrize("save", [native.save, native.save_folder])
Saver = Callable[[Checkpoint, Path], None]


@FORMATS
def test_calibration_is_saved_and_loaded(tiny_checkpoint: Checkpoint, tmp_path: Path, save: Saver) -> None:
    save(replace(tiny_checkpoint, calibration=CALIBRATION), tmp_path / "one")
    assert native.load(tmp_path / "one").calibration == CALIBRATION
    assert Captioner.load(tmp_path / "one").checkpoint.calibration == CALIBRATION


def test_calibration_of_an_older_captioner_gives_support_no_weight() -> None:
    values = {name: value for name, value in CALIBRATION.as_json().items() if "support" not in name}
    assert Calibration.from_json(values) == replace(CALIBRATION, support=0.0, usual_support=0.0)


@FORMATS
def test_captioner_without_calibration_loads_none(
    tiny_checkpoint: Checkpoint, tmp_path: Path, save: Saver
) -> None:
    save(tiny_checkpoint, tmp_path / "one")
    assert native.load(tmp_path / "one").calibration is None


@FORMATS
@pytest.mark.parametrize("before", [None, replace(CALIBRATION, score=1.0)])
def test_write_calibration_leaves_all_other_parts(
    tiny_checkpoint: Checkpoint, tmp_path: Path, save: Saver, before: Calibration | None
) -> None:
    path, whole = tmp_path / "one", tmp_path / "whole"
    save(replace(tiny_checkpoint, calibration=before), path)
    save(replace(tiny_checkpoint, calibration=CALIBRATION), whole)
    native.write_calibration(CALIBRATION, path)
    content, expected = native.read(path), native.read(whole)
    weights, expected_weights = content.pop("model"), expected.pop("model")
    assert content == expected
    assert weights.keys() == expected_weights.keys()
    assert all(torch.equal(value, expected_weights[name]) for name, value in weights.items())
    assert native.load(path).calibration == CALIBRATION


def test_write_calibration_keeps_size_and_precision(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    native.save(tiny_checkpoint, tmp_path / "half.pt", torch.bfloat16)
    before = (tmp_path / "half.pt").stat().st_size
    native.write_calibration(CALIBRATION, tmp_path / "half.pt")
    assert before <= (tmp_path / "half.pt").stat().st_size < before + 2000


def test_write_calibration_on_a_full_disk_leaves_the_file(
    tiny_captioner_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tiny_captioner_file.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(MyLLMError, match="the previous content is kept"):
        native.write_calibration(CALIBRATION, tiny_captioner_file)
    assert tiny_captioner_file.read_bytes() == before


@pytest.mark.parametrize("value", [3, [], {"logprob": 1.0}, {**CALIBRATION.as_json(), "score": float("nan")}])
def test_edited_calibration_is_refused(tiny_checkpoint: Checkpoint, tmp_path: Path, value: object) -> None:
    native.save_folder(tiny_checkpoint, tmp_path / "one")
    config = json.loads((tmp_path / "one/config.json").read_text())
    (tmp_path / "one/config.json").write_text(json.dumps(config | {"calibration": value}))
    with pytest.raises(CheckpointError, match="one: calibration: "):
        native.load(tmp_path / "one")


def test_average_and_adapter_have_no_calibration(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    calibrated = replace(tiny_checkpoint, calibration=CALIBRATION)
    assert average([calibrated, calibrated], [tmp_path, tmp_path]).calibration is None
    assert lora.with_options(lora.Adapter(tmp_path, {}, "base"), calibrated).calibration is None


def test_model_card_explains_confidence(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    native.save_folder(tiny_checkpoint, tmp_path / "without")
    native.save_folder(replace(tiny_checkpoint, calibration=CALIBRATION), tmp_path / "with")
    assert "how sure the model is, not whether it is right" in (tmp_path / "without/README.md").read_text()
    assert "as learned from 9 pictures of birds" in (tmp_path / "with/README.md").read_text()
