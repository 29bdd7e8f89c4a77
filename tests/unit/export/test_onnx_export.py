"""The files that `myllm export --to onnx` writes: what they compute, how large they are, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from myllm.checkpoints.native import Checkpoint
from myllm.config import CaptionerConfig, GPTConfig, VisionConfig
from myllm.errors import ConfigError
from myllm.export import onnx_export
from myllm.export.onnx_export import Precision
from myllm.export.onnx_graph import BLOCK
from myllm.model.vision_gpt2 import VisionGPT2


def model_of(vision: str, mode: Any = "last", **text: int) -> VisionGPT2:
    geometry = {"vocab_size": 200, "n_positions": 16, "n_layer": 2, "n_head": 2, "n_embd": 64} | text
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CaptionerConfig(VisionConfig(vision, pretrained=False), GPTConfig(**geometry), mode)
        return VisionGPT2(config).eval()


def session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    onnx.checker.check_model(proto)
    return onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


def keys_and_values(model: VisionGPT2, images: Tensor) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        parts = [part for layer in model.encode(images).layers for part in layer]
    return torch.stack(parts, 1).flatten(1, 3).numpy()


BACKBONES = {
    "vit_mini_conv8_64": "last", "test_vit": "layerwise", "test_efficientnet": "last", "test_convnext": "last",
    "test_resnet": "last",
}


@pytest.mark.parametrize("name", BACKBONES)
def test_the_encoder_gives_the_keys_and_values_of_any_number_of_pictures(name: str) -> None:
    model = model_of(name, BACKBONES[name])
    encoder = session(onnx_export.encoder_graph(model, "fp32"))
    for count in (1, 3):
        images = torch.randn(count, 3, *model.encoder.preprocess.image_size)
        found = encoder.run(None, {"pixel_values": images.numpy()})[0]
        np.testing.assert_allclose(found, keys_and_values(model, images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [(1, 1, 1, 1), (4,), (2, 1, 1)], ids=str)
@pytest.mark.parametrize("captions", [1, 3])
def test_steps_of_any_length_give_the_models_logits(steps: tuple[int, ...], captions: int) -> None:
    model = model_of("vit_mini_conv8_64")
    decoder = session(onnx_export.decoder_graph(model, "fp32"))
    images, tokens = torch.randn(2, 3, 64, 64), torch.randint(200, (2, captions, sum(steps)))
    with torch.inference_mode():
        expected = model(images, tokens).flatten(0, 1).numpy()
    past = {one.name: np.zeros((2 * captions, 2, 0, 32), np.float32) for one in decoder.get_inputs()[2:]}
    found, first = [], 0
    for newest in steps:
        told = tokens.flatten(0, 1)[:, first : first + newest].numpy()
        seen = keys_and_values(model, images)
        logits, *present = decoder.run(None, {"input_ids": told, "encoder_hidden_states": seen, **past})
        past, first = dict(zip(past, present, strict=True)), first + newest
        found.append(logits)
    np.testing.assert_allclose(np.concatenate(found, 1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("precision", "share", "off"), [("int8", 0.30, 0.02), ("int4", 0.20, 0.3)])
@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_rounded_files_are_small_and_nearly_as_good(
    tiny_checkpoint: Checkpoint, name: str, precision: Precision, share: float, off: float, tmp_path: Path
) -> None:
    model = model_of(name, n_embd=256, vocab_size=tiny_checkpoint.tokenizer.get_vocab_size())
    decoders, encoders = (
        [make(model, one) for one in ("fp32", precision)]
        for make in (onnx_export.decoder_graph, onnx_export.encoder_graph)
    )
    # of tiny backbones nodes and norms are the greater part
    exact, small = (proto.ByteSize() for proto in decoders)
    assert small < share * exact
    images = torch.randn(4, 3, *model.encoder.preprocess.image_size)
    exact_kv, small_kv = (session(proto).run(None, {"pixel_values": images.numpy()})[0] for proto in encoders)
    assert 0 < np.abs(small_kv - exact_kv).std() < off * exact_kv.std()
    names = [f"past_key_values.{at}.{kind}" for at in (0, 1) for kind in ("key", "value")]
    past = {name: np.zeros((4, 2, 0, 128), np.float32) for name in names}
    fed = {"input_ids": np.arange(20).reshape(4, 5), "encoder_hidden_states": exact_kv, **past}
    exact_logits, small_logits = (session(proto).run(None, fed)[0] for proto in decoders)
    assert 0 < np.abs(small_logits - exact_logits).std() < off * exact_logits.std()


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_is_off_by_half_a_step_at_most(bits: int) -> None:
    weight = torch.randn(70, 5, generator=torch.Generator().manual_seed(0))
    values, units = onnx_export.rounded(weight, bits)
    assert values.shape == (70, 5) and units.shape == (3, 5)
    steps = units.repeat(BLOCK, 0)[:70]
    assert (np.abs(values.astype(np.float32) * steps - weight.numpy()) <= 0.5001 * steps).all()


def test_a_table_whose_width_is_no_whole_number_of_blocks_is_read_right() -> None:
    model = model_of("vit_mini_conv8_64", n_embd=40)
    exact, small = (session(onnx_export.decoder_graph(model, one)) for one in ("fp32", "int8"))
    past = {one.name: np.zeros((2, 2, 0, 20), np.float32) for one in exact.get_inputs()[2:]}
    seen = keys_and_values(model, torch.randn(2, 3, 64, 64))
    fed = {"input_ids": np.array([[1, 2, 3], [7, 8, 9]]), "encoder_hidden_states": seen, **past}
    expected, found = (one.run(None, fed)[0] for one in (exact, small))
    assert np.abs(found - expected).std() < 0.02 * expected.std()


class _Spectral(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x)[..., None].expand_as(x) + x


class _InFiveDimensions(nn.Module):
    """As timm's Hiera attends."""

    def forward(self, x: Tensor) -> Tensor:
        heads = x[:, None, None]
        return nn.functional.scaled_dot_product_attention(heads, heads, heads)[:, 0, 0]


@pytest.mark.parametrize(
    ("module", "operator"), [(_Spectral, "svd"), (_InFiveDimensions, "scaled_dot_product_attention.*only 4D")]
)
def test_an_operator_that_onnx_has_not_is_named(
    tiny_checkpoint: Checkpoint, tmp_path: Path, module: type[nn.Module], operator: str
) -> None:
    model = model_of("vit_mini_conv8_64", vocab_size=tiny_checkpoint.tokenizer.get_vocab_size())
    model.encoder.backbone.norm = module()
    told = rf"vision.name vit_mini_conv8_64 can't be written as ONNX: its operator aten.*{operator}"
    with pytest.raises(ConfigError, match=told):
        onnx_export.to_folder(replace(tiny_checkpoint, model=model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_beyond_what_a_file_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "MAX_BYTES", 1000)
    for make in (onnx_export.decoder_graph, onnx_export.encoder_graph):
        with pytest.raises(ConfigError, match="do not fit into one ONNX file"):
            make(model_of("vit_mini_conv8_64"), "fp32")


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_rounded_matrices_are_multiplied_with_as_they_are(precision: Precision, tmp_path: Path) -> None:
    """ONNX Runtime restores none of them at a step: of the decoder the table's rows alone, for what was said."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    proto = onnx_export.decoder_graph(model_of("vit_mini_conv8_64"), precision)
    onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert operators.count("MatMulNBits") == 2 * 6 + 1 and operators.count("DequantizeLinear") == 1
