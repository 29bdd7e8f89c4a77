"""Steppers in torch: the recorded one compared with the plain one, and its buffers."""

from collections.abc import Callable
from itertools import zip_longest

import numpy as np
import pytest
import torch

from myllm.config import DecodeConfig
from myllm.decoding.beam import Beams
from myllm.decoding.engine import SearchRequest, run_search
from myllm.decoding.search import generate
from myllm.errors import ConfigError
from myllm.inference.torch_steppers import ModelStepper, RecordedStepper
from myllm.model.vision_gpt2 import VisionGPT2

END = 60
IMAGES = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
TinyModel = Callable[..., VisionGPT2]


def request_for(stepper: ModelStepper | RecordedStepper, images: torch.Tensor, decode: DecodeConfig) -> SearchRequest:
    kv = stepper.model.encode(images)
    return SearchRequest(stepper, kv, len(images), END, decode, prefix=(3, 7), seeds=range(5))


def captions(stepper: ModelStepper | RecordedStepper, images: torch.Tensor, decode: DecodeConfig) -> list[list[int]]:
    results = generate(request_for(stepper, images, decode))
    return [hypothesis.tokens for hypotheses in results for hypothesis in hypotheses]


@pytest.fixture
def model(tiny_model: TinyModel) -> VisionGPT2:
    torch.manual_seed(3)
    return tiny_model(vocab_size=61, n_positions=40).eval()


@torch.inference_mode()
@pytest.mark.parametrize(
    "options",
    [{"beams": 1}, {"beams": 4}, {"beams": 3, "early_stopping": True}, {"do_sample": True, "num_return_sequences": 3}],
)
def test_recorded_stepper_finds_the_captions_of_the_model(model: VisionGPT2, options: dict[str, object]) -> None:
    decode = DecodeConfig(max_new_tokens=37, **options)  # type: ignore[arg-type]
    recorded, plain = RecordedStepper(model), ModelStepper(model, 40)
    # the second search replays recordings; three images use buffers for four
    for images in (IMAGES, IMAGES.flip(0), IMAGES[:3]):
        assert captions(recorded, images, decode) == captions(plain, images, decode)


@torch.inference_mode()
def test_recorded_stepper_gives_two_searches_at_a_time_their_own_buffers(model: VisionGPT2) -> None:
    recorded, decode = RecordedStepper(model), DecodeConfig(beams=2, max_new_tokens=12)
    requests = [request_for(recorded, images, decode) for images in (IMAGES[:2], IMAGES[2:4])]
    strategies = [Beams(request) for request in requests]
    for _ in zip_longest(*map(run_search, requests, strategies)):
        pass
    tokens = [beams[0].tokens for strategy in strategies for beams in strategy.results()]
    assert tokens == [captions(ModelStepper(model, 40), image[None], decode)[0] for image in IMAGES[:4]]


@torch.inference_mode()
def test_recorded_stepper_uses_buffers_again(model: VisionGPT2) -> None:
    recorded, decode = RecordedStepper(model), DecodeConfig(max_new_tokens=10, min_new_tokens=10)
    for _ in range(4):
        captions(recorded, IMAGES, decode)
    # buffers for 4, 8 and 16 positions; the first step reads 3 positions
    assert [(len(free), sorted(free[0].steps)) for free in recorded.free.values()] == [
        (1, [3]), (1, [4, 5, 6, 7]), (1, [8, 9, 10, 11]),
    ]


@torch.inference_mode()
def test_recorded_stepper_gets_its_buffers_back_from_a_search_that_is_given_up(model: VisionGPT2) -> None:
    recorded, decode = RecordedStepper(model), DecodeConfig(beams=2, max_new_tokens=10, min_new_tokens=10)
    request = request_for(recorded, IMAGES, decode)
    steps = run_search(request, Beams(request))
    for _ in range(3):
        next(steps)
    assert [len(free) for free in recorded.free.values()] == [1, 0]  # those for 4 positions have become too small
    steps.close()
    assert [len(free) for free in recorded.free.values()] == [1, 1]


@torch.inference_mode()
def test_recorded_stepper_refuses_more_tokens_than_the_context(model: VisionGPT2) -> None:
    recorded = RecordedStepper(model)
    state = recorded.start(model.encode(IMAGES))
    _, state = recorded.step(np.zeros((5, 1, 39), np.int64), state)
    _, state = recorded.step(np.zeros((5, 1, 1), np.int64), state)
    with pytest.raises(ConfigError, match="41 tokens do not fit the context of 40"):
        recorded.step(np.zeros((5, 1, 1), np.int64), state)


@pytest.mark.slow
@torch.inference_mode()
def test_model_stepper_with_a_compiled_model_finds_the_same_captions(model: VisionGPT2) -> None:
    decode = DecodeConfig(beams=2, max_new_tokens=6)
    expected = captions(ModelStepper(model, 40), IMAGES, decode)
    # aot_eager runs the captured graphs in torch itself, so that the test needs no compiler
    model.decoder.forward = torch.compile(model.decoder.forward, backend="aot_eager", dynamic=True)  # type: ignore[method-assign]
    assert captions(ModelStepper(model, 40), IMAGES, decode) == expected
