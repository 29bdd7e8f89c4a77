import pytest
import torch
from torch import nn

from myllm.training.ema import update_average


def test_average_after_many_steps_is_the_exponentially_weighted_mean() -> None:
    model, average = (nn.Linear(2, 2, bias=False).requires_grad_(False) for _ in range(2))
    values, expected = torch.randn(30, 2, 2), average.weight.clone()
    for step, value in enumerate(values, 1000):
        model.weight.copy_(value)
        update_average(average, model, 0.9, step)
        expected = 0.9 * expected + 0.1 * value
    torch.testing.assert_close(average.weight, expected)


def test_first_steps_move_the_average_further() -> None:
    model, average = nn.Linear(1, 1, bias=False).requires_grad_(False), nn.Linear(1, 1, bias=False)
    model.weight.fill_(1.0)
    nn.init.zeros_(average.weight)
    update_average(average, model, 0.999, 0)
    assert float(average.weight) == pytest.approx(0.9)


def test_tied_weights_move_once_and_counters_are_copied() -> None:
    model, average = (nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2), nn.BatchNorm1d(2)]) for _ in range(2))
    for part in (model, average):
        part[1].weight = part[0].weight
    model[2].num_batches_tracked += 7
    model[2].running_mean += 1.0
    expected = average[0].weight.lerp(model[0].weight, 0.5)
    update_average(average, model, 0.5, 1000)
    torch.testing.assert_close(average[1].weight, expected)
    assert int(average[2].num_batches_tracked) == 7 and average[2].running_mean.tolist() == [0.5, 0.5]
