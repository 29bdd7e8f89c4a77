"""captioner.pt of the original script, and of VisionGPT2, on which it was based: a bare state dict of ViT and GPT-2.

Such a file has only tensors and their names: the geometry is read from their shapes, the tokenizer from HF_GPT2_REPO.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor

from myllm.checkpoints import native
from myllm.checkpoints.build import build_model
from myllm.checkpoints.native import Checkpoint
from myllm.config import CaptionerConfig, DecodeConfig, GPTConfig, PreprocessConfig, VisionConfig
from myllm.data.tokenizer import gpt2_tokenizer, no_tokenizer
from myllm.errors import CheckpointError, ConfigError
from myllm.model.gpt2_weights import named_gpt2
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.model.weight_files import read_tensors

HEAD_WIDTH = 64
VIT_BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
# Modules of a decoder block: our names, and those of both formats; several if our matrix joins several of theirs.
BLOCK = {
    "ln_1": "ln_1", "ln_cross_attn": "ln_2", "ln_2": "ln_3", "crossattention.q_attn": "cross_attn.q",
    "crossattention.c_attn": "cross_attn.k cross_attn.v", "crossattention.c_proj": "cross_attn.c_proj",
}
NORMS_NOTE = (
    "norms are imported as they are: before training, both scripts load GPT-2's MLP norm into the norm of "
    "cross-attention (ln_cross_attn in myllm), and initialise the MLP's norm (ln_2 in myllm)"
)


@dataclass(frozen=True)
class Layout:
    """Names of the decoder's tensors in a format, by our names."""

    embedding: str
    """The token embedding, tied to `head`."""
    positions: str
    final_norm: str
    head: str
    blocks: str
    block: Mapping[str, str]
    """Modules of a block."""
    norm: tuple[str, str]
    """Weight and bias of a norm."""
    gelu: Literal["tanh", "none"]


