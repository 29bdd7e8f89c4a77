"""Measures parameters, memory, arithmetic, time and the largest batch of a run, and changes nothing."""

import math
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from myllm.batched import batched
from myllm.checkpoints import native
from myllm.data.batches import Batch
from myllm.data.features import FeatureCache
from myllm.data.records import Findings
from myllm.device import autocast
from myllm.progress import Progress, no_progress
from myllm.training.frozen import frozen_backbone
from myllm.training.optim import set_rates
from myllm.training.prepare import Prepared
from myllm.training.ranks import Ranks
from myllm.training.stages import is_cross_attention
from myllm.training.step_memory import Memory, available_bytes, measure_memory
from myllm.training.trainer import Trainer
from myllm.training.validate import Validator
from myllm.training.watch import Reporter
from myllm.training_config import TrainConfig

# Pictures of each split that a dry run reads; they stand for the others.
PICTURES = 64
# Pictures of which all views are encoded, for the time of features.
FEATURE_PICTURES = 16
UNTIMED_STEPS, TIMED_STEPS = 3, 20
_aten = torch.ops.aten
# Attention on CPUs, which torch's table lacks; the functions get the shapes of the arguments.
CPU_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward:
        lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4]),
}


@dataclass(frozen=True)
class Steps:
    """Means of the timed steps."""

    seconds: float
    wait_seconds: float
    """Part of `seconds` in which a step waited for data."""
    pictures: float
    """In all processes."""
    tokens: float
    """Targets, in all processes."""
    flops: int
    """Floating-point operations of one process: matrix products, convolutions and attention."""


@dataclass(frozen=True)
class Times:
    """Expected times of a run, in seconds."""

    steps: int
    epochs: int
    training: float
    validation: float
    """All validations, and the evaluation at the end."""
    features: float
    """Computing the features of a frozen backbone; later runs find them stored."""
    total: float


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
    step: Steps
    times: Times


def dry_run(config: TrainConfig, prepared: Prepared, progress: Progress, reporter: Reporter, ranks: Ranks) -> DryRun:
    """Measure a run. No weight and no file changes. Raises the same errors as the first steps of the run."""
    trainer = Trainer(config, prepared, reporter, ranks)
    device, objective = trainer.device, trainer.objective
    available = available_bytes(device) // (ranks.count if device.type == "cpu" else 1)
    step = measure_steps(trainer, progress)
    progress("measuring memory", 0, 1)
    parameters, trained = Counter[str](), Counter[str]()
    for name, parameter in objective.named_parameters():
        parameters[part_of(name)] += parameter.numel()
        trained[part_of(name)] += parameter.numel() * parameter.requires_grad
    [batch] = trainer.sample([next(trainer.batches.epoch(0)).to(trainer.device)])

    def loss(size: int) -> Tensor:
        with autocast(trainer.precision, device):
            return objective(first_pictures(batch, size)).total

    memory = measure_memory(objective, trainer.optimizers, loss, len(ranks.share(range(config.batch_size))), available)
    largest = min(memory.pictures_that_fit * ranks.count, len(prepared.train.records))
    progress("measuring validation", 0, 1)
    times = expected_times(trainer, step, seconds_per_view(trainer))
    return DryRun(
        str(device), trainer.precision, ranks.count, dict(parameters), dict(trained), memory, largest, step, times
    )


