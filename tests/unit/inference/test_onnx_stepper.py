"""The ONNX Runtime step against the model itself, which computes every caption from its beginning."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from myllm.config import DecodeConfig
from myllm.decoding.engine import Hypothesis, SearchRequest
from myllm.decoding.search import generate
from myllm.errors import ConfigError
from myllm.inference.onnx_stepper import OnnxStepper, _StepGraph
from myllm.inference.torch_steppers import ModelStepper
from myllm.model.vision_gpt2 import VisionGPT2

VOCAB, END = 61, 60
GEOMETRIES = [(36, 3, 1), (40, 5, 3), (48, 2, 2)]
MODES = ["last", "layerwise"]
IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
TinyModel = Callable[..., VisionGPT2]


@dataclass
class Captions:
    """Captions that grow in an `OnnxStepper`, and in full in the model, which has no cache to be wrong."""

    model: VisionGPT2
    stepper: OnnxStepper
    images: Tensor
    state: Any
    tokens: NDArray[np.int64] = field(default_factory=lambda: np.empty((len(IMAGES), 1, 0), np.int64))
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    @classmethod
    def begin(cls, model: VisionGPT2, **options: Any) -> "Captions":
        stepper = OnnxStepper(model, threads=1, **options)
        return cls(model, stepper, IMAGES, stepper.start(model.encode(IMAGES)))

    def extend(self, positions: int = 1) -> tuple[Tensor, Tensor]:
        """Add random tokens; return the logits after them and the expected ones: (B, G, vocab_size)."""
        newest = self.random.integers(VOCAB, size=(*self.tokens.shape[:2], positions))
        self.tokens = np.concatenate([self.tokens, newest], axis=-1)
        logits, self.state = self.stepper.step(newest, self.state)
        return torch.from_numpy(logits), self.model(self.images, torch.from_numpy(self.tokens))[:, :, -1]

    def reorder(self, rows: list[list[int]] | NDArray[np.int64]) -> None:
        rows = np.array(rows)
        _, captions, length = self.tokens.shape
        self.images = self.images[torch.from_numpy(rows[:, 0] // captions)]
        self.tokens = self.tokens.reshape(-1, length)[rows]
        self.state = self.stepper.reorder(self.state, rows)

    def shuffle(self, captions: int) -> None:
        """Continue each image with so many of its captions, drawn at random."""
        batch, before, _ = self.tokens.shape
        self.reorder(self.random.integers(before, size=(batch, captions)) + before * np.arange(batch)[:, None])


def wide(tiny_model: TinyModel, geometry: tuple[int, int, int], **options: Any) -> VisionGPT2:
    n_embd, n_head, n_layer = geometry
    return tiny_model(n_embd=n_embd, n_head=n_head, n_layer=n_layer, vocab_size=VOCAB, n_positions=40, **options)


def tokens_of(results: list[list[Hypothesis]]) -> list[list[int]]:
    return [hypothesis.tokens for hypotheses in results for hypothesis in hypotheses]


def assert_close(logits: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_onnx_step_has_the_logits_of_torch(tiny_model: TinyModel, geometry: tuple[int, int, int], mode: str) -> None:
    captions = Captions.begin(wide(tiny_model, geometry, mode=mode))
    for positions in (1, 1, 3, 1):
        assert_close(*captions.extend(positions))


@torch.inference_mode()
def test_onnx_step_keeps_an_exact_gelu_exact(tiny_model: TinyModel) -> None:
    exact, approximate = (wide(tiny_model, GEOMETRIES[1], gelu=form) for form in ("none", "tanh"))
    captions = Captions.begin(exact)
    logits, expected = captions.extend(3)
    other = approximate(captions.images, torch.from_numpy(captions.tokens))[:, :, -1]
    assert (logits - expected).abs().max() < (other - expected).abs().max() / 10


@torch.inference_mode()
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_onnx_reorder_keeps_the_past_of_each_caption_and_image(
    tiny_model: TinyModel, geometry: tuple[int, int, int]
) -> None:
    captions = Captions.begin(wide(tiny_model, geometry))
    assert_close(*captions.extend(3))
    captions.reorder([[0] * 4, [1] * 4, [2] * 4])
    assert_close(*captions.extend())
    captions.reorder([[9, 8, 11, 8], [3, 0, 1, 3]])
    assert_close(*captions.extend())
    captions.reorder([[5, 5]])
    assert_close(*captions.extend(2))


@torch.inference_mode()
def test_onnx_reorder_drops_slots_that_no_caption_continues(tiny_model: TinyModel) -> None:
    captions = Captions.begin(wide(tiny_model, GEOMETRIES[1]))
    captions.extend()
    for _ in range(35):
        captions.shuffle(captions=6)
        assert_close(*captions.extend())
    assert captions.state.mask.shape[-1] < 35 * 6 / 2


@torch.inference_mode()
def test_onnx_step_can_be_repeated_from_the_same_state(tiny_model: TinyModel) -> None:
    captions = Captions.begin(wide(tiny_model, GEOMETRIES[0]))
    captions.extend(2)
    newest = np.full((3, 1, 1), 7)
    first, _ = captions.stepper.step(newest, captions.state)
    second, _ = captions.stepper.step(newest, captions.state)
    np.testing.assert_array_equal(first, second)


@torch.inference_mode()
@pytest.mark.parametrize("prefix", [(), (3, 7)])
@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_onnx_stepper_finds_the_captions_of_torch(
    tiny_model: TinyModel, geometry: tuple[int, int, int], mode: str, beams: int, prefix: tuple[int, ...]
) -> None:
    model, decode = wide(tiny_model, geometry, mode=mode), DecodeConfig(beams=beams, max_new_tokens=12)
    steppers = OnnxStepper(model, threads=1), ModelStepper(model, 20)
    found, expected = (
        generate(SearchRequest(stepper, model.encode(IMAGES), len(IMAGES), END, decode, prefix)) for stepper in steppers
    )
    assert tokens_of(found) == tokens_of(expected)


@torch.inference_mode()
def test_int8_logits_are_near_the_exact_ones(tiny_model: TinyModel) -> None:
    captions = Captions.begin(wide(tiny_model, GEOMETRIES[1]), precision="int8")
    for positions in (2, 1, 1):
        logits, expected = captions.extend(positions)
        off = (logits - expected).square().mean() / expected.square().mean()
        assert 0 < off < 0.02**2


@torch.inference_mode()
def test_int8_logits_do_not_depend_on_the_other_images(tiny_model: TinyModel) -> None:
    model = wide(tiny_model, GEOMETRIES[2])
    stepper, tokens = OnnxStepper(model, "int8", threads=1), np.arange(6).reshape(3, 1, 2)
    together, _ = stepper.step(tokens, stepper.start(model.encode(IMAGES)))
    alone, _ = stepper.step(tokens[1:2], stepper.start(model.encode(IMAGES[1:2])))
    np.testing.assert_allclose(alone[0], together[1], rtol=0, atol=1e-3)


@torch.inference_mode()
def test_int8_sums_do_not_overflow_16_bits(tiny_model: TinyModel) -> None:
    model = wide(tiny_model, GEOMETRIES[1])
    model.decoder.lm_head.weight.fill_(1.0)  # large products, of which processors without VNNI add two in 16 bits
    model.decoder.transformer.ln_f.weight.zero_()
    model.decoder.transformer.ln_f.bias.fill_(1.0)
    logits, expected = Captions.begin(model, precision="int8").extend()
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=0)


@torch.inference_mode()
def test_int8_of_rows_that_are_zero_is_the_bias(tiny_model: TinyModel) -> None:
    model = wide(tiny_model, GEOMETRIES[1])
    for norm in (block.ln_2 for block in model.decoder.blocks):
        norm.weight.zero_()
        norm.bias.zero_()
    logits, expected = Captions.begin(model, precision="int8").extend()
    assert (logits - expected).square().mean() < 0.02**2 * expected.square().mean()


def test_int8_weights_with_their_scales_take_under_a_third_of_the_bytes(tiny_model: TinyModel) -> None:
    decoder = wide(tiny_model, (128, 2, 2)).decoder

    def linear_bytes(precision: Any) -> int:
        weights = _StepGraph(decoder, precision).weights
        return sum(array.nbytes for name, array in weights.items() if array.ndim > 1 or name.endswith("scale"))

    assert linear_bytes("int8") < 0.33 * linear_bytes("fp32")


@torch.inference_mode()
def test_onnx_step_refuses_more_tokens_than_the_context(tiny_model: TinyModel) -> None:
    captions = Captions.begin(wide(tiny_model, GEOMETRIES[0]))
    captions.extend(39)
    captions.extend()
    with pytest.raises(ConfigError, match="41 tokens do not fit the context of 40"):
        captions.extend()
