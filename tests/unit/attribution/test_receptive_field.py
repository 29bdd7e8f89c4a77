"""Receptive field shifts, compared with the pixels that the gradient of a grid cell reaches."""

import math

import pytest
import torch
from torch import nn

from myllm.attribution.receptive_field import receptive_field_shift, shift_along, watch_strides
from myllm.config import VisionConfig
from myllm.model.vision import ImageEncoder


def stem(*layers: tuple[int, int, int]) -> nn.Sequential:
    """Convolutions of (kernel, stride, padding) with equal weights, so that only geometry decides what a cell sees."""
    convolutions = [nn.Conv2d(1, 1, kernel, stride, padding, bias=False) for kernel, stride, padding in layers]
    for convolution in convolutions:
        nn.init.ones_(convolution.weight)
    return nn.Sequential(*convolutions)


@pytest.mark.parametrize(
    "layers",
    [[(3, 2, 1)] * 3, [(7, 2, 3), (3, 1, 1), (3, 2, 1)], [(4, 4, 0), (2, 2, 0)], [(5, 2, 1), (3, 1, 1)], [(3, 1, 1)]],
    ids=str,
)
def test_receptive_field_shift_equals_the_centre_of_the_gradient(layers: list[tuple[int, int, int]]) -> None:
    network = stem(*layers)
    picture = torch.ones(1, 1, 96, 96, requires_grad=True)
    strides = watch_strides(network)
    cells = network(picture)
    count = cells.shape[-1]
    cells[0, 0, count // 2, count // 2].backward()
    assert picture.grad is not None
    gradient = picture.grad[0, 0].sum(0)
    centre = float((gradient * (torch.arange(96) + 0.5)).sum() / gradient.sum())
    jump = math.prod(stride for _, stride, _ in layers)
    assert shift_along(strides, 1, 96) == pytest.approx(centre - (count // 2 + 0.5) * jump, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "size", "shift"),
    [("vit_mini_conv8_64", 64, -3.5), ("vit_tiny_patch16_224", 64, 0.0), ("resnet18", 64, -15.5),
     ("tf_efficientnet_lite0", 64, 15.5), ("swin_tiny_patch4_window7_224", None, 0.0)],
)
def test_receptive_field_shift_of_backbones_follows_their_padding(name: str, size: int | None, shift: float) -> None:
    encoder = ImageEncoder(VisionConfig(name, pretrained=False, image_size=size))
    assert receptive_field_shift(encoder) == (shift, shift)
    assert not any(module._forward_hooks for module in encoder.modules())
    assert not any(parameter.is_meta for parameter in encoder.parameters())
