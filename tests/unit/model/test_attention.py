"""Both attentions against loops over heads and positions, written from the formula."""

import math

import pytest
import torch
from torch import Tensor

from myllm.config import GPTConfig
from myllm.model.attention import CausalSelfAttention, CrossAttention, merge_heads, split_heads

CONFIG = GPTConfig(vocab_size=7, n_positions=9, n_layer=1, n_head=3, n_embd=12, dropout=0.5)


def one_head(queries: Tensor, keys: Tensor, values: Tensor, is_causal: bool) -> Tensor:
    """(T, d), (S, d), (S, d) -> (T, d), one position after another."""
    rows = []
    for position, query in enumerate(queries):
        seen = position + 1 if is_causal else len(keys)
        weights = torch.stack([query @ key / math.sqrt(len(query)) for key in keys[:seen]]).softmax(0)
        rows.append(sum(weight * value for weight, value in zip(weights, values[:seen], strict=True)))
    return torch.stack(rows)


def by_hand(query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> Tensor:
    """(N, T, C), (N, S, C), (N, S, C) -> (N, T, C), in heads of C / 3 neighbouring channels."""
    heads = [tensor.split(4, dim=-1) for tensor in (query, key, value)]
    captions = [
        torch.cat([one_head(q[n], k[n], v[n], is_causal) for q, k, v in zip(*heads, strict=True)], dim=-1)
        for n in range(len(query))
    ]
    return torch.stack(captions)


def test_self_attention_is_the_formula() -> None:
    attention, x = CausalSelfAttention(CONFIG).eval(), torch.randn(2, 5, 12)
    expected = attention.c_proj(by_hand(*attention.c_attn(x).split(12, dim=-1), is_causal=True))
    torch.testing.assert_close(attention(x), expected)


def test_cross_attention_is_the_formula() -> None:
    attention, x, picture = CrossAttention(CONFIG).eval(), torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    key, value = attention.c_attn(picture).split(12, dim=-1)
    expected = attention.c_proj(by_hand(attention.q_attn(x), key, value, is_causal=False))
    torch.testing.assert_close(attention(x, attention.key_value(picture)), expected)


def test_heads_are_split_and_merged_without_loss() -> None:
    x = torch.randn(2, 5, 12)
    assert torch.equal(split_heads(x, 3)[1, 2, 4], x[1, 4, 8:])
    assert torch.equal(merge_heads(split_heads(x, 3)), x)


@pytest.mark.parametrize("kind", [CausalSelfAttention, CrossAttention])
def test_dropout_acts_in_training_alone(kind: type[CausalSelfAttention] | type[CrossAttention]) -> None:
    attention, x = kind(CONFIG), torch.randn(2, 5, 12)
    inputs = (x, attention.key_value(x)) if isinstance(attention, CrossAttention) else (x,)
    assert not torch.equal(attention.train()(*inputs), attention(*inputs))
    assert torch.equal(attention.eval()(*inputs), attention(*inputs))
