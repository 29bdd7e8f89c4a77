import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from myllm.config import GPTConfig
from myllm.errors import ConfigError
from myllm.model.gpt import GPT

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
def test_cached_steps_of_any_length_equal_the_full_pass(gpt: GPT, tokens: torch.Tensor, cuts: list[int]) -> None:
    cache = gpt.new_cache(rows=6)
    chunks = tokens.tensor_split(cuts, dim=2)
    logits = torch.cat([gpt(chunk, cache=cache) for chunk in chunks], dim=2)
    torch.testing.assert_close(logits, gpt(tokens), rtol=0, atol=1e-4)
    assert cache.length == 12


@torch.inference_mode()
@given(place=st.integers(0, 11), token=st.integers(0, 16))
def test_later_tokens_change_no_earlier_logit(gpt: GPT, tokens: torch.Tensor, place: int, token: int) -> None:
    changed = tokens.clone()
    changed[..., place:] = token
    torch.testing.assert_close(gpt(changed)[:, :, :place], gpt(tokens)[:, :, :place])


@torch.inference_mode()
def test_an_earlier_token_changes_every_later_logit(gpt: GPT, tokens: torch.Tensor) -> None:
    changed = tokens.clone()
    changed[..., 0] = (tokens[..., 0] + 1) % 17
    assert ((gpt(changed) - gpt(tokens)).abs().amax(-1) > 1e-3).all()


@torch.inference_mode()
def test_text_alone_needs_no_group_axis(gpt: GPT, tokens: torch.Tensor) -> None:
    torch.testing.assert_close(gpt(tokens[:, 1]), gpt(tokens)[:, 1])


def test_the_head_is_the_token_embedding(gpt: GPT) -> None:
    assert gpt.lm_head.weight is gpt.transformer.wte.weight
    assert sum(name.endswith(("wte.weight", "lm_head.weight")) for name, _ in gpt.named_parameters()) == 1


def test_dropout_acts_in_training_alone(tokens: torch.Tensor) -> None:
    model = GPT(CONFIG)
    assert not torch.equal(model.train()(tokens), model(tokens))
    assert torch.equal(model.eval()(tokens), model(tokens))


def test_gpt2_small_has_gpt2s_number_of_parameters() -> None:
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in GPT(GPTConfig()).parameters())
    assert count == 124_439_808  # as its authors count it


def test_a_fresh_model_takes_every_token_for_about_as_likely(tokens: torch.Tensor) -> None:
    torch.manual_seed(0)
    probabilities = GPT(CONFIG).eval()(tokens).softmax(-1)
    assert probabilities.min() > 0.5 / 17 and probabilities.max() < 2 / 17


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="n_embd 30 is not divisible by text.n_head 4; take n_embd 28"):
        GPTConfig(n_embd=30, n_head=4)


@pytest.mark.parametrize(("past", "now"), [(0, 13), (12, 1), (5, 8)])
def test_tokens_beyond_the_context_are_refused(gpt: GPT, past: int, now: int) -> None:
    cache = gpt.new_cache(rows=1)
    if past:
        gpt(torch.zeros(1, 1, past, dtype=torch.int64), cache=cache)
    with pytest.raises(ConfigError, match=r"13 tokens do not fit the context of 12; .*raise text.n_positions"):
        gpt(torch.zeros(1, 1, now, dtype=torch.int64), cache=cache)


def test_text_weights_enter_a_captioners_decoder_and_leave_its_cross_attention() -> None:
    text, decoder = GPT(CONFIG), GPT(CONFIG, cross_attention=True)
    before = decoder.blocks[1].crossattention.c_attn.weight.clone()
    decoder.load_text_weights(text)
    assert torch.equal(decoder.blocks[1].mlp.c_fc.weight, text.blocks[1].mlp.c_fc.weight)
    assert torch.equal(decoder.blocks[1].crossattention.c_attn.weight, before)
    assert torch.equal(decoder.lm_head.weight, text.transformer.wte.weight)


def test_text_weights_of_another_geometry_name_the_option() -> None:
    other = GPT(GPTConfig(vocab_size=17, n_positions=12, n_layer=3, n_head=4, n_embd=32))
    with pytest.raises(ConfigError, match=r"text.n_layer is 2, but the pretrained GPT-2 has 3; set --text.n_layer 3"):
        GPT(CONFIG).load_text_weights(other)
