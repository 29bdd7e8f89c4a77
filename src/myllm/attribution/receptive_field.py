"""Receptive fields: how far the part of the picture that an image token sees lies from its grid cell."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Stride:
    """One use of a convolution or pooling layer; each field has an entry for rows and one for columns."""

    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    reach: tuple[int, ...]
    """(kernel size - 1) * dilation."""
    stride: tuple[int, ...]
    padding: tuple[int, ...]


def watch_strides(network: nn.Module) -> list[Stride]:
    """Hook `network`, which should be a throw-away copy. Returns a list that its next call fills, in order."""
    strides: list[Stride] = []

    def pair(value: Any) -> tuple[int, int]:
        return (0, 0) if isinstance(value, str) else value if isinstance(value, tuple) else (value, value)

    def note(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kernel, dilation = pair(layer.kernel_size), pair(getattr(layer, "dilation", 1))
        reach = tuple((size - 1) * step for size, step in zip(kernel, dilation, strict=True))
        sizes = tuple(inputs[0].shape[-2:]), tuple(output.shape[-2:])
        strides.append(Stride(*sizes, reach, pair(layer.stride), pair(layer.padding)))

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            module.register_forward_hook(note)
    return strides


def shift_along(strides: Sequence[Stride], axis: int, size: int) -> float:
    """Return the shift in pixels along an axis (0 rows, 1 columns) of a picture that is `size` pixels long there.

    The centres of receptive fields are computed as in Araujo et al. 2019
    (https://distill.pub/2019/computing-receptive-fields): a 3x3 layer of stride 2 that is padded on both sides looks
    half a pixel to the left of its cell, one padded only on the right half a pixel to the right, and the pixels of
    later layers are larger. Of parallel branches, the first counts.
    """
    centre, jump = 0.0, 1
    for layer in strides:
        before, after, stride, reach = (
            values[axis] for values in (layer.input_size, layer.output_size, layer.stride, layer.reach)
        )
        if before == size and after < before:
            padding = layer.padding[axis]
            # timm pads some layers by other means, as TensorFlow does
            if (before + 2 * padding - reach - 1) // stride + 1 != after:
                padding = max((after - 1) * stride + reach + 1 - before, 0) // 2
            centre, jump, size = centre + jump * (reach / 2 - padding), jump * stride, after
    return centre + 0.5 - jump / 2
