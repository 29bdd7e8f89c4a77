"""Memory of a training step, and free memory of the device."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed._tools.mem_tracker import MemTracker

USABLE_SHARE = 0.9


@dataclass(frozen=True)
class Memory:
    """Memory of a step on the device of one process, in bytes."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """Results of the forward pass at the moment that most memory is in use."""
    activations_per_picture: int
    step: int
    """Maximum that lives at one time."""
    available: int
    """Memory that was free when the weights were loaded."""
    pictures_that_fit: int
    """Pictures of a batch for which a step takes USABLE_SHARE of the available memory."""


def measure_memory(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], loss: Callable[[int], Tensor], batch_size: int,
    available: int,
) -> Memory:
    """Measure steps with half a batch and twice as much; each picture adds the same amount.

    optimizers: after a step, so that they have their state. loss: returns the loss () of so many pictures.
    """
    half = max(1, batch_size // 2)
    loss(half).backward()  # with gradients from the start, the maximum grows linearly with the batch
    (before, small), (_, large) = (_usage(model, optimizers, loss, size) for size in (half, 2 * half))
    model.zero_grad()
    weights = before["Parameter"] + before["Buffer"]
    per_picture = max(1, (large["Total"] - small["Total"]) // half)
    activations = (large["Activation"] - small["Activation"]) // half
    step = small["Total"] + (batch_size - half) * per_picture
    room = USABLE_SHARE * available - (step - weights)
    return Memory(
        weights, before["Gradient"], before["Optstate"], small["Activation"] + (batch_size - half) * activations,
        activations, step, available, max(0, batch_size + int(room // per_picture)),
    )


class _Tracker(MemTracker):
    """torch's tracker without its hooks on parameters: it cannot set them if a parameter does not train."""

    def _track_module_params_and_buffers(self, module: nn.Module, install_grad_hooks: bool = True) -> tuple[int, int]:
        return super()._track_module_params_and_buffers(module, install_grad_hooks=False)


def _usage(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], loss: Callable[[int], Tensor], size: int
) -> list[dict[str, int]]:
    """Return bytes by category before a forward and a backward pass, and when they take most."""
    tracker, device = _Tracker(), next(model.parameters()).device
    tracker.track_external(model, *optimizers)
    with tracker:
        before = tracker.get_tracker_snapshot()
        loss(size).backward()
    snapshots = (before[device], tracker.get_tracker_snapshot("peak")[device])
    return [{getattr(name, "value", name): count for name, count in snapshot.items()} for snapshot in snapshots]


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
