"""Optimizers: AdamW for everything, or Muon for the matrices beside it; and the course of the learning rate."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from myllm.config import TrainConfig

# of the quintic iteration in the reference implementation of Muon (Jordan et al. 2024)
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: singular values end between 0.7 and 1.2.

    matrices: (N, rows, columns). Newton-Schulz iteration with the coefficients of the reference implementation.
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
    """Momentum whose step is orthogonalised (Jordan et al. 2024): `torch.optim.Muon` with two differences.

    torch's computes in bfloat16 always, which takes 20 times as long on a processor without bf16 units; this one
    computes in the parameters' own type and all matrices of a shape at once. And it takes convolutions too, as
    matrices of (channels out, everything else).
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step over every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[(parameter.shape[0], parameter[0].numel())].append(parameter)
            for (rows, columns), parameters in by_shape.items():
                stretch = math.sqrt(max(1, rows / columns))
                updates = torch.stack([self._momentum(p, group["momentum"]).flatten(1) for p in parameters])
                for parameter, update in zip(parameters, orthogonalise(updates), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.view(parameter.shape), alpha=-group["lr"] * stretch)

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """Nesterov's: the gradient leaning towards its running mean."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        buffer.lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(buffer, momentum)


def build_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Matrices decay, norms, biases and embeddings do not; with muon, the blocks' matrices and convolutions are its.

    Each group remembers its peak rate as `peak_lr`.
    """
    undecayed = {id(parameter) for module in model.modules() for parameter in _undecayed(module)}
    vision_decay = config.weight_decay if config.vision_weight_decay is None else config.vision_weight_decay
    matrices, others = defaultdict[float, list[nn.Parameter]](list), defaultdict[float, list[nn.Parameter]](list)
    for name, parameter in model.named_parameters():
        if parameter.dim() not in (2, 4) or id(parameter) in undecayed:
            others[0.0].append(parameter)
            continue
        is_vision = name.removeprefix("model.").startswith("encoder.")
        decay = vision_decay if is_vision else config.weight_decay
        is_for_muon = config.optimizer == "muon" and not name.startswith("presence.")
        (matrices if is_for_muon else others)[decay].append(parameter)
    adam: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(_groups(others, config.lr), lr=config.lr, betas=(0.9, 0.98), fused=True)
    ]
    return [*adam, Muon(_groups(matrices, config.muon_lr), lr=config.muon_lr)] if matrices else adam


def _groups(by_decay: Mapping[float, list[nn.Parameter]], rate: float) -> list[dict[str, Any]]:
    return [{"params": own, "weight_decay": decay, "peak_lr": rate} for decay, own in by_decay.items()]


def _undecayed(module: nn.Module) -> list[Tensor]:
    """Embeddings, and of a timm model the tables of positions that it names so."""
    if isinstance(module, nn.Embedding):
        return [module.weight]
    names: set[str] = getattr(module, "no_weight_decay", set)()
    return [parameter for name, parameter in module.named_parameters() if name in names]


def rate_factor(progress: float, schedule: str) -> float:
    """Share of the peak rate at `progress` (0..1) of the run.

    onecycle: a cosine up from 1/25 over the first 30 %, then down to nothing (Smith and Topin 2018, as in
    `torch.optim.lr_scheduler.OneCycleLR`). cosine: straight up over 5 %, then a cosine down. linear: straight down.
    """
    warmup, first = {"onecycle": (0.3, 1 / 25), "cosine": (0.05, 0.0), "linear": (0.05, 0.0)}[schedule]
    if progress < warmup:
        climbed = progress / warmup
        rise = (1 - math.cos(math.pi * climbed)) / 2 if schedule == "onecycle" else climbed
        return first + (1 - first) * rise
    left = 1 - min(1.0, (progress - warmup) / (1 - warmup))
    return left if schedule == "linear" else (1 - math.cos(math.pi * left)) / 2


def set_rates(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Every group's rate as a share of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
