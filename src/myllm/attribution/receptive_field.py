"""Receptive fields: where in the picture the centre of what an image token sees lies."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from myllm.model.vision import ImageEncoder


def receptive_field_shift(encoder: ImageEncoder) -> tuple[float, float]:
    """(x, y) in pixels from the centre of a token's grid cell to the centre of its receptive field."""
    height, width = encoder.preprocess.image_size
    tensors = {name: value.to("meta") for name, value in (*encoder.named_parameters(), *encoder.named_buffers())}
    was_training = encoder.training
    with torch.no_grad(), _watched_strides(encoder.backbone) as strides:
        functional_call(encoder.eval(), tensors, torch.zeros(1, 3, height, width, device="meta"))
    encoder.train(was_training)
    return _shift(strides, 1, width), _shift(strides, 0, height)


@dataclass(frozen=True)
class _Stride:
    """A layer that makes the map smaller; each field has an entry for rows and one for columns."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    reach: tuple[int, ...]
    """Kernel size, less one, times dilation."""
    stride: tuple[int, ...]
    padding: tuple[int, ...]


@contextmanager
def _watched_strides(backbone: nn.Module) -> Iterator[list[_Stride]]:
    """The strided layers that are computed within, in order."""
    seen: list[_Stride] = []

    def pair(value: Any) -> tuple[int, int]:
        return (0, 0) if isinstance(value, str) else value if isinstance(value, tuple) else (value, value)

    def note(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kernel, dilation = pair(layer.kernel_size), pair(getattr(layer, "dilation", 1))
        reach = tuple((size - 1) * by for size, by in zip(kernel, dilation, strict=True))
        sizes = tuple(inputs[0].shape[-2:]), tuple(output.shape[-2:])
        seen.append(_Stride(*sizes, reach, pair(layer.stride), pair(layer.padding)))

    layers = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
    hooks = [one.register_forward_hook(note) for one in backbone.modules() if isinstance(one, layers)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _shift(strides: Sequence[_Stride], axis: int, size: int) -> float:
    """How far along an axis of the picture, in pixels, what a place sees lies from its cell.

    As receptive fields are reckoned (Araujo et al. 2019, https://distill.pub/2019/computing-receptive-fields): a 3x3
    layer of stride 2 padded on both sides looks half a pixel to the left of its cell, one padded on the right alone
    half a pixel to the right, and later layers' halves are of larger pixels. Of branches side by side the first counts.
    """
    centre, jump = 0.0, 1
    for one in strides:
        before, after, stride, reach = one.before[axis], one.after[axis], one.stride[axis], one.reach[axis]
        if before == size and after < before:
            padding = one.padding[axis]
            if (before + 2 * padding - reach - 1) // stride + 1 != after:  # padded by other means, as TensorFlow's
                padding = max((after - 1) * stride + reach + 1 - before, 0) // 2
            centre, jump, size = centre + jump * (reach / 2 - padding), jump * stride, after
    return centre + 0.5 - jump / 2
