"""transformers' image encoders as timm's, and back: ViT, DeiT, BEiT and Swin of any geometry.

Tensors keep their values; query, key and value are three matrices in transformers and one in timm.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from myllm.config import VisionConfig
from myllm.errors import CheckpointError, ConfigError
from myllm.model.backbones import create_backbone
from myllm.model.vision import ImageEncoder
from myllm.option_checks import describe_type, has_type

QKV = ("query", "key", "value")
# Modules of a block, transformers' names to timm's: those that ViT and Swin share, ViT's, and Swin's.
_BLOCK = {
    "layernorm_before": "norm1", "layernorm_after": "norm2", "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
}
_VIT_BLOCK = _BLOCK | {f"attention.attention.{part}": f"attn.{part}" for part in QKV} | {
    "attention.attention.relative_position_bias.relative_position_bias_table": "attn.relative_position_bias_table",
    "lambda_1": "gamma_1", "lambda_2": "gamma_2",
}
_SWIN_BLOCK = _BLOCK | {f"attention.self.{part}": f"attn.{part}" for part in (*QKV, "relative_position_bias_table")}
# Names of tensors, or of their modules, in transformers to those in timm; # stands for the number of a block or stage.
NAMES = {
    "embeddings.cls_token": "cls_token", "embeddings.distillation_token": "dist_token",
    "embeddings.position_embeddings": "pos_embed", "embeddings.norm": "patch_embed.norm",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "encoder.relative_position_bias.relative_position_bias_table": "rel_pos_bias.relative_position_bias_table",
    "encoder.layers.#.downsample.norm": "layers.#.downsample.norm",
    "encoder.layers.#.downsample.reduction": "layers.#.downsample.reduction",
    "layernorm": "norm", "pooler.layernorm": "fc_norm",
    **{f"encoder.layer.#.{name}": f"blocks.#.{timm_name}" for name, timm_name in _VIT_BLOCK.items()},
    **{f"encoder.layers.#.blocks.#.{name}": f"layers.#.blocks.#.{timm_name}"
       for name, timm_name in _SWIN_BLOCK.items()},
}
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
# Not read: what no caption depends on, and index tables that timm computes.
NOT_NEEDED = re.compile(r"pooler\.dense\.|.*relative_position_index$|embeddings\.mask_token$")
FAMILIES = {"VisionTransformer": "vit", "VisionTransformerDistilled": "deit", "Beit": "beit", "SwinTransformer": "swin"}
# transformers' defaults, for configurations that leave them out
_DEFAULTS = {
    "hidden_act": "gelu", "num_channels": 3, "image_size": 224, "patch_size": 16, "hidden_size": 768,
    "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "layer_norm_eps": 1e-12,
    "qkv_bias": True,
}
_BEIT_DEFAULTS = {name: value for name, value in _DEFAULTS.items() if name != "qkv_bias"} | {
    "layer_scale_init_value": 0.1, "use_absolute_position_embeddings": False, "use_relative_position_bias": False,
    "use_shared_relative_position_bias": False, "use_mean_pooling": True,
}
_SWIN_DEFAULTS = {
    "hidden_act": "gelu", "num_channels": 3, "image_size": 224, "patch_size": 4, "embed_dim": 96,
    "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7, "mlp_ratio": 4.0, "qkv_bias": True,
    "use_absolute_embeddings": False, "layer_norm_eps": 1e-5,
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "vit": _DEFAULTS, "deit": _DEFAULTS, "beit": _BEIT_DEFAULTS, "swin": _SWIN_DEFAULTS,
}
TIMM_NAMES = {
    "vit": "vit_base_patch16_224", "deit": "deit_base_distilled_patch16_224", "beit": "beit_base_patch16_224",
    "swin": "swin_tiny_patch4_window7_224",
}
SUPPORTED_VALUES = {"hidden_act": "gelu", "num_channels": 3, "use_absolute_embeddings": False}


def with_defaults(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return transformers' configuration of an encoder with all options that matter; left-out ones get its defaults.

    Raises CheckpointError, naming `path`, for another kind of encoder or a value of another type.
    """
    family = str(values.get("model_type"))
    if family not in DEFAULTS:
        raise CheckpointError(f"{path}: encoder.model_type is {family!r}; supported are {', '.join(DEFAULTS)}")
    values = {**DEFAULTS[family], **values}
    for name, default in DEFAULTS[family].items():
        value, expected = values[name], type(default)
        if name in SUPPORTED_VALUES and value != SUPPORTED_VALUES[name]:
            raise CheckpointError(f"{path}: encoder.{name} is {value!r:.100}; supported is {SUPPORTED_VALUES[name]!r}")
        if not has_type(value, expected) and name not in ("image_size", "patch_size"):
            raise CheckpointError(f"{path}: encoder.{name} is {value!r:.100}; expected {describe_type(expected)}")
    return values


