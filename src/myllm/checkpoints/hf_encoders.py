"""transformers' image encoders as timm's, both ways: ViT, DeiT, BEiT and Swin of any geometry.

Tensors keep their values; query, key and value are three matrices there and one in timm.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from myllm.config import VisionConfig
from myllm.errors import CheckpointError, ConfigError
from myllm.model.vision import ImageEncoder

# A tensor's name in transformers' files, and in timm; # is the number of a block or stage, in the order of appearance.
NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.distillation_token": "dist_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.norm": "patch_embed.norm",
    "encoder.layer.#.layernorm_before": "blocks.#.norm1",
    "encoder.layer.#.layernorm_after": "blocks.#.norm2",
    "encoder.layer.#.attention.attention.query": "blocks.#.attn.query",
    "encoder.layer.#.attention.attention.key": "blocks.#.attn.key",
    "encoder.layer.#.attention.attention.value": "blocks.#.attn.value",
    "encoder.layer.#.attention.attention.relative_position_bias.relative_position_bias_table":
        "blocks.#.attn.relative_position_bias_table",
    "encoder.layer.#.attention.output.dense": "blocks.#.attn.proj",
    "encoder.layer.#.intermediate.dense": "blocks.#.mlp.fc1",
    "encoder.layer.#.output.dense": "blocks.#.mlp.fc2",
    "encoder.layer.#.lambda_1": "blocks.#.gamma_1",
    "encoder.layer.#.lambda_2": "blocks.#.gamma_2",
    "encoder.relative_position_bias.relative_position_bias_table": "rel_pos_bias.relative_position_bias_table",
    "encoder.layers.#.blocks.#.layernorm_before": "layers.#.blocks.#.norm1",
    "encoder.layers.#.blocks.#.layernorm_after": "layers.#.blocks.#.norm2",
    "encoder.layers.#.blocks.#.attention.self.query": "layers.#.blocks.#.attn.query",
    "encoder.layers.#.blocks.#.attention.self.key": "layers.#.blocks.#.attn.key",
    "encoder.layers.#.blocks.#.attention.self.value": "layers.#.blocks.#.attn.value",
    "encoder.layers.#.blocks.#.attention.self.relative_position_bias_table":
        "layers.#.blocks.#.attn.relative_position_bias_table",
    "encoder.layers.#.blocks.#.attention.output.dense": "layers.#.blocks.#.attn.proj",
    "encoder.layers.#.blocks.#.intermediate.dense": "layers.#.blocks.#.mlp.fc1",
    "encoder.layers.#.blocks.#.output.dense": "layers.#.blocks.#.mlp.fc2",
    "encoder.layers.#.downsample.norm": "layers.#.downsample.norm",
    "encoder.layers.#.downsample.reduction": "layers.#.downsample.reduction",
    "layernorm": "norm",
    "pooler.layernorm": "fc_norm",
}
# what transformers computes beside the image tokens, and what it can compute itself
NOT_NEEDED = re.compile(r"pooler\.dense\.|.*relative_position_index$|embeddings\.mask_token$")
QV = {"q": "query", "v": "value"}


def vision_config(facts: Mapping[str, Any], place: Path) -> VisionConfig:
    """timm's model of the same family, in the geometry of transformers' configuration of it."""
    family = str(facts.get("model_type"))
    if family not in FAMILIES:
        raise CheckpointError(f"{place}: encoder.model_type is {family!r}; supported are {', '.join(FAMILIES)}")
    for name, expected in {"hidden_act": "gelu", "num_channels": 3, "use_absolute_embeddings": False}.items():
        if facts.get(name, expected) != expected:
            raise CheckpointError(f"{place}: encoder.{name} is {facts[name]!r}; supported is {expected!r}")
    timm_name, geometry_of = FAMILIES[family]
    geometry = {"patch_size": square(facts["patch_size"], "patch_size"), "norm_eps": facts["layer_norm_eps"]}
    image_size = square(facts["image_size"], "image_size")
    return VisionConfig(timm_name, pretrained=False, image_size=image_size, geometry=geometry | geometry_of(facts))


def _of_vit(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "embed_dim": facts["hidden_size"], "depth": facts["num_hidden_layers"],
        "num_heads": facts["num_attention_heads"], "mlp_ratio": facts["intermediate_size"] / facts["hidden_size"],
        "qkv_bias": facts.get("qkv_bias", True),
    }


def _of_beit(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in _of_vit(facts).items() if name != "qkv_bias"} | {
        "qkv_bias": True,
        "init_values": facts.get("layer_scale_init_value") or None,
        "use_abs_pos_emb": facts.get("use_absolute_position_embeddings", False),
        "use_rel_pos_bias": facts.get("use_relative_position_bias", False),
        "use_shared_rel_pos_bias": facts.get("use_shared_relative_position_bias", False),
        # transformers norms the tokens only where it does not pool them
        "global_pool": "avg" if facts.get("use_mean_pooling", True) else "token",
    }


def _of_swin(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "embed_dim": facts["embed_dim"], "depths": list(facts["depths"]), "num_heads": list(facts["num_heads"]),
        "window_size": facts["window_size"], "mlp_ratio": facts["mlp_ratio"], "qkv_bias": facts.get("qkv_bias", True),
    }


FAMILIES: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    "vit": ("vit_base_patch16_224", _of_vit),
    "deit": ("deit_base_distilled_patch16_224", _of_vit),
    "beit": ("beit_base_patch16_224", _of_beit),
    "swin": ("swin_tiny_patch4_window7_224", _of_swin),
}


def to_timm(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """transformers' tensors of an encoder under timm's names, and the names of those that timm has no place for."""
    found, unknown = dict[str, Tensor](), list[str]()
    for name, value in tensors.items():
        timm_name = _renamed(name, NAMES)
        if timm_name is not None:
            found[_stage(timm_name, 1)] = value
        elif not NOT_NEEDED.match(name):
            unknown.append(name)
    _join_queries(found)
    return found, unknown


def from_timm(encoder: ImageEncoder, timm_name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """transformers' configuration and tensors of an encoder. Raises ConfigError for what it has no words for."""
    names, found = {ours: theirs for theirs, ours in NAMES.items()}, dict[str, Tensor]()
    facts = _facts(encoder, timm_name)
    for name, value in _split_queries(encoder.backbone.state_dict()).items():
        theirs = _renamed(_stage(name, -1), names)
        if theirs is None:
            raise _not_said(timm_name, f"it has no tensor such as {name}")
        found[theirs] = value
    if facts["model_type"] in ("vit", "deit"):  # no caption sees what is pooled, but without it transformers warns
        found |= {"pooler.dense.weight": torch.eye(encoder.width), "pooler.dense.bias": torch.zeros(encoder.width)}
    return facts, found


