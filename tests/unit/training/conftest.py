"""Functions run in several processes that communicate by gloo."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing

from myllm.training.ranks import Ranks


@pytest.fixture
def in_processes(tmp_path: Path) -> Callable[[int, Callable[[Ranks], Any]], list[Any]]:
    """in_processes(count, function): what `function(ranks)` returns in each of `count` forked processes."""

    def run(count: int, function: Callable[[Ranks], Any]) -> list[Any]:
        def process(rank: int) -> None:
            torch.set_num_threads(1)
            distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=rank, world_size=count)
            try:
                result = function(Ranks(rank, count))
            except Exception:
                traceback.print_exc()
                raise
            torch.save(result, tmp_path / f"{rank}.pt")

        context = multiprocessing.get_context("fork")
        processes = [context.Process(target=process, args=(rank,)) for rank in range(count)]
        for started in processes:
            started.start()
        for started in processes:
            started.join()
        assert [started.exitcode for started in processes] == [0] * count
        return [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(count)]

    return run
