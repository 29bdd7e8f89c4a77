"""Runs that follow each other: people's captions first, then the backbone too, then self-critical training."""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from myllm.checkpoints import native
from myllm.checkpoints.card import flatten
from myllm.checkpoints.checks import dataclass_from_dict
from myllm.config import nearest
from myllm.errors import CheckpointError, ConfigError
from myllm.training.run_state import nested
from myllm.training_config import TrainConfig

NOT_IN_NEXT_RUNS = ("next_runs", "base", "out", "data", "seed")


def run_sequence(config: TrainConfig, given_options: Collection[str] = ()) -> list[TrainConfig]:
    """Return the configurations of the run and of its `next_runs`; each starts from the captioner of the one before.

    The last writes to `config.out`, those before it to folders run1, run2, ... in there. given_options: dotted names of
    options that hold for all runs, whatever `next_runs` says. Raises ConfigError for unknown options.
    """
    shared, total = dict(flatten(asdict(config), ".")), 1 + len(config.next_runs)
    folders = [*(Path(config.out) / f"run{number}" for number in range(1, total)), Path(config.out)]
    runs = []
    for number, changes in enumerate([{}, *config.next_runs]):
        changed = dict(flatten(changes, "."))
        for name in changed:
            if name not in shared or name in NOT_IN_NEXT_RUNS:
                raise ConfigError(f"next_runs has {name}, which cannot be an option of it{nearest(name, shared)}")
        overrides = {name: value for name, value in changed.items() if name not in given_options}
        base = str(folders[number - 1] / native.FILE_NAME) if number else config.base
        options = shared | overrides | {"out": str(folders[number]), "base": base, "next_runs": ()}
        try:
            runs.append(dataclass_from_dict(TrainConfig, nested(options)))
        except CheckpointError as error:
            raise ConfigError(f"run {number + 1} of {total}: {error}") from error
    if any(run.lora.rank for run in runs[:-1]):
        raise ConfigError(
            "lora.rank in a run with next_runs: it leaves only adapters, and the next run starts from a whole "
            "captioner; only the last run can have it"
        )
    return runs


def with_saved_options(config: TrainConfig, saved: Mapping[str, Any], given_options: Collection[str]) -> TrainConfig:
    """Return the configuration of a sequence that is resumed: `saved`, with the options of `config` that are given."""
    now, before = (dict(flatten(values, ".")) for values in (asdict(config), saved))
    return dataclass_from_dict(TrainConfig, nested(before | {name: now[name] for name in given_options if name in now}))
