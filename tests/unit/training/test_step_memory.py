import os

import pytest
import torch
from torch import Tensor, nn

from myllm.training.step_memory import USABLE_SHARE, Memory, available_bytes, measure_memory

WIDTH, TOKENS = 100, 200
ROW, WEIGHT = 4 * TOKENS * WIDTH, 4 * WIDTH * WIDTH  # bytes; as in a real model, those of a picture are more


class Layers(nn.Module):
    """Two linear layers with a tanh between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)

    def loss(self, size: int) -> Tensor:
        return self.b(self.a(torch.ones(size, TOKENS, WIDTH)).tanh()).sum()  # type: ignore[no-any-return]


def measure(batch_size: int, available: int = 10**8) -> Memory:
    model = Layers()
    adam = torch.optim.AdamW(model.parameters(), lr=0.0)
    model.loss(4).backward()
    adam.step()
    return measure_memory(model, [adam], model.loss, batch_size, available)


def test_memory_of_a_step_is_that_of_its_parts() -> None:
    memory = measure(10)
    assert memory.weights == memory.gradients == 2 * WEIGHT
    assert memory.optimizer == pytest.approx(2 * 2 * WEIGHT, rel=1e-3)
    # the input, tanh's output, and their gradients
    passes = memory.step - memory.weights - memory.gradients - memory.optimizer
    assert 10 * 2 * ROW <= passes <= 10 * 5 * ROW


@pytest.mark.parametrize("batch_size", [2, 9, 10, 500])
def test_activations_are_the_input_of_each_layer_once(batch_size: int) -> None:
    memory = measure(batch_size)
    # tanh's output is kept by both tanh and the second layer; the second layer's output lives until the sum
    assert memory.activations_per_picture in (2 * ROW, 3 * ROW)
    assert memory.activations == pytest.approx(batch_size * memory.activations_per_picture, abs=100)


def test_a_step_with_the_largest_batch_takes_the_usable_share() -> None:
    memory = measure(10)
    largest = measure(memory.pictures_that_fit)
    assert largest.step - largest.weights == pytest.approx(USABLE_SHARE * 10**8, abs=5 * ROW)
    assert largest.pictures_that_fit == pytest.approx(memory.pictures_that_fit, abs=1)


def test_what_is_freed_before_the_maximum_counts_once() -> None:
    model = nn.Linear(WIDTH, 1)

    def loss(size: int) -> Tensor:
        for _ in range(5):
            torch.zeros(size, 10**6)
        return model(torch.zeros(size, WIDTH)).sum()  # type: ignore[no-any-return]

    assert 2 * 4 * 10**6 <= measure_memory(model, [], loss, 2, 10**8).step < 3 * 4 * 10**6


def test_measuring_memory_leaves_no_gradients() -> None:
    model = Layers()
    measure_memory(model, [], model.loss, 2, 10**8)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_picture_fits_into_too_little_memory() -> None:
    assert measure(1, available=1000).pictures_that_fit == 0


def test_available_memory_of_this_machine_is_no_more_than_it_has() -> None:
    assert 2**20 < available_bytes(torch.device("cpu")) <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
