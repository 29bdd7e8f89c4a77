"""Our preprocessing, compared with timm's transform for evaluation."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from myllm.config import PreprocessConfig
from myllm.data.images import Preprocess

RNG = np.random.default_rng(0)
SIZES = [(224, 224), (500, 375), (333, 501), (64, 64), (37, 90), (800, 100), (1, 1)]


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.95, 0.875])
@pytest.mark.parametrize("image_size", [(224, 224), (64, 64), (96, 160)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_preprocess_equals_timm(
    crop_mode: str, crop_pct: float, image_size: tuple[int, int], interpolation: str
) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ours = Preprocess(PreprocessConfig(image_size, mean, std, interpolation, crop_pct, crop_mode))
    reference = create_transform(
        (3, *image_size), mean=mean, std=std, interpolation=interpolation, crop_pct=crop_pct, crop_mode=crop_mode
    )
    for width, height in SIZES:
        image = Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))
        pixels = torch.from_numpy(ours(image))
        torch.testing.assert_close(pixels, reference(image), rtol=0, atol=1e-5, msg=f"{width} x {height}")
