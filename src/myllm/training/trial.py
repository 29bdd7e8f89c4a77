"""The first steps of a run and a part of a validation, timed; nothing is learned and nothing is written."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from myllm.caption import Sample
from myllm.data.batches import Batch
from myllm.device import autocast
from myllm.progress import Progress
from myllm.training.prepare import Prepared
from myllm.training.ranks import Ranks
from myllm.training.trainer import Trainer
from myllm.training.validate import Validator, sum_losses
from myllm.training.watch import StepReport
from myllm.training_config import TrainConfig

UNTIMED_STEPS, TIMED_STEPS = 3, 20
_aten = torch.ops.aten
# Attention on CPUs, which torch's table lacks; the functions get the shapes of the arguments.
CPU_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward:
        lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4]),
}


@dataclass(frozen=True)
class Times:
    """Expected times of a run, in seconds."""

    step: float
    """Mean of the timed steps."""
    wait_share: float
    """Share of the steps' time in which they waited for data."""
    steps: int
    """Steps of the whole run."""
    epochs: int
    training: float
    validation: float
    """All validations, and the evaluation at the end."""
    features: float
    """Computing the features of a frozen backbone; later runs find them stored."""

    @property
    def total(self) -> float:
        return self.training + self.validation + self.features


class Trial(Trainer):
    """The first steps of a run in its last stage, which trains most, at learning rate 0 and without files."""

    progress = 0.0  # no limit of the run ends a trial

    def __init__(
        self, config: TrainConfig, prepared: Prepared, progress: Progress, warn: Callable[[str], None], ranks: Ranks
    ) -> None:
        super().__init__(config, prepared, _TrialReporter(progress, warn), ranks)
        self.state.epoch = min(len(config.stages), config.epochs) - 1
        self.counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
        self.pictures = self.tokens = 0
        self.untimed = self.state
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["peak_lr"] = 0.0

    def save(self) -> None:
        """Save nothing."""

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss () of a batch, as in training."""
        with autocast(self.precision, self.device):
            return self.objective(batch).total

    def times(self) -> Times:
        """Return the expected times of the run, after the steps of the trial."""
        config, prepared, timed = self.config, self.prepared, self.state
        seconds = timed.seconds - self.untimed.seconds
        step, epoch_steps = seconds / TIMED_STEPS, math.ceil(len(self.batches) / config.accumulate)
        limits = (config.epochs * epoch_steps, config.max_steps, config.max_minutes and 60 * config.max_minutes / step)
        steps = math.ceil(min(limit for limit in limits if limit))
        epochs = math.ceil(steps / epoch_steps)
        losses, captions = self._validation_seconds()
        pictures = len(prepared.val.records)
        return Times(
            step, (timed.wait_seconds - self.untimed.wait_seconds) / seconds, steps, epochs, steps * step,
            epochs * (pictures * losses + self.validator.count * captions) + pictures * captions,
            self._feature_seconds() * (len(prepared.train.records) + pictures),
        )

    def _validation_seconds(self) -> tuple[float, float]:
        """Return the time of a validation picture's loss, and of its caption."""
        val = self.prepared.val
        few = replace(val, records=val.records[: self.config.batch_size])
        # an untrained model's captions do not end; trained ones are about as long as the references
        longest = max(len(val.ids[caption]) for record in few.records for caption in record.captions)
        decode = self.config.decode
        longest = max(decode.min_new_tokens, min(decode.max_new_tokens, longest))
        config = replace(self.config, decode=replace(decode, max_new_tokens=longest), val_images=len(few.records))
        validator = Validator(config, replace(self.prepared, val=few), self.device, self.precision, self.ranks)
        sum_losses(self.objective, validator.batches.epoch(0), self.device)  # starts the processes that load pictures
        begin = time.monotonic()
        sum_losses(self.objective, validator.batches.epoch(0), self.device)
        middle = time.monotonic()
        validator(self.objective)
        both, losses = time.monotonic() - middle, middle - begin
        return losses / len(few.records), max(0.0, both - losses) / len(few.records)

    def _feature_seconds(self) -> float:
        """Return the time of a picture's features; 0 if the backbone is not frozen."""
        if self.prepared.train.features is None:
            return 0.0
        images = self.prepared.train.images(range(min(16, len(self.prepared.train.records)))).to(self.device)
        with torch.inference_mode():
            begin = time.monotonic()
            for output in self.model.encoder.eval()(images):
                output.cpu()
        return (time.monotonic() - begin) / len(images)

    def _is_finished(self) -> bool:
        return self.state.step >= UNTIMED_STEPS + TIMED_STEPS

    def _is_out_of_patience(self) -> bool:
        return False

    def _end_epoch(self, should_stop: Callable[[], bool]) -> bool:
        """Begin the same epoch again."""
        self.state.batch = 0
        return True

    def _step(self, group: Sequence[Batch], tokens: int, pictures: int) -> Tensor:
        if self.state.step == 0:
            with self.counter:
                return super()._step(group, tokens, pictures)
        if self.state.step == UNTIMED_STEPS:
            self.untimed = replace(self.state)
        if self.state.step >= UNTIMED_STEPS:
            self.pictures, self.tokens = self.pictures + pictures, self.tokens + tokens
        return super()._step(group, tokens, pictures)


class _TrialReporter:
    """Moves a bar with the steps."""

    def __init__(self, progress: Progress, warn: Callable[[str], None]) -> None:
        self.progress, self.warn = progress, warn

    def step(self, report: StepReport) -> None:
        self.progress("timing steps", report.step, UNTIMED_STEPS + TIMED_STEPS)

    def epoch(self, row: dict[str, float | str], samples: Sequence[Sample]) -> None:
        """Do nothing."""
