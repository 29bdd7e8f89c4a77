from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from myllm.checkpoints.average import average
from myllm.checkpoints.native import Checkpoint
from myllm.data.tokenizer import train_tokenizer
from myllm.errors import CheckpointError, ConfigError
from myllm.model.vision_gpt2 import VisionGPT2

NAMES = [Path("a.pt"), Path("b.pt"), Path("c.pt")]
TinyModel = Callable[..., VisionGPT2]


@pytest.fixture
def three(tiny_checkpoint: Checkpoint, tiny_model: TinyModel) -> list[Checkpoint]:
    vocab_size = tiny_checkpoint.model.config.text.vocab_size
    return [replace(tiny_checkpoint, model=tiny_model(seed=seed, vocab_size=vocab_size)) for seed in range(3)]


def test_average_is_the_weighted_mean_of_each_weight(three: list[Checkpoint]) -> None:
    states = [{name: value.clone() for name, value in checkpoint.model.state_dict().items()} for checkpoint in three]
    mean = average(three, NAMES, [1, 1, 2])
    for name, value in mean.model.state_dict().items():
        if value.is_floating_point():
            expected = (states[0][name] + states[1][name] + 2 * states[2][name]) / 4
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
    assert mean.model.decoder.lm_head.weight is mean.model.decoder.transformer.wte.weight
    assert [source["share"] for source in mean.provenance["mean of"]] == [0.25, 0.25, 0.5]


def test_average_of_a_captioner_with_itself_is_unchanged(three: list[Checkpoint]) -> None:
    before = {name: value.clone() for name, value in three[0].model.state_dict().items()}
    mean = average([three[0], three[0]], NAMES[:2])
    assert all(torch.equal(value, before[name]) for name, value in mean.model.state_dict().items())


@pytest.mark.parametrize("weights", [[1.0], [1, -1, 1], [0, 0, 0], [1, float("nan"), 1], [1, float("inf"), 1]])
def test_average_refuses_weights_that_do_not_fit(three: list[Checkpoint], weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="weights .* for 3 captioners"):
        average(three, NAMES, weights)


def test_average_refuses_another_geometry_or_tokenizer(three: list[Checkpoint], tiny_model: TinyModel) -> None:
    vocab_size = three[0].model.config.text.vocab_size
    deeper = replace(three[1], model=tiny_model(n_layer=3, vocab_size=vocab_size))
    wider = replace(three[1], model=tiny_model(n_embd=48, vocab_size=vocab_size))
    layerwise = replace(three[1], model=tiny_model(mode="layerwise", vocab_size=vocab_size))
    for other in (deeper, wider, layerwise):
        with pytest.raises(CheckpointError, match=r"a.pt and b.pt differ in geometry"):
            average([three[0], other], NAMES[:2])
    other_tokens = replace(three[1], tokenizer=train_tokenizer(["other words"], vocab_size=260))
    with pytest.raises(CheckpointError, match="different tokenizers"):
        average([three[0], other_tokens], NAMES[:2])
    with pytest.raises(ConfigError, match="two or more"):
        average(three[:1], NAMES[:1])
