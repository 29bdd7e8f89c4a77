"""Keys and values as arguments: what decoding must not compute twice, and what a request must not share."""

from dataclasses import dataclass

import torch
from torch import Tensor

KeyValue = tuple[Tensor, Tensor]


def causal_mask(queries: int, past: int, device: torch.device) -> Tensor:
    """(queries, past + queries) bool: position i of the newest sees the past and itself, nothing later."""
    return torch.ones(queries, past + queries, dtype=torch.bool, device=device).tril(past)


@dataclass(frozen=True)
class ImageKV:
    """Cross-attention keys and values of B images, one pair (B, n_head, S, head_dim) for each decoder block."""

    layers: tuple[KeyValue, ...]

    def select(self, rows: Tensor) -> "ImageKV":
        """The images `rows` (int64) alone, in that order."""
        return ImageKV(tuple((key.index_select(0, rows), value.index_select(0, rows)) for key, value in self.layers))


class SelfKV:
    """Self-attention keys and values of N captions, with room for `n_positions`, filled from the left."""

    def __init__(self, n_layer: int, rows: int, n_head: int, n_positions: int, head_dim: int, *, like: Tensor) -> None:
        """`like` gives device and dtype."""
        self.keys = like.new_empty(n_layer, rows, n_head, n_positions, head_dim)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def append(self, layer: int, key: Tensor, value: Tensor) -> KeyValue:
        """Add the newest positions (N, n_head, T, head_dim) of one block; returns all of that block so far.

        `length` stays until every block has been given its part: see `advance`.
        """
        end = self.length + key.shape[2]
        self.keys[layer, :, :, self.length : end] = key
        self.values[layer, :, :, self.length : end] = value
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, positions: int) -> None:
        """Every block has appended `positions` more."""
        self.length += positions

    def select(self, rows: Tensor) -> None:
        """Keep the captions `rows` (int64), in that order: beam search's reorder, and how finished rows leave."""
        if torch.equal(rows, torch.arange(self.keys.shape[1], device=rows.device)):
            return
        self.keys, self.values = self._selected(self.keys, rows), self._selected(self.values, rows)

    def _selected(self, whole: Tensor, rows: Tensor) -> Tensor:
        past = whole[:, :, :, : self.length].index_select(1, rows)  # only what is filled is moved
        if len(rows) > whole.shape[1]:
            whole = whole.new_empty(whole.shape[0], len(rows), *whole.shape[2:])
        whole[:, : len(rows), :, : self.length] = past
        return whole[:, : len(rows)]
