from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from myllm.config import DecodeConfig
from myllm.decoding.engine import SearchRequest
from myllm.decoding.generate import generate
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
class Walk:
    """Captions told to an `OnnxStepper` step by step, and in full to the model, which has no cache to be wrong."""

    model: VisionGPT2
    stepper: OnnxStepper
    images: Tensor
    state: Any
    said: Tensor = field(default_factory=lambda: torch.empty(len(IMAGES), 1, 0, dtype=torch.int64))
    seed: Any = field(default_factory=lambda: torch.Generator().manual_seed(0))

    @classmethod
    def of(cls, model: VisionGPT2, **options: Any) -> "Walk":
        stepper = OnnxStepper(model, threads=1, **options)
        return cls(model, stepper, IMAGES, stepper.start(model.encode(IMAGES)))

    def say(self, positions: int = 1) -> tuple[Tensor, Tensor]:
        """Random tokens; returns the logits after them, and those expected: (B, G, vocab_size)."""
        newest = torch.randint(VOCAB, (*self.said.shape[:2], positions), generator=self.seed)
        self.said = torch.cat([self.said, newest], dim=-1)
        logits, self.state = self.stepper.step(newest, self.state)
        return logits, self.model(self.images, self.said)[:, :, -1]

    def go_on_from(self, rows: Tensor) -> None:
        self.images = self.images[rows[:, 0] // self.said.shape[1]]
        self.said = self.said.flatten(0, 1)[rows]
        self.state = self.stepper.reorder(self.state, rows)

    def shuffle(self, captions: int) -> None:
        """Each image goes on with so many of its captions, drawn at random."""
        batch, before, _ = self.said.shape
        drawn = torch.randint(before, (batch, captions), generator=self.seed)
        self.go_on_from(drawn + before * torch.arange(batch)[:, None])


def wide(tiny_model: TinyModel, geometry: tuple[int, int, int], **options: Any) -> VisionGPT2:
    n_embd, n_head, n_layer = geometry
    return tiny_model(n_embd=n_embd, n_head=n_head, n_layer=n_layer, vocab_size=VOCAB, n_positions=40, **options)


def assert_close(logits: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_logits_are_torchs(tiny_model: TinyModel, geometry: tuple[int, int, int], mode: str) -> None:
    walk = Walk.of(wide(tiny_model, geometry, mode=mode))
    for positions in (1, 1, 3, 1):
        assert_close(*walk.say(positions))


@torch.inference_mode()
def test_an_exact_gelu_stays_exact(tiny_model: TinyModel) -> None:
    exact, approximate = (wide(tiny_model, GEOMETRIES[1], gelu=form) for form in ("none", "tanh"))
    walk = Walk.of(exact)
    logits, expected = walk.say(3)
    other = approximate(walk.images, walk.said)[:, :, -1]
    assert (logits - expected).abs().max() < (other - expected).abs().max() / 10


@torch.inference_mode()
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_captions_that_part_and_images_that_leave_keep_their_own_past(
    tiny_model: TinyModel, geometry: tuple[int, int, int]
) -> None:
    walk = Walk.of(wide(tiny_model, geometry))
    assert_close(*walk.say(3))
    walk.go_on_from(torch.tensor([[0] * 4, [1] * 4, [2] * 4]))
    assert_close(*walk.say())
    walk.go_on_from(torch.tensor([[9, 8, 11, 8], [3, 0, 1, 3]]))
    assert_close(*walk.say())
    walk.go_on_from(torch.tensor([[5, 5]]))
    assert_close(*walk.say(2))


@torch.inference_mode()
def test_slots_that_no_caption_goes_on_from_leave(tiny_model: TinyModel) -> None:
    walk = Walk.of(wide(tiny_model, GEOMETRIES[1]))
    walk.say()
    for _ in range(35):
        walk.shuffle(captions=6)
        assert_close(*walk.say())
    assert walk.state.mask.shape[-1] < 35 * 6 / 2


@torch.inference_mode()
def test_a_state_can_be_gone_on_from_again_where_nothing_was_said_since(tiny_model: TinyModel) -> None:
    walk = Walk.of(wide(tiny_model, GEOMETRIES[0]))
    walk.say(2)
    again = torch.full((3, 1, 1), 7)
    first, _ = walk.stepper.step(again, walk.state)
    second, _ = walk.stepper.step(again, walk.state)
    assert torch.equal(first, second)


@torch.inference_mode()
@pytest.mark.parametrize("prefix", [(), (3, 7)])
@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_captions_are_torchs(
    tiny_model: TinyModel, geometry: tuple[int, int, int], mode: str, beams: int, prefix: tuple[int, ...]
) -> None:
    model, decode = wide(tiny_model, geometry, mode=mode), DecodeConfig(beams=beams, max_new_tokens=12)
    steppers = OnnxStepper(model, threads=1), ModelStepper(model, 20)
    found, expected = (
        generate(SearchRequest(stepper, model.encode(IMAGES), len(IMAGES), END, decode, prefix)) for stepper in steppers
    )
    assert [[one.tokens for one in beam] for beam in found] == [[one.tokens for one in beam] for beam in expected]


@torch.inference_mode()
def test_int8_is_near(tiny_model: TinyModel) -> None:
    walk = Walk.of(wide(tiny_model, GEOMETRIES[1]), precision="int8")
    for positions in (2, 1, 1):
        logits, expected = walk.say(positions)
        off = (logits - expected).square().mean() / expected.square().mean()
        assert 0 < off < 0.02**2


@torch.inference_mode()
def test_int8_logits_do_not_depend_on_the_other_images(tiny_model: TinyModel) -> None:
    model = wide(tiny_model, GEOMETRIES[2])
    stepper, tokens = OnnxStepper(model, "int8", threads=1), torch.arange(6).view(3, 1, 2)
    together, _ = stepper.step(tokens, stepper.start(model.encode(IMAGES)))
    alone, _ = stepper.step(tokens[1:2], stepper.start(model.encode(IMAGES[1:2])))
    torch.testing.assert_close(alone[0], together[1], rtol=0, atol=1e-3)


def test_int8_weights_with_their_scales_are_under_a_third(tiny_model: TinyModel) -> None:
    decoder = wide(tiny_model, (128, 2, 2)).decoder

    def linear_bytes(precision: Any) -> int:
        weights = _StepGraph(decoder, precision).weights
        return sum(array.nbytes for name, array in weights.items() if array.ndim > 1 or name.endswith("scale"))

    assert linear_bytes("int8") < 0.33 * linear_bytes("fp32")


@torch.inference_mode()
def test_more_tokens_than_the_context_are_refused(tiny_model: TinyModel) -> None:
    walk = Walk.of(wide(tiny_model, GEOMETRIES[0]))
    walk.say(39)
    walk.say()
    with pytest.raises(ConfigError, match="41 tokens do not fit the context of 40"):
        walk.say()
