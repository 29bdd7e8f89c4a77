"""What an exported captioner says, held against the captioner that it was exported from."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from myllm.caption import Calibration
from myllm.checkpoints.native import Checkpoint
from myllm.config import CaptionerConfig, VisionConfig
from myllm.errors import CheckpointError, ConfigError
from myllm.export import onnx_export
from myllm.inference.captioner import Captioner
from myllm.inference.onnx_captioner import OnnxCaptioner
from myllm.model.vision_gpt2 import VisionGPT2

RNG = np.random.default_rng(0)
PIXELS = [RNG.integers(45 * at, 75 * at + 20, (50 + 9 * at, 70, 3), dtype=np.uint8) for at in range(4)]
PICTURES = [Image.fromarray(pixels) for pixels in PIXELS]
SEARCHES: list[dict[str, Any]] = [
    {},
    {"beams": 3},
    {"beams": 4, "length_penalty": 2.0, "early_stopping": True},
    {"beams": 3, "early_stopping": "never", "max_new_tokens": 12},
    {"beams": 2, "no_repeat_ngram_size": 1, "max_new_tokens": 9},
    {"beams": 3, "repetition_penalty": 1.7, "min_new_tokens": 5, "length_penalty": -1.0},
    {"repetition_penalty": 2.5, "no_repeat_ngram_size": 2, "max_new_tokens": 23},
    {"prefix": "a small", "beams": 2, "num_return_sequences": 1},
    {"prefix": "a <|endoftext|> ball"},
    {"max_new_tokens": 1},
    {"beams": 5, "max_new_tokens": 1},
]
Exported = tuple[Captioner, OnnxCaptioner]


@pytest.fixture(scope="module", params=["a convolutional stem", "layerwise, with a class token"])
def both(request: Any, tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    checkpoint = replace(tiny_checkpoint, calibration=Calibration(0.5, 2.0, 1.5, {"red": 1.0}, ("a",)))
    if request.param.startswith("layerwise"):
        text = replace(checkpoint.model.config.text, n_head=2, n_embd=40, n_layer=3, gelu="none")
        vision = VisionConfig("test_vit", pretrained=False, geometry={"embed_dim": 48, "depth": 4, "num_heads": 3})
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = VisionGPT2(CaptionerConfig(vision, text, "layerwise")).eval()
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
        checkpoint = replace(checkpoint, model=model, preprocess=model.encoder.preprocess)
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    onnx_export.to_folder(checkpoint, folder)
    return Captioner(checkpoint, torch.device("cpu")), OnnxCaptioner.load(folder, threads=1)


@pytest.mark.parametrize("options", SEARCHES, ids=str)
def test_captions_are_torchs(both: Exported, options: dict[str, Any]) -> None:
    expected, found = (one.caption_batch(PICTURES, **options) for one in both)
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    assert [one.alternatives for one in found] == [one.alternatives for one in expected]
    assert [one.ended_by for one in found] == [one.ended_by for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.text == other.text
        np.testing.assert_allclose(one.token_logprobs, other.token_logprobs, atol=1e-4)
        assert one.score == pytest.approx(other.score, abs=1e-4)
        assert one.confidence == pytest.approx(other.confidence, abs=1e-4)
        assert [(word.text, word.tokens) for word in one.words] == [(word.text, word.tokens) for word in other.words]


def test_a_picture_is_captioned_alike_alone_and_among_others(both: Exported) -> None:
    together = both[1].caption_batch(PICTURES, beams=3, batch_size=3)
    assert [both[1].caption(one, beams=3).text for one in PICTURES] == [one.text for one in together]


def test_ties_and_small_vocabularies_do_not_break_the_search(both: Exported) -> None:
    """More beams than tokens: the first step has fewer candidates than places."""
    expected, found = (one.caption(PICTURES[0], beams=200, max_new_tokens=2) for one in both)
    assert found.tokens == expected.tokens and len(found.alternatives) == len(expected.alternatives)


@pytest.mark.parametrize(
    ("option", "named"),
    [({"do_sample": True}, "do_sample"), ({"bad_words": ("dog",)}, "bad_words"), ({"beam": 2}, "beam"),
     ({"contrastive_weight": 0.5}, "contrastive_weight")],
)
def test_what_needs_torch_is_named(both: Exported, option: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        both[1].caption(PICTURES[0], **option)


def test_a_prefix_that_fills_the_context_is_refused(both: Exported) -> None:
    with pytest.raises(ConfigError, match="fills the model's context of 24"):
        both[1].caption(PICTURES[0], prefix="ball " * 30)


@pytest.fixture
def folder(tiny_checkpoint: Checkpoint, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export to damage."""
    whole = tmp_path_factory.getbasetemp() / "whole-export"
    if not whole.exists():
        onnx_export.to_folder(tiny_checkpoint, whole)
    return Path(shutil.copytree(whole, tmp_path / "export"))


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        facts = json.loads((folder / "config.json").read_text())
        change(facts["myllm"])
        (folder / "config.json").write_text(json.dumps(facts))

    return damage


