"""Presets: named sets of training options. Options given next to a preset override it."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from myllm.config import nearest
from myllm.errors import ConfigError
from myllm.training_config import TrainConfig

RENAMED_PRESETS = {"seed": "vit-gpt2"}


class _Presets(dict[str, Mapping[str, Any]]):
    """Options of each preset; also found by its old name, which is not listed."""

    def __missing__(self, name: str) -> Mapping[str, Any]:
        if name in RENAMED_PRESETS:
            return self[RENAMED_PRESETS[name]]
        raise ConfigError(f"unknown preset {name!r}; expected one of {', '.join(self)}{nearest(name, self)}")


# what photos-fast and photos share
FROZEN = {"frozen": True, "crop_pct": 1.0, "mirrored": True, "feature_maps": 4}
PHOTOS = {
    "text": {"n_layer": 3, "n_head": 8, "n_embd": 256, "n_positions": 28, "dropout": 0.2},
    "mode": "last", "augment": False, "batch_size": 64, "captions_per_image": 2, "captions": {"vocab_size": 3000},
    "optimizer": "muon", "lr": 2.8e-3, "muon_lr": 0.014, "schedule": "linear", "weight_decay": 0.3,
    "word_dropout": 0.1, "views": 5, "half_features": True, "ema": 0.99, "val_images": 250, "epochs": 10,
    "decode": {"beams": 10, "max_new_tokens": 30, "no_repeat_ngram_size": 3, "rank_by": "retrieval"},
}
# the last run of photos: captions that are rewarded
REWARDS = {
    "self_critical": {"samples": 5, "people_weight": 0.25}, "text": {"dropout": 0.35}, "ema": 0.995, "lr": 4e-4,
    "muon_lr": 2e-3, "val_images": 1000, "best_by": "CIDEr-D", "base_share": 0.5, "epochs": 5, "max_minutes": 90.0,
}

PRESETS = _Presets({
    "vit-gpt2": {
        "vision": {"name": "vit_base_patch16_224", "pretrained": True},
        "text": {"pretrained": True},
        "mode": "layerwise",
        "epochs": 10, "batch_size": 32, "lr": 1e-4, "stages": ("new", "text", "all"),
    },
    "scenes": {
        "vision": {"name": "vit_mini_conv8_64", "pretrained": False},
        "text": {"n_layer": 2, "n_head": 4, "n_embd": 128, "n_positions": 48, "dropout": 0.0},
        "mode": "last", "augment": False, "captions": {"vocab_size": 512},
        "optimizer": "muon", "lr": 3e-3, "schedule": "linear", "weight_decay": 0.3,
        "vision_weight_decay": 0.1, "word_dropout": 0.1, "word_presence_weight": 8.0,
        "batch_size": 32, "captions_per_image": 1, "epochs": 100, "max_minutes": 8.0,
    },
    "photos-fast": {
        "vision": {"name": "tf_efficientnet_lite0", **FROZEN},
        **PHOTOS, "max_minutes": 18.0,
    },
    "photos": {
        "vision": {"name": "tf_efficientnet_lite2", **FROZEN},
        **PHOTOS, "max_minutes": 40.0,
        "next_runs": (REWARDS,),
    },
})


def preset_config(name: str, **options: Any) -> TrainConfig:
    """Return the configuration of a preset; `options` override its own. Raises ConfigError for an unknown preset."""
    types: dict[str, Any] = {option.name: option.type for option in fields(TrainConfig)}
    return TrainConfig(**{
        option: types[option](**value) if isinstance(value, Mapping) else value
        for option, value in {**PRESETS[name], **options}.items()
    })