def vision_config(values: Mapping[str, Any]) -> VisionConfig:
    """Return timm's model for transformers' configuration of an encoder, as `with_defaults` returns it."""
    family = values["model_type"]
    geometry = {"patch_size": square(values["patch_size"], "patch_size"), "norm_eps": values["layer_norm_eps"]}
    if family == "swin":
        names = ("embed_dim", "depths", "num_heads", "window_size", "mlp_ratio", "qkv_bias")
        geometry |= {name: values[name] for name in names}
    else:
        geometry |= {
            "embed_dim": values["hidden_size"], "depth": values["num_hidden_layers"],
            "num_heads": values["num_attention_heads"], "qkv_bias": values.get("qkv_bias", True),
            "mlp_ratio": values["intermediate_size"] / values["hidden_size"],
        }
    if family == "beit":
        geometry |= {
            "qkv_bias": True, "init_values": values["layer_scale_init_value"] or None,
            "use_abs_pos_emb": values["use_absolute_position_embeddings"],
            "use_rel_pos_bias": values["use_relative_position_bias"],
            "use_shared_rel_pos_bias": values["use_shared_relative_position_bias"],
            # transformers normalises the tokens only if it does not pool them
            "global_pool": "avg" if values["use_mean_pooling"] else "token",
        }
    image_size = square(values["image_size"], "image_size")
    return VisionConfig(TIMM_NAMES[family], pretrained=False, image_size=image_size, geometry=geometry)


