"""Heat maps of a model's grid, projected to the picture's own coordinates."""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from myllm.attribution.methods import normalize_maps
from myllm.data.images import Preprocess

MAX_SIDE = 1024
"""Maximum longer side of a map in pixels; the maps of 15 tokens at 4000 x 3000 would take 720 MB."""


@dataclass(frozen=True)
class PreparedImage:
    """A picture preprocessed for a model, and the part of the picture that the model receives."""

    tensor: Tensor
    """(3, H, W) float32, preprocessed."""
    size: tuple[int, int]
    """Width and height of the upright picture, in pixels."""
    window: tuple[float, float, float, float]
    """(left, top, right, bottom) of the tensor in the picture, in pixels; see `Preprocess.window`."""

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> "PreparedImage":
        """Wrap a tensor without a picture: its coordinates are taken as the picture's."""
        height, width = tensor.shape[1:]
        return cls(tensor, (width, height), (0, 0, width, height))


def prepare_image(picture: Image.Image, preprocess: Preprocess) -> PreparedImage:
    """Preprocess an upright RGB picture, as `load_image` returns it."""
    return PreparedImage(torch.from_numpy(preprocess(picture)), picture.size, preprocess.window(picture.size))


def project_to_image(
    maps: Tensor, prepared: PreparedImage, longest: int | None = MAX_SIDE, shift: tuple[float, float] = (0.0, 0.0)
) -> Tensor:
    """Project maps (T, rows, columns) of the model's grid to (T, H, W) of the picture; each still sums to one.

    Crop and border are undone: pixels that the model did not receive are zero, and values on a border are dropped.

    longest: limit in pixels for the longer of H and W; None for the picture's own size.
    shift:   (x, y) in pixels of the tensor, from the centre of a grid cell to the centre of its receptive field.
    """
    scale = 1.0 if longest is None else min(1.0, longest / max(prepared.size))
    width, height = (max(1, round(side * scale)) for side in prepared.size)
    left, top, right, bottom = prepared.window
    # centres of the map's pixels, in the window's coordinates from -1 to 1
    x = ((torch.arange(width) + 0.5) * prepared.size[0] / width - left) / (right - left) * 2 - 1
    y = ((torch.arange(height) + 0.5) * prepared.size[1] / height - top) / (bottom - top) * 2 - 1
    pixels = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], -1)  # (H, W, 2)
    shifted = pixels - 2 * torch.tensor(shift) / torch.tensor(prepared.tensor.shape[:0:-1])
    # padding_mode border: the outermost cells reach to the edge of the window
    values = F.grid_sample(maps[None], shifted[None].float(), padding_mode="border", align_corners=False)[0]
    return normalize_maps(values * (pixels.abs() <= 1).all(-1))
