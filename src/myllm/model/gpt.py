"""GPT-2, from scratch: with cross-attention it is the captioner's decoder, without it the seed's text-only model.

State-dict keys are GPT-2's own, so that loading its weights is a transpose and no table of names.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from myllm.config import GPTConfig
from myllm.errors import ConfigError
from myllm.model.attention import CausalSelfAttention, CrossAttention
from myllm.model.gpt2_weights import check_same_geometry, gpt2_config, gpt2_folder, read_gpt2_state
from myllm.model.kv_cache import ImageKV, KeyValue, SelfKV


class LayerNorm(nn.Module):
    """Normalisation over the channels of each position (Ba et al. 2016)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.eps = config.layer_norm_epsilon
        self.weight = nn.Parameter(torch.ones(config.n_embd))
        self.bias = nn.Parameter(torch.zeros(config.n_embd))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class FeedForward(nn.Module):
    """Two linear layers, four times as wide between them, with GELU, in GPT-2's tanh form by default."""

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
    """Pre-norm block: the text looks at itself, then at the picture, then each position thinks alone."""

    def __init__(self, config: GPTConfig, cross_attention: bool) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config)
        self.attn = CausalSelfAttention(config)
        if cross_attention:
            self.ln_cross_attn = LayerNorm(config)
            self.crossattention = CrossAttention(config)
        self.ln_2 = LayerNorm(config)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, image: KeyValue | None, cache: SelfKV | None, layer: int) -> Tensor:
        """x: (B, G, T, C), G captions of each of B images. Returns (B, G, T, C)."""
        captions, positions = x.shape[1:3]
        x = x + self.attn(self.ln_1(x).flatten(0, 1), cache, layer).unflatten(0, (-1, captions))
        if image is not None:
            # the captions of one image are just more queries over the same keys
            attended = self.crossattention(self.ln_cross_attn(x).flatten(1, 2), image)
            x = x + attended.unflatten(1, (captions, positions))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """GPT-2 without its head; a module of its own because the names in GPT-2's files say so."""

    def __init__(self, config: GPTConfig, cross_attention: bool) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, cross_attention) for _ in range(config.n_layer))
        self.ln_f = LayerNorm(config)


class GPT(nn.Module):
    """The decoder: token and position embeddings, blocks, a last norm, and a head tied to the token embedding."""

    def __init__(self, config: GPTConfig, cross_attention: bool = False) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config, cross_attention)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight
        self.apply(self._init_weights)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):  # residual branches are scaled by depth, as in GPT-2
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.n_layer))

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, image: ImageKV | None = None, cache: SelfKV | None = None) -> Tensor:
        """Next-token logits.

        tokens: (B, G, T) int64, G captions of each of B images; or (B, T), text alone.
        image:  keys and values of the B images; None leaves cross-attention out.
        cache:  earlier positions of the B x G captions; `tokens` are then the newest alone.
        Returns (B, G, T, vocab_size), or (B, T, vocab_size).
        Raises ConfigError where the positions do not fit the context.
        """
        if tokens.dim() == 2:
            return self(tokens[:, None], image, cache)[:, 0]
        positions = tokens.shape[2]
        past = cache.length if cache is not None else 0
        self.check_fits(past + positions)
        place = torch.arange(past, past + positions, device=tokens.device)
        x = self.transformer.drop(self.transformer.wte(tokens) + self.transformer.wpe(place))
        for layer, block in enumerate(self.transformer.h):
            x = block(x, image.layers[layer] if image is not None else None, cache, layer)
        if cache is not None:
            cache.advance(positions)
        return self.lm_head(self.transformer.ln_f(x))

    def check_fits(self, length: int) -> None:
        """Raises ConfigError where a text of so many tokens does not fit the context."""
        if length > self.config.n_positions:
            raise ConfigError(
                f"{length} tokens do not fit the context of {self.config.n_positions}; "
                "shorten the captions or raise text.n_positions"
            )

    @property
    def blocks(self) -> list[Block]:
        """The blocks, first to last."""
        return cast("list[Block]", list(self.transformer.h))

    def new_cache(self, rows: int, n_positions: int | None = None) -> SelfKV:
        """An empty cache for `rows` captions of at most `n_positions` tokens (the whole context by default)."""
        config = self.config
        return SelfKV(
            config.n_layer,
            rows,
            config.n_head,
            min(n_positions or config.n_positions, config.n_positions),
            config.n_embd // config.n_head,
            like=self.lm_head.weight,
        )

    @classmethod
    def from_pretrained(cls, source: str | bool = True) -> "GPT":
        """GPT-2 from a folder or a hub id in Hugging Face's layout; True means HF_GPT2_REPO or openai-community/gpt2.

        Raises CheckpointError if it cannot be found, is damaged, or is another model.
        """
        folder = gpt2_folder(source)
        model = cls(gpt2_config(folder))
        model.load_state_dict(read_gpt2_state(folder, model.state_dict()))
        return model

    def load_text_weights(self, text: "GPT") -> None:
        """Copy a text-only model's weights; cross-attention, which that model lacks, keeps its own.

        Raises ConfigError if the geometries differ.
        """
        check_same_geometry(self.config, text.config)
        self.load_state_dict(text.state_dict(), strict=False)
