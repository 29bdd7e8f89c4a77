"""Where a calibration lives: in both forms of a captioner, and in none whose weights it was not learned from."""

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

LEARNED = Calibration(0.5, 2.0, 1.5, {"ball": 1.0, "a": 3.0}, ("a",), {"data": "birds", "pictures": 9, "decode": {}})
FORMS = pytest.mark.parametrize("save", [native.save, native.save_folder])
Saver = Callable[[Checkpoint, Path], None]


@FORMS
def test_it_comes_back_with_the_captioner(tiny_checkpoint: Checkpoint, tmp_path: Path, save: Saver) -> None:
    save(replace(tiny_checkpoint, calibration=LEARNED), tmp_path / "one")
    assert native.load(tmp_path / "one").calibration == LEARNED
    assert Captioner.load(tmp_path / "one").calibration == LEARNED


@FORMS
def test_a_captioner_that_was_never_calibrated_says_so(
    tiny_checkpoint: Checkpoint, tmp_path: Path, save: Saver
) -> None:
    save(tiny_checkpoint, tmp_path / "one")
    assert native.load(tmp_path / "one").calibration is None


@FORMS
@pytest.mark.parametrize("before", [None, replace(LEARNED, score=1.0)])
def test_it_is_written_into_a_captioner_whose_other_parts_stay(
    tiny_checkpoint: Checkpoint, tmp_path: Path, save: Saver, before: Calibration | None
) -> None:
    path, whole = tmp_path / "one", tmp_path / "whole"
    save(replace(tiny_checkpoint, calibration=before), path)
    save(replace(tiny_checkpoint, calibration=LEARNED), whole)
    native.write_calibration(LEARNED, path)
    found, expected = native.read(path), native.read(whole)
    weights, expected_weights = found.pop("model"), expected.pop("model")
    assert found == expected
    assert weights.keys() == expected_weights.keys()
    assert all(torch.equal(value, expected_weights[name]) for name, value in weights.items())
    assert native.load(path).calibration == LEARNED


def test_writing_it_makes_the_file_hardly_larger_and_keeps_its_numbers_as_small(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    native.save(tiny_checkpoint, tmp_path / "half.pt", torch.bfloat16)
    before = (tmp_path / "half.pt").stat().st_size
    native.write_calibration(LEARNED, tmp_path / "half.pt")
    assert before <= (tmp_path / "half.pt").stat().st_size < before + 2000


def test_a_full_disk_leaves_the_captioner_as_it_was(tiny_captioner_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tiny_captioner_file.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(MyLLMError, match="what was there before is still there"):
        native.write_calibration(LEARNED, tiny_captioner_file)
    assert tiny_captioner_file.read_bytes() == before


@pytest.mark.parametrize("value", [3, [], {"logprob": 1.0}, {**LEARNED.as_json(), "score": float("nan")}])
def test_one_that_was_edited_is_refused(tiny_checkpoint: Checkpoint, tmp_path: Path, value: object) -> None:
    native.save_folder(tiny_checkpoint, tmp_path / "one")
    facts = json.loads((tmp_path / "one/config.json").read_text())
    (tmp_path / "one/config.json").write_text(json.dumps(facts | {"calibration": value}))
    with pytest.raises(CheckpointError, match="one: calibration: "):
        native.load(tmp_path / "one")


def test_other_weights_than_it_was_learned_from_have_none(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    calibrated = replace(tiny_checkpoint, calibration=LEARNED)
    assert average([calibrated, calibrated], [tmp_path, tmp_path]).calibration is None
    assert lora.with_options(lora.Adapter(tmp_path, {}, "base"), calibrated).calibration is None


def test_the_model_card_tells_what_confidence_means(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    native.save_folder(tiny_checkpoint, tmp_path / "without")
    native.save_folder(replace(tiny_checkpoint, calibration=LEARNED), tmp_path / "with")
    assert "how sure the model is, not whether it is right" in (tmp_path / "without/README.md").read_text()
    assert "as learned from 9 pictures of birds" in (tmp_path / "with/README.md").read_text()
