"""The state of a run, and how last.pt stores it."""

import pickle
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from myllm.errors import CheckpointError, reason
from myllm.files import atomic_write

FILE_NAME = "last.pt"


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
    best_epoch: int = 0
    """Number of the best epoch from 1; 0 if none is finished."""
    loss_sum: float = 0.0
    """Sum of the current epoch's losses in nats."""
    loss_tokens: int = 0
    """Number of tokens in `loss_sum`."""
    gradient_norm: float = 0.0
    """Gradient norm of the latest step, before clipping."""
    history: list[dict[str, float | str]] = field(default_factory=list)
    """A row for each finished epoch."""


def save(
    path: Path, state: RunState, objective: nn.Module, optimizers: list[torch.optim.Optimizer],
    scaler: torch.amp.GradScaler, fingerprint: str,
) -> None:
    """Write last.pt atomically."""
    content = {
        "state": asdict(state),
        "objective": objective.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "scaler": scaler.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "fingerprint": fingerprint,
    }
    with atomic_write(path) as file:
        torch.save(content, file)


def load(
    path: Path, objective: nn.Module, optimizers: list[torch.optim.Optimizer], scaler: torch.amp.GradScaler,
    fingerprint: str,
) -> RunState:
    """Restore the objective, the optimizers and the random generators from last.pt, and return the counters.

    Raises CheckpointError if the file is missing or damaged, or belongs to other data or another model.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file, so there is no run to resume; leave out --resume to start one")
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if content["fingerprint"] != fingerprint:
            raise CheckpointError(
                f"{path}: this run had other training data (fingerprint {content['fingerprint']}, now {fingerprint}) "
                "or another base; resume with what it began with, or start a new run with another --out"
            )
        objective.load_state_dict(content["objective"])
        for optimizer, saved in zip(optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        scaler.load_state_dict(content["scaler"])
        torch.set_rng_state(content["rng"])
        if content["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(content["cuda_rng"])
        known = {counter.name for counter in fields(RunState)}
        return RunState(**{name: value for name, value in content["state"].items() if name in known})
    except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, ValueError, EOFError, OSError) as error:
        raise CheckpointError(
            f"{path}: does not fit this run ({reason(error)}); resume with the options it began with "
            "(they are in config.yaml next to it), or start again with --overwrite"
        ) from error
