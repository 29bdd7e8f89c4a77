"""What each word looked at, as pictures: heat in cividis, which reads alike with all kinds of colour vision."""

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
from myllm.evaluation import gallery
from myllm.evaluation.gallery import WordMapsOf
from myllm.evaluation.plots import FAINT, INK
from myllm.inference.captioner import Captioner

COLOURS = "cividis"
COLUMNS = 5


def overlay(picture: Image.Image, heat: Tensor) -> Image.Image:
    """The picture in grey under the heat (H, W) of one word, in the picture's size; the hottest place is full yellow.

    The heat may be of another size than the picture; both show the same view.
    """
    values = heat.numpy() / max(float(heat.max()), np.finfo(np.float32).tiny)
    fitted = Image.fromarray(values.astype(np.float32)).resize(picture.size, Image.Resampling.BILINEAR)
    strength = np.asarray(fitted).clip(0, 1)[..., None]
    grey = np.asarray(picture.convert("L"), dtype=np.float32)[..., None] / 255
    coloured = colormaps[COLOURS](strength[..., 0])[..., :3]
    # neither black nor white, so that the heat shows on both
    mixed = (0.2 + 0.6 * grey) * (1 - strength) + coloured * (0.55 + 0.45 * grey) * strength
    return Image.fromarray((255 * mixed).round().astype(np.uint8))


def draw_words(picture: Image.Image, words: Sequence[Word], maps: Tensor, title: str = "") -> Image.Image:
    """The picture beside a panel for each word: its heat, with the word and the chance the model gave it above.

    maps: (T, H, W), of each of the caption's tokens.
    """
    told = [word for word in words if normalize_word(word.text)]  # without punctuation
    rows = -(-(len(told) + 1) // COLUMNS)
    side = 1.9
    tall = side * picture.height / picture.width if picture.width >= picture.height else side
    height = rows * (tall + 0.45) + 0.3
    figure = Figure(figsize=(COLUMNS * (side + 0.1), height), dpi=110)
    figure.subplots_adjust(0.01, 0.01, 0.99, 1 - 0.62 / height, wspace=0.06, hspace=0.45 / tall)
    places = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    shown = picture.copy()
    shown.thumbnail((512, 512))
    panels = [("", "", shown)]
    for word in told:
        chance = "given" if word.logprob is None else f"{np.exp(word.logprob):.0%}"
        panels.append((word.text, chance, overlay(shown, maps[word.tokens].mean(0))))
    for axes in places:
        axes.axis("off")
    for axes, (text, chance, panel) in zip(places, panels, strict=False):
        axes.imshow(panel, interpolation="nearest" if panel.width < 128 else "antialiased")
        axes.set_title(_plain(text), loc="left", fontsize=11, color=INK, pad=4)
        axes.set_title(chance, loc="right", fontsize=9, color=FAINT, pad=4)
    headline = textwrap.shorten(title, 110, placeholder=" ...")
    figure.suptitle(_plain(headline), x=0.01, y=1 - 0.12 / height, ha="left", fontsize=12, color=INK)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return Image.open(buffer).convert("RGB")


def make_word_maps(
    captioner: CaptionerProtocol, records: Sequence[Record], captions: Sequence[Caption]
) -> WordMapsOf | None:
    """For a report: what was looked at for the words of a picture's caption, by its place among `records`.

    None where the captioner, being an export, can't tell.
    """
    if not isinstance(captioner, Captioner):
        return None

    def look(place: int) -> list[gallery.WordMap]:
        try:
            maps = captioner.attention_maps(records[place].image, captions[place])
        except DataError:  # gone since it was captioned
            return []
        return [
            gallery.WordMap(word.text, maps[word.tokens].mean(0).numpy(), word.confidence)
            for word in captions[place].words
        ]

    return look


def _plain(text: str) -> str:
    # '$' would begin a formula
    return text.replace("$", r"\$")