def with_more_words(folder: Path) -> None:
    facts = json.loads((folder / "tokenizer.json").read_text())
    facts["model"]["vocab"]["unheard"] = 100_000
    (folder / "tokenizer.json").write_text(json.dumps(facts))


def with_an_unknown_operator(folder: Path) -> None:
    proto = onnx.load(folder / "onnx/encoder_model.onnx")
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "Telepathy", "com.microsoft"
    onnx.save(proto, folder / "onnx/encoder_model.onnx")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("onnx/encoder_model.onnx"), "no file of the name encoder_model"),
        (lambda folder: shutil.copy(folder / "onnx/encoder_model.onnx", folder / "onnx/encoder_model_int8.onnx"),
         "2 files, encoder_model.onnx, encoder_model_int8.onnx"),
        (write("onnx/decoder_model_merged.onnx", b"\x08\x07broken"), "can't open it"),
        (write("onnx/decoder_model_merged.onnx", b""), "can't open it"),
        (remove("tokenizer.json"), "do not fit together"),
        (write("tokenizer.json", b"{}"), "do not fit together"),
        (remove("config.json"), "cannot be read"),
        (write("config.json", b"{}"), "no entry 'myllm'"),
        (edit(lambda facts: facts["decode"].update(beams="many")), "beams is 'many'"),
        (edit(lambda facts: facts.pop("given")), "do not fit together"),
        (edit(lambda facts: facts["preprocess"].update(interpolation="psychic")), "psychic"),
        (edit(lambda facts: facts["preprocess"].update(image_size=[32, 64])), r"image_size is \(32, 64\), the encoder"),
        (with_more_words, "tokens up to number 100000, the decoder"),
        (with_an_unknown_operator, "upgrade onnxruntime, or export with --precision fp32"),
    ],
)
def test_a_damaged_folder_is_refused_with_a_reason(
    folder: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        OnnxCaptioner.load(folder)


def test_what_the_runtime_refuses_is_told(folder: Path) -> None:
    captioner = OnnxCaptioner.load(folder)
    with pytest.raises(CheckpointError, match="could not compute the export"):
        captioner.caption_tensors([np.zeros((3, 32, 32), np.float32)], captioner.decode)


@pytest.mark.parametrize("place", ["../elsewhere.bin", "/etc/hostname", "link.bin"])
def test_weights_outside_of_the_folder_are_not_read(folder: Path, place: str) -> None:
    (folder / "elsewhere.bin").write_bytes(bytes(4096))
    (folder / "onnx/link.bin").symlink_to(folder / "elsewhere.bin")
    proto = onnx.load(folder / "onnx/decoder_model_merged.onnx")
    weight = next(one for one in proto.graph.initializer if one.name == "wpe")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=place)
    onnx.save(proto, folder / "onnx/decoder_model_merged.onnx")
    with pytest.raises(CheckpointError, match="External data path"):
        OnnxCaptioner.load(folder)


def test_files_with_bytes_changed_at_random_open_or_are_refused(folder: Path) -> None:
    """Bytes of the nodes and shapes, which stand before the weights."""
    place, random, refused = folder / "onnx/decoder_model_merged.onnx", np.random.default_rng(0), 0
    whole = place.read_bytes()
    for _ in range(200):
        damaged = bytearray(whole)
        for at in random.integers(0, 12_000, random.integers(1, 5)):
            damaged[at] = random.integers(256)
        place.write_bytes(damaged[: random.integers(1, len(whole))] if random.random() < 0.1 else damaged)
        try:
            OnnxCaptioner.load(folder, threads=1).caption(PICTURES[0])
        except CheckpointError:
            refused += 1
    assert refused > 100
