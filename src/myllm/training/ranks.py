"""The processes that train together, one for each device; torchrun starts them.

Weights are the same in all of them: each computes gradients for its share of every batch, and all take the same step
with the sum. Nothing is communicated if there is one process.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from myllm.errors import ConfigError, MyLLMError

Item = TypeVar("Item")
# One process may compute the features of all pictures while the others wait for it.
TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """The number of this process, and how many there are.

    All processes must call the methods that sum, gather and wait, in the same order.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return every `count`-th item, beginning with number `rank`."""
        return items[self.rank :: self.count]

    def sum(self, *values: float) -> list[float]:
        """Return the sum of each value over the processes. The values go through the CPU: no GPU waits."""
        if self.count == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        with _lost_process():
            distributed.all_reduce(sums)
        return sums.tolist()

    def gather(self, items: Sequence[Item]) -> list[Item]:
        """Return the items of all processes, those of the first process first."""
        if self.count == 1:
            return list(items)
        shares: list[Any] = [None] * self.count
        with _lost_process():
            distributed.all_gather_object(shares, items)
        return [item for share in shares for item in share]

    def from_first(self, value: float) -> float:
        """Return the first process's value."""
        return self.sum(value if self.is_first else 0.0)[0]

    def sum_tensors(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the sum of each tensor over the processes; all have one type, and equal shapes in all processes.

        All travel as one tensor, always in the same order, so that a resumed run adds them in the same way.
        """
        if self.count == 1 or not tensors:
            return list(tensors)
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _lost_process():
            distributed.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    def sum_gradients(self, parameters: Iterable[nn.Parameter], loss: Tensor) -> Tensor:
        """Replace the gradient of each parameter that trains by its sum over the processes; return the summed loss."""
        if self.count == 1:
            return loss
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        *sums, total = self.sum_tensors([*gradients, loss.float()])
        for parameter, gradient in zip(trained, sums, strict=True):
            parameter.grad = gradient
        return total.to(loss.dtype)

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Run the block in the first process and, when that has finished, in all others."""
        if not self.is_first:
            self.sum(0.0)
        yield
        if self.is_first:
            self.sum(0.0)


@contextmanager
def started_by_torchrun(devices: str) -> Iterator[Ranks]:
    """Join the processes that torchrun started, or be the only one.

    devices: the option; on GPUs, each process takes the GPU of its number on this machine. Raises ConfigError.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks()
        return
    has_gpus = devices in ("auto", "cuda") and torch.cuda.is_available()
    if has_gpus:
        local_rank = int(os.environ["LOCAL_RANK"])
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"torchrun started process {local_rank + 1} of this machine, which has {torch.cuda.device_count()} "
                "GPUs; take a lower --nproc-per-node, or --devices cpu"
            )
        torch.cuda.set_device(local_rank)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if has_gpus else "gloo", timeout=TIMEOUT)
    try:
        yield Ranks(distributed.get_rank(), count)
    finally:
        distributed.destroy_process_group()


@contextmanager
def _lost_process() -> Iterator[None]:
    """Raise MyLLMError if another process has ended."""
    try:
        yield
    except RuntimeError as error:
        raise MyLLMError(
            "another process of this run has ended, so this one ends too; its message is above, or in the output of "
            "its machine. The run can be resumed"
        ) from error
