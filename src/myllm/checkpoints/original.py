"""captioner.pt of the seed's script, and of VisionGPT2 which that began from: the bare state dict of a ViT and a GPT-2.

Names and shapes are all there is: the geometry is read from them, and GPT-2's tokenizer is looked for elsewhere.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor

from myllm.checkpoints.build import is_finite
from myllm.checkpoints.native import Checkpoint
from myllm.config import CaptionerConfig, CaptionsConfig, DecodeConfig, GPTConfig, PreprocessConfig, VisionConfig
from myllm.data.tokenizer import gpt2_tokenizer, no_tokenizer
from myllm.errors import CheckpointError, ConfigError
from myllm.model.gpt2_weights import named_gpt2
from myllm.model.vision_gpt2 import VisionGPT2

HEAD_WIDTH = 64
VIT_BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
# our names in a decoder block, and theirs in both formats; several where ours is one matrix of theirs
BLOCK = {
    "ln_1": "ln_1",
    "ln_cross_attn": "ln_2",
    "crossattention.q_attn": "cross_attn.q",
    "crossattention.c_attn": "cross_attn.k cross_attn.v",
    "crossattention.c_proj": "cross_attn.c_proj",
    "ln_2": "ln_3",
}
NORMS_NOTE = (
    "norms are imported as they are: before training, GPT-2's norm of the MLP was loaded as that of cross-attention "
    "(here ln_cross_attn), and the MLP's (here ln_2) began untrained"
)


@dataclass(frozen=True)
class Layout:
    """Where a format keeps the decoder: our names to theirs."""

    ends: Mapping[str, str]
    """Of what stands before and behind the blocks."""
    blocks: str
    block: Mapping[str, str]
    norm: tuple[str, str]
    """A norm's factor and what it adds."""
    gelu: Literal["tanh", "none"]

    @property
    def tied(self) -> tuple[str, str]:
        """Token embedding and head, one tensor under two names."""
        return f"{self.ends['transformer.wte']}.weight", f"{self.ends['lm_head']}.weight"


