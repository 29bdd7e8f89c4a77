"""The graphs that `myllm export --to onnx` writes: results, sizes and errors."""

from dataclasses import replace
from functools import cache
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
from myllm.export.onnx_graph import BLOCK_SIZE
from myllm.model.vision_gpt2 import VisionGPT2


def random_model(vision: str | VisionConfig, mode: Any = "last", **text: int) -> VisionGPT2:
    vision = VisionConfig(vision, pretrained=False) if isinstance(vision, str) else vision
    geometry = {"vocab_size": 200, "n_positions": 16, "n_layer": 2, "n_head": 2, "n_embd": 64} | text
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CaptionerConfig(vision, GPTConfig(**geometry), mode)
        return VisionGPT2(config).eval()


def session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    onnx.checker.check_model(proto)
    return onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


def keys_and_values(model: VisionGPT2, images: Tensor) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        parts = [part for layer in model.encode(images).layers for part in layer]
    return torch.stack(parts, 1).flatten(1, 3).numpy()


def empty_past(decoder: onnxruntime.InferenceSession, captions: int) -> dict[str, np.ndarray[Any, Any]]:
    shapes = {node.name: node.shape for node in decoder.get_inputs()[2:]}
    return {name: np.zeros((captions, shape[1], 0, shape[3]), np.float32) for name, shape in shapes.items()}


BACKBONES = {
    "vit_mini_conv8_64": "last", "test_vit": "layerwise", "test_efficientnet": "last", "test_convnext": "last",
    "test_resnet": "last", "test_efficientnet mirrored": "last", "test_efficientnet maps": "last",
}


@cache
def random_encoder(name: str) -> tuple[VisionGPT2, onnx.ModelProto]:
    """Return a model and its fp32 encoder graph; cached, because tracing takes seconds."""
    more = {"mirrored": name.endswith(" mirrored"), "feature_maps": 3 if name.endswith(" maps") else 1}
    model = random_model(VisionConfig(name.split()[0], pretrained=False, **more), BACKBONES[name])
    return model, onnx_export.encoder_graph(model, "fp32")


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_encoder_graph_returns_keys_and_values_for_any_batch_size(name: str) -> None:
    model, proto = random_encoder(name)
    encoder = session(proto)
    for count in (1, 3):
        images = torch.randn(count, 3, *model.encoder.preprocess.image_size)
        hidden = encoder.run(None, {"pixel_values": images.numpy()})[0]
        np.testing.assert_allclose(hidden, keys_and_values(model, images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [(1, 1, 1, 1), (4,), (2, 1, 1)], ids=str)
@pytest.mark.parametrize("captions", [1, 3])
def test_decoder_graph_returns_the_models_logits_for_steps_of_any_length(steps: tuple[int, ...], captions: int) -> None:
    model = random_model("vit_mini_conv8_64")
    decoder = session(onnx_export.decoder_graph(model, "fp32"))
    images, tokens = torch.randn(2, 3, 64, 64), torch.randint(200, (2, captions, sum(steps)))
    with torch.inference_mode():
        expected = model(images, tokens).flatten(0, 1).numpy()
    past = empty_past(decoder, 2 * captions)
    hidden, logits, first = keys_and_values(model, images), [], 0
    for length in steps:
        newest = tokens.flatten(0, 1)[:, first : first + length].numpy()
        step_logits, *present = decoder.run(None, {"input_ids": newest, "encoder_hidden_states": hidden, **past})
        past, first = dict(zip(past, present, strict=True)), first + length
        logits.append(step_logits)
    np.testing.assert_allclose(np.concatenate(logits, 1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.02), (4, 0.3)])
@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_quantize_weights_leaves_an_encoder_nearly_exact(name: str, bits: int, tolerance: float) -> None:
    model, exact = random_encoder(name)
    quantized = onnx.ModelProto()
    quantized.CopyFrom(exact)
    onnx_export.quantize_weights(quantized, bits)
    images = torch.randn(4, 3, *model.encoder.preprocess.image_size).numpy()
    expected, hidden = (session(proto).run(None, {"pixel_values": images})[0] for proto in (exact, quantized))
    assert 0 < np.abs(hidden - expected).std() < tolerance * expected.std()


