"""The two attentions of the decoder: text to text, and text to image."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from myllm.config import GPTConfig
from myllm.model.kv_cache import KeyValue, LayerKV


@dataclass(frozen=True)
class Sequences:
    """The rows of a tensor (N, C) as sequences of one length."""

    count: int

    def split(self, rows: Tensor) -> Tensor:
        """(N, C) -> (count, N / count, C)."""
        return rows.unflatten(0, (self.count, -1))

    def join(self, x: Tensor) -> Tensor:
        """(count, N / count, C) -> (N, C)."""
        return x.flatten(0, 1)


class Grid:
    """Which rows of (N, C) are T tokens of each of G captions of each of B images: only attention needs to know."""

    def __init__(self, images: int, captions: int, length: int) -> None:
        self.length = length
        self.captions, self.images = Sequences(images * captions), Sequences(images)

    def positions(self, past: int, device: torch.device) -> Tensor:
        """Return the position of each row in its caption (N,), after `past` earlier tokens."""
        return torch.arange(past, past + self.length, device=device).repeat(self.captions.count)

    def mask(self, past: int, device: torch.device) -> Tensor | None:
        """Return (T, past + T) bool: each token sees the past, itself and nothing later; None if it sees everything."""
        if self.length == 1:
            return None
        return torch.ones(self.length, past + self.length, dtype=torch.bool, device=device).tril(past)


def split_heads(x: Tensor, n_head: int) -> Tensor:
    """(N, T, C) -> (N, n_head, T, C / n_head)."""
    return x.unflatten(-1, (n_head, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(N, n_head, T, C / n_head) -> (N, T, C)."""
    return x.transpose(1, 2).flatten(-2)


class CausalSelfAttention(nn.Module):
    """Causal multi-head self-attention (Vaswani et al. 2017); the original script calls it MultiHeadAttention."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, grid: Grid, cache: LayerKV | None = None) -> Tensor:
        """Return (N, C) of the newest tokens (N, C) of each caption, which attends only to itself.

        cache: keys and values of the earlier tokens of the B * G captions; those of `x` are added to it.
        """
        fused = grid.captions.split(self.c_attn(x))  # (B * G, T, 3 * C)
        query, key, value = (split_heads(part, self.n_head) for part in fused.chunk(3, dim=-1))
        past = cache.length if cache is not None else 0
        if cache is not None:
            key, value = cache.append(key, value)
        attended = scaled_dot_product_attention(query, key, value, grid.mask(past, x.device))
        return self.resid_dropout(self.c_proj(grid.captions.join(merge_heads(attended))))


class CrossAttention(nn.Module):
    """Multi-head attention of text positions (queries) to image tokens (keys and values)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.q_attn = nn.Linear(config.n_embd, config.n_embd)
        self.c_attn = nn.Linear(config.n_embd, 2 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.resid_dropout = nn.Dropout(config.dropout)

    def key_value(self, image_tokens: Tensor) -> KeyValue:
        """Return keys and values, each (B, n_head, S, C / n_head), of image tokens (B, S, C)."""
        key, value = (split_heads(part, self.n_head) for part in self.c_attn(image_tokens).chunk(2, dim=-1))
        return key.contiguous(), value.contiguous()  # every decoding step reads them

    def forward(self, x: Tensor, grid: Grid, image: KeyValue) -> Tensor:
        """Return (N, C) of tokens (N, C), which attend to their image; image: what `key_value` returned."""
        query = split_heads(grid.images.split(self.q_attn(x)), self.n_head)  # (B, n_head, G * T, C / n_head)
        attended = scaled_dot_product_attention(query, *image)
        return self.resid_dropout(self.c_proj(grid.images.join(merge_heads(attended))))