def _facts(encoder: ImageEncoder, timm_name: str) -> dict[str, Any]:
    """transformers' configuration of the encoder, read off the modules."""
    backbone: Any = encoder.backbone
    family = {"VisionTransformer": "vit", "VisionTransformerDistilled": "deit", "Beit": "beit",
              "SwinTransformer": "swin"}.get(type(backbone).__name__)
    if family is None:
        raise _not_said(timm_name, f"it has no counterpart of timm's {type(backbone).__name__}")
    blocks = list(backbone.blocks) if family != "swin" else list(backbone.layers[0].blocks)
    first = blocks[0]
    if type(first.mlp.act) is not nn.GELU or first.mlp.act.approximate != "none":
        raise _not_said(timm_name, "its activation is not the exact GELU")
    if encoder.preprocess.image_size[0] != encoder.preprocess.image_size[1]:
        raise _not_said(timm_name, "its pictures are no squares")
    width = backbone.embed_dim
    facts = {
        "model_type": family, "image_size": encoder.preprocess.image_size[0],
        "patch_size": backbone.patch_embed.patch_size[0], "num_channels": 3, "hidden_act": "gelu",
        "layer_norm_eps": first.norm1.eps, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }
    if family == "swin":
        return facts | {
            "embed_dim": width, "depths": [len(stage.blocks) for stage in backbone.layers],
            "num_heads": [stage.blocks[0].attn.num_heads for stage in backbone.layers],
            "window_size": first.window_size[0],
            "mlp_ratio": first.mlp.fc1.out_features / width, "qkv_bias": first.attn.qkv.bias is not None,
            "hidden_size": encoder.width, "drop_path_rate": 0.0,
        }
    if not isinstance(backbone.norm, nn.LayerNorm) and family != "beit":
        raise _not_said(timm_name, "its tokens are not normalised at the end")
    facts |= {
        "hidden_size": width, "num_hidden_layers": len(blocks), "num_attention_heads": first.attn.num_heads,
        "intermediate_size": first.mlp.fc1.out_features, "qkv_bias": first.attn.qkv.bias is not None,
    }
    if family == "beit":
        facts |= {
            "use_relative_position_bias": first.attn.relative_position_bias_table is not None,
            "use_shared_relative_position_bias": backbone.rel_pos_bias is not None,
            "use_absolute_position_embeddings": backbone.pos_embed is not None,
            "use_mean_pooling": not isinstance(backbone.norm, nn.LayerNorm), "drop_path_rate": 0.0,
            "layer_scale_init_value": 0.1 if first.gamma_1 is not None else 0.0,
        }
    return facts


