"""Low-rank adapters (LoRA, Hu et al. 2021): beside a frozen linear layer a product of two thin matrices is learned.

Names, initial values and scale are those of PEFT, so that either reads what the other has trained.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import Tensor, nn

from myllm.config import LoraConfig, nearest
from myllm.errors import ConfigError

# its weight is the token embedding's, which an adapter would have to change too
HEAD = "decoder.lm_head"


class LoraLinear(nn.Linear):
    """A linear layer with an adapter: y = W x + b + alpha / rank * B A x.

    It takes over the layer's own parameters, so these keep their names; A and B are `lora_A.weight` (rank, in) and
    `lora_B.weight` (out, rank). B begins as zero: nothing changes before the first step.
    """

    def __init__(self, layer: nn.Linear, config: LoraConfig) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.scale = config.alpha / config.rank
        self.dropout = nn.Dropout(config.dropout)
        # A keeps the random values that torch gives a linear layer, which are those of the reference implementation
        self.lora_A = nn.Linear(layer.in_features, config.rank, bias=False)
        self.lora_B = nn.Linear(config.rank, layer.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return super().forward(x) + self.scale * self.lora_B(self.lora_A(self.dropout(x)))


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to its layer's weight: scale * B A."""

    a: Tensor
    """(rank, in)."""
    b: Tensor
    """(out, rank)."""
    scale: float

    def added_to(self, weight: Tensor) -> Tensor:
        """(out, in) -> (out, in), a new tensor."""
        return weight + (self.scale * self.b.float() @ self.a.float()).to(weight)


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers that may have an adapter, by name."""
    # a subclass may never be called itself, as the last one of torch's own attention
    return {name: one for name, one in model.named_modules() if type(one) is nn.Linear and name != HEAD}


def add_adapters(model: nn.Module, config: LoraConfig) -> None:
    """Give the layers that `config.targets` names an adapter each.

    Raises ConfigError for a pattern that no layer's name matches.
    """
    layers, chosen = linear_layers(model), set[str]()
    for pattern in config.targets:
        found = {name for name in layers if _matches(pattern, name)}
        if not found:
            is_head = ": lm_head is the token embedding itself" if _matches(pattern, HEAD) else ""
            ends = {name.rpartition(".")[2] for name in layers}
            raise ConfigError(
                f"lora.targets has {pattern!r}, which is no linear layer's name here{is_head}"
                f"{nearest(pattern, ends | layers.keys())}. Their names end in {', '.join(sorted(ends))}"
            )
        chosen |= found
    for name, layer in layers.items():
        if name in chosen:
            model.set_submodule(name, LoraLinear(layer, config))


def _matches(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """The layers that have an adapter, with their names."""
    return ((name, one) for name, one in model.named_modules() if isinstance(one, LoraLinear))


@torch.no_grad()
def merge(model: nn.Module, adapters: Mapping[str, LowRank]) -> dict[str, nn.Parameter]:
    """Put into each named layer a weight with its adapter added. Returns the weights that were there, untouched."""
    before = dict[str, nn.Parameter]()
    for name, adapter in adapters.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        before[name] = cast("nn.Parameter", layer.weight)
        layer.weight = nn.Parameter(adapter.added_to(layer.weight))
    return before