def measure_steps(trainer: Trainer, progress: Progress) -> Steps:
    """Take the first steps of the last stage, which trains most, at learning rate 0."""
    config, steps = trainer.config, UNTIMED_STEPS + TIMED_STEPS
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    trainer.state.epoch = min(len(config.stages), config.epochs) - 1
    set_rates(trainer.optimizers, 0.0)
    groups = chain.from_iterable(batched(trainer._start_epoch(), config.accumulate) for _ in count())
    figures, end = [], time.monotonic()
    for number in range(steps):
        trainer.state.step, begin, group = number, end, next(groups)
        waited = time.monotonic() - begin
        group = trainer.sample(list(group))
        pictures, tokens = trainer.ranks.sum(
            sum(len(batch.index) for batch in group), sum(int(batch.lengths.sum()) for batch in group)
        )
        with nullcontext() if number else counter:
            loss = trainer._step(group, max(1, int(tokens)), int(pictures))
        float(loss)  # waits for the GPU
        end = time.monotonic()
        figures.append((end - begin, waited, pictures, tokens))
        progress("timing steps", number + 1, steps)
    timed = zip(*figures[UNTIMED_STEPS:], strict=True)
    seconds, wait_seconds, pictures, tokens = (sum(figure) / TIMED_STEPS for figure in timed)
    return Steps(seconds, wait_seconds, pictures, tokens, counter.get_total_flops())


def expected_times(trainer: Trainer, step: Steps, view_seconds: float) -> Times:
    """Return the expected times of the run. view_seconds: of the features of a view, see `seconds_per_view`."""
    config, prepared = trainer.config, trainer.prepared
    epoch_steps = math.ceil(len(trainer.batches) / config.accumulate)
    by_time = config.max_minutes and 60 * config.max_minutes / step.seconds
    steps = math.ceil(min(limit for limit in (config.epochs * epoch_steps, config.max_steps, by_time) if limit))
    epochs, pictures = math.ceil(steps / epoch_steps), len(prepared.val.records)
    training, caption = steps * step.seconds, caption_seconds(trainer)
    loss = step.seconds / step.pictures / 3  # a forward pass; the backward pass takes twice that
    validation = epochs * (pictures * loss + trainer.validator.count * caption) + pictures * caption
    val_views = (1 + trainer.model.encoder.mirrored) * pictures
    features = view_seconds * (config.views * len(prepared.train.records) + val_views)
    validation += view_seconds * val_views  # the evaluation at the end encodes these pictures again
    return Times(steps, epochs, training, validation, features, training + validation + features)


def caption_seconds(trainer: Trainer) -> float:
    """Return the time of a picture in validation; its caption is taken to be as long as the references."""
    val, decode = trainer.prepared.val, trainer.config.decode
    few = replace(val, records=val.records[: trainer.config.batch_size])
    longest = max(len(val.ids[caption]) for record in few.records for caption in record.captions)
    decode = replace(decode, max_new_tokens=max(decode.min_new_tokens, min(decode.max_new_tokens, longest)))
    config = replace(trainer.config, decode=decode, val_images=len(few.records), workers=0)
    prepared = replace(trainer.prepared, val=few)
    validator = Validator(config, prepared, trainer.device, trainer.precision, trainer.ranks)
    begin = time.monotonic()
    validator(trainer.objective)
    return (time.monotonic() - begin) / len(few.records)


def seconds_per_view(trainer: Trainer) -> float:
    """Return the time to compute and store the features of a view as the run does; 0 if the backbone is not frozen."""
    config, prepared, train = trainer.config, trainer.prepared, trainer.prepared.train
    if train.features is None:
        return 0.0
    start = native.Checkpoint(trainer.model, prepared.tokenizer, prepared.preprocess)
    count = len(train.records) + len(prepared.val.records)
    backbone = frozen_backbone(start, trainer.device, config.half_features, count, mirrored=False)
    few = replace(train, records=train.records[:FEATURE_PICTURES], features=None)
    backbone.encode(few.images([0, 0]))  # not timed: the first call may write the backbone as ONNX
    with TemporaryDirectory() as folder:
        backbone = replace(backbone, cache=FeatureCache(Path(folder), "", config.half_features))
        begin = time.monotonic()
        backbone.with_features(few, config.views, Findings(), no_progress)
        return (time.monotonic() - begin) / (config.views * len(few.records))


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
    parts = {part.name: getattr(batch, part.name) for part in fields(batch)}
    return Batch(**tree_map_only(Tensor, lambda tensor: tensor[rows.to(tensor.device)], parts))