def _not_said(timm_name: str, why: str) -> ConfigError:
    return ConfigError(
        f"vision.name {timm_name} can't be said in Hugging Face's form: {why}. "
        f"Supported are plain {', '.join(FAMILIES)}; or export to safetensors"
    )


def square(value: Any, name: str) -> int:
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1:
        raise ConfigError(f"{name} is {value}; only squares are supported")
    return int(sides.pop())


def _renamed(name: str, names: Mapping[str, str]) -> str | None:
    """A tensor's name in the other library; None where it has none."""
    numbers = re.findall(r"(?<=\.)\d+(?=\.)", name)
    place = re.sub(r"(?<=\.)\d+(?=\.)", "#", name)
    module, _, kind = place.rpartition(".")
    other = names.get(place) or (f"{names[module]}.{kind}" if module in names else None)
    if other is None:
        return None
    for number in numbers:
        other = other.replace("#", number, 1)
    return other


def _stage(name: str, step: int) -> str:
    """timm merges patches where a stage begins, transformers where the one before it ends."""
    return re.sub(r"^layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) + step}.downsample", name)


def _join_queries(state: dict[str, Tensor]) -> None:
    """query, key and value, three tensors of transformers, as timm's one; of BEiT, which has no bias of keys, two."""
    for query in [name for name in state if ".attn.query." in name]:
        parts = {part: state.pop(query.replace(".query.", f".{part}."), None) for part in ("query", "key", "value")}
        base, kind = query.split(".attn.query.")
        if parts["key"] is None:
            state[f"{base}.attn.q_bias"], state[f"{base}.attn.v_bias"] = parts["query"], parts["value"]  # type: ignore[assignment]
        elif parts["query"] is not None and parts["value"] is not None:
            state[f"{base}.attn.qkv.{kind}"] = torch.cat([parts["query"], parts["key"], parts["value"]])


def _split_queries(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's one matrix of query, key and value as transformers' three."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        base, fused, kind = name.partition(".attn.qkv.")
        if fused:
            parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
            found |= {f"{base}.attn.{part}.{kind}": one for part, one in parts}
        else:
            one_bias = re.sub(r"\.attn\.([qv])_bias$", lambda part: f".attn.{QV[part[1]]}.bias", name)
            found[one_bias] = value
    return found