@pytest.mark.parametrize(("precision", "size_ratio", "tolerance"), [("int8", 0.30, 0.02), ("int4", 0.20, 0.3)])
def test_quantized_decoder_graph_is_small_and_nearly_exact(
    precision: Precision, size_ratio: float, tolerance: float
) -> None:
    model = random_model("vit_mini_conv8_64", n_embd=256, vocab_size=300)
    exact, quantized = (onnx_export.decoder_graph(model, option) for option in ("fp32", precision))
    assert quantized.ByteSize() < size_ratio * exact.ByteSize()
    decoders = [session(exact), session(quantized)]
    hidden = keys_and_values(model, torch.randn(4, 3, 64, 64))
    inputs = {"input_ids": np.arange(20).reshape(4, 5), "encoder_hidden_states": hidden, **empty_past(decoders[0], 4)}
    expected, logits = (decoder.run(None, inputs)[0] for decoder in decoders)
    assert 0 < np.abs(logits - expected).std() < tolerance * expected.std()


@pytest.mark.parametrize("bits", [8, 4])
def test_quantize_matrix_rounds_by_at_most_half_a_scale(bits: int) -> None:
    weight = torch.randn(70, 5, generator=torch.Generator().manual_seed(0))
    numbers, scales = onnx_export.quantize_matrix(weight, bits)
    assert numbers.shape == (70, 5) and scales.shape == (3, 5)
    steps = scales.repeat(BLOCK_SIZE, 0)[:70]
    assert (np.abs(numbers.astype(np.float32) * steps - weight.numpy()) <= 0.5001 * steps).all()


def test_quantized_decoder_graph_accepts_a_width_that_is_not_a_multiple_of_the_block_size() -> None:
    model = random_model("vit_mini_conv8_64", n_embd=40)
    decoders = [session(onnx_export.decoder_graph(model, precision)) for precision in ("fp32", "int8")]
    hidden = keys_and_values(model, torch.randn(2, 3, 64, 64))
    tokens = np.array([[1, 2, 3], [7, 8, 9]])
    inputs = {"input_ids": tokens, "encoder_hidden_states": hidden, **empty_past(decoders[0], 2)}
    exact, quantized = (decoder.run(None, inputs)[0] for decoder in decoders)
    assert np.abs(quantized - exact).std() < 0.02 * exact.std()


class _Spectral(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x)[..., None].expand_as(x) + x


class _FiveDimensions(nn.Module):
    """Attention over five dimensions, as in timm's Hiera."""

    def forward(self, x: Tensor) -> Tensor:
        heads = x[:, None, None]
        return nn.functional.scaled_dot_product_attention(heads, heads, heads)[:, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "operator"), [(_Spectral, "svd"), (_FiveDimensions, "scaled_dot_product_attention.*only 4D")]
)
def test_to_folder_names_an_operator_that_onnx_lacks(
    tiny_checkpoint: Checkpoint, tmp_path: Path, module: type[nn.Module], operator: str
) -> None:
    model = random_model("vit_mini_conv8_64", vocab_size=tiny_checkpoint.tokenizer.get_vocab_size())
    model.encoder.backbone.norm = module()
    message = rf"vision.name vit_mini_conv8_64 can't be written as ONNX: its operator aten.*{operator}"
    with pytest.raises(ConfigError, match=message):
        onnx_export.to_folder(replace(tiny_checkpoint, model=model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_graphs_refuse_more_weights_than_one_file_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "MAX_BYTES", 1000)
    for make_graph in (onnx_export.decoder_graph, onnx_export.encoder_graph):
        with pytest.raises(ConfigError, match="do not fit into one ONNX file"):
            make_graph(random_model("vit_mini_conv8_64"), "fp32")


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_onnx_runtime_multiplies_with_quantized_weights_directly(precision: Precision, tmp_path: Path) -> None:
    """In a decoding step, only the embeddings of the newest tokens are dequantized."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    proto = onnx_export.decoder_graph(random_model("vit_mini_conv8_64"), precision)
    onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert operators.count("MatMulNBits") == 2 * 6 + 1 and operators.count("DequantizeLinear") == 1
