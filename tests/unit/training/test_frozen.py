from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from myllm.checkpoints.native import Checkpoint
from myllm.data.features import FeatureCache
from myllm.data.records import Findings
from myllm.inference.onnx_encoder import OnnxEncoder
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.model.weight_files import weights_hash
from myllm.training.frozen import MIN_PICTURES, frozen_backbone
from myllm.training.ranks import Ranks

CPU = torch.device("cpu")


def test_frozen_backbone_uses_onnx_only_for_many_pictures_on_a_cpu(tiny_checkpoint: Checkpoint) -> None:
    assert isinstance(frozen_backbone(tiny_checkpoint, CPU, False, MIN_PICTURES, False).encode, OnnxEncoder)
    assert not isinstance(frozen_backbone(tiny_checkpoint, CPU, False, MIN_PICTURES - 1, False).encode, OnnxEncoder)


def folder(checkpoint: Checkpoint, model: VisionGPT2) -> Path:
    return frozen_backbone(replace(checkpoint, model=model), CPU, False, 1, False).cache.folder


@pytest.mark.parametrize("geometry", [{"num_heads": 2}, {"norm_eps": 1e-3}])
def test_feature_cache_of_another_geometry_is_another_one_even_with_equal_weights(
    tiny_checkpoint: Checkpoint, geometry: dict[str, float]
) -> None:
    config = tiny_checkpoint.model.config
    other = VisionGPT2(replace(config, vision=replace(config.vision, geometry=geometry))).eval()
    other.load_state_dict(tiny_checkpoint.model.state_dict())
    images = torch.rand(1, 3, 64, 64)
    assert weights_hash(other.encoder) == weights_hash(tiny_checkpoint.model.encoder)
    assert not torch.equal(other.encoder(images)[0], tiny_checkpoint.model.encoder(images)[0])
    assert folder(tiny_checkpoint, other) != folder(tiny_checkpoint, tiny_checkpoint.model)


def test_feature_cache_is_shared_by_captioners_with_other_decoders(tiny_checkpoint: Checkpoint) -> None:
    config = tiny_checkpoint.model.config
    other = VisionGPT2(replace(config, text=replace(config.text, n_embd=16)))
    other.encoder.load_state_dict(tiny_checkpoint.model.encoder.state_dict())
    assert folder(tiny_checkpoint, other) == folder(tiny_checkpoint, tiny_checkpoint.model)


def test_features_of_several_processes_are_computed_by_the_first_and_read_by_all(
    in_processes: Callable[[int, Callable[[Ranks], Any]], list[Any]], tmp_path: Path
) -> None:
    pictures = [tmp_path / f"{number}.jpg" for number in range(5)]
    for number, picture in enumerate(pictures):
        picture.write_bytes(bytes([number]))

    def compute(ranks: Ranks) -> tuple[int, Tensor]:
        computed: list[Tensor] = []

        def encode(images: Tensor) -> tuple[Tensor]:
            computed.append(images)
            return (images,)

        def images(index: Sequence[int]) -> Tensor:
            return torch.tensor(index)[:, None, None].float()

        with ranks.first_before_others():
            features = FeatureCache(tmp_path / "cache", "key").features(pictures, images, encode, Findings())
        return len(computed), features.rows(torch.arange(5))[0].flatten()

    (first_count, first), (second_count, second) = in_processes(2, compute)
    assert first_count == 1 and second_count == 0 and first.tolist() == second.tolist() == [0, 1, 2, 3, 4]
