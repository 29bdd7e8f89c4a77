"""The training loop."""

import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from myllm.caption import Sample
from myllm.checkpoints import lora, native
from myllm.config import TrainConfig
from myllm.data.batches import Batch, training_batches
from myllm.data.sources import data_name
from myllm.device import autocast, choose_device, choose_precision
from myllm.errors import MyLLMError
from myllm.metrics.diversity import measure_diversity
from myllm.model.lora import adapted_layers
from myllm.training import run_state
from myllm.training.loss import Objective, WordPresence, word_occurrences
from myllm.training.optim import build_optimizers, rate_factor, set_rates
from myllm.training.prepare import Prepared
from myllm.training.run_state import RunState
from myllm.training.stages import set_stage, set_train_mode, stage_of
from myllm.training.validate import MIN_CIDER_PICTURES, Validation, Validator, best_criterion, is_better

SAVE_SECONDS = 600.0
SAMPLES = 20


@dataclass(frozen=True)
class StepReport:
    """A finished step. Reading `loss` or `gradient_norm` waits for the device; the other fields cost nothing."""

    epoch: int
    """Counted from 0."""
    step: int
    """Counted from 1."""
    progress: float
    """Share of the run that is done, 0 to 1."""
    learning_rate: float
    """Learning rate of AdamW in this step."""
    pictures_per_second: float
    loss_tensor: Tensor
    """() on the device."""
    norm_tensor: Tensor
    """() on the device."""

    @cached_property
    def loss(self) -> float:
        """Nats per token."""
        return float(self.loss_tensor)

    @cached_property
    def gradient_norm(self) -> float:
        """Norm of the gradient of all parameters, before clipping."""
        return float(self.norm_tensor)


class Reporter(Protocol):
    """Receives the progress of a run."""

    def step(self, report: StepReport) -> None: ...

    def epoch(self, row: dict[str, float | str], samples: Sequence[Sample]) -> None: ...

    def warn(self, message: str) -> None: ...


