import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from myllm.checkpoints.native import Checkpoint
from myllm.config import CaptionerConfig, DecodeConfig, VisionConfig
from myllm.errors import ConfigError, DataError
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.presets import preset_config
from myllm.training.prepare import fit_to_base, prepare
from myllm.training_config import TrainConfig

DEFAULT = TrainConfig(base="base.pt")


def test_fit_to_base_takes_what_is_not_set_from_the_base(tiny_checkpoint: Checkpoint) -> None:
    config = fit_to_base(DEFAULT, tiny_checkpoint)
    assert config.captioner == tiny_checkpoint.model.config and config.decode == tiny_checkpoint.decode


@pytest.mark.parametrize("name", ["text.n_layer", "vision.name", "mode"])
def test_fit_to_base_refuses_what_is_given_and_differs_even_at_its_default(
    tiny_checkpoint: Checkpoint, name: str
) -> None:
    default: object = CaptionerConfig()
    for part in name.split("."):
        default = getattr(default, part)
    with pytest.raises(ConfigError, match=f"{name} is {default}, but the base base.pt has .*; leave that out"):
        fit_to_base(DEFAULT, tiny_checkpoint, given_options={name})


def test_fit_to_base_takes_dropout_from_the_base_unless_it_is_given(
    tiny_checkpoint: Checkpoint, tiny_model: Callable[..., VisionGPT2]
) -> None:
    base = replace(tiny_checkpoint, model=tiny_model(dropout=0.0))
    dropped = replace(DEFAULT, text=replace(DEFAULT.text, dropout=0.4))
    assert fit_to_base(DEFAULT, base).text.dropout == 0.0
    assert fit_to_base(DEFAULT, base, given_options={"text.dropout"}).text.dropout == 0.1
    assert fit_to_base(dropped, base).text == replace(base.model.config.text, dropout=0.4)


def test_fit_to_base_takes_mirrored_from_the_base_unless_it_is_given(tiny_checkpoint: Checkpoint) -> None:
    mirrored = replace(DEFAULT, vision=replace(DEFAULT.vision, mirrored=True))
    config = fit_to_base(mirrored, tiny_checkpoint)
    assert config.vision == replace(tiny_checkpoint.model.config.vision, mirrored=True)
    base = replace(tiny_checkpoint, model=VisionGPT2(config.captioner))
    assert fit_to_base(DEFAULT, base).vision.mirrored
    assert not fit_to_base(DEFAULT, base, given_options={"vision.mirrored"}).vision.mirrored


def test_prepare_mirrors_only_validation_pictures_of_a_frozen_backbone(
    tiny_picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MYLLM_CACHE", str(tmp_path / "cache"))
    vision = VisionConfig("vit_mini_conv8_64", pretrained=False, frozen=True, mirrored=True)
    prepared = prepare(preset_config("scenes", data=str(tiny_picture_folder), vision=vision, views=2))
    encoder = prepared.model.encoder
    assert prepared.train.features is not None and prepared.val.features is not None
    first = torch.tensor([0])
    with torch.inference_mode():
        (plain,), (both,) = prepared.train.features.rows(first), encoder(prepared.train.images([0]))
        (validated,), (expected,) = prepared.val.features.rows(first), encoder(prepared.val.images([0]))
    assert encoder.mirrored
    torch.testing.assert_close(plain, both[:, encoder.n_tokens // 2 :], rtol=0, atol=1e-5)
    torch.testing.assert_close(validated, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["vision.pretrained", "vision.frozen", "text.vocab_size", "epochs", "decode.beams"])
def test_fit_to_base_accepts_options_that_a_base_does_not_fix(tiny_checkpoint: Checkpoint, name: str) -> None:
    assert fit_to_base(DEFAULT, tiny_checkpoint, given_options={name}).text == tiny_checkpoint.model.config.text


def test_fit_to_base_replaces_only_the_decoding_options_that_are_set(tiny_checkpoint: Checkpoint) -> None:
    base = replace(tiny_checkpoint, decode=DecodeConfig(beams=3, max_new_tokens=12))
    beams = replace(DEFAULT, decode=DecodeConfig(beams=2))
    assert fit_to_base(beams, base).decode == DecodeConfig(beams=2, max_new_tokens=12)
    given = fit_to_base(DEFAULT, base, given_options={"decode.beams"}).decode  # at its default
    assert given == DecodeConfig(beams=1, max_new_tokens=12)


@pytest.mark.parametrize(("caption", "is_listed"), [("собака слева", True), ("a dog on the left", False)])
def test_prepare_lists_captions_that_rule_out_flips(
    tiny_picture_folder: Path, tmp_path: Path, caption: str, is_listed: bool
) -> None:
    shutil.copytree(tiny_picture_folder, tmp_path / "data")
    rows = (tmp_path / "data/results.csv").read_text().splitlines()
    rows[1:] = [f"{row.rpartition('|')[0]}| {caption}" for row in rows[1:]]
    (tmp_path / "data/results.csv").write_text("\n".join(rows), encoding="utf-8")
    prepared = prepare(preset_config("scenes", data=str(tmp_path / "data"), augment=True))
    lines = [line for line in prepared.findings.lines() if "not known to be English, so that no picture is" in line]
    assert bool(lines) == is_listed == (not prepared.train.is_english)


def test_prepare_checks_the_pictures_of_a_large_data_set_only_once(
    tiny_picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_picture_folder, tmp_path / "data")
    broken = sorted((tmp_path / "data/flickr30k_images").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:200])
    monkeypatch.setenv("MYLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("myllm.training.prepare.fit_memory", lambda *_: False)
    reports: list[list[int]] = []
    for _ in range(2):
        reports.append([])
        prepared = prepare(
            preset_config("scenes", data=str(tmp_path / "data")), lambda *report: reports[-1].append(report[1])
        )
        assert len(prepared.findings.broken_pictures) == 1
    assert len(reports[0]) == 12 and len(reports[1]) == 1


def test_prepare_refuses_retrieval_with_a_single_training_picture(tiny_picture_folder: Path) -> None:
    (tiny_picture_folder / "splits").mkdir()
    for split, name in (("train", "scene0.png"), ("val", "scene1.png")):
        (tiny_picture_folder / "splits" / f"{split}.txt").write_text(name + "\n")
    options = {"data": str(tiny_picture_folder), "vision": VisionConfig("vit_mini_conv8_64", pretrained=False)}
    with pytest.raises(DataError, match="rank_by retrieval compares .* two training pictures, and there is one"):
        prepare(preset_config("scenes", **options, decode=DecodeConfig(beams=2, rank_by="retrieval")))
