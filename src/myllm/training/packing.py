"""Captions without padding: real tokens are rows of one tensor, and only attention sees them padded."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from myllm.model.attention import Grid, Sequences

# Several captions share a row of self-attention of at least this width.
MIN_WIDTH = 48


@dataclass(frozen=True)
class Padded(Sequences):
    """Rows as sequences of different lengths, padded to `width`."""

    width: int
    index: Tensor
    """(N,) int64: the index of each row among count * width."""

    def split(self, rows: Tensor) -> Tensor:
        """(N, C) -> (count, width, C), zeros where there is padding."""
        padded = rows.new_zeros(self.count * self.width, rows.shape[-1])
        return padded.index_copy(0, self.index, rows).unflatten(0, (self.count, self.width))

    def join(self, x: Tensor) -> Tensor:
        """(count, width, C) -> (N, C)."""
        return x.flatten(0, 1).index_select(0, self.index)


class Packed(Grid):
    """A `Grid` of captions that differ in length: row n is token `position[n]` of its caption.

    Padding is half of a batch of natural captions. Here it takes part only in attention, as a tenth to a
    third: self-attention sees sequences of several captions, cross-attention those of all captions of an image.
    """

    def __init__(self, lengths: Tensor, device: torch.device) -> None:
        """lengths: (B, G) numbers of tokens, on the CPU, so that nothing waits for the device."""
        images, captions = lengths.shape
        super().__init__(images, captions, int(lengths.max()))
        flat, width = lengths.flatten(), int(lengths.sum(1).max())
        caption = torch.arange(len(flat)).repeat_interleave(flat)  # (N,)
        first = flat.cumsum(0) - flat  # the row of each caption's first token
        position = torch.arange(len(caption)) - first[caption]
        image_place = first - first[::captions].repeat_interleave(captions)
        image_place += width * torch.arange(images).repeat_interleave(captions)
        pack_width = max(MIN_WIDTH, self.length)
        pack_place, packs = pack(flat.tolist(), pack_width)
        index = pack_place[caption] + position
        owner = torch.full((packs * pack_width,), -1).index_copy(0, index, caption).view(packs, 1, pack_width)
        visible = (owner[..., None] == owner[:, :, None]).tril()
        self.position = position.to(device, non_blocking=True)
        self.visible = visible.to(device, non_blocking=True)
        self.captions = Padded(packs, pack_width, index.to(device, non_blocking=True))
        self.images = Padded(images, width, (image_place[caption] + position).to(device, non_blocking=True))

    def positions(self, past: int, device: torch.device) -> Tensor:
        return self.position

    def mask(self, past: int, device: torch.device) -> Tensor:
        """Return (packs, 1, width, width) bool: each token sees itself and the earlier ones of its caption."""
        return self.visible


def pack(lengths: Sequence[int], width: int) -> tuple[Tensor, int]:
    """Return where each caption begins if they stand one behind the other in packs of `width`, and the packs' number.

    A caption that does not fit into the current pack begins the next one.
    """
    starts, end = [], 0
    for length in lengths:
        if end % width + length > width:
            end += width - end % width
        starts.append(end)
        end += length
    return torch.tensor(starts), -(-end // width)
