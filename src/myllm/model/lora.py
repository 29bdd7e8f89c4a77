"""Low-rank adapters (LoRA, Hu et al. 2021): a product of two thin matrices is learned and added to a frozen layer.

Names, initial values and scale are those of PEFT, so that each library reads the other's adapters.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import Tensor, nn

from myllm.config import LoraConfig, nearest
from myllm.errors import ConfigError

Module = TypeVar("Module", bound=nn.Module)

# its weight is the token embedding, so an adapter would change that too
HEAD = "decoder.lm_head"


class LoraLinear(nn.Linear):
    """A linear layer with an adapter: y = W x + b + alpha / rank * B A x.

    It uses the layer's parameters under their names; A and B are `lora_A.weight` (rank, in) and `lora_B.weight`
    (out, rank). B starts as zero, so the layer computes the same until the first training step.
    """

    def __init__(self, layer: nn.Linear, config: LoraConfig) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.scale = config.alpha / config.rank
        self.dropout = nn.Dropout(config.dropout)
        # A keeps torch's default initial values of a linear layer, as the reference implementation does
        self.lora_A = nn.Linear(layer.in_features, config.rank, bias=False)
        self.lora_B = nn.Linear(config.rank, layer.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return super().forward(x) + self.scale * self.lora_B(self.lora_A(self.dropout(x)))


@dataclass(frozen=True)
class LowRank:
    """A term that is added to a layer's weight: scale * B A."""

    a: Tensor
    """(rank, in)."""
    b: Tensor
    """(out, rank)."""
    scale: float

    def added_to(self, weight: Tensor) -> Tensor:
        """Return weight (out, in) + scale * B A, a new tensor."""
        return weight + (self.scale * self.b.float() @ self.a.float()).to(weight)


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Return {name: layer} of the layers that can have an adapter."""
    # no subclasses: torch's own attention reads the weight of its last layer, a subclass, without calling the layer
    return {name: module for name, module in model.named_modules() if type(module) is nn.Linear and name != HEAD}


def add_adapters(model: nn.Module, config: LoraConfig) -> None:
    """Add an adapter to each layer that a pattern of `config.targets` matches.

    Raises ConfigError for a pattern that no layer's name matches.
    """
    layers, chosen = linear_layers(model), set[str]()
    for pattern in config.targets:
        matching = {name for name in layers if _matches(pattern, name)}
        if not matching:
            is_head = ": lm_head shares the token embedding" if _matches(pattern, HEAD) else ""
            ends = {name.rpartition(".")[2] for name in layers}
            raise ConfigError(
                f"lora.targets has {pattern!r}, which matches no linear layer of this model{is_head}"
                f"{nearest(pattern, ends | layers.keys())}. Their names end in {', '.join(sorted(ends))}"
            )
        chosen |= matching
    for name, layer in layers.items():
        if name in chosen:
            model.set_submodule(name, LoraLinear(layer, config))


def _matches(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """Yield the name and layer of each adapter."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLinear))


@torch.no_grad()
def merge(model: nn.Module, adapters: Mapping[str, LowRank]) -> None:
    """Replace the weight of each named layer by a new one with its adapter added."""
    for name, adapter in adapters.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        layer.weight = nn.Parameter(adapter.added_to(layer.weight))


def with_adapters(model: Module, adapters: Mapping[str, LowRank]) -> Module:
    """Return a copy of the model with the adapters added, which shares all its other tensors with `model`."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    adapted = copy.deepcopy(model, shared)
    merge(adapted, adapters)
    return adapted
