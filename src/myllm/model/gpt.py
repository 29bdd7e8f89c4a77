"""GPT-2, from scratch: with cross-attention it is the captioner's decoder, without it the seed's text-only model.

State-dict keys are GPT-2's own, so that loading its weights is a transpose and no table of names.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from myllm.config import GPTConfig
from myllm.errors import CheckpointError, ConfigError, reason
from myllm.model.attention import CrossAttention, MultiHeadAttention
from myllm.model.kv_cache import ImageKV, KeyValue, SelfKV
from myllm.runtime import read_json
from myllm.weights import read_tensors

GEOMETRY = ("n_positions", "n_layer", "n_head", "n_embd")
# what transformers keeps as (in, out), and torch as (out, in)
TURNED = (".c_attn.weight", ".q_attn.weight", ".c_proj.weight", ".c_fc.weight")


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
        self.attn = MultiHeadAttention(config)
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
        """GPT-2 from a folder or a hub id in Hugging Face's layout; True means HF_GPT2_REPO, or openai-community/gpt2.

        Raises CheckpointError where it can't be had, is damaged, or is another model.
        """
        folder = gpt2_folder(source)
        model = cls(gpt_config(read_json(folder / "config.json"), folder / "config.json"))
        tensors = {
            name if name.startswith("transformer.") else f"transformer.{name}": value
            for name, value in turned(read_tensors(folder)).items()
        }
        wanted = model.state_dict()
        state = {}
        for name, own in wanted.items():
            tensor = tensors.get("transformer.wte.weight" if name == "lm_head.weight" else name)
            if tensor is None or tensor.shape != own.shape:
                found = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
                raise CheckpointError(f"{folder}: {name} is {found}; expected shape {tuple(own.shape)}")
            state[name] = tensor
        model.load_state_dict(state)
        return model

    def load_text_weights(self, text: "GPT") -> None:
        """Take a text-only model's weights; what this one has beside it, cross-attention, stays as it is.

        Raises ConfigError where the geometries differ.
        """
        for name in ("vocab_size", *GEOMETRY, "gelu"):
            own, other = getattr(self.config, name), getattr(text.config, name)
            if own != other:
                raise ConfigError(_other_geometry(name, own, other))
        self.load_state_dict(text.state_dict(), strict=False)


def _other_geometry(name: str, own: object, other: object) -> str:
    return f"text.{name} is {own}, but the pretrained GPT-2 has {other}; set --text.{name} {other}"


def fit_to_pretrained(config: GPTConfig) -> GPTConfig:
    """`config` with the geometry of the weights that it asks for: what was left at the default follows them.

    Raises ConfigError where something else was set, and CheckpointError as `GPT.from_pretrained`.
    """
    if not config.pretrained:
        return config
    place, default = gpt2_folder(config.pretrained) / "config.json", GPTConfig()
    found = gpt_config(read_json(place), place)
    geometry = {name: getattr(found, name) for name in (*GEOMETRY, "layer_norm_epsilon", "gelu")}
    for name, value in geometry.items():
        if getattr(config, name) not in (value, getattr(default, name)):
            raise ConfigError(_other_geometry(name, getattr(config, name), value))
    return replace(config, **geometry)


def named_gpt2() -> str | None:
    """What HF_GPT2_REPO names, a hub id or a folder; None where it is not set."""
    return os.environ.get("HF_GPT2_REPO") or None


def gpt2_folder(source: str | bool) -> Path:
    """The local folder of a GPT-2: `source` itself, or the hub's files of that id, from the cache where they are there.

    Raises CheckpointError where there is neither folder, cache nor network.
    """
    repo = source if isinstance(source, str) else named_gpt2() or "openai-community/gpt2"
    if Path(repo).is_dir():
        return Path(repo)
    wanted = ["config.json", "model.safetensors", "pytorch_model.bin", "vocab.json", "merges.txt", "tokenizer.json"]
    try:
        return Path(snapshot_download(repo, allow_patterns=wanted))
    except (OSError, HFValidationError, ValueError) as error:
        raise CheckpointError(
            f"GPT-2 {repo!r}: no such folder, not in the Hugging Face cache, and the hub did not give it "
            f"({reason(error)}). Set HF_GPT2_REPO to a folder that holds config.json, model.safetensors, "
            "vocab.json and merges.txt, or train from scratch with --text.pretrained false"
        ) from error


def turned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a GPT-2 in the other library's layout, from either to either."""
    return {
        name: value.T.contiguous() if name.endswith(TURNED) and value.dim() == 2 else value
        for name, value in tensors.items()
    }


def gpt_config(facts: Mapping[str, Any], place: Path) -> GPTConfig:
    """The geometry that transformers' configuration of a GPT-2 gives; `place` is where it stands.

    Raises CheckpointError where it is incomplete, or describes what our GPT would compute otherwise.
    """
    width = facts.get("n_embd", 0)
    expected = {
        "model_type": ("gpt2",), "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu"),
        "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,), "tie_word_embeddings": (True,),
        "n_inner": (None, 4 * width if isinstance(width, int) else 0),
    }  # fmt: skip
    for name, allowed in expected.items():
        if facts.get(name, allowed[0]) not in allowed:
            raise CheckpointError(f"{place}: {name} is {facts[name]!r}; expected {allowed[0]!r}")
    try:
        return GPTConfig(
            vocab_size=facts["vocab_size"], n_positions=facts["n_positions"], n_layer=facts["n_layer"],
            n_head=facts["n_head"], n_embd=facts["n_embd"], dropout=facts.get("resid_pdrop", 0.1),
            layer_norm_epsilon=facts.get("layer_norm_epsilon", 1e-5),
            gelu="none" if facts.get("activation_function") == "gelu" else "tanh",
        )  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{place}: not the configuration of a GPT-2 ({error})") from error
