"""Where the places of the grid look, which padding decides: against sums over what a place's gradient reaches."""

import math

import pytest
import torch
from torch import nn

from myllm.attribution.receptive_field import _shift, _watched_strides
from myllm.config import VisionConfig
from myllm.model.vision import ImageEncoder


def stem(*layers: tuple[int, int, int]) -> nn.Sequential:
    """Convolutions of (kernel, stride, padding), all weights alike, so that each place sees by nothing but geometry."""
    convolutions = [nn.Conv2d(1, 1, kernel, stride, padding, bias=False) for kernel, stride, padding in layers]
    for convolution in convolutions:
        nn.init.ones_(convolution.weight)
    return nn.Sequential(*convolutions)


@pytest.mark.parametrize(
    "layers",
    [[(3, 2, 1)] * 3, [(7, 2, 3), (3, 1, 1), (3, 2, 1)], [(4, 4, 0), (2, 2, 0)], [(5, 2, 1), (3, 1, 1)], [(3, 1, 1)]],
    ids=str,
)
def test_the_shift_of_places_is_that_of_what_they_see(layers: list[tuple[int, int, int]]) -> None:
    network = stem(*layers)
    picture = torch.ones(1, 1, 96, 96, requires_grad=True)
    with _watched_strides(network) as strides:
        places = network(picture)
    count = places.shape[-1]
    places[0, 0, count // 2, count // 2].backward()
    assert picture.grad is not None
    seen = picture.grad[0, 0].sum(0)
    middle = float((seen * (torch.arange(96) + 0.5)).sum() / seen.sum())
    jump = math.prod(stride for _, stride, _ in layers)
    assert _shift(strides, 1, 96) == pytest.approx(middle - (count // 2 + 0.5) * jump, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "size", "shift"),
    [("vit_mini_conv8_64", 64, -3.5), ("vit_tiny_patch16_224", 64, 0.0), ("resnet18", 64, -15.5),
     ("tf_efficientnet_lite0", 64, 15.5), ("swin_tiny_patch4_window7_224", None, 0.0)],
)
def test_backbones_look_where_their_padding_lets_them(name: str, size: int | None, shift: float) -> None:
    encoder = ImageEncoder(VisionConfig(name, pretrained=False, image_size=size))
    assert encoder.place_shift == (shift, shift)
