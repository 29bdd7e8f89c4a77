"""`myllm info`: the contents of a captioner, in both formats."""

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


def info_of(capfd: Capture, *paths: Path) -> list[dict[str, object]]:
    """Return what `myllm info --json` prints for each path."""
    capfd.readouterr()
    assert main(["info", *map(str, paths), "--json"]) == 0
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


def test_info_describes_a_run(tiny_run: Path, capfd: Capture) -> None:
    assert main(["info", str(tiny_run)]) == 0
    output = capfd.readouterr().out
    for part in (
        f"{tiny_run / 'captioner.pt'}: captioner.pt, format 1,", "vit_mini_conv8_64 at 64 x 64 pixels",
        "mode last; GPT of 1 blocks, 2 heads, width 32, context 48", "stored in   float32",
        "decoding    max_new_tokens 12", "data.folder scenes", "validation.CIDEr-D ", "suspicious ",
    ):
        assert part in output, output


def test_info_json_has_the_sizes_of_the_parts(tiny_run: Path, capfd: Capture) -> None:
    [values] = info_of(capfd, tiny_run)
    model = native.load(tiny_run).model
    parts = {"encoder": model.encoder, "projection": model.enc_to_dec_proj, "decoder": model.decoder}
    for part, module in parts.items():
        parameters = sum(parameter.numel() for parameter in module.parameters())
        assert values["parts"][part]["parameters"] >= parameters  # running means and variances count too
        assert values["parts"][part]["parameters"] < parameters + 2_000
    assert values["bytes"] == (tiny_run / "captioner.pt").stat().st_size
    assert values["dtype"] == ["float32"]


def test_info_is_the_same_for_both_formats(tiny_checkpoint: Checkpoint, tmp_path: Path, capfd: Capture) -> None:
    native.save(tiny_checkpoint, tmp_path / "captioner.pt")
    native.save_folder(tiny_checkpoint, tmp_path / "folder", torch.bfloat16)
    file, folder = info_of(capfd, tmp_path / "captioner.pt", tmp_path / "folder")
    assert (file["kind"], folder["kind"]) == ("captioner.pt", "folder of safetensors")
    assert (file["dtype"], folder["dtype"]) == (["float32"], ["bfloat16"])
    for name in ("model", "tokens", "preprocess", "decode", "provenance", "suspicious"):
        assert file[name] == folder[name], name
    assert file["decode"] == {"max_new_tokens": 7, "length_penalty": 0.5}
    assert 2 * folder["parts"]["decoder"]["bytes"] == file["parts"]["decoder"]["bytes"]


def test_info_lists_suspicious_findings(tiny_checkpoint: Checkpoint, tmp_path: Path, capfd: Capture) -> None:
    native.save(tiny_checkpoint, tmp_path / "a.pt")
    checkpoint = native.load(tmp_path / "a.pt")
    with torch.no_grad():
        checkpoint.model.decoder.transformer.h[0].mlp.c_fc.weight.zero_()
    metrics = {"validation": {"CIDEr-D": 0.1, "CIDEr-D_shuffled": 0.09}}
    native.save(replace(checkpoint, provenance=metrics), tmp_path / "b.pt")
    native.save(replace(checkpoint, provenance={}, decode=DecodeConfig()), tmp_path / "c.pt")
    sound, blind, unknown = info_of(capfd, *(tmp_path / f"{name}.pt" for name in "abc"))
    assert sound["suspicious"] == []
    constant = "decoder.transformer.h.0.mlp.c_fc.weight holds one number alone"
    assert constant in blind["suspicious"][0] and "it hardly looked at the pictures" in blind["suspicious"][1]
    assert "nothing tells how it was trained" in unknown["suspicious"]


def test_info_prints_no_control_characters_of_a_provenance(
    tiny_checkpoint: Checkpoint, tmp_path: Path, capfd: Capture
) -> None:
    native.save(replace(tiny_checkpoint, provenance={"note": "a\x1b[2Jb\nc", "value": float("nan")}), tmp_path / "a.pt")
    assert main(["info", str(tmp_path / "a.pt")]) == 0
    assert "note a [2Jb c" in capfd.readouterr().out
    assert info_of(capfd, tmp_path / "a.pt")[0]["provenance"]["value"] is None


def test_info_explains_in_one_line_what_cannot_be_opened(tmp_path: Path, capfd: Capture) -> None:
    assert main(["info", str(tmp_path)]) == 1
    assert "no such file; expected a captioner.pt" in capfd.readouterr().err


def test_info_of_a_folder_with_two_models_describes_the_named_one(
    tiny_checkpoint: Checkpoint, tmp_path: Path, capfd: Capture
) -> None:
    native.save_folder(tiny_checkpoint, tmp_path / "both")
    native.save(tiny_checkpoint, tmp_path / "both/captioner.pt")
    assert main(["info", str(tmp_path / "both")]) == 1
    assert "holds two models" in capfd.readouterr().err
    file, folder = info_of(capfd, tmp_path / "both/captioner.pt", tmp_path / "both/model.safetensors")
    assert (file["kind"], folder["kind"]) == ("captioner.pt", "folder of safetensors")
