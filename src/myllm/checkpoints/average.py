"""Weighted means of captioners: between checkpoints of one run lies often a better one (Izmailov et al. 2018)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from myllm.checkpoints.native import Checkpoint
from myllm.errors import CheckpointError, ConfigError


def average(checkpoints: Sequence[Checkpoint], names: Sequence[Path], weights: Sequence[float] = ()) -> Checkpoint:
    """The captioner whose every weight is the mean of theirs; all else is the first one's, whose model it takes.

    It is not calibrated. weights: one for each, in any unit; all alike where none are given. Raises ConfigError where
    they do not fit, and CheckpointError where the captioners differ in geometry or words, naming both files.
    """
    if len(checkpoints) < 2:
        raise ConfigError(f"a mean of {len(checkpoints)} captioner; give two or more")
    weights = list(weights) or [1.0] * len(checkpoints)
    if len(weights) != len(checkpoints) or min(weights) < 0 or not 0 < sum(weights) < float("inf"):
        raise ConfigError(f"weights {weights} for {len(checkpoints)} captioners; give one of at least 0 for each")
    first, states = checkpoints[0], [one.model.state_dict() for one in checkpoints]
    for name, other, state in zip(names, checkpoints, states, strict=True):
        differing = [key for key, value in states[0].items() if key not in state or state[key].shape != value.shape]
        if differing or state.keys() != states[0].keys() or other.model.config.mode != first.model.config.mode:
            what = differing[0] if differing else "their parts"
            raise CheckpointError(f"{names[0]} and {name} differ in geometry ({what}); only like ones have a mean")
        if other.tokenizer.get_vocab() != first.tokenizer.get_vocab():
            raise CheckpointError(f"{names[0]} and {name} have other tokens; a mean of their weights would say nothing")
    shares = [weight / sum(weights) for weight in weights]
    mean = {key: _mean([state[key] for state in states], shares) for key in states[0]}
    first.model.load_state_dict(mean)
    of = [{"file": str(name), "share": share} for name, share in zip(names, shares, strict=True)]
    # what was learned of one captioner's confidence is not so of another's
    return replace(first, provenance={**first.provenance, "mean of": of}, calibration=None)


def _mean(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """In double precision; what only counts, as the batches that a norm has seen, is the first one's."""
    if not values[0].is_floating_point():
        return values[0]
    total = sum((share * value.double() for share, value in zip(shares, values, strict=True)), torch.zeros(()))
    assert isinstance(total, Tensor)
    return total.to(values[0].dtype)