def to_timm(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return transformers' tensors of an encoder under timm's names, and the names of those that timm lacks."""
    state, unknown = dict[str, Tensor](), list[str]()
    for name, value in tensors.items():
        timm_name = _renamed(name, NAMES)
        if timm_name is not None:
            state[_shift_stage(timm_name, 1)] = value
        elif not NOT_NEEDED.match(name):
            unknown.append(name)
    _join_queries(state)
    return state, unknown


def from_timm(encoder: ImageEncoder, timm_name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return transformers' configuration and tensors of an encoder. Raises ConfigError if transformers lacks a part."""
    config = _encoder_config(encoder, timm_name)
    with torch.device("meta"):
        plain = create_backbone(vision_config(config))
    shapes, plain_shapes = (
        {name: value.shape for name, value in module.state_dict().items()} for module in (encoder.backbone, plain)
    )
    if differing := sorted(dict(shapes.items() ^ plain_shapes.items())):
        family = config["model_type"]
        raise _not_exportable(timm_name, f"its tensor {differing[0]} is not in a plain {family}, missing, or misshapen")
    names, state = {timm: hf for hf, timm in NAMES.items()}, dict[str, Tensor]()
    for name, value in _split_queries(encoder.backbone.state_dict()).items():
        hf_name = _renamed(_shift_stage(name, -1), names)
        assert hf_name is not None
        state[hf_name] = value
    if config["model_type"] in ("vit", "deit"):  # unused by captions, but transformers warns if it is missing
        state |= {"pooler.dense.weight": torch.eye(encoder.width), "pooler.dense.bias": torch.zeros(encoder.width)}
    return config, state


def _encoder_config(encoder: ImageEncoder, timm_name: str) -> dict[str, Any]:
    """Return transformers' configuration of an encoder, read from its modules."""
    backbone: Any = encoder.backbone
    family = FAMILIES.get(type(backbone).__name__)
    if family is None:
        raise _not_exportable(timm_name, f"it has no counterpart of timm's {type(backbone).__name__}")
    blocks = list(backbone.blocks) if family != "swin" else list(backbone.layers[0].blocks)
    first = blocks[0]
    if type(first.mlp.act) is not nn.GELU or first.mlp.act.approximate != "none":
        raise _not_exportable(timm_name, "its activation is not the exact GELU")
    if encoder.preprocess.image_size[0] != encoder.preprocess.image_size[1]:
        raise _not_exportable(timm_name, "its input is not square")
    width, qkv_bias = backbone.embed_dim, first.attn.qkv.bias is not None
    config = {
        "model_type": family, "image_size": encoder.preprocess.image_size[0],
        "patch_size": backbone.patch_embed.patch_size[0], "num_channels": 3, "hidden_act": "gelu",
        "layer_norm_eps": first.norm1.eps, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }
    if family == "swin":
        return config | {
            "embed_dim": width, "depths": [len(stage.blocks) for stage in backbone.layers],
            "num_heads": [stage.blocks[0].attn.num_heads for stage in backbone.layers],
            "window_size": first.window_size[0], "mlp_ratio": first.mlp.fc1.out_features / width, "qkv_bias": qkv_bias,
            "hidden_size": encoder.width, "drop_path_rate": 0.0,
        }
    config |= {
        "hidden_size": width, "num_hidden_layers": len(blocks), "num_attention_heads": first.attn.num_heads,
        "intermediate_size": first.mlp.fc1.out_features, "qkv_bias": qkv_bias,
    }
    if family == "beit":
        config |= {
            "use_relative_position_bias": first.attn.relative_position_bias_table is not None,
            "use_shared_relative_position_bias": backbone.rel_pos_bias is not None,
            "use_absolute_position_embeddings": backbone.pos_embed is not None,
            "use_mean_pooling": not isinstance(backbone.norm, nn.LayerNorm), "drop_path_rate": 0.0,
            "layer_scale_init_value": 0.1 if first.gamma_1 is not None else 0.0,
        }
    return config


def _not_exportable(timm_name: str, problem: str) -> ConfigError:
    return ConfigError(
        f"vision.name {timm_name} cannot be exported to Hugging Face format: {problem}. "
        f"Supported are plain {', '.join(DEFAULTS)}; or export to safetensors"
    )


def square(value: Any, name: str) -> int:
    """Return the side in pixels of a square that a file gives as a number, as [height, width] or by these names.

    Raises ConfigError for anything else.
    """
    sides = [value.get("height"), value.get("width")] if isinstance(value, dict) else value
    sides = set(sides) if isinstance(sides, list | tuple) else {sides}
    if len(sides) != 1 or not has_type(side := sides.pop(), int):
        raise ConfigError(f"{name} is {value!r:.100}; only squares of a whole number of pixels are supported")
    return int(side)


def _renamed(name: str, names: Mapping[str, str]) -> str | None:
    """Return a tensor's name in the other library, or None if it has none."""
    numbers, pattern = NUMBER.findall(name), NUMBER.sub("#", name)
    module, _, kind = pattern.rpartition(".")
    other = names.get(pattern) or (f"{names[module]}.{kind}" if module in names else None)
    return other and re.sub("#", lambda _: numbers.pop(0), other)


def _shift_stage(name: str, step: int) -> str:
    """Renumber Swin's patch merging: it begins a stage in timm and ends the one before in transformers."""
    return re.sub(r"^layers\.(\d+)\.downsample", lambda match: f"layers.{int(match[1]) + step}.downsample", name)


def _join_queries(state: dict[str, Tensor]) -> None:
    """Join query, key and value, in place, to timm's one tensor; BEiT has no key bias, and keeps two bias tensors."""
    for query in [name for name in state if ".attn.query." in name]:
        parts = {part: state.pop(query.replace(".query.", f".{part}."), None) for part in QKV}
        base, kind = query.split(".attn.query.")
        if parts["key"] is None:
            state[f"{base}.attn.q_bias"], state[f"{base}.attn.v_bias"] = parts["query"], parts["value"]  # type: ignore[assignment]
        elif parts["query"] is not None and parts["value"] is not None:
            state[f"{base}.attn.qkv.{kind}"] = torch.cat([parts["query"], parts["key"], parts["value"]])


def _split_queries(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict in which timm's joint query, key and value are transformers' three tensors."""
    split: dict[str, Tensor] = {}
    for name, value in state.items():
        base, fused, kind = name.partition(".attn.qkv.")
        if fused:
            split |= {f"{base}.attn.{part}.{kind}": tensor for part, tensor in zip(QKV, value.chunk(3), strict=True)}
        else:
            split[name.replace(".attn.q_bias", ".attn.query.bias").replace(".attn.v_bias", ".attn.value.bias")] = value
    return split
