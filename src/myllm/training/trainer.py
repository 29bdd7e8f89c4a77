"""The training loop, read from top to bottom."""

import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from myllm.caption import Sample
from myllm.checkpoints import lora, native
from myllm.config import TrainConfig
from myllm.data.batches import Batch, Batches, evaluation_batches, training_batches
from myllm.device import autocast, choose_device, choose_precision
from myllm.errors import MyLLMError
from myllm.inference.generate import generate_captions, make_vocabulary
from myllm.inference.torch_steppers import make_search
from myllm.metrics.diversity import measure_diversity
from myllm.metrics.score import score_captions, shuffled
from myllm.model.lora import adapted_layers
from myllm.training import run_state
from myllm.training.loss import Objective, WordPresence, word_occurrences
from myllm.training.optim import build_optimizers, rate_factor, set_rates
from myllm.training.prepare import Prepared
from myllm.training.run_state import RunState
from myllm.training.stages import set_stage, set_train_mode, stage_of

SAVE_SECONDS = 600.0
COLLAPSED_SHARE = 0.2
SAMPLES = 20


@dataclass(frozen=True)
class StepReport:
    """How far a run is after a step."""

    epoch: int
    step: int
    progress: float
    """0..1 of the whole run."""
    loss: float
    pictures_per_second: float


class Reporter(Protocol):
    """Who is told while it runs."""

    def step(self, report: StepReport) -> None: ...

    def epoch(self, row: dict[str, float | str], samples: Sequence[Sample]) -> None: ...

    def warn(self, message: str) -> None: ...


