"""An exported captioner against the captioner that it was exported from, and damaged exports."""

import json
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from myllm.caption import Calibration
from myllm.checkpoints.native import Checkpoint
from myllm.config import CaptionerConfig, DecodeConfig, VisionConfig
from myllm.errors import CheckpointError, ConfigError
from myllm.export import onnx_export
from myllm.inference.captioner import Captioner
from myllm.inference.onnx_captioner import OnnxCaptioner
from myllm.model.vision_gpt2 import VisionGPT2

RNG = np.random.default_rng(0)
PIXELS = [
    RNG.integers(45 * index, 75 * index + 20, (50 + 9 * index, 70, 3), dtype=np.uint8) for index in range(4)
]
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
    {"beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.8},
    {"beams": 4, "rank_by": "consensus"},
    {"beams": 4, "rank_by": "confidence"},
    {"beams": 4, "force_words": ("red",), "max_new_tokens": 12},
    {"bad_words": ("a", "small")},
    {"only_words": ("red", "ball"), "beams": 2},
    {"regex": "[a-z]+ (red|blue)", "max_new_tokens": 20},
    {"contrastive_weight": 0.8},
    {"contrastive_weight": 0.8, "beams": 3},
    {"stop_strings": ("a", "e", "s"), "beams": 2},
    {"do_sample": True},
    {"do_sample": True, "num_return_sequences": 3, "temperature": 0.7, "top_k": 40, "top_p": 0.9},
    {"do_sample": True, "min_p": 0.1, "typical_p": 0.8},
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


@pytest.mark.slow
@pytest.mark.parametrize("options", SEARCHES, ids=str)
def test_export_finds_the_captions_of_the_captioner(both: Exported, options: dict[str, Any]) -> None:
    captioner, exported = both
    tensors = torch.stack([captioner.preprocess(picture) for picture in PICTURES])
    decode = captioner.decode_options(**options)
    expected = captioner.caption_tensors(tensors, decode, seeds=[7, 2**40, 1, 0])
    pixels = [exported.preprocess(picture) for picture in PICTURES]
    captions = exported.caption_tensors(pixels, decode, seeds=[7, 2**40, 1, 0])
    for name in ("text", "tokens", "alternatives", "ended_by", "missing"):
        assert [getattr(caption, name) for caption in captions] == [getattr(caption, name) for caption in expected]
    for caption, other in zip(captions, expected, strict=True):
        np.testing.assert_allclose(caption.token_logprobs, other.token_logprobs, atol=1e-4)
        assert caption.score == pytest.approx(other.score, abs=1e-4)
        assert caption.confidence == pytest.approx(other.confidence, abs=1e-4)
        words, other_words = ([(word.text, word.tokens) for word in one.words] for one in (caption, other))
        assert words == other_words


def test_every_decoding_option_is_compared_between_export_and_captioner() -> None:
    assert {name for options in SEARCHES for name in options} == {field.name for field in fields(DecodeConfig)}


def test_export_gives_a_picture_the_same_caption_alone_and_in_a_batch(both: Exported) -> None:
    together = both[1].caption_batch(PICTURES, beams=3, batch_size=3)
    assert [both[1].caption(picture, beams=3).text for picture in PICTURES] == [caption.text for caption in together]


def test_export_takes_options_for_each_picture(both: Exported) -> None:
    each: list[dict[str, Any]] = [{"beams": 3}, {}, {"prefix": "a red"}, {"beams": 3}]
    together = both[1].caption_batch(PICTURES, each=each, batch_size=3)
    alone = [both[1].caption(picture, **options) for picture, options in zip(PICTURES, each, strict=True)]
    assert [caption.tokens for caption in together] == [caption.tokens for caption in alone]
    for wrong in (each[:3], [*each, {}]):
        with pytest.raises(ConfigError, match="each has options for"):
            both[1].caption_batch(PICTURES, each=wrong)


def test_export_streams_the_text_of_its_caption(both: Exported) -> None:
    options = {"regex": "[a-z ]{20}", "max_new_tokens": 20}
    pieces = list(both[1].stream(PICTURES[0], **options))
    assert len(pieces) > 1 and "".join(pieces) == both[1].caption(PICTURES[0], **options).text
    with pytest.raises(ConfigError, match="known only at the end"):
        both[1].stream(PICTURES[0], beams=2)


def test_export_draws_the_same_for_the_same_generator(both: Exported) -> None:
    first, again, other = (
        both[1].caption_batch(PICTURES, do_sample=True, generator=np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert [caption.tokens for caption in first] == [caption.tokens for caption in again]
    assert [caption.tokens for caption in first] != [caption.tokens for caption in other]


def test_export_with_more_beams_than_tokens_finds_the_captions_of_the_captioner(both: Exported) -> None:
    expected, found = (captioner.caption(PICTURES[0], beams=200, max_new_tokens=2) for captioner in both)
    assert found.tokens == expected.tokens and len(found.alternatives) == len(expected.alternatives)


def test_export_names_an_unknown_option(both: Exported) -> None:
    with pytest.raises(ConfigError, match="unknown decoding option 'beam'"):
        both[1].caption(PICTURES[0], beam=2)


@pytest.mark.parametrize("index", [0, 1])
def test_rules_that_allow_no_token_for_a_picture_are_an_error_of_that_picture(both: Exported, index: int) -> None:
    each = [{}, {"min_new_tokens": 7, "no_repeat_ngram_size": 1, "only_words": ("a",)}, {}, {}]
    captions = both[index].caption_batch(PICTURES, each=each)
    assert [bool(caption.error) for caption in captions] == [False, True, False, False]
    assert (captions[1].text, captions[1].confidence, captions[1].ended_by) == ("", 0.0, "failed")
    with pytest.raises(ConfigError, match="only_words .*: no token is allowed at position"):
        both[index].caption(PICTURES[1], **each[1])


@pytest.mark.parametrize("index", [0, 1])
def test_a_caption_cut_within_a_character_ends_before_it(both: Exported, index: int) -> None:
    whole, cut = (
        both[index].caption(PICTURES[0], regex="red (🟥|🟦)", max_new_tokens=length) for length in (12, 5)
    )
    assert whole.text in ("red 🟥", "red 🟦") and whole.ended_by == "end"
    assert cut.text == "red" and cut.ended_by == "length"
    assert "".join(both[index].stream(PICTURES[0], regex="red (🟥|🟦)", max_new_tokens=5)) == "red"


@pytest.mark.parametrize("index", [0, 1])
def test_blanks_at_the_end_of_the_prefix_change_nothing(both: Exported, index: int) -> None:
    captions = [both[index].caption(PICTURES[0], prefix=prefix) for prefix in ("a", "a ", "a  ", "a\n")]
    assert all(caption.tokens == captions[0].tokens for caption in captions)


def test_export_refuses_a_prefix_that_fills_the_context(both: Exported) -> None:
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


@pytest.mark.slow
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
        (with_more_words, "tokens up to number 100000, but the decoder"),
        (with_an_unknown_operator, "upgrade onnxruntime, or export with --precision fp32"),
    ],
)
def test_a_damaged_export_is_refused_with_a_reason(
    folder: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        OnnxCaptioner.load(folder)


def test_export_reports_what_onnx_runtime_cannot_compute(folder: Path) -> None:
    captioner = OnnxCaptioner.load(folder)
    with pytest.raises(CheckpointError, match="could not compute the export"):
        captioner.caption_tensors([np.zeros((3, 32, 32), np.float32)], captioner.decode)


@pytest.mark.parametrize("location", ["../elsewhere.bin", "/etc/hostname", "link.bin"])
def test_export_reads_no_weights_outside_of_its_folder(folder: Path, location: str) -> None:
    (folder / "elsewhere.bin").write_bytes(bytes(4096))
    (folder / "onnx/link.bin").symlink_to(folder / "elsewhere.bin")
    proto = onnx.load(folder / "onnx/decoder_model_merged.onnx")
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "wpe")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    onnx.save(proto, folder / "onnx/decoder_model_merged.onnx")
    with pytest.raises(CheckpointError, match="External data path"):
        OnnxCaptioner.load(folder)


@pytest.mark.slow
def test_exports_with_bytes_changed_at_random_open_or_are_refused(folder: Path) -> None:
    """Bytes of the nodes and shapes, which stand before the weights."""
    file, random, refused = folder / "onnx/decoder_model_merged.onnx", np.random.default_rng(0), 0
    whole = file.read_bytes()
    for _ in range(200):
        damaged = bytearray(whole)
        for index in random.integers(0, 12_000, random.integers(1, 5)):
            damaged[index] = random.integers(256)
        file.write_bytes(damaged[: random.integers(1, len(whole))] if random.random() < 0.1 else damaged)
        try:
            OnnxCaptioner.load(folder, threads=1).caption(PICTURES[0])
        except CheckpointError:
            refused += 1
    assert refused > 100
