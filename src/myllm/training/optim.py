"""Optimizers (AdamW, or AdamW and Muon) and the learning rate schedule."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from myllm.training.ranks import Ranks
from myllm.training_config import TrainConfig

# Coefficients of the quintic iteration in the reference implementation of Muon (Jordan et al. 2024)
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
FIRST_RATE = 1 / 25


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Return matrices (N, rows, columns) with the same singular vectors, and singular values of about 0.7 to 1.2.

    This is the Newton-Schulz iteration of Muon's reference implementation.
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised steps (Jordan et al. 2024): `torch.optim.Muon` with two differences.

    torch's iterates always in bfloat16, which takes 20 times as long on a CPU without bf16 units; this one iterates in
    `dtype`, and all matrices of a shape at once. It also accepts convolutions, as matrices of (output channels,
    everything else).
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0,
        dtype: torch.dtype | None = None, ranks: Ranks | None = None,
    ) -> None:
        """dtype: in which steps are orthogonalised; None for the parameters' dtype. ranks: share that work."""
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype, self.ranks = dtype, ranks or Ranks()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update each parameter that has a gradient; change nothing if the tensor `found_inf` is 1, as in AdamW.

        Each process orthogonalises some of the matrices; the others are zeros to it, so that the sum over the
        processes is exact. All processes keep all momenta: any number of them can resume the run.
        """
        taken = 1.0 - getattr(self, "found_inf", 0.0)
        trained = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        owners = share_out([_products(parameter) for parameter, _ in trained], self.ranks.count)
        updates: list[Tensor] = []
        stacks: dict[tuple[int, int, int], list[Tensor]] = defaultdict(list)
        for (parameter, group), owner in zip(trained, owners, strict=True):
            updates.append(self._momentum(parameter, group["momentum"], taken))
            if owner == self.ranks.rank:
                stacks[(id(group), *_sides(parameter))].append(updates[-1])
            else:
                updates[-1].zero_()
        for stack in stacks.values():
            matrices = torch.stack([update.flatten(1) for update in stack]).to(self.dtype)
            for update, orthogonal in zip(stack, orthogonalise(matrices), strict=True):
                update.copy_(orthogonal.view_as(update))
        for (parameter, group), update in zip(trained, self.ranks.sum_tensors(updates), strict=True):
            rows, columns = _sides(parameter)
            parameter.mul_(1 - taken * group["lr"] * group["weight_decay"])
            parameter.sub_(taken * group["lr"] * math.sqrt(max(1, rows / columns)) * update)

    def _momentum(self, parameter: nn.Parameter, momentum: float, taken: Tensor | float) -> Tensor:
        """Return the gradient with Nesterov momentum, and free the gradient itself."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        gradient = torch.nan_to_num(parameter.grad, 0.0, 0.0, 0.0)
        parameter.grad = None
        buffer.lerp_(gradient, (1 - momentum) * taken)
        return gradient.lerp(buffer, momentum)


def share_out(sizes: Sequence[int], count: int) -> list[int]:
    """Return which of `count` processes takes each item: largest first, each goes to the one with the least so far."""
    owners, sums = [0] * len(sizes), [0] * count
    for item in sorted(range(len(sizes)), key=lambda item: -sizes[item]):
        owners[item] = sums.index(min(sums))
        sums[owners[item]] += sizes[item]
    return owners


def _sides(parameter: Tensor) -> tuple[int, int]:
    """Return rows and columns of a matrix, or of a convolution as one."""
    return parameter.shape[0], parameter[0].numel()


def _products(parameter: Tensor) -> int:
    """Return the multiplications of a step of `orthogonalise`."""
    short, long = sorted(_sides(parameter))
    return short * short * (2 * long + short)


def build_optimizers(
    model: nn.Module, config: TrainConfig, precision: str = "fp32", ranks: Ranks | None = None
) -> list[torch.optim.Optimizer]:
    """Return AdamW for all parameters or, if config.optimizer is "muon", AdamW and Muon for matrices and convolutions.

    Weight decay applies only to matrices and convolutions, not to norms, biases and embeddings. Each parameter group
    holds its peak learning rate as `peak_lr`. precision: of the forward pass; Muon iterates in bf16 if that does.
    ranks: the processes that train together.
    """
    undecayed = {id(parameter) for module in model.modules() for parameter in _undecayed(module)}
    vision_decay = config.weight_decay if config.vision_weight_decay is None else config.vision_weight_decay
    for_muon, for_adam = (defaultdict[tuple[float, float], list[nn.Parameter]](list) for _ in range(2))
    for name, parameter in model.named_parameters():
        is_vision = name.removeprefix("model.").startswith("encoder.")
        decay = vision_decay if is_vision else config.weight_decay
        rate = config.vision_lr if is_vision else None
        if parameter.dim() not in (2, 4) or id(parameter) in undecayed:
            for_adam[rate or config.lr, 0.0].append(parameter)
        elif config.optimizer == "muon" and rate is None and not name.startswith("presence."):
            for_muon[config.muon_lr, decay].append(parameter)
        else:
            for_adam[rate or config.lr, decay].append(parameter)
    adam = torch.optim.AdamW(_groups(for_adam), lr=config.lr, betas=(0.9, 0.98), fused=True)
    dtype = torch.bfloat16 if precision == "bf16" else None
    if not for_muon:
        return [adam]
    return [adam, Muon(_groups(for_muon), lr=config.muon_lr, dtype=dtype, ranks=ranks)]


def _groups(parameters: Mapping[tuple[float, float], list[nn.Parameter]]) -> list[dict[str, Any]]:
    return [
        {"params": group, "weight_decay": decay, "peak_lr": rate} for (rate, decay), group in parameters.items()
    ]


def _undecayed(module: nn.Module) -> list[Tensor]:
    """Return the module's parameters without weight decay: embeddings, and those that a timm model names as such."""
    if isinstance(module, nn.Embedding):
        return [module.weight]
    names: set[str] = getattr(module, "no_weight_decay", set)()
    return [parameter for name, parameter in module.named_parameters() if name in names]


def rate_factor(progress: float, schedule: str) -> float:
    """Return the learning rate as a share of its peak, at `progress` (0..1) of the run.

    onecycle: rises as a cosine from 1/25 over the first 30 %, then falls as a cosine to 0 (Smith and Topin 2018, as
    `torch.optim.lr_scheduler.OneCycleLR`). cosine, linear: rise linearly from 1/25 over 5 %, then fall as the name
    says. It is never 0 before the end: the first step of a short run is to train, too.
    """
    warmup = 0.3 if schedule == "onecycle" else 0.05
    if progress < warmup:
        share = progress / warmup
        rise = (1 - math.cos(math.pi * share)) / 2 if schedule == "onecycle" else share
        return FIRST_RATE + (1 - FIRST_RATE) * rise
    left = 1 - min(1.0, (progress - warmup) / (1 - warmup))
    return left if schedule == "linear" else (1 - math.cos(math.pi * left)) / 2


def set_rates(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Set the learning rate of each parameter group to `factor` times its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
