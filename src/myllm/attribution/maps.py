"""From maps on a model's grid to maps on the picture itself."""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from myllm.attribution.methods import normalize_maps
from myllm.data.images import Preprocess

LONGEST = 1024
"""Pixels of a map's longer side: at 4000 x 3000 the maps of 15 words would take 720 MB."""


@dataclass(frozen=True)
class PreparedImage:
    """A picture as a model is shown it, and where in the picture that lies."""

    tensor: Tensor
    """(3, H, W) float32, preprocessed."""
    size: tuple[int, int]
    """Width and height of the upright picture, in pixels."""
    window: tuple[float, float, float, float]
    """(left, top, right, bottom) of the tensor in the picture; see `Preprocess.window`."""

    @classmethod
    def whole(cls, tensor: Tensor) -> "PreparedImage":
        """A tensor of which no picture is known: its own coordinates are the picture's."""
        height, width = tensor.shape[1:]
        return cls(tensor, (width, height), (0, 0, width, height))


def prepare_image(picture: Image.Image, preprocess: Preprocess) -> PreparedImage:
    """An upright RGB picture, as `load_image` gives it, preprocessed."""
    return PreparedImage(torch.from_numpy(preprocess(picture)), picture.size, preprocess.window(picture.size))


def project_to_image(
    maps: Tensor, shown: PreparedImage, longest: int | None = LONGEST, shift: tuple[float, float] = (0.0, 0.0)
) -> Tensor:
    """(T, rows, columns) of the model's grid -> (T, H, W) of the picture, each still summing to one.

    Crop and border are undone: what the model was not shown has zero, and what lay on a border is gone. shift: (x, y)
    in pixels of the tensor from the middle of a place's cell to the middle of what it sees.
    """
    scale = 1.0 if longest is None else min(1.0, longest / max(shown.size))
    width, height = (max(1, round(side * scale)) for side in shown.size)
    left, top, right, bottom = shown.window
    # the middles of the map's pixels, as parts of the window from -1 to 1
    x = ((torch.arange(width) + 0.5) * shown.size[0] / width - left) / (right - left) * 2 - 1
    y = ((torch.arange(height) + 0.5) * shown.size[1] / height - top) / (bottom - top) * 2 - 1
    across = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], -1)
    # the outermost places reach to the edge of the window
    moved = across - 2 * torch.tensor(shift) / torch.tensor(shown.tensor.shape[:0:-1])
    found = F.grid_sample(maps[None], moved[None].float(), padding_mode="border", align_corners=False)[0]
    return normalize_maps(found * (across.abs() <= 1).all(-1))
