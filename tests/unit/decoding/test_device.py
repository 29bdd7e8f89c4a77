"""What crosses from the device of the scores to the host: candidates and chosen tokens, never the score matrix."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from myllm.config import DecodeConfig
from myllm.decoding.constraints import Vocabulary
from myllm.decoding.engine import SearchRequest
from myllm.decoding.search import generate

VOCAB, END, IMAGES = 3000, 2999, 4
WORDS = Vocabulary(
    [f" w{token}".encode() for token in range(END)] + [b""], lambda text: [int(word[1:]) for word in text.split()], END
)
TO_HOST = {
    Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.item, Tensor.__array__, Tensor.__bool__, Tensor.__int__,
    Tensor.__float__, Tensor.__index__, Tensor.__iter__, Tensor.nonzero,
}


class CountingMode(TorchFunctionMode):
    """Records how many numbers each call brings from tensors to the host, as if the CPU were a device of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_moved = func is Tensor.to and "cpu" in map(str, [*args, *(kwargs or {}).values()])
        if func in TO_HOST or is_moved:
            self.sizes.append(args[0].numel())
        return func(*args, **(kwargs or {}))


class Random:
    """A language of random logits."""

    def start(self, images: int) -> int:
        return 0

    def step(self, tokens: NDArray[np.int64], state: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(state)
        return torch.randn(*tokens.shape[:2], VOCAB, generator=generator), state + 1

    def reorder(self, state: int, rows: NDArray[np.int64]) -> int:
        return state

    def release(self, state: int) -> None:
        pass


@contextmanager
def counted() -> Iterator[list[int]]:
    with CountingMode() as mode:
        yield mode.sizes


OPTIONS: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "num_return_sequences": 3},
    {"do_sample": True, "temperature": 0.7, "top_k": 50, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9},
    {"beams": 4},
    {"beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    {"beams": 4, "force_words": ("w7 w8", "w9")},
    {"beams": 4, "contrastive_weight": 0.5},
    {"beams": 4, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_new_tokens": 3},
    {"beams": 4, "bad_words": ("w3", "w4"), "stop_strings": ("w5",)},
    {"regex": "( w[0-9]+)+"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_only_candidates_cross_to_the_host(options: dict[str, Any]) -> None:
    config = DecodeConfig(max_new_tokens=6, **options)
    request = SearchRequest(
        Random(), IMAGES, IMAGES, END, config, vocabulary=WORDS, blind=IMAGES, seeds=range(IMAGES)
    )
    with counted() as sizes:
        generate(request)
    captions = max(config.beams, config.num_return_sequences or 1)
    # twice as many candidates as beams for each beam, and a few that lead to required words
    assert sizes and max(sizes) <= IMAGES * captions * (2 * captions + 8)
    steps, groups = config.max_new_tokens, config.num_beam_groups
    assert len(sizes) <= 2 * steps * (1 + 3 * groups)  # to() and __array__ of each array


def test_the_count_notices_a_score_matrix_that_crosses() -> None:
    for move in (Tensor.cpu, lambda scores: scores.to("cpu"), np.asarray, Tensor.tolist, Tensor.numpy):
        with counted() as sizes:
            move(torch.zeros(IMAGES, 1, VOCAB))
        assert max(sizes) == IMAGES * VOCAB
