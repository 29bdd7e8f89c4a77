from collections.abc import Callable
from itertools import zip_longest

import pytest
import torch

from myllm.config import DecodeConfig
from myllm.decoding.beam import Beams
from myllm.decoding.engine import SearchRequest, run_search
from myllm.decoding.generate import generate
from myllm.errors import ConfigError
from myllm.inference.torch_steppers import ModelStepper, RecordedStepper
from myllm.model.vision_gpt2 import VisionGPT2

END = 60
IMAGES = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
TinyModel = Callable[..., VisionGPT2]


def search(stepper: ModelStepper | RecordedStepper, images: torch.Tensor, decode: DecodeConfig) -> SearchRequest:
    return SearchRequest(stepper, stepper.model.encode(images), len(images), END, decode, prefix=(3, 7), seeds=range(5))


def captions(stepper: ModelStepper | RecordedStepper, images: torch.Tensor, decode: DecodeConfig) -> list[list[int]]:
    return [one.tokens for beams in generate(search(stepper, images, decode)) for one in beams]


@pytest.fixture
def model(tiny_model: TinyModel) -> VisionGPT2:
    torch.manual_seed(3)
    return tiny_model(vocab_size=61, n_positions=40).eval()


@torch.inference_mode()
@pytest.mark.parametrize(
    "options",
    [{"beams": 1}, {"beams": 4}, {"beams": 3, "early_stopping": True}, {"do_sample": True, "num_return_sequences": 3}],
)
def test_recorded_steps_say_what_the_model_says(model: VisionGPT2, options: dict[str, object]) -> None:
    decode = DecodeConfig(max_new_tokens=37, **options)  # type: ignore[arg-type]
    recorded, plain = RecordedStepper(model), ModelStepper(model, 40)
    # the second time what was recorded is played; three images stand in buffers for four
    for images in (IMAGES, IMAGES.flip(0), IMAGES[:3]):
        assert captions(recorded, images, decode) == captions(plain, images, decode)


@torch.inference_mode()
def test_two_searches_at_a_time_do_not_share_buffers(model: VisionGPT2) -> None:
    recorded, decode = RecordedStepper(model), DecodeConfig(beams=2, max_new_tokens=12)
    searches = [search(recorded, images, decode) for images in (IMAGES[:2], IMAGES[2:4])]
    choosers = [Beams(one) for one in searches]
    for _ in zip_longest(*map(run_search, searches, choosers)):
        pass
    found = [beams[0].tokens for chooser in choosers for beams in chooser.found()]
    assert found == [captions(ModelStepper(model, 40), image[None], decode)[0] for image in IMAGES[:4]]


@torch.inference_mode()
def test_buffers_are_used_again(model: VisionGPT2) -> None:
    recorded, decode = RecordedStepper(model), DecodeConfig(max_new_tokens=10, min_new_tokens=10)
    for _ in range(4):
        captions(recorded, IMAGES, decode)
    # room for 4, 8 and 16 positions, the first 3 of which were read at once
    assert [(len(free), sorted(free[0].steps)) for free in recorded._free.values()] == [
        (1, [3]), (1, [4, 5, 6, 7]), (1, [8, 9, 10, 11]),
    ]


@torch.inference_mode()
def test_more_tokens_than_the_context_are_refused(model: VisionGPT2) -> None:
    recorded = RecordedStepper(model)
    state = recorded.start(model.encode(IMAGES))
    _, state = recorded.step(torch.zeros(5, 1, 39, dtype=torch.int64), state)
    _, state = recorded.step(torch.zeros(5, 1, 1, dtype=torch.int64), state)
    with pytest.raises(ConfigError, match="41 tokens do not fit the context of 40"):
        recorded.step(torch.zeros(5, 1, 1, dtype=torch.int64), state)


@torch.inference_mode()
def test_a_compiled_model_says_the_same(model: VisionGPT2) -> None:
    decode = DecodeConfig(beams=2, max_new_tokens=6)
    expected = captions(ModelStepper(model, 40), IMAGES, decode)
    # the graphs that compiling captures, run by torch itself: tests need no compiler
    model.decoder.forward = torch.compile(model.decoder.forward, backend="aot_eager", dynamic=True)  # type: ignore[method-assign]
    assert captions(ModelStepper(model, 40), IMAGES, decode) == expected
