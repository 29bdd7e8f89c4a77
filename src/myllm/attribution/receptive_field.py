"""Receptive fields: how far the part of the picture that an image token sees lies from its grid cell."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from myllm.model.backbones import meta_copy
from myllm.model.vision import ImageEncoder


def receptive_field_shift(encoder: ImageEncoder) -> tuple[float, float]:
    """Return (x, y) in pixels from the centre of a token's grid cell to the centre of its receptive field."""
    height, width = encoder.preprocess.image_size
    network = meta_copy(encoder)
    strides = watch_strides(network)
    with torch.no_grad():
        network(torch.zeros(1, 3, height, width, device="meta"))
    return shift_along(strides, 1, width), shift_along(strides, 0, height)


class Stride(NamedTuple):
    """One use of a convolution or pooling layer, along one axis."""

    input_size: int
    output_size: int
    kernel: int
    dilation: int
    stride: int
    padding: int


def watch_strides(network: nn.Module) -> list[tuple[Stride, ...]]:
    """Hook `network`, which should be a throw-away copy, and return a list that its next call fills.

    The list has an entry for each layer, in the order in which they run: its stride along rows, and along columns.
    """
    strides: list[tuple[Stride, ...]] = []

    def pair(value: Any) -> tuple[int, int]:
        return (0, 0) if isinstance(value, str) else value if isinstance(value, tuple) else (value, value)

    def note(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        settings = layer.kernel_size, getattr(layer, "dilation", 1), layer.stride, layer.padding
        strides.append(tuple(map(Stride, inputs[0].shape[-2:], output.shape[-2:], *map(pair, settings))))

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            module.register_forward_hook(note)
    return strides


def shift_along(strides: Sequence[Sequence[Stride]], axis: int, size: int) -> float:
    """Return the shift in pixels along an axis (0 rows, 1 columns) on which the picture has `size` pixels.

    strides: as `watch_strides` returns them.

    The centres of receptive fields are computed as in Araujo et al. 2019
    (https://distill.pub/2019/computing-receptive-fields). For example, a 3x3 layer of stride 2 looks half a pixel to
    the left of its cell if it is padded on both sides, and half a pixel to the right if only on the right. A pixel of
    a later layer is several of the picture's. Of parallel branches, the first counts.
    """
    centre, jump = 0.0, 1
    for layer in strides:
        before, after, kernel, dilation, stride, padding = layer[axis]
        if before == size and after < before:
            reach = (kernel - 1) * dilation
            # timm pads some layers by other means, as TensorFlow does
            if (before + 2 * padding - reach - 1) // stride + 1 != after:
                padding = max((after - 1) * stride + reach + 1 - before, 0) // 2
            centre, jump, size = centre + jump * (reach / 2 - padding), jump * stride, after
    return centre + 0.5 - jump / 2
