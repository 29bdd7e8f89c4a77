"""Exponential moving average (EMA) of a model's weights: it varies less from step to step."""

from itertools import chain

import torch
from torch import nn


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the weights of `average` toward those of `model` by 1 - decay; in early steps, which forget sooner, by more.

    step: finished steps, from 0. Statistics of batch normalisation are averaged, too; counters are copied.
    """
    decay = min(decay, (1 + step) / (10 + step))
    pairs = zip(chain(average.parameters(), average.buffers()), chain(model.parameters(), model.buffers()), strict=True)
    for mean, value in pairs:
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)
