"""The state of a run, how last.pt stores it, and which options may change when a run is resumed."""

import os
import pickle
import zipfile
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from os.path import relpath
from pathlib import Path
from typing import Any

import torch

from myllm.checkpoints.card import flatten
from myllm.checkpoints.checks import dataclass_from_dict
from myllm.errors import CheckpointError, ConfigError, reason
from myllm.files import atomic_write
from myllm.training_config import TrainConfig

FILE_NAME = "last.pt"
PREVIOUS_NAME = "last.previous.pt"
# Options that may change when a run is resumed. The finished part of the run depends on the others.
MAY_CHANGE = frozenset({
    "data", "out", "epochs", "max_steps", "max_minutes", "patience", "best_by", "val_images", "lr", "muon_lr",
    "weight_decay", "vision_weight_decay", "grad_clip", "schedule", "label_smoothing", "devices", "workers",
    "save_minutes",
})
# Options without effect on the weights; a change needs no message.
HOUSEKEEPING = frozenset({"data", "out", "devices", "workers", "save_minutes"})


@dataclass
class RunState:
    """Counters of a run."""

    epoch: int = 0
    """Finished epochs."""
    batch: int = 0
    """Finished batches of the current epoch."""
    step: int = 0
    """Finished optimizer steps."""
    seconds: float = 0.0
    """Time in training steps over all sessions, without validation."""
    wait_seconds: float = 0.0
    """Part of `seconds` in which steps waited for data."""
    best_epoch: int = 0
    """Number of the best epoch from 1; 0 if none is finished."""
    loss_sum: float = 0.0
    """Sum of the current epoch's losses in nats."""
    loss_tokens: int = 0
    """Number of tokens in `loss_sum`."""
    tokens: int = 0
    """Number of targets of all steps."""
    reward_sum: float = 0.0
    """Sum of the rewards of the current epoch's samples, in self-critical training."""
    samples: int = 0
    """Number of samples in `reward_sum`."""
    gradient_norm: float = 0.0
    """Gradient norm of the latest step, before clipping."""
    skipped: int = 0
    """Latest steps in a row that were not taken, because their loss was not finite."""
    mean_loss: float = 0.0
    """Moving average of the loss, to notice spikes; 0 before the first step."""
    history: list[dict[str, float | str]] = field(default_factory=list)
    """A row for each finished epoch."""

    @property
    def wait_share(self) -> float:
        """Share of the time in training steps in which they waited for data."""
        return self.wait_seconds / max(self.seconds, 1e-9)


def save(folder: Path, content: Mapping[str, Any]) -> None:
    """Write last.pt atomically; the file that was there stays as last.previous.pt. Raises MyLLMError."""
    path, previous = folder / FILE_NAME, folder / PREVIOUS_NAME
    with atomic_write(path) as file:
        torch.save(dict(content), file)
        if path.exists():
            previous.unlink(missing_ok=True)
            with suppress(OSError):  # a file system without links keeps no predecessor
                os.link(path, previous)


def exists(folder: Path) -> bool:
    """Return whether the folder holds the state of a run."""
    return any((folder / name).exists() for name in (FILE_NAME, PREVIOUS_NAME))


def load(folder: Path) -> tuple[dict[str, Any], Path]:
    """Return the newest undamaged state of a run, and the file that holds it: last.pt or last.previous.pt.

    Raises CheckpointError if there is none, or it is of an earlier version.
    """
    problems = []
    for path in (folder / FILE_NAME, folder / PREVIOUS_NAME):
        try:
            if (damaged := zipfile.ZipFile(path).testzip()) is not None:  # torch.load does not compare checksums
                raise ValueError(f"{damaged} is damaged")
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
            problems.append(f"{path}: {reason(error)}")
            continue
        if not isinstance(content, dict) or not {"config", "tokenizer", "fingerprints"} <= content.keys():
            raise CheckpointError(
                f"{path} was written by an earlier version of MyLLM, or is not a run's state; finish the run with that "
                "version, or start a new one from its captioner by --base"
            )
        return content, path
    raise CheckpointError(
        f"no run to resume: {'; '.join(problems)}. Start again with --overwrite; captioner.pt, if there is one, stays "
        "usable until then"
    )


def unused_minutes(folder: Path) -> float:
    """Return how many of its `max_minutes` a finished run did not need; 0 if it had no such limit.

    Raises CheckpointError.
    """
    content, _ = load(folder)
    limit = content["config"]["max_minutes"]
    return max(0.0, limit - content["state"]["seconds"] / 60) if limit else 0.0


def restore_counters(saved: Mapping[str, Any]) -> RunState:
    """Return the counters of a saved state; those of other versions are ignored."""
    known = {counter.name for counter in fields(RunState)}
    return RunState(**{name: value for name, value in saved.items() if name in known})


def resumed_config(
    saved: Mapping[str, Any], config: TrainConfig, given_options: Collection[str]
) -> tuple[TrainConfig, list[str]]:
    """Return the saved configuration with the options that are given now, and a sentence for each that changes.

    given_options: dotted names. Raises ConfigError for a given option that differs and may not change.
    """
    before = dataclass_from_dict(TrainConfig, saved)
    old, new = (dict(flatten(asdict(part), ".")) for part in (before, config))
    if before.base and config.base and relpath(before.base, before.out) == relpath(config.base, config.out):
        old["base"] = config.base  # it was moved together with the run, as the runs of a sequence are
    changes = []
    for name in sorted({*given_options, "out"} & new.keys()):
        if new[name] == old.get(name):
            continue
        if name not in MAY_CHANGE and not name.startswith("decode."):
            raise ConfigError(
                f"--resume: {name} is {new[name]}, and the run began with {old.get(name)}; leave it out, or start a "
                "new run with another --out"
            )
        if name not in HOUSEKEEPING:
            changes.append(f"{name} is {new[name]} from here on; it was {old.get(name)}")
        old[name] = new[name]
    return dataclass_from_dict(TrainConfig, nested(old)), changes


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"text": {"n_layer": 2}} for {"text.n_layer": 2}."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, option = name.split(".")
        part = nested
        for group in groups:
            part = part.setdefault(group, {})
        part[option] = value
    return nested

