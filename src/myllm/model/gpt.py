"""GPT-2, written from scratch: with cross-attention the decoder of a captioner, without it a text-only model.

State-dict keys are those of GPT-2's files, so loading its weights is a transpose and needs no table of names.
"""

import math
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from myllm.config import GPTConfig
from myllm.errors import ConfigError
from myllm.model.attention import CausalSelfAttention, CrossAttention, Grid
from myllm.model.gpt2_weights import gpt2_config, gpt2_folder, read_gpt2_state
from myllm.model.kv_cache import ImageKV, KeyValue, LayerKV, SelfKV


class FeedForward(nn.Module):
    """Two linear layers with GELU between them, at four times the width C."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.gelu = config.gelu
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate=self.gelu)))


class Block(nn.Module):
    """Pre-norm block: self-attention, cross-attention to the image, feed-forward."""

    def __init__(self, config: GPTConfig, cross_attention: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = CausalSelfAttention(config)
        if cross_attention:
            self.ln_cross_attn = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
            self.crossattention = CrossAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, grid: Grid, image: KeyValue | None, cache: LayerKV | None) -> Tensor:
        """Tokens (N, C), of which `grid` says where they are -> (N, C)."""
        x = x + self.attn(self.ln_1(x), grid, cache)
        if image is not None:
            x = x + self.crossattention(self.ln_cross_attn(x), grid, image)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Embeddings, blocks and last norm of a GPT; a module because names in GPT-2's files begin with `transformer`."""

    def __init__(self, config: GPTConfig, cross_attention: bool) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, cross_attention) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)


class GPT(nn.Module):
    """GPT-2 (Radford et al. 2019): embeddings, blocks, a last norm, and a head that shares the token embedding."""

    def __init__(self, config: GPTConfig, cross_attention: bool = False) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config, cross_attention)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):  # GPT-2 scales residual branches by depth
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.n_layer))

    def forward(self, tokens: Tensor, image: ImageKV | None = None, cache: SelfKV | None = None) -> Tensor:
        """Return next-token logits (B, G, T, vocab_size), or (B, T, vocab_size) of tokens (B, T). Raises ConfigError.

        tokens: (B, G, T) int64, G captions of each of B images; or (B, T), text only.
        image:  cross-attention keys and values of the B images; None skips cross-attention.
        cache:  keys and values of the earlier positions; `tokens` are then only the newest. It is extended.
        """
        if tokens.dim() == 2:
            return self(tokens[:, None], image, cache)[:, 0]
        x = self.hidden(tokens.flatten(), Grid(*tokens.shape), image, cache)
        return self.lm_head(x).unflatten(0, tokens.shape)

    def hidden(self, tokens: Tensor, grid: Grid, image: ImageKV | None = None, cache: SelfKV | None = None) -> Tensor:
        """Return the head's input (N, C) for tokens (N,), whose positions `grid` has."""
        past = cache.length if cache is not None else 0
        self.check_fits(past + grid.length)
        positions = grid.positions(past, tokens.device)
        x = self.transformer.drop(self.transformer.wte(tokens) + self.transformer.wpe(positions))
        for layer, block in enumerate(self.transformer.h):
            x = block(x, grid, image.layers[layer] if image else None, cache.layer(layer) if cache else None)
        if cache is not None:
            cache.length = past + grid.length
        return self.transformer.ln_f(x)

    def check_fits(self, length: int) -> None:
        """Raise ConfigError if `length` tokens do not fit the context."""
        if length > self.config.n_positions:
            raise ConfigError(
                f"{length} tokens do not fit the context of {self.config.n_positions}; "
                "shorten the captions or raise text.n_positions"
            )

    @property
    def blocks(self) -> list[Block]:
        """The decoder blocks, first to last."""
        return cast("list[Block]", list(self.transformer.h))

    def new_cache(self, rows: int, n_positions: int | None = None) -> SelfKV:
        """Return an empty cache for `rows` captions of at most `n_positions` tokens, by default the whole context."""
        config = self.config
        room = min(n_positions or config.n_positions, config.n_positions)
        head_dim = config.n_embd // config.n_head
        return SelfKV(config.n_layer, rows, config.n_head, room, head_dim, like=self.lm_head.weight)

    @classmethod
    def from_pretrained(cls, source: str | bool = True) -> "GPT":
        """Return the text-only GPT-2 of a folder or hub id in Hugging Face's layout.

        source: True means HF_GPT2_REPO if that is set, else openai-community/gpt2.

        Raises CheckpointError if it is not found, is damaged, or is another kind of model.
        """
        folder = gpt2_folder(source)
        model = cls(gpt2_config(folder))
        model.load_state_dict(read_gpt2_state(folder, model.state_dict()))
        return model
