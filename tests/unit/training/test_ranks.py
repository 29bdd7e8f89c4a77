from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from myllm.training.ranks import Ranks

InProcesses = Callable[[int, Callable[[Ranks], Any]], list[Any]]


def test_ranks_of_one_process_communicate_nothing() -> None:
    ranks = Ranks()
    assert ranks.is_first and ranks.share([1, 2, 3]) == [1, 2, 3] and ranks.gather([1, 2]) == [1, 2]
    assert ranks.sum(1.5, 2.0) == [1.5, 2.0] and ranks.from_first(3.0) == 3.0
    with ranks.first_before_others():
        pass


def test_ranks_share_items_and_gather_sum_and_read_the_first(in_processes: InProcesses) -> None:
    def function(ranks: Ranks) -> Any:
        share = ranks.share(range(5))
        return list(share), ranks.gather(share), ranks.sum(1.0, ranks.rank), ranks.from_first(10.0 + ranks.rank)

    results = in_processes(3, function)
    assert [result[0] for result in results] == [[0, 3], [1, 4], [2]]
    assert [result[1:] for result in results] == [([0, 3, 1, 4, 2], [3.0, 3.0], 10.0)] * 3


def test_ranks_sum_gradients_of_parameters_that_train_and_the_loss(in_processes: InProcesses) -> None:
    def function(ranks: Ranks) -> Any:
        model = nn.ModuleList(nn.Linear(2, 1, bias=False) for _ in range(3))
        model[1].requires_grad_(False)
        if ranks.is_first:  # the other process has no share of the batch
            (model[0](torch.tensor([[1.0, 2.0]])) + model[2](torch.tensor([[3.0, 4.0]]))).sum().backward()
        loss = ranks.sum_gradients(model.parameters(), torch.tensor(0.5, dtype=torch.float64))
        gradients = [None if layer.weight.grad is None else layer.weight.grad.tolist() for layer in model]
        return loss.item(), gradients

    assert in_processes(2, function) == [(1.0, [[[1.0, 2.0]], None, [[3.0, 4.0]]])] * 2


def test_first_before_others_runs_the_first_process_first(in_processes: InProcesses, tmp_path: Any) -> None:
    def function(ranks: Ranks) -> bool:
        with ranks.first_before_others():
            if ranks.is_first:
                (tmp_path / "prepared").touch()
            return bool((tmp_path / "prepared").exists())

    assert in_processes(3, function) == [True] * 3
