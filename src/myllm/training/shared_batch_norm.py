"""Batch normalisation over the whole batch when several processes share it."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from myllm.training.ranks import Ranks

SIGNATURE = signature(F.batch_norm)


class SharedBatchNorm(TorchFunctionMode):
    """While this is active, batch normalisation in training takes means and variances over all processes.

    So a backbone with batch normalisation learns the same on any number of processes. torch's SyncBatchNorm does it
    only on GPUs, and its layers would have to be exchanged.
    """

    def __init__(self, ranks: Ranks, counts: bool = True) -> None:
        """counts: whether this process's pictures count; one without a share of the batch runs one that does not."""
        super().__init__()
        self.ranks, self.counts = ranks, counts

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is F.batch_norm and self.ranks.count > 1:
            call = SIGNATURE.bind(*args, **(kwargs or {}))
            call.apply_defaults()
            if call.arguments["training"]:
                return self._batch_norm(**call.arguments)
        return function(*args, **(kwargs or {}))

    def _batch_norm(self, input: Tensor, weight: Tensor | None, bias: Tensor | None, **options: Any) -> Tensor:
        """Return what `F.batch_norm` returns for the batches of all processes together; input: (B, C, ...)."""
        axes = [0, *range(2, input.dim())]
        shape = [1, -1, *[1] * (input.dim() - 2)]
        size = torch.full((1,), float(input.numel() // input.shape[1]), device=input.device)
        share = float(self.counts)
        # float32, and squares of differences: sums of squares would lose digits
        values = input.float()
        sums = _Sum.apply(share * torch.cat([values.sum(axes), size]))
        mean, count = sums[:-1] / sums[-1], sums[-1]
        differences = values - mean.view(shape)
        variance = _Sum.apply(share * differences.square().sum(axes)) / count
        if options["running_mean"] is not None:
            with torch.no_grad():
                options["running_mean"].lerp_(mean, options["momentum"])
                options["running_var"].lerp_(variance * count / (count - 1), options["momentum"])
        normalised = differences * (variance + options["eps"]).rsqrt().view(shape)
        normalised = normalised if weight is None else normalised * weight.view(shape)
        normalised = normalised if bias is None else normalised + bias.view(shape)
        return normalised.to(input.dtype)


class _Sum(torch.autograd.Function):
    """The sum of a tensor over the processes; so is its gradient, as each process's loss depends on the sum."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total
