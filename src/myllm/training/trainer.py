"""The training loop."""

import copy
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from myllm.checkpoints import lora, native
from myllm.data.batches import Batch, training_batches
from myllm.data.sources import data_name
from myllm.data.splits import name_hash
from myllm.device import autocast, choose_device, choose_precision
from myllm.errors import CheckpointError, MyLLMError, reason
from myllm.metrics.diversity import measure_diversity, repeating_share
from myllm.model.lora import adapted_layers
from myllm.signals import caught_signals
from myllm.training import run_state
from myllm.training.cpu_attention import CpuAttention
from myllm.training.ema import update_average
from myllm.training.loss import Objective, WordPresence, word_occurrences
from myllm.training.optim import build_optimizers, rate_factor, set_rates
from myllm.training.prepare import Prepared
from myllm.training.ranks import Ranks
from myllm.training.run_state import RunState
from myllm.training.self_critical import CaptionSampler
from myllm.training.shared_batch_norm import SharedBatchNorm
from myllm.training.stages import set_stage, set_train_mode, stage_of
from myllm.training.validate import MIN_CIDER_PICTURES, Validation, Validator, best_criterion, is_better
from myllm.training.watch import Reporter, StepReport, check_step
from myllm.training_config import TrainConfig

SAMPLES = 20
MAX_SKIPPED = 3


