"""captioner.pt of the original script and of VisionGPT2, compared with their forward pass over the bare state dict."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from myllm.checkpoints import native, original
from myllm.data.tokenizer import end_token, train_tokenizer
from myllm.inference.captioner import Captioner
from myllm.model.weight_files import read_tensors

State = Mapping[str, Tensor]
BareState = Callable[..., dict[str, Tensor]]
KINDS = ("seed", "VisionGPT2")
GEOMETRIES: tuple[dict[str, Any], ...] = (
    {},
    {"width": 64, "depth": 1, "patch": 7, "grid": 1, "context": 11, "vocab": 260},
    {"width": 128, "depth": 3, "patch": 3, "grid": 5, "context": 13, "hidden": 200},
    {"width": 192, "depth": 5, "patch": 16, "grid": 2, "context": 31, "vocab": 1001},
    {"width": 64, "depth": 12, "patch": 2, "grid": 4, "biases": False},
)


def linear(x: Tensor, state: State, name: str) -> Tensor:
    y = torch.einsum("...i,oi->...o", x, state[f"{name}.weight"])
    return y + state[f"{name}.bias"] if f"{name}.bias" in state else y


def norm(x: Tensor, state: State, name: str, eps: float) -> Tensor:
    weight, bias = ("scale", "shift") if f"{name}.scale" in state else ("weight", "bias")
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return normed * state[f"{name}.{weight}"] + state[f"{name}.{bias}"]


def attention(query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False) -> Tensor:
    """Head by head, each 64 wide."""
    heads = []
    for first in range(0, query.shape[-1], 64):
        q, k, v = (part[..., first : first + 64] for part in (query, key, value))
        scores = q @ k.transpose(1, 2) / 8
        if is_causal:
            later = torch.ones(scores.shape[1:]).triu(1).bool()
            scores = scores.masked_fill(later, -math.inf)
        heads.append(scores.softmax(-1) @ v)
    return torch.cat(heads, dim=-1)


def exact_gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.erf(x / math.sqrt(2)))


def tanh_gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def vit_block(x: Tensor, state: State, block: str) -> Tensor:
    x = x + linear(attention(*linear(norm(x, state, f"{block}.norm1", 1e-6), state, f"{block}.attn.qkv").chunk(3, -1)),
                   state, f"{block}.attn.proj")
    hidden = exact_gelu(linear(norm(x, state, f"{block}.norm2", 1e-6), state, f"{block}.mlp.fc1"))
    return x + linear(hidden, state, f"{block}.mlp.fc2")


def text_block(x: Tensor, image: Tensor, state: State, block: str) -> Tensor:
    is_original = f"{block}.attn.W_query.weight" in state
    y = norm(x, state, f"{block}.ln_1", 1e-5)
    if is_original:
        parts = [linear(y, state, f"{block}.attn.W_{part}") for part in ("query", "key", "value")]
    else:
        parts = list(linear(y, state, f"{block}.attn.c_attn").chunk(3, -1))
    x = x + linear(attention(*parts, is_causal=True), state, f"{block}.attn.{'out_proj' if is_original else 'c_proj'}")
    query = linear(norm(x, state, f"{block}.ln_2", 1e-5), state, f"{block}.cross_attn.q")
    key, value = (linear(image, state, f"{block}.cross_attn.{part}") for part in "kv")
    x = x + linear(attention(query, key, value), state, f"{block}.cross_attn.c_proj")
    first, second = (f"{block}.mlp.layers.0", f"{block}.mlp.layers.2") if is_original else (
        f"{block}.mlp.c_fc", f"{block}.mlp.c_proj")
    gelu = tanh_gelu if is_original else exact_gelu
    return x + linear(gelu(linear(norm(x, state, f"{block}.ln_3", 1e-5), state, first)), state, second)


def reference(state: State, images: Tensor, tokens: Tensor) -> Tensor:
    """images (B, 3, H, W), tokens (B, T) -> logits (B, T, vocab)."""
    is_original = "tok_emb.weight" in state
    embedding, positions, blocks, last, head = (
        ("tok_emb", "pos_emb", "trf_blocks", "final_norm", "out_head") if is_original else
        ("transformer.wte", "transformer.wpe", "transformer.h", "transformer.ln_f", "lm_head")
    )
    kernel = state["patch_embed.proj.weight"]
    patches = F.unfold(images, kernel.shape[-1], stride=kernel.shape[-1]).transpose(1, 2)
    image = patches @ kernel.flatten(1).T + state["patch_embed.proj.bias"]
    image = torch.cat([state["cls_token"].repeat(len(images), 1, 1), image], dim=1) + state["pos_embed"]
    text = state[f"{embedding}.weight"][tokens] + state[f"{positions}.weight"][: tokens.shape[1]]
    number = 0
    while f"blocks.{number}.norm1.weight" in state:
        image = vit_block(image, state, f"blocks.{number}")
        text = text_block(text, image, state, f"{blocks}.{number}")
        number += 1
    return linear(norm(text, state, last, 1e-5), state, head)


def pictures(state: State) -> Tensor:
    side = state["patch_embed.proj.weight"].shape[-1] * math.isqrt(state["pos_embed"].shape[1] - 1)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    return images.to(state["pos_embed"].dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@torch.inference_mode()
def test_imported_logits_are_those_of_the_script(bare_state: BareState, kind: str, geometry: dict[str, Any]) -> None:
    state = bare_state(kind, **geometry)
    # in double precision: single precision's noise would hide faults
    model = original.from_state(state, Path("captioner.pt")).model.double()
    state = {name: value.double() for name, value in state.items()}
    images = pictures(state)
    tokens = torch.randint(model.config.text.vocab_size, (2, 11), generator=torch.Generator().manual_seed(2))
    expected = reference(state, images, tokens)
    assert expected.std() > 0.5 and (expected - reference(state, images.flip(0), tokens)).abs().max() > 0.01
    torch.testing.assert_close(model(images, tokens[:, None])[:, 0], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_imported_captions_are_those_of_the_script(
    bare_state: BareState, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = train_tokenizer(["a dog runs on the grass", "a cat sleeps"], vocab_size=270)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setenv("HF_GPT2_REPO", str(tmp_path))
    end, state = end_token(tokenizer), bare_state(kind, vocab=tokenizer.get_vocab_size())
    images, expected = pictures(state)[:1], [end]
    while len(expected) < 13 and expected[1:].count(end) == 0:
        expected.append(int(reference(state, images, torch.tensor([expected]))[0, -1].argmax()))

    torch.save(state, tmp_path / "script.pt")
    native.save(original.from_state(read_tensors(tmp_path / "script.pt"), tmp_path / "script.pt"), tmp_path / "ours.pt")
    caption = Captioner.load(tmp_path / "ours.pt", device="cpu").caption(images[0], max_new_tokens=12)
    assert caption.tokens == [token for token in expected if token != end]
