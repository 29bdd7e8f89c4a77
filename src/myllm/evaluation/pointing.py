"""Do heat maps point at what their words name? Measured on scenes, where the box of every thing is known."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from PIL import Image
from torch import Tensor

from myllm.data.scenes import Thing
from myllm.evaluation.scenes import find_named
from myllm.inference.captioner import Captioner

CHANCE, CENTRE = "chance", "centre"


@dataclass(frozen=True)
class Pointing:
    """How one word's map lies to the boxes of what the word names."""

    hit: float
    """1 where the peak is in one of the boxes, else 0 (the pointing game, Zhang et al. 2016)."""
    energy: float
    """The part of the map that is in the boxes, 0 to 1 (the energy-based pointing game, Wang et al. 2020)."""


def point_words(
    captioner: Captioner, images: Sequence[Image.Image], things: Sequence[Sequence[Thing]], methods: Sequence[str]
) -> Iterator[dict[str, Pointing]]:
    """For each word of the captions that names a kind of thing that is there: how each method points, and what points
    without looking: `chance`, a place anywhere, and `centre`, a Gaussian in the middle of the picture."""
    for image, drawn, caption in zip(images, things, captioner.caption_batch(images), strict=True):
        named = find_named(caption.text, drawn)
        if not named:
            continue
        maps = {method: captioner.attention_maps(image, caption, method=method) for method in methods}
        for (_, end), meant in named:
            word = caption.words[len(caption.text[:end].split()) - 1]
            inside = in_boxes([thing.box for thing in meant], image.size)
            share = float(inside.float().mean())
            pointed = {method: point(own[word.tokens].mean(0), inside) for method, own in maps.items()}
            yield pointed | {CHANCE: Pointing(share, share), CENTRE: point(centre(*inside.shape), inside)}


def point(heat: Tensor, inside: Tensor) -> Pointing:
    """heat: (H, W), none below zero. inside: (H, W) bool. A map of nothing but zeros points nowhere."""
    total = float(heat.sum())
    if total == 0:
        return Pointing(0.0, 0.0)
    return Pointing(float(inside.flatten()[heat.argmax()]), float(heat[inside].sum()) / total)


def in_boxes(boxes: Sequence[tuple[int, int, int, int]], size: tuple[int, int]) -> Tensor:
    """(H, W) bool: which pixels of a picture of (width, height) lie in any of the boxes."""
    inside = torch.zeros(size[1], size[0], dtype=torch.bool)
    for left, top, right, bottom in boxes:
        inside[top:bottom, left:right] = True
    return inside


def centre(height: int, width: int) -> Tensor:
    """(H, W): a Gaussian in the middle, as wide as a quarter of each side."""
    y = (torch.arange(height) + 0.5) / height - 0.5
    x = (torch.arange(width) + 0.5) / width - 0.5
    return torch.exp(-(y[:, None] ** 2 + x**2) / (2 * 0.25**2))


def mean_pointing(pointed: Sequence[Mapping[str, Pointing]]) -> dict[str, Pointing]:
    """The means of each method over all words."""
    return {
        name: Pointing(fmean(one[name].hit for one in pointed), fmean(one[name].energy for one in pointed))
        for name in (pointed[0] if pointed else ())
    }
