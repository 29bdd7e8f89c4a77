from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from myllm.config import GPTConfig
from myllm.errors import ConfigError
from myllm.model.gpt import GPT
from myllm.model.gpt2_weights import check_same_geometry
from myllm.model.weight_files import count_parameters

CONFIG = GPTConfig(vocab_size=17, n_positions=12, n_layer=2, n_head=4, n_embd=32)


@pytest.fixture(scope="module")
def gpt() -> GPT:
    torch.manual_seed(0)
    model = GPT(CONFIG).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(17, (2, 3, 12), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
@given(cuts=st.lists(st.integers(1, 11), unique=True).map(sorted))
def test_gpt_cached_steps_equal_the_full_pass(gpt: GPT, tokens: torch.Tensor, cuts: list[int]) -> None:
    cache = gpt.new_cache(rows=6)
    chunks = tokens.tensor_split(cuts, dim=2)
    logits = torch.cat([gpt(chunk, cache=cache) for chunk in chunks], dim=2)
    torch.testing.assert_close(logits, gpt(tokens), rtol=0, atol=1e-4)
    assert cache.length == 12


@torch.inference_mode()
@given(start=st.integers(0, 11), token=st.integers(0, 16))
def test_gpt_logits_do_not_depend_on_later_tokens(gpt: GPT, tokens: torch.Tensor, start: int, token: int) -> None:
    changed = tokens.clone()
    changed[..., start:] = token
    torch.testing.assert_close(gpt(changed)[:, :, :start], gpt(tokens)[:, :, :start])


@torch.inference_mode()
def test_gpt_logits_depend_on_every_earlier_token(gpt: GPT, tokens: torch.Tensor) -> None:
    changed = tokens.clone()
    changed[..., 0] = (tokens[..., 0] + 1) % 17
    assert ((gpt(changed) - gpt(tokens)).abs().amax(-1) > 1e-3).all()


@torch.inference_mode()
def test_gpt_takes_text_without_the_group_axis(gpt: GPT, tokens: torch.Tensor) -> None:
    torch.testing.assert_close(gpt(tokens[:, 1]), gpt(tokens)[:, 1])


def test_gpt_head_shares_the_token_embedding(gpt: GPT) -> None:
    assert gpt.lm_head.weight is gpt.transformer.wte.weight
    assert sum(name.endswith(("wte.weight", "lm_head.weight")) for name, _ in gpt.named_parameters()) == 1


def test_gpt_dropout_acts_only_in_training(tokens: torch.Tensor) -> None:
    model = GPT(CONFIG)
    assert not torch.equal(model.train()(tokens), model(tokens))
    assert torch.equal(model.eval()(tokens), model(tokens))


def test_count_parameters_of_gpt2_small_is_the_published_number() -> None:
    with torch.device("meta"):
        model = GPT(GPTConfig())
    assert count_parameters(model) == 124_439_808


def test_gpt_starts_with_nearly_uniform_probabilities(tokens: torch.Tensor) -> None:
    torch.manual_seed(0)
    probabilities = GPT(CONFIG).eval()(tokens).softmax(-1)
    assert probabilities.min() > 0.5 / 17 and probabilities.max() < 2 / 17


def test_gpt_config_refuses_a_width_not_divisible_by_the_number_of_heads() -> None:
    with pytest.raises(ConfigError, match="n_embd 30 is not divisible by text.n_head 4; take n_embd 28"):
        GPTConfig(n_embd=30, n_head=4)


@pytest.mark.parametrize(("past", "now"), [(0, 13), (12, 1), (5, 8)])
def test_gpt_refuses_tokens_beyond_the_context(gpt: GPT, past: int, now: int) -> None:
    cache = gpt.new_cache(rows=1)
    if past:
        gpt(torch.zeros(1, 1, past, dtype=torch.int64), cache=cache)
    with pytest.raises(ConfigError, match=r"13 tokens do not fit the context of 12; .*raise text.n_positions"):
        gpt(torch.zeros(1, 1, now, dtype=torch.int64), cache=cache)


def test_check_same_geometry_names_the_option_that_differs() -> None:
    with pytest.raises(ConfigError, match=r"text.n_layer is 2, but the pretrained GPT-2 has 3; set --text.n_layer 3"):
        check_same_geometry(CONFIG, replace(CONFIG, n_layer=3))