class Trainer:
    """One run: `train` goes from where `state` is to the end, or to an interruption, which it saves."""

    def __init__(self, config: TrainConfig, prepared: Prepared, reporter: Reporter) -> None:
        self.config = config
        self.prepared = prepared
        self.reporter = reporter
        self.out = Path(config.out)
        self.device = choose_device(config.devices)
        self.precision = choose_precision(config.precision, self.device)
        self.end = prepared.train.end
        self.vocabulary = make_vocabulary(prepared.tokenizer)
        self.model = prepared.model.to(self.device)
        self.objective = Objective(
            self.model,
            self.end,
            config.label_smoothing,
            config.word_dropout,
            self._presence(),
            config.word_presence_weight,
        ).to(self.device)
        self.optimizers = build_optimizers(self.objective, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.batches = training_batches(
            prepared.train, config.batch_size, config.captions_per_image, config.seed, config.augment, config.workers
        )
        self.judged = evaluation_batches(prepared.val, config.batch_size, config.workers)
        self.state = RunState()

    def resume(self) -> None:
        """Go on from last.pt. Raises CheckpointError."""
        path = self.out / run_state.FILE_NAME
        self.state = run_state.load(path, self.objective, self.optimizers, self.scaler, self._fingerprint)

    def train(self) -> bool:
        """Train to the end. False where Ctrl-C came first: the run is then saved and can be resumed."""
        state, config = self.state, self.config
        with _interruptible() as interrupted:
            while not self._is_over():
                set_stage(self.model, stage_of(state.epoch, config), config)
                self._train_epoch(interrupted)
                if interrupted.is_set():
                    self.save()
                    return False
                self._end_epoch()
        if self._is_out_of_patience():
            self.reporter.warn(f"stopped: {config.patience} epochs without a better {config.best_by}")
        return True

    def save(self) -> None:
        """Write last.pt."""
        run_state.save(
            self.out / run_state.FILE_NAME,
            self.state,
            self.objective,
            self.optimizers,
            self.scaler,
            self._fingerprint,
        )

    @property
    def _fingerprint(self) -> str:
        """Of what a run can't go on without: the same data, and where adapters train the same weights under them."""
        return " ".join(filter(None, (self.prepared.fingerprint, self.prepared.base_hash)))

    @property
    def progress(self) -> float:
        """0..1, by whichever of the limits is nearest."""
        config, state = self.config, self.state
        steps = config.epochs * math.ceil(len(self.batches) / config.accumulate)
        shares = [state.step / min(steps, config.max_steps or steps)]
        if config.max_minutes:
            shares.append(state.seconds / (60 * config.max_minutes))
        return min(1.0, max(shares))

    def _is_over(self) -> bool:
        return self.progress >= 1.0 or self.state.epoch >= self.config.epochs or self._is_out_of_patience()

    def _is_out_of_patience(self) -> bool:
        patience = self.config.patience
        return patience is not None and self.state.epoch - self.state.best_epoch >= patience

    def _presence(self) -> WordPresence | None:
        if not self.config.word_presence_weight:
            return None
        text, source = self.model.config.text, self.prepared.train
        captions = [[source.ids[caption] for caption in record.captions] for record in source.records]
        return WordPresence(text.n_embd, word_occurrences(captions, text.vocab_size, self.end))

    def _train_epoch(self, interrupted: threading.Event) -> None:
        """The rest of an epoch, or of the run's limit, or until interrupted."""
        state, config = self.state, self.config
        self.objective.train()
        set_train_mode(self.model)
        coming = self.batches.epoch(state.epoch, state.batch)
        began = saved = time.monotonic()
        while not self._is_over() and (group := list(islice(coming, config.accumulate))):
            set_rates(self.optimizers, rate_factor(self.progress, config.schedule))
            loss = self._step(group)
            now = time.monotonic()
            pictures = sum(len(batch.index) for batch in group)
            state.batch += len(group)
            state.step += 1
            state.seconds += now - began
            self.reporter.step(
                StepReport(state.epoch, state.step, self.progress, loss, pictures / max(now - began, 1e-9))
            )
            began = now
            if interrupted.is_set():
                return
            if now - saved > SAVE_SECONDS:
                self.save()
                saved = now

    def _step(self, group: Sequence[Batch]) -> float:
        """One optimizer step over the batches of `group`, as if they were one. Returns the loss a token."""
        tokens = sum(int(batch.mask.sum()) for batch in group)
        caption_sum = 0.0
        for batch in group:
            with autocast(self.precision, self.device):
                losses = self.objective(batch.to(self.device))
            self.scaler.scale(losses.total * (losses.tokens / max(1, tokens))).backward()
            caption_sum += float(losses.caption_sum)
        if not math.isfinite(caption_sum):
            kept = f"; the best epoch is still in {self.out}" if self.state.best is not None else ""
            raise MyLLMError(
                f"the loss is {caption_sum} at step {self.state.step}: the rate is too high for this model. Take a "
                f"lower --lr, or --precision fp32{kept}"
            )
        if self.state.step == 0:
            self._warn_of_idle_adapters()
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(self.objective.parameters(), self.config.grad_clip)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
            optimizer.zero_grad()
        self.scaler.update()
        self.state.loss_sum += caption_sum
        self.state.loss_tokens += tokens
        return caption_sum / max(1, tokens)

    def _warn_of_idle_adapters(self) -> None:
        """Some layers only lend their weight to what computes, as BEiT's qkv: nothing reaches their adapters."""
        idle = [name for name, layer in adapted_layers(self.model) if layer.lora_B.weight.grad is None]
        if idle:
            told = f"adapters of {len(idle)} layers are not used by the model, {idle[0]} for one"
            self.reporter.warn(f"{told}; leave these out of --lora.targets")

    def _end_epoch(self) -> None:
        """Validate, keep the best, save, report."""
        state, config = self.state, self.config
        train_loss = state.loss_sum / max(1, state.loss_tokens)
        val_loss = validation_loss(self.objective, self.judged, self.device)
        samples = self._validation_captions()
        captions, references = [s.caption for s in samples], [s.references for s in samples]
        cider = score_captions(captions, references, metrics=("CIDEr",)).corpus["CIDEr-D"]
        control = score_captions(shuffled(captions), references, metrics=("CIDEr",)).corpus["CIDEr-D"]
        state.epoch, state.batch = state.epoch + 1, 0
        state.loss_sum, state.loss_tokens = 0.0, 0
        row: dict[str, float | str] = {
            "epoch": state.epoch, "step": state.step, "minutes": state.seconds / 60,
            "stage": stage_of(state.epoch - 1, config), "train_loss": train_loss,
            "train_perplexity": math.exp(min(train_loss, 50.0)), "val_loss": val_loss,
            "val_perplexity": math.exp(min(val_loss, 50.0)), "CIDEr-D": cider, "CIDEr-D_shuffled": control,
            "distinct_captions": measure_diversity(captions).distinct_share,
        }
        state.history.append(row)
        value = -val_loss if config.best_by == "loss" else cider
        if state.best is None or value > state.best:
            state.best, state.best_epoch = value, state.epoch
            self._save_best(self._checkpoint(row))
        self.save()
        self.reporter.epoch(row, samples[:SAMPLES])
        for warning in warnings_of(captions, cider, control):
            self.reporter.warn(warning)

    def _validation_captions(self) -> list[Sample]:
        """Captions of the first validation pictures, by the run's decoding options."""
        model = self.model.eval()
        samples: list[Sample] = []
        count = min(self.config.val_images, len(self.prepared.val.records))
        for batch in self.judged.epoch(0):
            with torch.inference_mode(), autocast(self.precision, self.device):
                batch = batch.to(self.device)
                features = batch.features if batch.features is not None else model.encoder(batch.images)
                image = model.image_kv(model.image_tokens(features))
                # a picture is drawn for alike in each epoch
                seeds = batch.index.tolist()
                search = make_search(model, self.vocabulary, image, self.config.decode, seeds)
                written = generate_captions(search, self.prepared.tokenizer)
            for position, caption in zip(batch.index.tolist(), written, strict=True):
                record = self.prepared.val.records[position]
                samples.append(Sample(record.image, caption.text, record.captions))
            if len(samples) >= count:
                break
        return samples[:count]

    def _save_best(self, checkpoint: native.Checkpoint) -> None:
        """captioner.pt; or, where adapters train, these alone."""
        config, base_hash = self.config, self.prepared.base_hash
        if config.base is None or base_hash is None:
            native.save(checkpoint, self.out / native.FILE_NAME)
        else:
            lora.save(checkpoint, config.lora, config.base, base_hash, self.out / lora.FOLDER)

    def _checkpoint(self, row: dict[str, float | str]) -> native.Checkpoint:
        prepared, config = self.prepared, self.config
        provenance: dict[str, Any] = {
            "data": {"folder": Path(config.data).name, "fingerprint": prepared.fingerprint,
                     "train": len(prepared.train.records), "val": len(prepared.val.records)},
            "validation": dict(row), "captioned": min(config.val_images, len(prepared.val.records)),
            "seed": config.seed, "torch": str(torch.__version__),
        }
        if config.base is not None:
            provenance["base"] = config.base
        return native.Checkpoint(
            self.model, prepared.tokenizer, prepared.preprocess, config.captions, config.decode, provenance
        )


@torch.inference_mode()
def validation_loss(objective: Objective, batches: Batches, device: torch.device) -> float:
    """Nats a token over all captions of all pictures: summed, then divided once."""
    objective.eval()
    caption_sum, tokens = 0.0, 0
    for batch in batches.epoch(0):
        losses = objective(batch.to(device))
        caption_sum += float(losses.caption_sum)
        tokens += losses.tokens
    return caption_sum / max(1, tokens)


def warnings_of(captions: Sequence[str], cider: float, control: float) -> list[str]:
    """In words, what figures alone let one overlook."""
    found = []
    diversity = measure_diversity(captions)
    if len(captions) > 20 and diversity.most_frequent_share > COLLAPSED_SHARE:
        found.append(
            f"{diversity.most_frequent_share:.0%} of the captions are the same sentence ({diversity.most_frequent!r}): "
            "the model has collapsed, or has only begun to learn"
        )
    if len(captions) > 20 and cider < 2 * control:
        found.append(
            f"captions of shuffled pictures score nearly as well (CIDEr-D {control:.3f} beside {cider:.3f}): "
            "the model does not look at the pictures yet"
        )
    return found


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """The first Ctrl-C sets the event, so that a step is finished before a run is saved; the second breaks off."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread alone
        yield interrupted
        return
    before = signal.getsignal(signal.SIGINT)

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
