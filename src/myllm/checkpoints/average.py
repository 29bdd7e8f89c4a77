"""Mean of captioners' weights; a run's mean often captions better than its checkpoints (Izmailov et al. 2018)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from myllm.checkpoints import formats, native
from myllm.checkpoints.native import Checkpoint, without_index
from myllm.errors import CheckpointError, ConfigError


def average(checkpoints: Sequence[Checkpoint], names: Sequence[Path], weights: Sequence[float] = ()) -> Checkpoint:
    """Return the first captioner with the mean weights in its model.

    It has no calibration and no index of training pictures: they no longer hold.

    names: the captioners' files, for messages. weights: one number for each captioner, scaled to a sum of 1; equal by
    default. Raises ConfigError if there are fewer than two captioners or the weights do not fit, and CheckpointError,
    naming both files, if captioners differ in geometry or tokens.
    """
    if len(checkpoints) < 2:
        raise ConfigError(f"a mean needs two or more captioners; got {len(checkpoints)}")
    weights = list(weights) or [1.0] * len(checkpoints)
    if len(weights) != len(checkpoints) or min(weights) < 0 or not 0 < sum(weights) < float("inf"):
        raise ConfigError(f"weights {weights} for {len(checkpoints)} captioners; give one of at least 0 for each")
    first, states = checkpoints[0], [checkpoint.model.state_dict() for checkpoint in checkpoints]
    for name, other, state in zip(names, checkpoints, states, strict=True):
        differing = [key for key, value in states[0].items() if key not in state or state[key].shape != value.shape]
        if differing or state.keys() != states[0].keys() or other.model.config.mode != first.model.config.mode:
            part = differing[0] if differing else "their parts"
            raise CheckpointError(f"{names[0]} and {name} differ in geometry ({part}); average captioners of one kind")
        if other.tokenizer.get_vocab() != first.tokenizer.get_vocab():
            raise CheckpointError(f"{names[0]} and {name} have different tokenizers; average captioners that share one")
    shares = [weight / sum(weights) for weight in weights]
    first.model.load_state_dict({key: _mean([state[key] for state in states], shares) for key in states[0]})
    sources = [{"file": str(name), "share": share} for name, share in zip(names, shares, strict=True)]
    provenance = {**first.provenance, "mean of": sources}
    return replace(without_index(first), provenance=provenance, calibration=None)


def mix_with_base(path: Path, base: str, share: float) -> None:
    """Replace a run's captioner.pt by the mean of it and its base, once (Wortsman et al. 2022, arXiv:2109.01903).

    share: that of the base. Raises what `average` raises.
    """
    checkpoint = native.load(path)
    if "mean of" not in checkpoint.provenance:
        native.save(average([checkpoint, formats.load(base)], [path, Path(base)], [1 - share, share]), path)


def _mean(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Return the weighted mean, computed in float64; for counters, such as batch norm's, the first value."""
    if not values[0].is_floating_point():
        return values[0]
    mean = sum(share * value.double() for share, value in zip(shares, values, strict=True))
    return torch.as_tensor(mean, dtype=values[0].dtype)