LAYOUTS = {
    "the original script": Layout(
        "tok_emb.weight", "pos_emb.weight", "final_norm", "out_head.weight", "trf_blocks",
        BLOCK | {"attn.c_attn": "attn.W_query attn.W_key attn.W_value", "attn.c_proj": "attn.out_proj",
                 "mlp.c_fc": "mlp.layers.0", "mlp.c_proj": "mlp.layers.2"},
        ("scale", "shift"), "tanh",
    ),
    "VisionGPT2": Layout(
        "transformer.wte.weight", "transformer.wpe.weight", "transformer.ln_f", "lm_head.weight", "transformer.h",
        BLOCK | {name: name for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")},
        ("weight", "bias"), "none",
    ),
}
# In a file of each program, some tensor names begin with each of these prefixes.
PREFIXES = {name: ("patch_embed.", f"{layout.blocks}.") for name, layout in LAYOUTS.items()} | {
    "ClipCap": ("clip_project.", "gpt."),
    "nanoVLM": ("vision_encoder.", "decoder.", "MP."),
}
SUPPORTED = f"state dicts that can be opened are those of {' and '.join(LAYOUTS)}"
CAUSAL_MASK = re.compile(r"(trf_blocks|transformer\.h)\.\d+\.attn\.mask")
# Biases that a model can be made without; then every block lacks them.
OPTIONAL_BIAS = re.compile(r"\.(attn\.qkv|attn\.W_query|attn\.W_key|attn\.W_value)\.bias$")


def find_kind(names: Collection[str]) -> str | None:
    """Return the program that writes such names: one of LAYOUTS, or one that cannot be opened; None if unknown."""
    return next((
        kind for kind, prefixes in PREFIXES.items()
        if all(any(name.startswith(prefix) for name in names) for prefix in prefixes)
    ), None)


def matches(path: Path) -> bool:
    """Return whether a file, or the captioner.pt of a folder, is a state dict of a known program."""
    try:
        return find_kind(read_tensors(_file(path))) is not None
    except CheckpointError:  # the native reader reports the fault
        return False


def from_file(path: Path) -> Checkpoint:
    """Open a bare state dict, or the captioner.pt of a folder. Raises CheckpointError as `from_state`."""
    return from_state(read_tensors(_file(path)), path)


def _file(path: Path) -> Path:
    return path / native.FILE_NAME if path.is_dir() else path


def from_state(tensors: Mapping[str, Tensor], path: Path) -> Checkpoint:
    """Return the captioner of a bare state dict in one of LAYOUTS. path: the file, for messages.

    The tokenizer comes from HF_GPT2_REPO, a hub id or a folder. If it is not set, the model computes logits, and
    captioning raises an error that says how to set it.
    Raises CheckpointError for other formats, and if tensors are missing, unknown, NaN or of other shapes.
    """
    try:
        kind, model = _build(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    text, size = model.config.text, model.encoder.preprocess.image_size
    # both scripts use Albumentations' Resize, which ignores the aspect ratio
    preprocess = PreprocessConfig(size, interpolation="bilinear", crop_mode="squash")
    decode = DecodeConfig(max_new_tokens=min(DecodeConfig.max_new_tokens, text.n_positions))
    provenance = {"imported from": kind, "notes": [NORMS_NOTE]}
    return Checkpoint(model, _tokenizer(text.vocab_size, path), preprocess, decode=decode, provenance=provenance)


def _build(tensors: Mapping[str, Tensor]) -> tuple[str, VisionGPT2]:
    """Return the name of the layout, and the model of the tensors. Raises CheckpointError as `from_state`."""
    kind = find_kind(tensors)
    if kind is None:
        raise CheckpointError(f"no known captioner has a tensor {next(iter(tensors), 'at all')}; {SUPPORTED}")
    if kind not in LAYOUTS:
        raise CheckpointError(
            f"a model of {kind}, which has another architecture; caption with {kind}'s own program. {SUPPORTED}"
        )
    layout = LAYOUTS[kind]
    blocks = [re.compile(rf"{re.escape(part)}\.(\w+)\.") for part in ("blocks", layout.blocks)]
    depth = max(len({match[1] for name in tensors if (match := block.match(name))}) for block in blocks)
    sources = _sources(layout, depth)
    tensors = _completed(tensors, layout, dict.fromkeys(name for parts in sources.values() for name in parts))
    try:
        config = _config(tensors, layout, depth)
        with torch.device("meta"):  # shapes without numbers
            declared = VisionGPT2(config).state_dict()
    except ConfigError as error:
        raise CheckpointError(f"no captioner has such shapes ({error})") from error
    return kind, build_model(config, _joined(tensors, sources, declared))


def _sources(layout: Layout, depth: int) -> dict[str, Sequence[str]]:
    """Return, for each of our tensors, the file's tensors that are concatenated to it."""
    modules = {"encoder.backbone.patch_embed.proj": "patch_embed.proj", "decoder.transformer.ln_f": layout.final_norm}
    for number in range(depth):
        modules |= {f"encoder.backbone.blocks.{number}.{part}": f"blocks.{number}.{part}" for part in VIT_BLOCK}
        for name, parts in layout.block.items():
            in_file = " ".join(f"{layout.blocks}.{number}.{part}" for part in parts.split())
            modules[f"decoder.transformer.h.{number}.{name}"] = in_file
    sources: dict[str, Sequence[str]] = {f"encoder.backbone.{name}": (name,) for name in ("cls_token", "pos_embed")}
    sources |= {"decoder.transformer.wte.weight": (layout.embedding,), "decoder.lm_head.weight": (layout.head,)}
    sources["decoder.transformer.wpe.weight"] = (layout.positions,)
    for name, parts in modules.items():
        weight, bias = layout.norm if ".ln_" in name else ("weight", "bias")
        sources[f"{name}.weight"] = tuple(f"{part}.{weight}" for part in parts.split())
        sources[f"{name}.bias"] = tuple(f"{part}.{bias}" for part in parts.split())
    return sources


def _completed(tensors: Mapping[str, Tensor], layout: Layout, expected: Collection[str]) -> dict[str, Tensor]:
    """Return exactly the expected tensors: without causal masks, with zeros for biases that the model was made without.

    Raises CheckpointError if some are missing or unknown, or if the head is not the token embedding.
    """
    tensors = {name: value for name, value in tensors.items() if not CAUSAL_MASK.fullmatch(name)}
    embedding, head = layout.embedding, layout.head
    for name, twin in ((embedding, head), (head, embedding)):  # safetensors keeps one of two names of a tensor
        if twin in tensors:
            tensors.setdefault(name, tensors[twin])
    if head in tensors and not torch.equal(tensors[embedding], tensors[head]):
        raise CheckpointError(f"{head} differs from {embedding}; expected the same tensor twice")
    kinds_with_bias = {match[1] for name in tensors if (match := OPTIONAL_BIAS.search(name))}
    for name in expected:
        weight, match = tensors.get(name.removesuffix("bias") + "weight"), OPTIONAL_BIAS.search(name)
        if match and match[1] not in kinds_with_bias and weight is not None:
            tensors[name] = weight.new_zeros(weight.shape[:1])
    if missing := [name for name in expected if name not in tensors]:
        count = f"{len(missing)} of {len(expected)} tensors in all"
        raise CheckpointError(f"{missing[0]} is missing ({count}); take another copy")
    if unknown := [name for name in tensors if name not in expected]:
        raise CheckpointError(
            f"{unknown[0]} has no counterpart in myllm ({len(unknown)} tensors in all); expected are timm's "
            "plain ViT and the script's decoder, unchanged"
        )
    return tensors


def _config(tensors: Mapping[str, Tensor], layout: Layout, depth: int) -> CaptionerConfig:
    """Return the geometry that the tensors' shapes imply. Raises CheckpointError if they imply none."""

    def wrong_shape(name: str, expected: str) -> CheckpointError:
        return CheckpointError(f"{name} has shape {tuple(tensors[name].shape)}; expected {expected}")

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        sizes = tuple(tensors[name].shape)
        if len(sizes) != dimensions or not all(sizes):
            raise wrong_shape(name, f"{dimensions} sizes, none of them 0")
        return sizes

    width, channels, patch, patch_width = shape("patch_embed.proj.weight", 4)
    _, tokens, _ = shape("pos_embed", 3)
    hidden, _ = shape("blocks.0.mlp.fc1.weight", 2)
    vocab_size, _ = shape(layout.embedding, 2)
    n_positions, _ = shape(layout.positions, 2)
    grid = math.isqrt(tokens - 1)
    if channels != 3 or patch != patch_width:
        raise wrong_shape("patch_embed.proj.weight", "square patches of 3 colours")
    if width % HEAD_WIDTH:
        raise wrong_shape("patch_embed.proj.weight", f"a width that is a multiple of {HEAD_WIDTH}, a head's")
    if not grid or grid * grid != tokens - 1:
        raise wrong_shape("pos_embed", "positions of one class token and of the patches of a square picture")
    heads = width // HEAD_WIDTH
    geometry = {
        "patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": heads, "mlp_ratio": hidden / width,
    }
    vision = VisionConfig("vit_base_patch16_224", pretrained=False, image_size=grid * patch, geometry=geometry)
    text = GPTConfig(vocab_size, n_positions, depth, heads, width, gelu=layout.gelu)
    return CaptionerConfig(vision, text, "layerwise")


def _joined(
    tensors: Mapping[str, Tensor], sources: Mapping[str, Sequence[str]], declared: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the file's tensors as ours. Raises CheckpointError, naming one, if shapes are not those of `declared`."""
    expected = {part: (declared[name].shape[0] // len(parts), *declared[name].shape[1:])
                for name, parts in sources.items() for part in parts}
    if wrong := [name for name, shape in expected.items() if tuple(tensors[name].shape) != shape]:
        raise CheckpointError(
            f"{wrong[0]} has shape {tuple(tensors[wrong[0]].shape)}; expected {expected[wrong[0]]}, as the "
            f"other tensors imply ({len(wrong)} tensors do not fit in all)"
        )
    # files lack the ViT's last norm, because mode layerwise does not use it
    norm, width = "encoder.backbone.norm", declared["encoder.backbone.norm.weight"].shape
    state = {f"{norm}.weight": torch.ones(width), f"{norm}.bias": torch.zeros(width)}
    for name, parts in sources.items():
        state[name] = torch.cat([tensors[part] for part in parts]) if len(parts) > 1 else tensors[parts[0]]
    return state


def _tokenizer(vocab_size: int, path: Path) -> Tokenizer:
    repo = named_gpt2()
    if repo is None:
        return no_tokenizer()
    tokenizer = gpt2_tokenizer(repo)
    if tokenizer.get_vocab_size() > vocab_size:
        raise CheckpointError(
            f"{path}: its embedding has {vocab_size} rows, but the tokenizer of HF_GPT2_REPO {repo} has "
            f"{tokenizer.get_vocab_size()} tokens; give the GPT-2 that the model was trained with"
        )
    return tokenizer
