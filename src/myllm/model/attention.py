"""The two attentions of the decoder: text to text, and text to image."""

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from myllm.config import GPTConfig
from myllm.model.kv_cache import KeyValue, LayerKV, causal_mask


def split_heads(x: Tensor, n_head: int) -> Tensor:
    """(N, T, C) -> (N, n_head, T, C / n_head)."""
    return x.unflatten(-1, (n_head, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(N, n_head, T, C / n_head) -> (N, T, C)."""
    return x.transpose(1, 2).flatten(-2)


class CausalSelfAttention(nn.Module):
    """Causal multi-head self-attention (Vaswani et al. 2017) with GPT-2's parameter names.

    The original script calls it MultiHeadAttention.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: LayerKV | None = None) -> Tensor:
        """Return (B, G, T, C): each caption attends only to itself.

        x:     (B, G, T, C), the newest T positions of G captions of each of B images.
        cache: keys and values of the earlier positions of the B * G captions; those of `x` are added to it.
        """
        fused = self.c_attn(x.flatten(0, 1))  # (B * G, T, 3 * C)
        query, key, value = (split_heads(part, self.n_head) for part in fused.chunk(3, dim=-1))
        past = 0
        if cache is not None:
            past = cache.length
            key, value = cache.append(key, value)
        queries = query.shape[2]
        # a single query sees every key; without a past, the built-in triangle is right
        mask = causal_mask(queries, past, x.device) if past and queries > 1 else None
        attended = scaled_dot_product_attention(
            query, key, value, mask, self.dropout if self.training else 0.0, is_causal=not past and queries > 1
        )
        return self.resid_dropout(self.c_proj(merge_heads(attended))).unflatten(0, x.shape[:2])


class CrossAttention(nn.Module):
    """Multi-head attention of text positions (queries) to image tokens (keys and values)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.q_attn = nn.Linear(config.n_embd, config.n_embd)
        self.c_attn = nn.Linear(config.n_embd, 2 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.resid_dropout = nn.Dropout(config.dropout)

    def key_value(self, image_tokens: Tensor) -> KeyValue:
        """Return keys and values, each (B, n_head, S, C / n_head), of image tokens (B, S, C)."""
        key, value = (split_heads(part, self.n_head) for part in self.c_attn(image_tokens).chunk(2, dim=-1))
        return key.contiguous(), value.contiguous()  # every decoding step reads them

    def forward(self, x: Tensor, image: KeyValue) -> Tensor:
        """Return (B, G, T, C): every position of the G captions of an image attends to that image.

        x:     (B, G, T, C).
        image: what `key_value` returned for the B images.
        """
        query = split_heads(self.q_attn(x.flatten(1, 2)), self.n_head)  # (B, n_head, G * T, C / n_head)
        attended = scaled_dot_product_attention(query, *image, dropout_p=self.dropout if self.training else 0.0)
        return self.resid_dropout(self.c_proj(merge_heads(attended))).unflatten(1, x.shape[1:3])