class Trainer:
    """Trains a captioner from `state` to the end of the run."""

    def __init__(self, config: TrainConfig, prepared: Prepared, reporter: Reporter) -> None:
        self.config = config
        self.prepared = prepared
        self.reporter = reporter
        self.out = Path(config.out)
        self.device = choose_device(config.devices)
        self.precision = choose_precision(config.precision, self.device)
        self.model = prepared.model.to(self.device)
        train, text, presence = prepared.train, self.model.config.text, None
        if config.word_presence_weight:
            captions = [[train.ids[caption] for caption in record.captions] for record in train.records]
            presence = WordPresence(text.n_embd, word_occurrences(captions, text.vocab_size, train.end))
        self.objective = Objective(
            self.model, train.end, config.label_smoothing, config.word_dropout, presence, config.word_presence_weight
        ).to(self.device)
        self.optimizers = build_optimizers(self.objective, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.batches = training_batches(
            train, config.batch_size, config.captions_per_image, config.seed, config.augment, config.workers
        )
        self.validator = Validator(config, prepared, self.device, self.precision)
        self.best_by = best_criterion(config.best_by, self.validator.count)
        self.state = RunState()
        # Both stay on the device until a row or a file needs them: reading them in each step would make a GPU wait.
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.gradient_norm = torch.zeros((), device=self.device)

    def resume(self) -> None:
        """Restore the run from last.pt. Raises CheckpointError."""
        path = self.out / run_state.FILE_NAME
        self.state = run_state.load(path, self.objective, self.optimizers, self.scaler, self._fingerprint)
        self.loss_sum.fill_(self.state.loss_sum)
        self.gradient_norm.fill_(self.state.gradient_norm)

    def train(self) -> bool:
        """Train to the end. Returns False if Ctrl-C came first; the run is then saved and can be resumed.

        Raises MyLLMError if the loss is not finite, or a file cannot be written.
        """
        config, state = self.config, self.state
        if self.best_by != config.best_by:
            self.reporter.warn(
                f"the best epoch is the one with the lowest validation loss: {config.best_by} needs at least "
                f"{MIN_CIDER_PICTURES} captioned validation pictures, and there are {self.validator.count}"
            )
        batches = self._start_epoch()
        previous: StepReport | None = None
        step_time = save_time = time.monotonic()
        with _catch_interrupt() as interrupted:
            while self.progress < 1.0 and state.epoch < config.epochs and not self._is_out_of_patience():
                if group := list(islice(batches, config.accumulate)):  # [] if interrupted at the end of an epoch
                    rate = rate_factor(self.progress, config.schedule)
                    set_rates(self.optimizers, rate)
                    loss = self._step(group)
                    seconds = time.monotonic() - step_time
                    step_time += seconds
                    state.batch += len(group)
                    state.step += 1
                    state.seconds += seconds
                    speed = sum(len(batch.index) for batch in group) / max(seconds, 1e-9)
                    report = StepReport(
                        state.epoch, state.step, self.progress, config.lr * rate, speed, loss, self.gradient_norm
                    )
                    self.reporter.step(report)
                    if previous is not None:  # a GPU finished that step while this one was prepared
                        self._check_loss(previous.loss, previous.step)
                    previous = report
                if interrupted.is_set() and self.progress < 1.0:
                    self.save()
                    return False
                if state.batch >= len(self.batches) or self.progress >= 1.0:
                    self._end_epoch()
                    batches = self._start_epoch()
                    step_time = save_time = time.monotonic()
                elif step_time - save_time > SAVE_SECONDS:
                    self.save()
                    save_time = step_time
        if self._is_out_of_patience():
            self.reporter.warn(f"stopped: {config.patience} epochs without a better {self.best_by}")
        return True

    def save(self) -> None:
        """Write last.pt. Raises MyLLMError if the loss is not finite: such a state is not worth keeping."""
        self._read_device()
        path = self.out / run_state.FILE_NAME
        run_state.save(path, self.state, self.objective, self.optimizers, self.scaler, self._fingerprint)

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0 to 1, by the nearest limit: epochs, steps or minutes."""
        config, state = self.config, self.state
        steps = config.epochs * math.ceil(len(self.batches) / config.accumulate)
        by_time = state.seconds / (60 * config.max_minutes) if config.max_minutes else 0.0
        return min(1.0, max(by_time, state.step / min(steps, config.max_steps or steps)))

    @property
    def _fingerprint(self) -> str:
        """Identifies the data and, under adapters, the base's weights; a run is resumed only with the same ones."""
        return " ".join(filter(None, (self.prepared.fingerprint, self.prepared.base_hash)))

    def _is_out_of_patience(self) -> bool:
        patience = self.config.patience
        return patience is not None and self.state.epoch - self.state.best_epoch >= patience

    def _start_epoch(self) -> Iterator[Batch]:
        """Set the epoch's stage and training mode, and return its remaining batches."""
        set_stage(self.model, stage_of(self.state.epoch, self.config), self.config)
        self.objective.train()
        set_train_mode(self.model)
        return self.batches.epoch(self.state.epoch, self.state.batch)

    def _step(self, group: Sequence[Batch]) -> Tensor:
        """Take one optimizer step over the batches of `group`, as if they were one; return the loss per token: ()."""
        tokens = max(1, sum(int(batch.lengths.sum()) for batch in group))
        step_sum = torch.zeros_like(self.loss_sum)
        for batch in group:
            with autocast(self.precision, self.device):
                losses = self.objective(batch.to(self.device))
            self.scaler.scale(losses.total * (losses.tokens / tokens)).backward()
            step_sum += losses.caption_sum
        if self.state.step == 0:  # some models (BEiT) read a layer's weight instead of calling the layer
            idle = [name for name, layer in adapted_layers(self.model) if layer.lora_B.weight.grad is None]
            if idle:
                self.reporter.warn(
                    f"adapters of {len(idle)} layers are not used by the model, {idle[0]} for one; leave these out of "
                    "--lora.targets"
                )
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        self.gradient_norm = torch.nn.utils.clip_grad_norm_(self.objective.parameters(), self.config.grad_clip)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
            optimizer.zero_grad()
        self.scaler.update()
        self.loss_sum += step_sum
        self.state.loss_tokens += tokens
        return step_sum / tokens

    def _check_loss(self, loss: float, step: int) -> None:
        """Raise MyLLMError if the loss of a step is NaN or infinite."""
        if not math.isfinite(loss):
            hint = f"; the best epoch is still in {self.out}" if self.state.best_epoch else ""
            raise MyLLMError(
                f"the loss is {loss} at step {step}: the learning rate is too high for this model. Take a lower --lr, "
                f"or --precision fp32{hint}"
            )

    def _read_device(self) -> None:
        """Copy the loss and the gradient norm into the state. Raises MyLLMError if the loss is not finite."""
        self.state.loss_sum, self.state.gradient_norm = float(self.loss_sum), float(self.gradient_norm)
        self._check_loss(self.state.loss_sum, self.state.step)

    def _end_epoch(self) -> None:
        """Validate, add a row to the history, save the captioner if the epoch is the best, save the state, report."""
        self._read_device()
        state, validation = self.state, self.validator(self.objective)
        row = self._row(validation)
        state.epoch, state.batch, state.loss_sum, state.loss_tokens = state.epoch + 1, 0, 0.0, 0
        self.loss_sum.zero_()
        state.history.append(row)
        if not state.best_epoch or is_better(row, state.history[state.best_epoch - 1], self.best_by):
            state.best_epoch = state.epoch
            self._save_best(row)
        self.save()
        self.reporter.epoch(row, validation.samples[:SAMPLES])
        for warning in validation.warnings():
            self.reporter.warn(warning)
        if self.best_by == "CIDEr-D" and validation.cider == 0:
            self.reporter.warn("CIDEr-D is 0; epochs with equal CIDEr-D are compared by validation loss")

    def _row(self, validation: Validation) -> dict[str, float | str]:
        """Return the epoch's row of metrics.csv."""
        state = self.state
        train_loss = state.loss_sum / max(1, state.loss_tokens)
        return {
            "epoch": state.epoch + 1, "step": state.step, "minutes": state.seconds / 60,
            "stage": stage_of(state.epoch, self.config), "train_loss": train_loss,
            "train_perplexity": math.exp(min(train_loss, 50.0)), "val_loss": validation.loss,
            "val_perplexity": math.exp(min(validation.loss, 50.0)), "CIDEr-D": validation.cider,
            "CIDEr-D_shuffled": validation.shuffled_cider,
            "distinct_captions": measure_diversity(validation.captions).distinct_share,
            "learning_rate": self.optimizers[0].param_groups[0]["lr"], "gradient_norm": state.gradient_norm,
        }

    def _save_best(self, row: dict[str, float | str]) -> None:
        """Write captioner.pt or, if adapters train, adapter/."""
        prepared, config = self.prepared, self.config
        data = {
            "folder": data_name(config.data), "fingerprint": prepared.fingerprint,
            "train": len(prepared.train.records), "val": len(prepared.val.records),
        }
        provenance: dict[str, Any] = {
            "data": data, "validation": row, "captioned": self.validator.count, "seed": config.seed,
            "torch": str(torch.__version__), **({} if config.base is None else {"base": config.base}),
        }
        checkpoint = native.Checkpoint(
            self.model, prepared.tokenizer, prepared.preprocess, config.captions, config.decode, provenance
        )
        if config.base is None or prepared.base_hash is None:
            native.save(checkpoint, self.out / native.FILE_NAME)
        else:
            lora.save(checkpoint, config.lora, config.base, prepared.base_hash, self.out / lora.FOLDER)


@contextmanager
def _catch_interrupt() -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C sets, so that the step is finished; the second raises KeyboardInterrupt."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield interrupted
        return

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