class Trainer:
    """Trains a captioner from `state` to the end of the run."""

    def __init__(
        self, config: TrainConfig, prepared: Prepared, reporter: Reporter, ranks: Ranks | None = None
    ) -> None:
        self.config, self.prepared, self.reporter = config, prepared, reporter
        self.ranks = ranks or Ranks()
        self.out = Path(config.out)
        self.device = choose_device(config.devices)
        self.precision = choose_precision(config.precision, self.device, config.vision.frozen)
        self.model = prepared.model.to(self.device)
        train, text, presence = prepared.train, self.model.config.text, None
        if config.word_presence_weight:
            captions = [[train.ids[caption] for caption in record.captions] for record in train.records]
            presence = WordPresence(text.n_embd, word_occurrences(captions, text.vocab_size, train.end))
        self.objective = Objective(
            self.model, config.label_smoothing, presence, config.word_presence_weight
        ).to(self.device)
        self.average = copy.deepcopy(self.objective) if config.ema else None
        self.optimizers = build_optimizers(self.objective, config, self.precision, self.ranks)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.batches = training_batches(train, config, self.ranks.share)
        self.sampler = CaptionSampler(self.model, config, prepared) if config.self_critical.samples else None
        self.validator = Validator(config, prepared, self.device, self.precision, self.ranks)
        self.best_by = best_criterion(config.best_by, self.validator.count)
        self.state = RunState()
        # Both stay on the device until a row or a file needs them: reading them in each step would make a GPU wait.
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.gradient_norm = torch.zeros((), device=self.device)
        self.latest: StepReport | None = None

    def resume(self, content: Mapping[str, Any], path: Path) -> None:
        """Restore a saved run. path: the file that `content` is from, for messages. Raises CheckpointError."""
        saved, now = content["fingerprints"], self.prepared.fingerprints
        for name in now:
            if saved.get(name) != now[name]:
                raise CheckpointError(
                    f"{path}: this run began with another {name} (fingerprint {saved.get(name)}, now {now[name]}); "
                    "restore it, or start a new run with another --out"
                )
        try:
            self.objective.load_state_dict(content["objective"])
            if self.average is not None:
                self.average.load_state_dict(content["average"])
            for optimizer, state in zip(self.optimizers, content["optimizers"], strict=True):
                # rates and decay are those of the configuration, which may have changed
                groups = [{**old, **new, "params": old["params"]} for old, new in zip(
                    state["param_groups"], optimizer.param_groups, strict=True
                )]
                optimizer.load_state_dict({**state, "param_groups": groups})
            self.scaler.load_state_dict(content["scaler"])
            self.state = run_state.restore_counters(content["state"])
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path}: does not fit this run ({reason(error)}); resume with the options it began with "
                "(they are in config.yaml next to it), or start again with --overwrite"
            ) from error
        self.loss_sum.fill_(self.state.loss_sum)
        self.gradient_norm.fill_(self.state.gradient_norm)
        rate = self.config.lr * rate_factor(self.progress, self.config.schedule)
        if self.state.history and self.progress < 1 and rate > 1.5 * float(self.state.history[-1]["learning_rate"]):
            self.reporter.warn(
                f"the schedule now ends later, so the learning rate goes up to {rate:.2g} again; "
                f"it was {self.state.history[-1]['learning_rate']:.2g}"
            )

    def train(self) -> int | None:
        """Train to the end of the run, or to the first Ctrl-C or SIGTERM; return the number of that signal, or None.

        A run that ends early is saved first, so that it can be resumed. Raises MyLLMError if the loss of several
        steps is not finite, a picture cannot be read any more, or a file cannot be written.
        """
        config, state = self.config, self.state
        if self.best_by != config.best_by:
            self.reporter.warn(
                f"the best epoch is the one with the lowest validation loss: {config.best_by} needs at least "
                f"{MIN_CIDER_PICTURES} captioned validation pictures, and there are {self.validator.count}"
            )
        batches = self._start_epoch()
        step_time = save_time = time.monotonic()
        with caught_signals() as signals:
            while not self._is_finished():
                group, failure = self._next_batches(batches)
                waited = time.monotonic() - step_time
                group = self.sample(group)
                pictures, tokens, reward, stopped, failed = self.ranks.sum(
                    sum(len(batch.index) for batch in group),
                    sum(int(batch.lengths.sum()) for batch in group),
                    sum(float(batch.rewards.sum()) for batch in group if batch.rewards is not None),
                    bool(signals), failure is not None,
                )
                if stopped or failed:
                    self.save()
                    if stopped:
                        return signals[0] if signals else signal.SIGTERM
                    raise failure or MyLLMError("another process of this run failed; its message says why")
                if group:
                    rate = rate_factor(self.progress, config.schedule)
                    set_rates(self.optimizers, rate)
                    loss = self._step(group, max(1, int(tokens)), int(pictures))
                    seconds = self.ranks.from_first(time.monotonic() - step_time)
                    step_time = time.monotonic()
                    state.batch, state.step = state.batch + len(group), state.step + 1
                    state.seconds, state.wait_seconds = state.seconds + seconds, state.wait_seconds + waited
                    samples = int(pictures) * config.self_critical.samples
                    state.reward_sum, state.samples = state.reward_sum + reward, state.samples + samples
                    self._check_latest()  # a GPU finished that step while this one was prepared
                    index = tuple(number for batch in group for number in batch.index.tolist())
                    self.latest = StepReport(
                        state.epoch, state.step, self.progress, config.lr * rate, seconds, index, int(pictures),
                        int(tokens), loss, self.gradient_norm, reward / samples if samples else None,
                    )
                    self.reporter.step(self.latest)
                if state.batch >= len(self.batches) or self.progress >= 1.0:
                    if self._end_epoch(should_stop=lambda: bool(signals)):
                        batches = self._start_epoch()
                        step_time = save_time = time.monotonic()
                elif self.ranks.from_first(step_time - save_time) > 60 * config.save_minutes:
                    self.save()
                    save_time = step_time
        if self._is_out_of_patience():
            self.reporter.warn(f"stopped: {config.patience} epochs without a better {self.best_by}")
        return None

    def save(self) -> None:
        """Write last.pt; the first process does. Raises MyLLMError."""
        self._read_device()
        if self.ranks.is_first:
            run_state.save(self.out, {
                "state": asdict(self.state), "objective": self.objective.state_dict(),
                "average": None if self.average is None else self.average.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "scaler": self.scaler.state_dict(), "config": asdict(self.config),
                "tokenizer": self.prepared.tokenizer.to_str(), "fingerprints": self.prepared.fingerprints,
            })

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0 to 1, by the nearest limit: epochs, steps or minutes."""
        config, state = self.config, self.state
        steps = config.epochs * math.ceil(len(self.batches) / config.accumulate)
        by_time = state.seconds / (60 * config.max_minutes) if config.max_minutes else 0.0
        return min(1.0, max(by_time, state.step / min(steps, config.max_steps or steps)))

    @property
    def _judged(self) -> Objective:
        """What is validated and kept: the averaged weights, if there are any."""
        return self.objective if self.average is None else self.average

    def _is_finished(self) -> bool:
        """Return whether the run is over and its last epoch is validated."""
        return self.state.batch == 0 and (self.progress >= 1.0 or self._is_out_of_patience())

    def _is_out_of_patience(self) -> bool:
        patience = self.config.patience
        return patience is not None and self.state.epoch - self.state.best_epoch >= patience

    def _start_epoch(self) -> Iterator[Batch]:
        """Set the epoch's stage and training mode, and return its remaining batches."""
        set_stage(self.model, stage_of(self.state.epoch, self.config), self.config)
        self.objective.train()
        set_train_mode(self.model)
        return self.batches.epoch(self.state.epoch, self.state.batch)

    def _next_batches(self, batches: Iterator[Batch]) -> tuple[list[Batch], MyLLMError | None]:
        """Return the batches of the next step, none at the end of the epoch or of the run, or why there are none."""
        if self.progress >= 1.0:
            return [], None
        try:
            return list(islice(batches, self.config.accumulate)), None
        except MyLLMError as error:
            return [], MyLLMError(f"{error}. The run is saved; mend this and continue it by --resume")
        except RuntimeError as error:
            return [], MyLLMError(
                f"a process that loads pictures has ended ({reason(error)}). The run is saved; if memory ran out, "
                "resume with fewer --workers"
            )

    def sample(self, group: list[Batch]) -> list[Batch]:
        """In self-critical training, return the batches with sampled captions; else as they are."""
        if self.sampler is None:
            return group
        with autocast(self.precision, self.device):
            sampled = [self.sampler(batch.to(self.device), self.state.step) for batch in group]
        self.objective.train()
        set_train_mode(self.model)
        return sampled

    def _step(self, group: Sequence[Batch], tokens: int, pictures: int) -> Tensor:
        """Take one optimizer step over the batches of `group`, as if they were one; return the loss per token: ().

        tokens, pictures: their numbers over all batches of the step, in all processes.
        A step whose loss or gradient is not finite changes nothing; the device decides that, so that no GPU waits.
        """
        step_sum = torch.zeros_like(self.loss_sum)
        encoder = self.model.encoder
        statistics = [(buffer, buffer.clone()) for buffer in encoder.buffers()] if encoder.training else []
        for number, batch in enumerate(group):
            # dropout depends only on this, so that a resumed run drops the same
            torch.manual_seed(name_hash("dropout", self.config.seed, self.state.step, number, self.ranks.rank))
            shared = SharedBatchNorm(self.ranks, len(batch.index) > 0)
            with autocast(self.precision, self.device), CpuAttention(), shared:
                losses = self.objective(batch.to(self.device), tokens, pictures)
            self.scaler.scale(losses.total).backward()
            step_sum += losses.caption_sum
        if self.state.step == 0:
            self._warn_of_idle_adapters()
        step_sum = self.ranks.sum_gradients(self.objective.parameters(), step_sum)
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        self.gradient_norm = torch.nn.utils.clip_grad_norm_(self.objective.parameters(), self.config.grad_clip)
        is_finite = self.gradient_norm.isfinite() & step_sum.isfinite()
        for optimizer in self.optimizers:
            optimizer.found_inf = (~is_finite).float()  # type: ignore[attr-defined]
            optimizer.step()
            optimizer.zero_grad()
        for buffer, before in statistics:
            buffer.copy_(buffer.where(is_finite, before))
        self.scaler.update()
        if self.average is not None:
            update_average(self.average, self.objective, self.config.ema, self.state.step)
        self.loss_sum += step_sum.where(is_finite, 0.0)
        self.state.loss_tokens += tokens
        self.state.tokens += tokens
        return step_sum / tokens

    def _warn_of_idle_adapters(self) -> None:
        # some models (BEiT) read a layer's weight instead of calling the layer
        idle = [name for name, layer in adapted_layers(self.model) if layer.lora_B.weight.grad is None]
        if idle:
            self.reporter.warn(
                f"adapters of {len(idle)} layers are not used by the model, {idle[0]} for one; leave these out of "
                "--lora.targets"
            )

    def _check_latest(self) -> None:
        """Read the loss of the latest step. Raises MyLLMError, with the run saved, if several were not finite."""
        report, self.latest, state = self.latest, None, self.state
        if report is None or check_step(report, state, self.prepared.train.records, self.precision, self.reporter):
            return
        state.loss_tokens -= report.tokens
        if state.skipped >= MAX_SKIPPED:
            self.save()
            raise MyLLMError(
                f"the loss of {state.skipped} steps in a row is not finite, up to step {report.step}: the learning "
                "rate is too high for this model. The run is saved as it was before them; resume with a lower --lr"
            )

    def _read_device(self) -> None:
        """Copy the loss and the gradient norm into the state."""
        self._check_latest()
        self.state.loss_sum, self.state.gradient_norm = float(self.loss_sum), float(self.gradient_norm)

    def _end_epoch(self, should_stop: Callable[[], bool]) -> bool:
        """Validate, add a row to the history, save the captioner if the epoch is the best, save the state, report.

        Returns False, with nothing done, if `should_stop` became true before the validation was complete.
        """
        self._read_device()
        state, validation = self.state, self.validator(self._judged, should_stop)
        if validation is None:
            return False
        row = self._row(validation)
        state.epoch, state.batch, state.loss_sum, state.loss_tokens = state.epoch + 1, 0, 0.0, 0
        state.reward_sum, state.samples = 0.0, 0
        self.loss_sum.zero_()
        state.history.append(row)
        if not state.best_epoch or is_better(row, state.history[state.best_epoch - 1], self.best_by):
            state.best_epoch = state.epoch
            if self.ranks.is_first:
                self._save_best(row)
        self.save()
        self.reporter.epoch(row, validation.samples[:SAMPLES])
        for warning in validation.warnings():
            self.reporter.warn(warning)
        if self.best_by == "CIDEr-D" and validation.cider == 0:
            self.reporter.warn("CIDEr-D is 0; epochs with equal CIDEr-D are compared by validation loss")
        return True

    def _row(self, validation: Validation) -> dict[str, float | str]:
        """Return the epoch's row of metrics.csv."""
        state = self.state
        train_loss, diversity = state.loss_sum / max(1, state.loss_tokens), measure_diversity(validation.captions)
        return {
            "epoch": state.epoch + 1, "step": state.step, "minutes": state.seconds / 60,
            "stage": stage_of(state.epoch, self.config), "train_loss": train_loss,
            "train_perplexity": math.exp(min(train_loss, 50.0)),
            **({"reward": state.reward_sum / state.samples} if state.samples else {}), "val_loss": validation.loss,
            "val_perplexity": math.exp(min(validation.loss, 50.0)), "CIDEr-D": validation.cider,
            "CIDEr-D_shuffled": validation.shuffled_cider,
            "distinct_captions": diversity.distinct_share, "mean_length": diversity.mean_length,
            "repeating_captions": repeating_share(validation.captions),
            "learning_rate": self.optimizers[0].param_groups[0]["lr"], "gradient_norm": state.gradient_norm,
            "tokens_per_second": state.tokens / max(state.seconds, 1e-9),
            "data_wait": state.wait_share,
        }

    def _save_best(self, row: dict[str, float | str]) -> None:
        """Write captioner.pt or, if adapters train, adapter/."""
        prepared, config = self.prepared, self.config
        data = {
            "folder": data_name(config.data), "fingerprint": prepared.fingerprints["training split"],
            "train": len(prepared.train.records), "val": len(prepared.val.records),
        }
        provenance: dict[str, Any] = {
            "data": data, "validation": row, "captioned": self.validator.count, "seed": config.seed,
            "torch": str(torch.__version__), **({} if config.base is None else {"base": config.base}),
        }
        checkpoint = native.Checkpoint(
            self._judged.model, prepared.tokenizer, prepared.preprocess, config.captions,
            config.decode.without_retrieval(), provenance,
        )
        if config.base is None or prepared.base_hash is None:
            native.save(checkpoint, self.out / native.FILE_NAME)
        else:
            lora.save(checkpoint, config.lora, config.base, prepared.base_hash, self.out / lora.FOLDER)
