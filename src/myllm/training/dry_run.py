"""Measures what a run needs, and keeps nothing of it: parameters, memory, arithmetic, time, largest batch."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from myllm.data.batches import Batch
from myllm.progress import Progress
from myllm.training.prepare import Prepared
from myllm.training.ranks import Ranks
from myllm.training.stages import is_cross_attention
from myllm.training.step_memory import Memory, available_bytes, measure_memory
from myllm.training.trial import TIMED_STEPS, Times, Trial
from myllm.training_config import TrainConfig

# Pictures of each split that a dry run reads; they stand for the others.
PICTURES = 64


@dataclass(frozen=True)
class DryRun:
    """What a run needs."""

    device: str
    precision: str
    processes: int
    parameters: dict[str, int]
    """All parameters, by part of the model."""
    trained: dict[str, int]
    """Parameters that train, by part of the model; with stages, in the last stage."""
    memory: Memory
    largest_batch: int
    """The largest --batch-size that fits, for all processes; at most the number of training pictures."""
    flops: int
    """Floating-point operations of a step: matrix products, convolutions and attention, in one process."""
    pictures: float
    """Mean number of pictures of a step, in all processes."""
    tokens: float
    """Mean number of targets of a step, in all processes."""
    times: Times


def dry_run(
    config: TrainConfig, prepared: Prepared, progress: Progress, warn: Callable[[str], None], ranks: Ranks
) -> DryRun | int:
    """Return what a run needs, or the number of the signal that ended the measurement. No weight and no file changes.

    Raises what the first steps of the run raise.
    """
    trial = Trial(config, prepared, progress, warn, ranks)
    available = available_bytes(trial.device) // (ranks.count if trial.device.type == "cpu" else 1)
    if (stopped_by := trial.train()) is not None:
        return stopped_by
    progress("measuring memory", 0, 1)
    parameters, trained = defaultdict[str, int](int), defaultdict[str, int](int)
    for name, parameter in trial.objective.named_parameters():
        parameters[part_of(name)] += parameter.numel()
        trained[part_of(name)] += parameter.numel() * parameter.requires_grad
    batch = next(trial.batches.epoch(0)).to(trial.device)
    memory = measure_memory(
        trial.objective, trial.optimizers, lambda size: trial.loss(first_pictures(batch, size)),
        batch_size=len(ranks.share(range(config.batch_size))), available=available,
    )
    progress("measuring validation", 0, 1)
    return DryRun(
        str(trial.device), trial.precision, ranks.count, dict(parameters), dict(trained), memory,
        min(memory.pictures_that_fit * ranks.count, len(prepared.train.records)), trial.counter.get_total_flops(),
        trial.pictures / TIMED_STEPS, trial.tokens / TIMED_STEPS, trial.times(),
    )


def part_of(name: str) -> str:
    """Return the part of the model that a parameter of the objective belongs to."""
    if ".lora_" in name:
        return "adapters"
    if name.startswith("presence."):
        return "word presence"
    if name.startswith("model.encoder."):
        return "encoder"
    return "cross-attention" if is_cross_attention(name) else "decoder"


def first_pictures(batch: Batch, size: int) -> Batch:
    """Return `size` pictures of a batch with their captions; if it has fewer, they repeat."""
    rows = torch.arange(size) % len(batch.lengths)

    def select(tensor: Tensor) -> Tensor:
        return tensor[rows.to(tensor.device)]

    return replace(
        batch, images=None if batch.images is None else select(batch.images),
        features=None if batch.features is None else tuple(map(select, batch.features)),
        tokens=select(batch.tokens), inputs=select(batch.inputs), lengths=select(batch.lengths),
        index=select(batch.index),
    )
