"""Both attentions, compared with loops over heads and positions that follow the formula."""

import math

import pytest
import torch
from torch import Tensor

from myllm.config import GPTConfig
from myllm.model.attention import CausalSelfAttention, CrossAttention, Grid, merge_heads, split_heads

CONFIG = GPTConfig(vocab_size=7, n_positions=9, n_layer=1, n_head=3, n_embd=12, dropout=0.5)
GRID = Grid(images=2, captions=3, length=5)


def one_head(queries: Tensor, keys: Tensor, values: Tensor, is_causal: bool) -> Tensor:
    """(T, d), (S, d), (S, d) -> (T, d), one position after another."""
    rows = []
    for position, query in enumerate(queries):
        visible = position + 1 if is_causal else len(keys)
        weights = torch.stack([query @ key / math.sqrt(len(query)) for key in keys[:visible]]).softmax(0)
        rows.append(sum(weight * value for weight, value in zip(weights, values[:visible], strict=True)))
    return torch.stack(rows)


def by_hand(query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> Tensor:
    """(N, T, C), (N, S, C), (N, S, C) -> (N, T, C), in heads of C / 3 neighbouring channels."""
    heads = [tensor.split(4, dim=-1) for tensor in (query, key, value)]
    captions = [
        torch.cat([one_head(q[n], k[n], v[n], is_causal) for q, k, v in zip(*heads, strict=True)], dim=-1)
        for n in range(len(query))
    ]
    return torch.stack(captions)


def test_causal_self_attention_equals_the_formula_for_each_caption() -> None:
    attention, x = CausalSelfAttention(CONFIG).eval(), torch.randn(2, 3, 5, 12)
    for group in range(3):
        expected = attention.c_proj(by_hand(*attention.c_attn(x[:, group]).split(12, dim=-1), is_causal=True))
        torch.testing.assert_close(attention(x.flatten(0, 2), GRID).view_as(x)[:, group], expected)


def test_cross_attention_equals_the_formula_for_each_caption() -> None:
    attention, x, image = CrossAttention(CONFIG).eval(), torch.randn(2, 3, 5, 12), torch.randn(2, 7, 12)
    key, value = attention.c_attn(image).split(12, dim=-1)
    for group in range(3):
        expected = attention.c_proj(by_hand(attention.q_attn(x[:, group]), key, value, is_causal=False))
        attended = attention(x.flatten(0, 2), GRID, attention.key_value(image)).view_as(x)
        torch.testing.assert_close(attended[:, group], expected)


@pytest.mark.parametrize(("length", "past", "rows"), [
    (1, 4, None), (3, 0, [[1, 0, 0], [1, 1, 0], [1, 1, 1]]), (2, 2, [[1, 1, 1, 0], [1, 1, 1, 1]]),
])
def test_grid_mask_shows_the_past_and_the_token_itself(length: int, past: int, rows: list[list[int]] | None) -> None:
    mask = Grid(2, 3, length).mask(past, torch.device("cpu"))
    assert (None if mask is None else mask.int().tolist()) == rows


def test_merge_heads_undoes_split_heads() -> None:
    x = torch.randn(2, 5, 12)
    assert torch.equal(split_heads(x, 3)[1, 2, 4], x[1, 4, 8:])
    assert torch.equal(merge_heads(split_heads(x, 3)), x)


@pytest.mark.parametrize("kind", [CausalSelfAttention, CrossAttention])
def test_attention_dropout_acts_only_in_training(kind: type[CausalSelfAttention] | type[CrossAttention]) -> None:
    attention, x = kind(CONFIG), torch.randn(30, 12)
    image = (attention.key_value(x.view(2, 15, 12)),) if isinstance(attention, CrossAttention) else ()
    inputs = (x, GRID, *image)
    assert not torch.equal(attention.train()(*inputs), attention(*inputs))
    assert torch.equal(attention.eval()(*inputs), attention(*inputs))
