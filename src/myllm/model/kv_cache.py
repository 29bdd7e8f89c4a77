"""Keys and values that are passed as arguments: those of the images, and those of the captions so far."""

from dataclasses import dataclass

import torch
from torch import Tensor

KeyValue = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ImageKV:
    """Cross-attention keys and values of B images, one pair (B, n_head, S, head_dim) for each decoder block."""

    layers: tuple[KeyValue, ...]

    @property
    def batch_size(self) -> int:
        """B, the number of images."""
        return self.layers[0][0].shape[0]

    @property
    def device(self) -> torch.device:
        """Device of the keys and values."""
        return self.layers[0][0].device

    def means(self) -> Tensor:
        """Return the mean of the last block's values over the image tokens, (B, n_head * head_dim) float32."""
        return self.layers[-1][1].float().mean(2).flatten(1)

    def select(self, rows: Tensor) -> "ImageKV":
        """Return only the images `rows` (int64), in that order."""
        return ImageKV(tuple((key.index_select(0, rows), value.index_select(0, rows)) for key, value in self.layers))


@dataclass(frozen=True)
class LayerKV:
    """The part of a `SelfKV` that belongs to one decoder block, and how many positions are filled."""

    keys: Tensor
    values: Tensor
    layer: int
    length: int

    def append(self, key: Tensor, value: Tensor) -> KeyValue:
        """Write the newest positions (N, n_head, T, head_dim) after the filled ones; return all up to these."""
        end = self.length + key.shape[2]
        self.keys[self.layer, :, :, self.length : end] = key
        self.values[self.layer, :, :, self.length : end] = value
        return self.keys[self.layer, :, :, :end], self.values[self.layer, :, :, :end]


class SelfKV:
    """Self-attention keys and values of N captions, with room for `n_positions`, filled from the left."""

    def __init__(self, n_layer: int, rows: int, n_head: int, n_positions: int, head_dim: int, *, like: Tensor) -> None:
        """like: a weight of the decoder; the cache has its device, and its dtype or autocast's."""
        device = like.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype
        self.keys = like.new_empty(n_layer, rows, n_head, n_positions, head_dim, dtype=dtype)
        self.values = torch.empty_like(self.keys)
        self.length = 0
        """Number of positions that every block has filled."""

    def layer(self, index: int) -> LayerKV:
        """Return the cache of one decoder block."""
        return LayerKV(self.keys, self.values, index, self.length)

    def select(self, rows: Tensor) -> None:
        """Keep the captions `rows` (int64) in that order, repeated if named twice, and drop the others."""
        if torch.equal(rows, torch.arange(self.keys.shape[1], device=rows.device)):
            return
        self.keys, self.values = self._selected(self.keys, rows), self._selected(self.values, rows)

    def _selected(self, cache: Tensor, rows: Tensor) -> Tensor:
        filled = cache[:, :, :, : self.length].index_select(1, rows)
        if len(rows) > cache.shape[1]:
            cache = cache.new_empty(cache.shape[0], len(rows), *cache.shape[2:])
        cache[:, : len(rows), :, : self.length] = filled
        return cache[:, : len(rows)]
