"""`myllm import` and `myllm export`: from another program and back, and what stands in the way is named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from myllm.apps.cli import main
from myllm.checkpoints import native
from myllm.checkpoints.native import Checkpoint
from myllm.config import CaptionerConfig, VisionConfig
from myllm.data.tokenizer import train_tokenizer
from myllm.errors import CheckpointError
from myllm.inference.captioner import Captioner
from myllm.model.vision_gpt2 import VisionGPT2

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def theirs(tiny_checkpoint: Checkpoint, tmp_path: Path, capfd: Capture) -> Path:
    """A folder of transformers; the drawn scenes' own backbone has a stem that it has no words for."""
    text = tiny_checkpoint.model.config.text
    geometry = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 16}
    vision = VisionConfig(pretrained=False, image_size=64, geometry=geometry)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = VisionGPT2(CaptionerConfig(vision, text, "last")).eval()
    plain.decoder.load_state_dict(tiny_checkpoint.model.decoder.state_dict())
    native.save(replace(tiny_checkpoint, model=plain), tmp_path / "captioner.pt")
    assert main(["export", str(tmp_path / "captioner.pt"), "--to", "hf", "--out", str(tmp_path / "theirs")]) == 0
    told = capfd.readouterr().out
    assert "million parameters in" in told and "model.safetensors" in told and "tokenizer.json" in told
    return tmp_path / "theirs"


def test_there_and_back_says_the_same(theirs: Path, tmp_path: Path, pictures: list[Path], capfd: Capture) -> None:
    assert main(["import", str(theirs), "--out", str(tmp_path / "back.pt")]) == 0
    assert "a VisionEncoderDecoder folder of transformers" in capfd.readouterr().out
    expected, back, opened = (Captioner.load(tmp_path / name) for name in ("captioner.pt", "back.pt", "theirs"))
    for captioner in (back, opened):
        captioner.decode = expected.decode
        told = captioner.caption_batch(pictures)
        assert [one.tokens for one in told] == [one.tokens for one in expected.caption_batch(pictures)]


def test_info_tells_what_another_programs_captioner_is(theirs: Path, capfd: Capture) -> None:
    assert main(["info", str(theirs)]) == 0
    told = capfd.readouterr().out
    assert "theirs: a VisionEncoderDecoder folder of transformers, " in told and "format" not in told.splitlines()[0]
    assert "vit_base_patch16_224 at 64 x 64 pixels" in told and "imported from vision-encoder-decoder" in told


def test_the_language_alone_is_written(theirs: Path, tmp_path: Path) -> None:
    assert main(["export", str(theirs), "--to", "gpt2", "--out", str(tmp_path / "gpt2"), "--quiet"]) == 0
    tensors = load_file(tmp_path / "gpt2/model.safetensors")
    assert tensors and not any("cross" in name for name in tensors)
    assert all(torch.isfinite(value).all() for value in tensors.values())


@pytest.mark.parametrize("kind", ["seed", "VisionGPT2"])
def test_a_bare_state_dict_is_recognised_and_its_fault_told(
    bare_state: Callable[..., dict[str, torch.Tensor]], tmp_path: Path, kind: str, capfd: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "captioner").mkdir()
    torch.save(bare_state(kind), tmp_path / "captioner/captioner.pt")
    # the folder, as the seed's script leaves it, or the file
    for at, source in enumerate((tmp_path / "captioner", tmp_path / "captioner/captioner.pt")):
        assert main(["import", str(source), "--out", str(tmp_path / f"{at}.pt")]) == 0
        told = capfd.readouterr().out
        assert "a bare state dict of the seed" in told and "norm" in told and "HF_GPT2_REPO" in told
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


def test_a_backbone_that_transformers_has_no_words_for_is_named(tiny_run: Path, tmp_path: Path, capfd: Capture) -> None:
    assert main(["export", str(tiny_run), "--to", "hf", "--out", str(tmp_path / "out")]) == 2
    assert "vit_mini_conv8_64 can't be said in Hugging Face's form" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["import", "nowhere", "--out", "x.pt"], 1, "nowhere: no such file or folder"),
        (["import", "theirs", "--out", "captioner.pt"], 2, "captioner.pt is there already"),
        (["import", "theirs", "theirs", "--out", "x.pt"], 2, "one model at a time; 2 were given"),
        (["export", "captioner.pt", "--out", "theirs"], 2, "theirs is there already"),
        (["export", "captioner.pt", "--to", "tflite", "--out", "x"], 2, "expected one of hf, safetensors, gpt2"),
        (["export", "captioner.pt"], 2, "out"),
    ],
)
def test_what_stands_in_the_way_is_told(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture, words: list[str], code: int,
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(words) == code
    assert told in capfd.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1.1), ("bfloat16", 0.6)])
def test_our_own_folder_is_written_and_read(
    tiny_run: Path, pictures: list[Path], tmp_path: Path, dtype: str, most: float
) -> None:
    words = ["export", str(tiny_run), "--to", "safetensors", "--dtype", dtype, "--out", str(tmp_path / "out")]
    assert main([*words, "--quiet"]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    assert (tmp_path / "out/model.safetensors").stat().st_size < most * (tiny_run / "captioner.pt").stat().st_size
    told = [one.tokens for one in Captioner.load(tmp_path / "out").caption_batch(pictures)]
    if dtype == "float32":
        assert told == [one.tokens for one in Captioner.load(tiny_run).caption_batch(pictures)]
    assert main(["export", str(tiny_run), "--to", "hf", "--dtype", "float16", "--out", str(tmp_path / "x")]) == 2
