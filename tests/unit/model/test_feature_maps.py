"""`vision.feature_maps`: tokens of several feature maps of a convolutional backbone."""

import pytest
import torch
from torch import Tensor

from myllm.config import VisionConfig
from myllm.errors import ConfigError
from myllm.model.vision import ImageEncoder

NAMES = ("test_efficientnet", "test_resnet", "test_convnext")


def encoder_of(name: str, count: int, side: int = 160) -> ImageEncoder:
    return ImageEncoder(VisionConfig(name, pretrained=False, image_size=side, feature_maps=count)).eval()


def cells(tokens: Tensor, encoder: ImageEncoder) -> Tensor:
    """(B, S, C) -> (B, rows, columns, C)."""
    return tokens.unflatten(1, encoder.grid)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_last_map_comes_first_and_finer_ones_follow_it(name: str) -> None:
    images = torch.randn(2, 3, 160, 160)
    plain, several = encoder_of(name, 1), encoder_of(name, 3)
    several.load_state_dict(plain.state_dict())
    assert several.n_tokens == plain.n_tokens and several.grid == plain.grid
    assert several.width == plain.width + sum(several.finer.values())
    torch.testing.assert_close(several(images)[0][..., : plain.width], plain(images)[0])


@torch.no_grad()
def test_finer_maps_are_averaged_over_the_cells_of_the_last_and_normalised() -> None:
    encoder = encoder_of("test_resnet", 2)
    images = torch.randn(1, 3, 160, 160)
    [finer] = encoder.backbone.forward_intermediates(images, indices=[3], intermediates_only=True)
    [channels] = encoder.finer.values()
    part = cells(encoder(images)[0][..., -channels:], encoder)
    assert finer.shape[-2:] == (10, 10) and encoder.grid == (5, 5)
    for row, column in ((0, 0), (2, 3), (4, 4)):
        top, left = max(0, 2 * row - 1), max(0, 2 * column - 1)
        mean = finer[0, :, top : 2 * row + 2, left : 2 * column + 2].mean((1, 2))
        expected = 0.5 * (mean - mean.mean()) / (mean.var(unbiased=False) + 1e-5).sqrt()
        torch.testing.assert_close(part[0, row, column], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_maps_of_odd_sides_fit_together() -> None:
    encoder = encoder_of("test_efficientnet", 4, side=132)
    assert encoder(torch.randn(1, 3, 132, 132))[0].shape == (1, 25, encoder.width)


@pytest.mark.parametrize(("name", "count", "message"), [
    ("test_resnet", 6, "vision.feature_maps 6: test_resnet has 5; take fewer"),
    ("test_vit", 2, "vision.feature_maps 2: test_vit has no maps of several sizes; take --vision.feature_maps 1"),
    ("swin_tiny_patch4_window7_224", 2, "swin_tiny_patch4_window7_224 has no maps of several sizes"),
])
def test_a_backbone_without_so_many_maps_is_refused(name: str, count: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ImageEncoder(VisionConfig(name, pretrained=False, feature_maps=count))


def test_mode_layerwise_reads_no_feature_maps() -> None:
    with pytest.raises(ConfigError, match="feature_maps 2 with mode layerwise; take --mode last"):
        ImageEncoder(VisionConfig("test_vit", pretrained=False, feature_maps=2), depth=2)
