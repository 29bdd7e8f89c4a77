"""Image processors of transformers as our preprocessing, and back."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from myllm.checkpoints.checks import check_preprocess, dataclass_from_dict
from myllm.checkpoints.hf_encoders import square
from myllm.config import PreprocessConfig
from myllm.data.images import INTERPOLATIONS
from myllm.errors import CheckpointError, ConfigError, reason
from myllm.files import read_json

FILE_NAME = "preprocessor_config.json"
# image processors write an interpolation as a number
RESAMPLES = {int(resample): name for name, resample in INTERPOLATIONS.items()}
# The processors that resize, crop and normalise as `Preprocess` can, with their defaults in transformers.
_PLAIN = {
    "do_resize": True, "size": {"height": 224, "width": 224}, "resample": 3, "do_center_crop": False,
    "crop_size": {"height": 224, "width": 224}, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
}
_CLIP = _PLAIN | {
    "size": {"shortest_edge": 224}, "do_center_crop": True, "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
PROCESSORS: Mapping[str, Mapping[str, Any]] = {
    "ViT": _PLAIN | {"resample": 2},
    "DeiT": _PLAIN | {"size": {"height": 256, "width": 256}, "do_center_crop": True},
    "Beit": _PLAIN,
    "Siglip": _PLAIN,
    "CLIP": _CLIP,
    "Bit": _CLIP,
    "Blip": _CLIP | {"size": {"height": 384, "width": 384}, "do_center_crop": False},
}
FAMILY_PROCESSORS = {"vit": "ViT", "deit": "DeiT", "beit": "Beit", "swin": "ViT"}


def read_preprocess(folder: Path, encoder: PreprocessConfig, family: str) -> tuple[PreprocessConfig, list[str]]:
    """Return our preprocessing for a folder's image processor, and notes on differences.

    encoder: the encoder's own preprocessing, which gives the image size. family: the encoder's model_type.
    Without a preprocessor_config.json, pictures are prepared as by ViTImageProcessor.
    Raises CheckpointError for a processor that does more than resize, crop and normalise.
    """
    path = folder / FILE_NAME
    values = read_json(path) if path.is_file() else {"size": encoder.image_size[0], "image_processor_type": "ViT"}
    try:
        return _preprocess(values, encoder, family)
    except (CheckpointError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: not an image processor that is supported ({reason(error)})") from error


def _preprocess(
    values: Mapping[str, Any], encoder: PreprocessConfig, family: str
) -> tuple[PreprocessConfig, list[str]]:
    written_type = values.get("image_processor_type") or values.get("feature_extractor_type")
    kind = re.sub("(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", str(written_type or FAMILY_PROCESSORS[family]))
    if kind not in PROCESSORS:
        raise ConfigError(f"image_processor_type is {written_type}; supported are {', '.join(PROCESSORS)}")
    if values.get("do_pad"):
        raise ConfigError("do_pad is true; supported is false")
    values, notes = {**PROCESSORS[kind], **values}, []
    size, mode = values["size"], "squash"
    if isinstance(size, int) and "shortest_edge" in PROCESSORS[kind]["size"]:
        size = {"shortest_edge": size}
    if isinstance(size, dict) and size.keys() == {"shortest_edge"}:
        resized, mode = square(size["shortest_edge"], "size"), "center"
    else:
        resized = square(size, "size")
    side = square(values["crop_size"], "crop_size") if values["do_center_crop"] else resized
    if not values["do_resize"]:
        if values["do_center_crop"]:
            raise ConfigError("do_resize is false and do_center_crop is true; expected do_resize true")
        side = resized = encoder.image_size[0]
        notes.append("do_resize is false: transformers refuses pictures of other sizes, myllm resizes them")
    if side != encoder.image_size[0]:
        raise ConfigError(f"gives {side} pixels a side; the encoder takes {encoder.image_size[0]}")
    if values["resample"] not in RESAMPLES:
        raise ConfigError(f"resample is {values['resample']}; supported are {', '.join(map(str, RESAMPLES))}")
    mean, std = (values["image_mean"], values["image_std"]) if values["do_normalize"] else ([0.0] * 3, [1.0] * 3)
    # `Preprocess` divides pixels by 255; another factor becomes another mean and standard deviation
    factor = 255 * (values["rescale_factor"] if values["do_rescale"] else 1.0)
    if not math.isclose(factor, 1, rel_tol=1e-6):
        mean, std = ([value / factor for value in numbers] for numbers in (mean, std))
    preprocess = dataclass_from_dict(PreprocessConfig, {
        "image_size": encoder.image_size, "interpolation": RESAMPLES[values["resample"]], "crop_pct": side / resized,
        "crop_mode": mode, "mean": mean, "std": std,
    })
    check_preprocess(preprocess, encoder.image_size)
    return preprocess, notes


def processor_config(preprocess: PreprocessConfig) -> dict[str, Any]:
    """Return transformers' preprocessor_config.json."""
    side, resized = preprocess.image_size[0], math.floor(preprocess.image_size[0] / preprocess.crop_pct)
    values = {
        "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "resample": int(INTERPOLATIONS[preprocess.interpolation]),
        "image_mean": list(preprocess.mean), "image_std": list(preprocess.std),
    }
    is_squashed = preprocess.crop_mode == "squash"
    if is_squashed and resized == side:
        return values | {"image_processor_type": "ViTImageProcessor", "size": {"height": side, "width": side}}
    size = {"height": resized, "width": resized} if is_squashed else {"shortest_edge": resized}
    crop = {"do_center_crop": True, "crop_size": {"height": side, "width": side}}
    kind = "DeiTImageProcessor" if is_squashed else "CLIPImageProcessor"
    return values | crop | {"image_processor_type": kind, "size": size}
