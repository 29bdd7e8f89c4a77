"""Values of decoding options at which the search would overflow or take all memory are refused by name."""

import math
from typing import Any

import numpy as np
import pytest

from myllm.config import DecodeConfig
from myllm.decoding.arrays import IMPOSSIBLE
from myllm.decoding.history import History
from myllm.decoding.rules import apply_rules
from myllm.errors import ConfigError

RANGES = {
    "temperature": (0.001, 1000.0), "repetition_penalty": (0.001, 1000.0), "length_penalty": (-10.0, 10.0),
    "contrastive_weight": (0.0, 1000.0), "diversity_penalty": (0.0, 1000.0),
}
NEEDED: dict[str, dict[str, Any]] = {
    "temperature": {"do_sample": True}, "length_penalty": {"beams": 4},
    "diversity_penalty": {"beams": 4, "num_beam_groups": 2},
}


OUTSIDE = [
    (name, value)
    for name, (least, _) in RANGES.items()
    for value in (math.nan, math.inf, -math.inf, 1e30, -1000.0, *([1e-45] if least > 0 else []))
]


@pytest.mark.parametrize(("name", "value"), OUTSIDE)
def test_numbers_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"decode.{name} is .*; it must be"):
        DecodeConfig(**{**NEEDED.get(name, {}), name: value})


def test_num_return_sequences_has_an_upper_bound() -> None:
    with pytest.raises(ConfigError, match="decode.num_return_sequences is 1000000; .* at most 1000"):
        DecodeConfig(do_sample=True, num_return_sequences=1_000_000)


@pytest.mark.parametrize("name", ["temperature", "repetition_penalty"])
@pytest.mark.parametrize("end", [0, 1])
def test_scores_stay_finite_at_the_ends_of_the_range(name: str, end: int) -> None:
    config = DecodeConfig(**{**NEEDED.get(name, {}), name: RANGES[name][end]})
    scores = np.array([[[-80.0, 0.5, 80.0, 1e4, -1e4]]], np.float32)
    changed = apply_rules(scores, History.begin(1, 1, 4, [0, 1, 2, 3]), config)
    assert np.isfinite(changed).all() and (changed > IMPOSSIBLE).all()


@pytest.mark.parametrize("end", [0, 1])
def test_ranks_of_long_captions_stay_finite_at_the_ends_of_the_range_of_length_penalty(end: int) -> None:
    assert math.isfinite(-1e6 / 100_000 ** RANGES["length_penalty"][end])
