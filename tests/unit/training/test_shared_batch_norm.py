from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from myllm.training.ranks import Ranks
from myllm.training.shared_batch_norm import SharedBatchNorm

InProcesses = Callable[[int, Callable[[Ranks], Any]], list[Any]]
GENERATOR = torch.Generator().manual_seed(0)
INPUT = torch.randn(5, 3, 4, 4, generator=GENERATOR) + 7.0
TARGET = torch.randn(5, 3, 4, 4, generator=GENERATOR)


def train_step(layer: nn.BatchNorm2d, rows: Tensor, counts: bool = True) -> Tensor:
    """Backpropagate a loss over `rows` of the batch; return the gradient of these rows' input."""
    values = INPUT[rows].clone().requires_grad_()
    (counts * (layer(values) * TARGET[rows]).sum()).backward()
    assert values.grad is not None
    return values.grad


@pytest.mark.parametrize("count", [2, 6])
def test_shared_batch_norm_equals_batch_norm_of_the_whole_batch(in_processes: InProcesses, count: int) -> None:
    whole = nn.BatchNorm2d(3, momentum=0.3)
    expected = train_step(whole, torch.arange(5))

    def function(ranks: Ranks) -> Any:
        layer, rows = nn.BatchNorm2d(3, momentum=0.3), torch.arange(5)[ranks.rank :: ranks.count]
        with SharedBatchNorm(ranks, counts=len(rows) > 0):  # with 6 processes, one has no row, and runs the first
            gradient = train_step(layer, rows if len(rows) else torch.tensor([0]), len(rows) > 0)
        ranks.sum_gradients(layer.parameters(), torch.zeros(()))
        return rows, gradient, layer.weight.grad, layer.running_mean, layer.running_var

    for rows, gradient, weight_gradient, running_mean, running_var in in_processes(count, function):
        torch.testing.assert_close(gradient[: len(rows)], expected[rows], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(weight_gradient, whole.weight.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(running_mean, whole.running_mean)
        torch.testing.assert_close(running_var, whole.running_var)


def test_shared_batch_norm_leaves_evaluation_and_other_functions_alone() -> None:
    layer = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval()
    expected = layer(INPUT)
    with SharedBatchNorm(Ranks(0, 2)):
        assert torch.equal(layer(INPUT), expected)
