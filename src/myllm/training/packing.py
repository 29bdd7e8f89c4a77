"""Captions without padding: real tokens are rows of one tensor, and only attention sees them padded."""

from dataclasses import dataclass

import torch
from torch import Tensor

from myllm.model.attention import Grid


@dataclass(frozen=True)
class Packed(Grid):
    """A `Grid` without padding: row n is token `position[n]` of a caption, and captions differ in length.

    Attention sees the tokens of all captions of an image as one sequence, padded to that of the longest image. Padding
    is half of a batch of natural captions; of these sequences it is a quarter.
    """

    position: Tensor
    """(N,) int64: the position of each row in its caption."""
    place: Tensor
    """(N,) int64: the place of each row among images * width."""
    visible: Tensor
    """(B, 1, width, width) bool: each token sees itself and the earlier ones of its caption."""

    @classmethod
    def of(cls, lengths: Tensor, device: torch.device) -> "Packed":
        """Return the places of captions of `lengths` (B, G), on the CPU: so nothing waits for the device."""
        images, captions = lengths.shape
        width = int(lengths.sum(1).max())
        caption = torch.arange(lengths.numel()).repeat_interleave(lengths.flatten())  # (N,)
        starts = lengths.flatten().cumsum(0) - lengths.flatten()
        position = torch.arange(len(caption)) - starts[caption]
        image = caption // captions
        place = torch.arange(len(caption)) - starts[::captions][image] + image * width
        owner = torch.full((images * width,), -1).index_copy(0, place, caption).view(images, 1, width)
        visible = (owner[..., None] == owner[:, :, None]).tril()
        position, place, visible = (t.to(device, non_blocking=True) for t in (position, place, visible))
        return cls(images, captions, int(lengths.max()), position, place, visible)

    def positions(self, past: int, device: torch.device) -> Tensor:
        return self.position

    def by_image(self, rows: Tensor) -> Tensor:
        """(N, C) -> (B, width, C), zeros where there is padding."""
        width = self.visible.shape[-1]
        padded = rows.new_zeros(self.images * width, rows.shape[-1])
        return padded.index_copy(0, self.place, rows).unflatten(0, (self.images, width))

    by_caption = by_image

    def rows(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1).index_select(0, self.place)

    def mask(self, past: int, device: torch.device) -> Tensor:
        return self.visible
