"""Memory of a training step: what its forward pass keeps, what lives at one time, and what the device has left."""

import os
import re
import weakref
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

USABLE_SHARE = 0.9


@dataclass(frozen=True)
class Memory:
    """Memory of a step on the device of one process, in bytes."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """What the forward pass of a batch keeps for the backward pass."""
    activations_per_picture: int
    step: int
    """Weights, gradients, optimizer, one more gradient of the largest parameter, and the maximum of activations and
    intermediate results that live at one time."""
    gpu_peak: int | None
    """Maximum that torch allocated on a GPU; None on other devices."""
    available: int
    """What the process could take when the weights were loaded."""
    pictures_that_fit: int
    """Pictures of a batch for which a step takes USABLE_SHARE of the available memory."""


def measure_memory(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], loss: Callable[[int], Tensor], batch_size: int,
    available: int,
) -> Memory:
    """Measure steps with half a batch and twice as much; what a picture adds is the same for each.

    optimizers: after a step, so that they have their state. loss: returns the loss () of so many pictures.
    """
    device = next(model.parameters()).device
    gpu_peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    weights = tensor_bytes([*model.parameters(), *model.buffers()])
    gradients = tensor_bytes([parameter for parameter in model.parameters() if parameter.requires_grad])
    state = tensor_bytes([dict(optimizer.state) for optimizer in optimizers])
    half = max(1, batch_size // 2)
    pass_bytes(model, lambda: loss(half))  # some operations keep tables that they make in their first call
    kept, live = pass_bytes(model, lambda: loss(half))
    kept_twice, live_twice = pass_bytes(model, lambda: loss(2 * half))
    kept_per_picture, live_per_picture = (kept_twice - kept) // half, max(1, (live_twice - live) // half)
    fixed = gradients + state + max(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    step = weights + fixed + live + (batch_size - half) * live_per_picture
    room = USABLE_SHARE * available - fixed - (live - half * live_per_picture)
    return Memory(
        weights, gradients, state, kept + (batch_size - half) * kept_per_picture, kept_per_picture, step, gpu_peak,
        available, max(0, int(room / live_per_picture)),
    )


def tensor_bytes(value: Any) -> int:
    """Return the bytes of all tensors in nested lists and dictionaries."""
    return sum(leaf.nbytes for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def pass_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> tuple[int, int]:
    """Run a forward and a backward pass; return the bytes of its activations, and of all results that live at one time.

    Activations are what the forward pass keeps for the backward pass, each storage once and no weights. Of what lives
    at one time, this is the maximum over both passes, without weights, their gradients and inputs: it grows linearly
    with the batch, while a maximum with gradients would not. forward: returns the loss ().
    """
    weights = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with _LiveBytes({_sides(parameter) for parameter in model.parameters()}) as live:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = forward()
        loss.backward()
    model.zero_grad()
    return sum(kept.values()), live.maximum


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operations make, until they are freed, without those of parameters' shapes."""

    def __init__(self, ignored: Container[tuple[int, ...]]) -> None:
        """ignored: sides of tensors that do not count."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.ignored = ignored
        self.alive: dict[int, int] = {}
        self.now = self.maximum = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        results = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(results):
            # a view, or the result of an operation in place, has the storage of an argument
            if not isinstance(leaf, Tensor) or _sides(leaf) in self.ignored:
                continue
            if _storage(leaf) not in before and _storage(leaf) not in self.alive:
                storage = leaf.untyped_storage()
                self.alive[_storage(leaf)] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, _storage(leaf))
        self.maximum = max(self.maximum, self.now)
        return results

    def _free(self, storage: int) -> None:
        self.now -= self.alive.pop(storage)


def _sides(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape, sorted: a gradient may be computed transposed."""
    return tuple(sorted(tensor.shape))


def _storage(tensor: Tensor) -> int:
    """Return the address that identifies a tensor's storage while it lives."""
    return int(tensor.untyped_storage()._cdata)


def available_bytes(device: torch.device) -> int:
    """Return how much memory this process can still take on the device."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        [kilobytes] = re.findall(r"^MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        available = 1024 * int(kilobytes)
    except (OSError, ValueError):  # not Linux
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = Path("/sys/fs/cgroup")
    try:  # a container may have less than the machine
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        return min(available, limit - used)
    except (OSError, ValueError):  # "max" is no limit
        return available
