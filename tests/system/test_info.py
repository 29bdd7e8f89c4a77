"""`myllm info`: what is in a captioner, in both forms."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from myllm.apps.cli import main
from myllm.checkpoints import native
from myllm.checkpoints.native import Checkpoint
from myllm.config import DecodeConfig

Capture = pytest.CaptureFixture[str]


def facts(capfd: Capture, *paths: Path) -> list[dict[str, object]]:
    capfd.readouterr()
    assert main(["info", *map(str, paths), "--json"]) == 0
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


def test_a_run_tells_what_it_is_and_how_it_came_to_be(tiny_run: Path, capfd: Capture) -> None:
    assert main(["info", str(tiny_run)]) == 0
    told = capfd.readouterr().out
    for part in (
        f"{tiny_run / 'captioner.pt'}: captioner.pt, format 1,", "vit_mini_conv8_64 at 64 x 64 pixels",
        "mode last; GPT of 1 blocks, 2 heads, width 32, context 48", "stored in   float32",
        "decoding    max_new_tokens 12", "data.folder scenes", "validation.CIDEr-D ", "suspicious ",
    ):
        assert part in told, told


def test_json_tells_the_sizes_of_the_parts(tiny_run: Path, capfd: Capture) -> None:
    [found] = facts(capfd, tiny_run)
    model = native.load(tiny_run).model
    parts = {"encoder": model.encoder, "projection": model.enc_to_dec_proj, "decoder": model.decoder}
    for part, module in parts.items():
        parameters = sum(one.numel() for one in module.parameters())
        assert found["parts"][part]["parameters"] >= parameters  # running means and variances count too
        assert found["parts"][part]["parameters"] < parameters + 2_000
    assert found["bytes"] == (tiny_run / "captioner.pt").stat().st_size
    assert found["dtype"] == ["float32"]


def test_both_forms_hold_the_same_facts(tiny_checkpoint: Checkpoint, tmp_path: Path, capfd: Capture) -> None:
    native.save(tiny_checkpoint, tmp_path / "captioner.pt")
    native.save_folder(tiny_checkpoint, tmp_path / "folder", torch.bfloat16)
    file, folder = facts(capfd, tmp_path / "captioner.pt", tmp_path / "folder")
    assert (file["kind"], folder["kind"]) == ("captioner.pt", "folder of safetensors")
    assert (file["dtype"], folder["dtype"]) == (["float32"], ["bfloat16"])
    for name in ("model", "tokens", "preprocess", "decode", "provenance", "suspicious"):
        assert file[name] == folder[name], name
    assert file["decode"] == {"max_new_tokens": 7, "length_penalty": 0.5}
    assert 2 * folder["parts"]["decoder"]["bytes"] == file["parts"]["decoder"]["bytes"]


def test_what_is_suspicious_is_told(tiny_checkpoint: Checkpoint, tmp_path: Path, capfd: Capture) -> None:
    native.save(tiny_checkpoint, tmp_path / "a.pt")
    checkpoint = native.load(tmp_path / "a.pt")
    with torch.no_grad():
        checkpoint.model.decoder.transformer.h[0].mlp.c_fc.weight.zero_()
    figures = {"validation": {"CIDEr-D": 0.1, "CIDEr-D_shuffled": 0.09}}
    native.save(replace(checkpoint, provenance=figures), tmp_path / "b.pt")
    native.save(replace(checkpoint, provenance={}, decode=DecodeConfig()), tmp_path / "c.pt")
    sound, blind, unknown = facts(capfd, *(tmp_path / f"{name}.pt" for name in "abc"))
    assert sound["suspicious"] == []
    lost = "all values of decoder.transformer.h.0.mlp.c_fc.weight are equal"
    assert lost in blind["suspicious"][0] and "it hardly uses the pictures" in blind["suspicious"][1]
    assert "there is no record of its training" in unknown["suspicious"]


def test_a_strangers_provenance_moves_no_cursor(tiny_checkpoint: Checkpoint, tmp_path: Path, capfd: Capture) -> None:
    native.save(replace(tiny_checkpoint, provenance={"note": "a\x1b[2Jb\nc", "value": float("nan")}), tmp_path / "a.pt")
    assert main(["info", str(tmp_path / "a.pt")]) == 0
    assert r"note a\x1b[2Jb\nc" in capfd.readouterr().out
    assert facts(capfd, tmp_path / "a.pt")[0]["provenance"]["value"] is None


def test_what_cannot_be_opened_is_told_in_a_line(tmp_path: Path, capfd: Capture) -> None:
    assert main(["info", str(tmp_path)]) == 1
    assert "no such file; expected a captioner.pt" in capfd.readouterr().err


def test_of_two_models_in_a_folder_the_named_one_is_told(
    tiny_checkpoint: Checkpoint, tmp_path: Path, capfd: Capture
) -> None:
    native.save_folder(tiny_checkpoint, tmp_path / "both")
    native.save(tiny_checkpoint, tmp_path / "both/captioner.pt")
    assert main(["info", str(tmp_path / "both")]) == 1
    assert "holds two models" in capfd.readouterr().err
    file, folder = facts(capfd, tmp_path / "both/captioner.pt", tmp_path / "both/model.safetensors")
    assert (file["kind"], folder["kind"]) == ("captioner.pt", "folder of safetensors")