LAYOUTS = {
    "seed": Layout(
        {"transformer.wte": "tok_emb", "transformer.wpe": "pos_emb", "transformer.ln_f": "final_norm",
         "lm_head": "out_head"},
        "trf_blocks",
        BLOCK | {"attn.c_attn": "attn.W_query attn.W_key attn.W_value", "attn.c_proj": "attn.out_proj",
                 "mlp.c_fc": "mlp.layers.0", "mlp.c_proj": "mlp.layers.2"},
        ("scale", "shift"),
        "tanh",
    ),
    "VisionGPT2": Layout(
        {name: name for name in ("transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head")},
        "transformer.h",
        BLOCK | {name: name for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")},
        ("weight", "bias"),
        "none",
    ),
}
# what names of a format begin with
SIGNS = {name: ("patch_embed.", f"{layout.blocks}.") for name, layout in LAYOUTS.items()} | {
    "ClipCap": ("clip_project.", "gpt."),
    "nanoVLM": ("vision_encoder.", "decoder.", "MP."),
}
CAUSAL_MASK = re.compile(r"(trf_blocks|transformer\.h)\.\d+\.attn\.mask")
# left out where the model was made without them, in every block
FREE_BIAS = re.compile(r"\.(attn\.qkv|attn\.W_query|attn\.W_key|attn\.W_value)\.bias$")


def recognises(names: Collection[str]) -> str | None:
    """The format whose tensors have such names: one of LAYOUTS, or one known but not opened; None for others."""
    for kind, signs in SIGNS.items():
        if all(any(name.startswith(sign) for name in names) for sign in signs):
            return kind
    return None


def from_state(tensors: Mapping[str, Tensor], place: Path) -> Checkpoint:
    """A captioner from a bare state dict of one of LAYOUTS; `place` is the file it was read from.

    The tokenizer is that of HF_GPT2_REPO, a hub id or a folder; where that is not set, `no_tokenizer`: logits can be
    computed, and captioning tells what is missing.
    Raises CheckpointError for other formats, and where tensors are missing, unknown or of other shapes.
    """
    kind = recognises(tensors)
    if kind is None:
        raise CheckpointError(
            f"{place}: no captioner known here has such tensors, {next(iter(tensors), 'none')} for one; "
            f"state dicts that can be opened are those of {' and '.join(LAYOUTS)}"
        )
    if kind not in LAYOUTS:
        raise CheckpointError(
            f"{place}: a model of {kind}, whose architecture is another one; caption with {kind}'s own program. "
            f"State dicts that can be opened are those of {' and '.join(LAYOUTS)}"
        )
    layout = LAYOUTS[kind]
    depth = max(_count_blocks(tensors, part) for part in ("blocks", layout.blocks))
    sources = _sources(layout, depth)
    needed = dict.fromkeys(name for parts in sources.values() for name in parts)
    found = _completed(tensors, layout, needed, place)
    try:
        model = VisionGPT2(_config(found, layout, depth, place))
    except ConfigError as error:
        raise CheckpointError(f"{place}: its shapes make no captioner ({error})") from error
    _fill(model, found, sources, place)
    text, size = model.config.text, model.encoder.preprocess.image_size
    return Checkpoint(
        model.eval(),
        _tokenizer(text.vocab_size, place),
        # Albumentations' Resize, as both scripts have it: to a square whatever the picture's form
        PreprocessConfig(size, interpolation="bilinear", crop_mode="squash"),
        CaptionsConfig(),
        DecodeConfig(max_new_tokens=min(DecodeConfig.max_new_tokens, text.n_positions)),
        {"imported from": kind, "notes": [NORMS_NOTE]},
    )


def _count_blocks(names: Collection[str], part: str) -> int:
    return len({name.removeprefix(f"{part}.").split(".")[0] for name in names if name.startswith(f"{part}.")})


def _sources(layout: Layout, depth: int) -> dict[str, tuple[str, ...]]:
    """Each tensor of ours that the file gives, and those of theirs that make it, one upon the other."""
    pairs = {"encoder.backbone.patch_embed.proj": "patch_embed.proj"}
    pairs |= {f"decoder.{own}": other for own, other in layout.ends.items()}
    for number in range(depth):
        pairs |= {f"encoder.backbone.blocks.{number}.{part}": f"blocks.{number}.{part}" for part in VIT_BLOCK}
        for own, others in layout.block.items():
            theirs = " ".join(f"{layout.blocks}.{number}.{other}" for other in others.split())
            pairs[f"decoder.transformer.h.{number}.{own}"] = theirs
    found: dict[str, tuple[str, ...]] = {f"encoder.backbone.{name}": (name,) for name in ("cls_token", "pos_embed")}
    for own, others in pairs.items():
        weight, bias = layout.norm if ".ln_" in own else ("weight", "bias")
        found[f"{own}.weight"] = tuple(f"{other}.{weight}" for other in others.split())
        if not own.endswith(("wte", "wpe", "lm_head")):
            found[f"{own}.bias"] = tuple(f"{other}.{bias}" for other in others.split())
    return found


def _completed(
    tensors: Mapping[str, Tensor], layout: Layout, needed: Collection[str], place: Path
) -> dict[str, Tensor]:
    """Exactly the tensors needed: without causal masks, with zeros for biases that the model was made without.

    Raises CheckpointError where some are missing or unknown, or the head is not the token embedding.
    """
    found = {name: value for name, value in tensors.items() if not CAUSAL_MASK.fullmatch(name)}
    words, head = layout.tied
    for name, twin in ((words, head), (head, words)):  # safetensors keeps one of two names of a tensor
        if twin in found:
            found.setdefault(name, found[twin])
    if head in found and not torch.equal(found[words], found[head]):
        raise CheckpointError(f"{place}: {head} differs from {words}; expected the same tensor twice")
    given = {match[1] for name in found if (match := FREE_BIAS.search(name))}
    for name in needed:
        weight = found.get(name.removesuffix("bias") + "weight")
        if (match := FREE_BIAS.search(name)) and match[1] not in given and weight is not None:
            found[name] = weight.new_zeros(weight.shape[:1])
    missing = [name for name in needed if name not in found]
    if missing:
        raise CheckpointError(
            f"{place}: {missing[0]} is missing ({len(missing)} of {len(needed)} tensors in all); take another copy"
        )
    unknown = [name for name in found if name not in needed]
    if unknown:
        raise CheckpointError(
            f"{place}: {unknown[0]} has no counterpart here ({len(unknown)} tensors in all); expected are timm's plain "
            "ViT and the decoder of the script, unchanged"
        )
    return found


def _config(tensors: Mapping[str, Tensor], layout: Layout, depth: int, place: Path) -> CaptionerConfig:
    """The geometry that the shapes tell. Raises CheckpointError for shapes that tell none."""

    def wrong(name: str, expected: str) -> CheckpointError:
        return CheckpointError(f"{place}: {name} has shape {tuple(tensors[name].shape)}; expected {expected}")

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        found = tuple(tensors[name].shape)
        if len(found) != dimensions or not all(found):
            raise wrong(name, f"{dimensions} sizes, none of them 0")
        return found

    width, colours, patch, across = shape("patch_embed.proj.weight", 4)
    _, tokens, _ = shape("pos_embed", 3)
    hidden, _ = shape("blocks.0.mlp.fc1.weight", 2)
    vocab_size, _ = shape(layout.tied[0], 2)
    n_positions, _ = shape(f"{layout.ends['transformer.wpe']}.weight", 2)
    side = math.isqrt(tokens - 1)
    if colours != 3 or patch != across:
        raise wrong("patch_embed.proj.weight", "square patches of 3 colours")
    if width % HEAD_WIDTH:
        raise wrong("patch_embed.proj.weight", f"a width that is a multiple of {HEAD_WIDTH}, a head's")
    if not side or side * side != tokens - 1:
        raise wrong("pos_embed", "places for one class token and for the patches of a square picture")
    n_head = width // HEAD_WIDTH
    geometry = {
        "patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": n_head, "mlp_ratio": hidden / width,
    }
    return CaptionerConfig(
        VisionConfig("vit_base_patch16_224", pretrained=False, image_size=side * patch, geometry=geometry),
        GPTConfig(vocab_size, n_positions, depth, n_head, width, gelu=layout.gelu),
        "layerwise",
    )


@torch.no_grad()
def _fill(
    model: VisionGPT2, tensors: Mapping[str, Tensor], sources: Mapping[str, tuple[str, ...]], place: Path
) -> None:
    """Copy theirs into ours, one by one: a second whole model in memory is not needed.

    The ViT's last norm stays as made: the file has none, for mode layerwise does not use it.
    """
    own = model.state_dict()
    expected = {part: (own[name].shape[0] // len(parts), *own[name].shape[1:])
                for name, parts in sources.items() for part in parts}
    wrong = [name for name, shape in expected.items() if tuple(tensors[name].shape) != shape]
    if wrong:
        raise CheckpointError(
            f"{place}: {wrong[0]} has shape {tuple(tensors[wrong[0]].shape)}; the others ask for {expected[wrong[0]]} "
            f"({len(wrong)} tensors do not fit in all)"
        )
    odd = next((part for part in expected if not is_finite(tensors[part])), None)
    if odd is not None:
        raise CheckpointError(
            f"{place}: {odd} holds values that are no finite numbers (NaN or infinity); take another checkpoint"
        )
    for name, parts in sources.items():
        own[name].copy_(torch.cat([tensors[part] for part in parts]))


def _tokenizer(vocab_size: int, place: Path) -> Tokenizer:
    repo = named_gpt2()
    if repo is None:
        return no_tokenizer()
    tokenizer = gpt2_tokenizer(repo)
    if tokenizer.get_vocab_size() > vocab_size:
        raise CheckpointError(
            f"{place}: its embedding has {vocab_size} rows, but the tokenizer of HF_GPT2_REPO {repo} has "
            f"{tokenizer.get_vocab_size()} tokens; name the GPT-2 that the model was trained with"
        )
    return tokenizer
