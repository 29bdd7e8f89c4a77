"""Heat maps as pictures: the places where the captioner looked for each word, in colours for any colour vision."""

import textwrap
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from myllm.caption import Caption, CaptionerProtocol, Word, normalize_word
from myllm.data.records import Record
from myllm.errors import DataError
from myllm.evaluation.gallery import WordMap, WordMapsOf, relative_strength
from myllm.evaluation.plots import FAINT, INK, render
from myllm.inference.captioner import Captioner

COLOUR_MAP = "cividis"
COLUMNS = 5


def overlay(picture: Image.Image, heat: Tensor) -> Image.Image:
    """Return the picture in grey with one word's heat over it, in the picture's size.

    The colours have the same scale for every word: grey is at most the even share, yellow at least `MAX_RATIO` times
    as much. heat: (H, W), at least 0. It may have another size than the picture, but must show the same section.
    """
    values = (2 * relative_strength(heat.numpy()) - 1).clip(0, 1)
    resized = Image.fromarray(values.astype(np.float32)).resize(picture.size, Image.Resampling.BILINEAR)
    strength = np.asarray(resized).clip(0, 1)[..., None]
    grey = np.asarray(picture.convert("L"), dtype=np.float32)[..., None] / 255
    coloured = colormaps[COLOUR_MAP](strength[..., 0])[..., :3]
    # without full black and white, on which the heat would not show
    mixed = (0.2 + 0.6 * grey) * (1 - strength) + coloured * (0.55 + 0.45 * grey) * strength
    return Image.fromarray((255 * mixed).round().astype(np.uint8))


def draw_words(picture: Image.Image, words: Sequence[Word], maps: Tensor, title: str = "") -> Image.Image:
    """Return a figure of the picture and, for each word, its heat map under the word and the word's probability.

    Words that were required as a prefix are marked "given"; punctuation has no panel.
    maps: (T, H, W), one for each token of the caption.
    """
    words = [word for word in words if normalize_word(word.text)]
    rows = -(-(len(words) + 1) // COLUMNS)
    side = 1.9
    panel_height = side * picture.height / picture.width if picture.width >= picture.height else side
    height = rows * (panel_height + 0.45) + 0.3
    figure = Figure(figsize=(COLUMNS * (side + 0.1), height), dpi=110)
    figure.subplots_adjust(0.01, 0.01, 0.99, 1 - 0.62 / height, wspace=0.06, hspace=0.45 / panel_height)
    small = picture.copy()
    small.thumbnail((512, 512))
    panels = [("", "", small)]
    for word in words:
        probability = "given" if word.logprob is None else f"{np.exp(word.logprob):.0%}"
        panels.append((word.text, probability, overlay(small, maps[word.tokens].mean(0))))
    grid = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for axes in grid:
        axes.axis("off")
    # parse_math: "$" would begin a formula
    for axes, (text, probability, panel) in zip(grid, panels, strict=False):
        axes.imshow(panel, interpolation="nearest" if panel.width < 128 else "antialiased")
        axes.set_title(text, loc="left", fontsize=11, color=INK, pad=4, parse_math=False)
        axes.set_title(probability, loc="right", fontsize=9, color=FAINT, pad=4)
    title = textwrap.shorten(title, 110, placeholder=" ...")
    figure.suptitle(title, x=0.01, y=1 - 0.12 / height, ha="left", fontsize=12, color=INK, parse_math=False)
    return Image.open(BytesIO(render(figure, ".png", facecolor="white"))).convert("RGB")


def make_word_maps(
    captioner: CaptionerProtocol, records: Sequence[Record], captions: Sequence[Caption]
) -> WordMapsOf | None:
    """Return the function that gives a report the word maps of a picture, by the picture's index in `records`.

    None if the captioner is an export, which has no attention maps. A picture that can no longer be read has no words.
    """
    if not isinstance(captioner, Captioner):
        return None

    def word_maps(index: int) -> list[WordMap]:
        try:
            maps = captioner.attention_maps(records[index].image, captions[index])
        except DataError:
            return []
        words = captions[index].words
        return [WordMap(word.text, maps[word.tokens].mean(0).numpy(), word.confidence) for word in words]

    return word_maps
