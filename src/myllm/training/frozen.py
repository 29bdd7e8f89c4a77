"""Computing and storing the features of a frozen backbone."""

import copy
import json
from dataclasses import dataclass, replace

import torch

from myllm.checkpoints.native import Checkpoint
from myllm.data.batches import CaptionSource
from myllm.data.features import Encode, FeatureCache
from myllm.data.records import Findings
from myllm.files import cache_folder
from myllm.inference.onnx_encoder import OnnxEncoder
from myllm.model.weight_files import weights_hash
from myllm.progress import Progress

# Tracing a backbone takes about as long as ONNX Runtime saves on so many pictures.
MIN_PICTURES = 1000


@dataclass(frozen=True)
class FrozenBackbone:
    """The features of a backbone that does not train."""

    cache: FeatureCache
    encode: Encode
    """Computes features (B, S, C) of images (B, 3, H, W), one tensor for each output of the backbone."""

    def with_features(
        self, source: CaptionSource, views: int, findings: Findings, progress: Progress
    ) -> CaptionSource:
        """Return the source with the features of so many views of each picture, from the cache or computed now."""
        source, numbers = replace(source, views=views), range(views * len(source.records))
        pictures = [source.records[number // views].image for number in numbers]
        names = [source.view_name(number) for number in numbers]
        features = self.cache.features(
            pictures, source.view_images, self.encode, findings, progress=progress, views=names
        )
        return replace(source, features=features, pixels=None)


def frozen_backbone(
    start: Checkpoint, device: torch.device, half: bool, pictures: int, mirrored: bool
) -> FrozenBackbone:
    """Return the backbone of `start`, whose features runs with other decoders share.

    half: keep float16 instead of float32. mirrored: whether the tokens of the mirrored picture are included.
    pictures: number of pictures in the data set. Whether ONNX Runtime is used depends on it, and not on how many are
    still to be computed: a run that was interrupted gets the same features.
    """
    encoder, vision = copy.copy(start.model.encoder.to(device).eval()), start.model.config.vision
    encoder.mirrored = mirrored
    geometry = json.dumps(vision.geometry, sort_keys=True)  # not all of it shows in the weights: num_heads, norm_eps
    key = f"{vision.name} {geometry} {encoder.indices} {weights_hash(encoder)} {start.preprocess}"
    key += f" {vision.feature_maps} feature maps" if vision.feature_maps > 1 else ""
    key += " mirrored" if mirrored else ""
    cache = FeatureCache(cache_folder() / "features", key, half)
    if device.type == "cpu" and pictures >= MIN_PICTURES:
        return FrozenBackbone(cache, OnnxEncoder(encoder))
    return FrozenBackbone(cache, lambda images: encoder(images.to(device)))
