"""`myllm import` and `myllm export`: from another program and back; obstacles are named."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from myllm.apps.cli import main
from myllm.checkpoints import native
from myllm.checkpoints.native import Checkpoint
from myllm.config import CaptionerConfig, DecodeConfig, VisionConfig
from myllm.data.tokenizer import train_tokenizer
from myllm.errors import CheckpointError
from myllm.inference.captioner import Captioner
from myllm.model.vision_gpt2 import VisionGPT2

Capture = pytest.CaptureFixture[str]


def tokens_of(captioner: Captioner, pictures: list[Path]) -> list[list[int]]:
    return [list(caption.tokens) for caption in captioner.caption_batch(pictures)]


@pytest.fixture
def hf_folder(tiny_checkpoint: Checkpoint, tmp_path: Path, capfd: Capture) -> Path:
    """A folder of transformers with a plain ViT: it lacks the convolutional stem of the scenes preset."""
    text = tiny_checkpoint.model.config.text
    geometry = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 16}
    vision = VisionConfig(pretrained=False, image_size=64, geometry=geometry)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = VisionGPT2(CaptionerConfig(vision, text, "last")).eval()
    plain.decoder.load_state_dict(tiny_checkpoint.model.decoder.state_dict())
    native.save(replace(tiny_checkpoint, model=plain), tmp_path / "captioner.pt")
    assert main(["export", str(tmp_path / "captioner.pt"), "--to", "hf", "--out", str(tmp_path / "hf")]) == 0
    output = capfd.readouterr().out
    assert "million parameters in" in output and "model.safetensors" in output and "tokenizer.json" in output
    return tmp_path / "hf"


def test_export_to_hf_and_import_keep_the_captions(
    hf_folder: Path, tmp_path: Path, pictures: list[Path], capfd: Capture
) -> None:
    assert main(["import", str(hf_folder), "--out", str(tmp_path / "back.pt")]) == 0
    assert "a VisionEncoderDecoder folder of transformers" in capfd.readouterr().out
    expected, back, opened = (Captioner.load(tmp_path / name) for name in ("captioner.pt", "back.pt", "hf"))
    for captioner in (back, opened):
        captioner.decode = expected.decode
        assert tokens_of(captioner, pictures) == tokens_of(expected, pictures)


def test_info_describes_a_transformers_folder(hf_folder: Path, capfd: Capture) -> None:
    assert main(["info", str(hf_folder)]) == 0
    output = capfd.readouterr().out
    assert "hf: a VisionEncoderDecoder folder of transformers, " in output and "format" not in output.splitlines()[0]
    assert "vit_base_patch16_224 at 64 x 64 pixels" in output and "imported from vision-encoder-decoder" in output


def test_export_to_gpt2_leaves_out_cross_attention(hf_folder: Path, tmp_path: Path) -> None:
    assert main(["export", str(hf_folder), "--to", "gpt2", "--out", str(tmp_path / "gpt2"), "--quiet"]) == 0
    tensors = load_file(tmp_path / "gpt2/model.safetensors")
    assert tensors and not any("cross" in name for name in tensors)
    assert all(torch.isfinite(value).all() for value in tensors.values())


@pytest.mark.parametrize("kind", ["seed", "VisionGPT2"])
def test_import_of_a_bare_state_dict_warns_of_norms_and_tokenizer(
    bare_state: Callable[..., dict[str, torch.Tensor]], tmp_path: Path, kind: str, capfd: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "captioner").mkdir()
    torch.save(bare_state(kind), tmp_path / "captioner/captioner.pt")
    # the folder, as the original script leaves it, or the file
    for number, source in enumerate((tmp_path / "captioner", tmp_path / "captioner/captioner.pt")):
        assert main(["import", str(source), "--out", str(tmp_path / f"{number}.pt")]) == 0
        output = capfd.readouterr().out
        assert "a bare state dict of the original script" in output and "norm" in output and "HF_GPT2_REPO" in output
    captioner = Captioner.load(tmp_path / "0.pt")
    with pytest.raises(CheckpointError, match="HF_GPT2_REPO"):
        captioner.caption(torch.zeros(3, *captioner.model.encoder.preprocess.image_size))
    tokenizer = train_tokenizer(["a dog"], vocab_size=257)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setenv("HF_GPT2_REPO", str(tmp_path))
    small = bare_state(kind, vocab=257)
    torch.save(small, tmp_path / "bare.pt")
    assert Captioner.load(tmp_path / "bare.pt").caption(
        torch.zeros(3, *captioner.model.encoder.preprocess.image_size), max_new_tokens=4
    ).tokens


def test_export_to_hf_names_an_unsupported_backbone(tiny_run: Path, tmp_path: Path, capfd: Capture) -> None:
    assert main(["export", str(tiny_run), "--to", "hf", "--out", str(tmp_path / "out")]) == 2
    assert "vit_mini_conv8_64 cannot be exported to Hugging Face format" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_export_to_hf_warns_of_lost_decoding_options(hf_folder: Path, tmp_path: Path, capfd: Capture) -> None:
    decode = DecodeConfig(prefix="a photo of", bad_words=("dog",), min_new_tokens=2)
    native.save(replace(native.load(tmp_path / "captioner.pt"), decode=decode), tmp_path / "prefix.pt")
    assert main(["export", str(tmp_path / "prefix.pt"), "--to", "hf", "--out", str(tmp_path / "out")]) == 0
    captured = capfd.readouterr()
    output = " ".join((captured.out + captured.err).split())
    assert "decode.prefix 'a photo of' cannot be kept in Hugging Face format" in output
    assert "decode.bad_words ('dog',) cannot be kept" in output and "min_new_tokens" not in output
    assert json.loads((tmp_path / "out/generation_config.json").read_text())["min_new_tokens"] == 2


def test_import_of_an_onnx_folder_says_which_program_runs_it(hf_folder: Path, tmp_path: Path, capfd: Capture) -> None:
    onnx = tmp_path / "someone-elses"
    (onnx / "onnx").mkdir(parents=True)
    (onnx / "onnx/encoder_model.onnx").write_bytes(b"")
    shutil.copy(hf_folder / "config.json", onnx)
    assert main(["import", str(onnx), "--out", str(tmp_path / "x.pt")]) == 1
    assert "ONNX graphs of another program, which myllm neither runs nor imports" in capfd.readouterr().err
    config = json.loads((onnx / "config.json").read_text()) | {"myllm": {}}
    (onnx / "config.json").write_text(json.dumps(config))
    assert main(["import", str(onnx), "--out", str(tmp_path / "x.pt")]) == 1
    assert "`myllm caption` and `myllm evaluate` run it" in capfd.readouterr().err


def test_import_reads_the_weights_next_to_onnx_graphs(hf_folder: Path, tmp_path: Path) -> None:
    (hf_folder / "onnx").mkdir()
    (hf_folder / "onnx/encoder_model.onnx").write_bytes(b"")
    assert main(["import", str(hf_folder), "--out", str(tmp_path / "x.pt"), "--quiet"]) == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["import", "nowhere", "--out", "x.pt"], 1, "nowhere: no such file or folder"),
        (["import", "hf", "--out", "captioner.pt"], 2, "captioner.pt is there already"),
        (["import", "hf", "hf", "--out", "x.pt"], 2, "one model at a time; 2 were given"),
        (["export", "captioner.pt", "--out", "hf"], 2, "hf is there already"),
        (["export", "captioner.pt", "--to", "tflite", "--out", "x"], 2, "expected one of hf, safetensors, gpt2"),
        (["export", "captioner.pt"], 2, "out"),
    ],
)
def test_import_and_export_name_obstacles(
    hf_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture, words: list[str], code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(words) == code
    assert message in capfd.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(("dtype", "max_share"), [("float32", 1.1), ("bfloat16", 0.6)])
def test_export_to_safetensors_is_read_again(
    tiny_run: Path, pictures: list[Path], tmp_path: Path, dtype: str, max_share: float
) -> None:
    words = ["export", str(tiny_run), "--to", "safetensors", "--dtype", dtype, "--out", str(tmp_path / "out")]
    assert main([*words, "--quiet"]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    assert (tmp_path / "out/model.safetensors").stat().st_size < max_share * (tiny_run / "captioner.pt").stat().st_size
    tokens = tokens_of(Captioner.load(tmp_path / "out"), pictures)
    if dtype == "float32":
        assert tokens == tokens_of(Captioner.load(tiny_run), pictures)
    assert main(["export", str(tiny_run), "--to", "hf", "--dtype", "float16", "--out", str(tmp_path / "x")]) == 2
