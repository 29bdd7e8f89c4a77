"""The two attentions of the decoder: of the text to itself, and of the text to the picture."""

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from myllm.config import GPTConfig
from myllm.model.kv_cache import KeyValue, SelfKV, causal_mask


def split_heads(x: Tensor, n_head: int) -> Tensor:
    """(N, T, C) -> (N, n_head, T, C / n_head)."""
    return x.unflatten(-1, (n_head, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(N, n_head, T, C / n_head) -> (N, T, C)."""
    return x.transpose(1, 2).flatten(-2)


class CausalSelfAttention(nn.Module):
    """Causal self-attention with fused query, key and value projections (Vaswani et al. 2017; names as in GPT-2)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: SelfKV | None = None, layer: int = 0) -> Tensor:
        """x: (N, T, C), the newest T positions; `cache` holds the earlier ones and takes these. Returns (N, T, C)."""
        query, key, value = (split_heads(part, self.n_head) for part in self.c_attn(x).chunk(3, dim=-1))
        past = 0
        if cache is not None:
            past = cache.length
            key, value = cache.append(layer, key, value)
        attended = scaled_dot_product_attention(
            query,
            key,
            value,
            # a single query sees all keys, and without a past the built-in triangle is the right one
            attn_mask=causal_mask(query.shape[2], past, x.device) if past and query.shape[2] > 1 else None,
            is_causal=past == 0 and query.shape[2] > 1,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.resid_dropout(self.c_proj(merge_heads(attended)))


class CrossAttention(nn.Module):
    """Attention of text positions (queries) to image tokens (keys and values)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.q_attn = nn.Linear(config.n_embd, config.n_embd)
        self.c_attn = nn.Linear(config.n_embd, 2 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.resid_dropout = nn.Dropout(config.dropout)

    def key_value(self, image_tokens: Tensor) -> KeyValue:
        """(B, S, C) -> keys and values, each (B, n_head, S, C / n_head); once an image."""
        key, value = (split_heads(part, self.n_head) for part in self.c_attn(image_tokens).chunk(2, dim=-1))
        return key.contiguous(), value.contiguous()  # every step reads them, and none should have to copy them

    def forward(self, x: Tensor, image: KeyValue) -> Tensor:
        """x: (B, Q, C), where Q runs over every position of every caption of an image. Returns (B, Q, C)."""
        attended = scaled_dot_product_attention(
            split_heads(self.q_attn(x), self.n_head), *image, dropout_p=self.dropout if self.training else 0.0
        )
        return self.resid_dropout(self.c_proj(merge_heads(attended)))
