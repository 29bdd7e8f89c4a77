import os

import pytest
import torch
from torch import Tensor, nn

from myllm.training.step_memory import USABLE_SHARE, available_bytes, measure_memory, pass_bytes, tensor_bytes

WIDTH = 1000


class Layers(nn.Module):
    """Two linear layers with a tanh between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)

    def loss(self, size: int) -> Tensor:
        return self.b(self.a(torch.ones(size, WIDTH)).tanh()).sum()  # type: ignore[no-any-return]


def test_activations_are_the_input_of_each_layer_once() -> None:
    model = Layers()
    kept, _ = pass_bytes(model, lambda: model.loss(3))
    assert kept == 2 * 3 * WIDTH * 4  # the input, and tanh's output, which both tanh and the second layer keep


def test_activations_grow_linearly_with_the_batch() -> None:
    model = Layers()
    assert [pass_bytes(model, lambda: model.loss(8))[0] / 8, pass_bytes(model, lambda: model.loss(24))[0] / 24] == [
        2 * WIDTH * 4, 2 * WIDTH * 4
    ]


def test_live_bytes_grow_linearly_and_have_no_gradients() -> None:
    model = Layers()
    small, large = (pass_bytes(model, lambda size=size: model.loss(size))[1] for size in (3, 30))  # type: ignore[misc]
    row = WIDTH * 4
    assert 4 * 3 * row <= small < 7 * 3 * row  # at the end of the forward pass: the input and three results
    assert large == pytest.approx(10 * small, rel=1e-3)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_live_bytes_of_what_is_freed_count_once() -> None:
    weight = nn.Linear(WIDTH, 1)

    def loss() -> Tensor:
        for _ in range(5):
            torch.zeros(10**6)
        return weight(torch.zeros(1, WIDTH)).sum()  # type: ignore[no-any-return]

    assert 4 * 10**6 <= pass_bytes(weight, loss)[1] < 5 * 10**6


def test_memory_of_a_step_is_that_of_its_parts_and_the_largest_batch_follows() -> None:
    model = Layers()
    adam = torch.optim.AdamW(model.parameters(), lr=0.0)
    model.loss(4).backward()
    adam.step()
    memory = measure_memory(model, [adam], model.loss, batch_size=10, available=10**8)
    weights = 2 * WIDTH * WIDTH * 4
    assert (memory.weights, memory.gradients) == (weights, weights)
    assert memory.optimizer == pytest.approx(2 * weights, rel=1e-3)
    assert memory.activations == 10 * memory.activations_per_picture == 10 * 2 * WIDTH * 4
    assert memory.step >= weights + memory.optimizer + memory.gradients + memory.activations
    _, live = pass_bytes(model, lambda: model.loss(memory.pictures_that_fit))
    beside_weights = live + memory.optimizer + memory.gradients + weights // 2  # the last: one more gradient
    assert 0.99 * USABLE_SHARE * 10**8 < beside_weights <= USABLE_SHARE * 10**8


def test_no_picture_fits_into_too_little_memory() -> None:
    model = Layers()
    assert measure_memory(model, [], model.loss, batch_size=1, available=1000).pictures_that_fit == 0


def test_tensor_bytes_of_nested_values() -> None:
    assert tensor_bytes({"a": [torch.zeros(3), 1.0], "b": torch.zeros(2, dtype=torch.int64)}) == 3 * 4 + 2 * 8


def test_available_memory_of_this_machine_is_no_more_than_it_has() -> None:


    assert 2**20 < available_bytes(torch.device("cpu")) <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
