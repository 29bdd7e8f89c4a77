"""Pointing game: does the heat map of a word lie on the thing that it names? For scenes, where every box is known."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from PIL import Image
from torch import Tensor

from myllm import Captioner
from myllm.data.scenes import Thing
from myllm.evaluation.scenes import find_named

CHANCE, CENTRE = "chance", "centre"


@dataclass(frozen=True)
class Pointing:
    """Where the heat map of one word lies relative to the boxes of what the word names."""

    hit: float
    """1 if the maximum is in one of the boxes, else 0 (the pointing game, Zhang et al. 2016)."""
    energy: float
    """Share of the map that is in the boxes, 0 to 1 (the energy-based pointing game, Wang et al. 2020)."""


def point_words(
    captioner: Captioner, images: Sequence[Image.Image], things: Sequence[Sequence[Thing]], methods: Sequence[str]
) -> Iterator[dict[str, Pointing]]:
    """Caption images and yield, for each word that names a kind of thing in its image, the result of each method.

    Two baselines are added: `chance`, a random pixel, and `centre`, a Gaussian in the middle of the image.
    """
    for image, image_things, caption in zip(images, things, captioner.caption_batch(images), strict=True):
        named = find_named(caption.text, image_things)
        if not named:
            continue
        maps = {method: captioner.attention_maps(image, caption, method=method) for method in methods}
        for (_, end), matching in named:
            word = caption.words[len(caption.text[:end].split()) - 1]
            inside = in_boxes([thing.box for thing in matching], image.size)
            share = float(inside.float().mean())
            results = {method: point(heat[word.tokens].mean(0), inside) for method, heat in maps.items()}
            yield results | {CHANCE: Pointing(share, share), CENTRE: point(centre(*inside.shape), inside)}


def point(heat: Tensor, inside: Tensor) -> Pointing:
    """Compare a non-negative heat map (H, W) with a mask (H, W) bool; a map of zeros points nowhere."""
    total = float(heat.sum())
    if total == 0:
        return Pointing(0.0, 0.0)
    return Pointing(float(inside.flatten()[heat.argmax()]), float(heat[inside].sum()) / total)


def in_boxes(boxes: Sequence[tuple[int, int, int, int]], size: tuple[int, int]) -> Tensor:
    """Return (H, W) bool: the pixels of a picture of size (width, height) that lie in any of the boxes."""
    inside = torch.zeros(size[1], size[0], dtype=torch.bool)
    for left, top, right, bottom in boxes:
        inside[top:bottom, left:right] = True
    return inside


def centre(height: int, width: int) -> Tensor:
    """Return (H, W): a Gaussian in the middle whose standard deviation is a quarter of each side."""
    y = (torch.arange(height) + 0.5) / height - 0.5
    x = (torch.arange(width) + 0.5) / width - 0.5
    return torch.exp(-(y[:, None] ** 2 + x**2) / (2 * 0.25**2))


def mean_pointing(words: Sequence[Mapping[str, Pointing]]) -> dict[str, Pointing]:
    """Return the mean of each method over all words."""
    return {
        name: Pointing(fmean(word[name].hit for word in words), fmean(word[name].energy for word in words))
        for name in (words[0] if words else ())
    }
