"""Augmentation that keeps captions true: the words of a caption decide how its picture may change."""

import math
import random
import re
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

# In 35,000 captions of photographs, 99.4 % are known to be English by `is_english`.
ENGLISH_SHARE = 0.97


def augment(
    image: Image.Image, captions: Sequence[str], rng: random.Random, in_english: bool = True
) -> tuple[Image.Image, tuple[str, ...]]:
    """Return the picture flipped or not, with a little other brightness, contrast, colour, position, scale and angle.

    The captions that are returned with it are true of it: a flip swaps left and right in them, or is not done if that
    is not possible; hue and saturation do not change if a caption names a colour. Neither is done if a caption is not
    known to be English, or if the data set is not (`in_english`, see `are_english`).
    """
    mirrored = captions_if_flipped(captions, rng, in_english)
    if mirrored is not None:
        image = ImageOps.mirror(image)
    image = _adjust_brightness_and_contrast(image, rng.uniform(0.8, 1.2), rng.uniform(0.8, 1.2))
    hue, saturation = rng.uniform(-0.05, 0.05), rng.uniform(0.7, 1.3)
    if in_english and not any(names_colour(caption) for caption in captions):
        image = _adjust_hue_and_saturation(image, hue, saturation)
    shift = rng.uniform(-0.06, 0.06), rng.uniform(-0.06, 0.06)
    image = _move(image, shift, scale=rng.uniform(0.9, 1.1), angle=math.radians(rng.uniform(-10, 10)))
    return image, mirrored or tuple(captions)


def captions_if_flipped(captions: Sequence[str], rng: random.Random, in_english: bool) -> tuple[str, ...] | None:
    """Return the captions of the flipped picture if `augment` with this `rng` flips it, else None."""
    flips = rng.random() < 0.5
    return mirrored_captions(captions) if flips and in_english else None


def mirrored_captions(captions: Sequence[str]) -> tuple[str, ...] | None:
    """Return the captions of the mirrored picture, left and right swapped; None if one might not be true of it.

    Only directions are swapped ("on the left", "left of", "left hand"), not "has left" or "right now". A caption that
    mentions writing has no mirrored form, because mirrored writing cannot be read; nor has one in another language.
    """
    if any(not is_english(caption) or _UNMIRRORABLE.search(_PLACE.sub("", caption)) for caption in captions):
        return None
    return tuple(_SIDE.sub(_swap_side, caption) if _PLACE.search(caption) else caption for caption in captions)


def is_english(caption: str) -> bool:
    """Return whether a caption is known to be English.

    It has one of the most common English words, no common word of another language, and no accented or foreign letter.
    """
    words = set(_WORD.findall(caption.casefold()))
    return bool(words & _ENGLISH) and not words & _FOREIGN and all(map(str.isascii, words))


def are_english(captions: Collection[str]) -> bool:
    """Return whether a data set is known to be English: nearly all of its captions are."""
    return sum(map(is_english, captions)) >= ENGLISH_SHARE * len(captions)


def names_colour(caption: str) -> bool:
    """Return whether a caption names a colour, or is not known to be English, so that it may name one."""
    return not is_english(caption) or _COLOUR.search(caption) is not None


_WORD = re.compile(r"[^\W\d_]+")
_ENGLISH_WORDS = "a an the and of in on at is are with to by from for while his her their its two three as through near"
# Words of other languages that are rare in English (so not "die", "van", "door" or "den"): the most frequent ones, and
# those for left and right.
_FOREIGN_WORDS = (
    "un una une uno des du les et est dans avec sur il le la lo gli di da del della nel nella con el los las y en por",
    "de um uma dos das com ein eine einer einem einen der dem und mit auf im ist zu een het op naar og med jest na w z",
    "i si se sa cu yang dan pada seorang sebuah bir ve egy az och ett som",
    "links rechts gauche droite izquierda izquierdo derecha derecho sinistra sinistro destra destro esquerda esquerdo",
    "direita direito lewo lewej prawo prawej vlevo vpravo kiri kanan stanga dreapta venstre sol sola",
)
_ENGLISH = frozenset(_ENGLISH_WORDS.split())
_FOREIGN = frozenset(" ".join(_FOREIGN_WORDS).split())
_SIDE = re.compile(r"\b(left|right)(?=\b|most|hand)", re.IGNORECASE)
_WHOSE = "the|his|her|its|their|our|my|your|a|one"
_PART = "side|hand|arm|leg|foot|knee|shoulder|elbow|eye|ear|wing|paw|half|edge|corner|end|lane|wall|wheel"
_PLACES = (
    # "to the left", "on his far right"; not "to the right person"
    rf"\b(?:to|on|at|from|in|towards?) (?:(?:{_WHOSE}) )?(?:(?:far|upper|lower|top|bottom) )?(?:left|right)"
    r"(?= ?[.,;:!)]| ?$| (?:of|and|is|are|with|in|on|while|as)\b)",
    # "left of two cubes"; not "all that is left of the cake"
    r"(?:^|\b(?!(?:is|are|was|were|all|only|nothing|little) )\w+,? )(?:left|right) of "
    r"(?:an?|the|one|two|three|it|him|her|them)\b",
    rf"\b(?:{_WHOSE}|upper|lower|top|bottom) (?:left|right)(?:-?hand|-?most)?(?= (?:{_PART})s?\b)",
)
_PLACE = re.compile("|".join(_PLACES), re.IGNORECASE)
# Other uses of left and right, words for rotation, and words about writing.
_UNMIRRORABLE = re.compile(
    r"\b(?:left|right)|clockwise|\d|[\"\u201c\u201d]"
    r"|\b(?:sign|word|letter|number|logo|label|clock|map|text|read|say|spell|writ|writt)(?:s|es|ed|e|en|ing)?\b",
    re.IGNORECASE,
)
_COLOURS = (
    "red|orange|yellow|green|blue?|purple|pink|brown|black|white|gr[ae]y|gold|silver|tan|beige|violet|teal|turquoise|cyan",
    "magenta|maroon|crimson|scarlet|navy|khaki|cream|ivory|lavender|bronze|copper|blond|brunette|ginger|burgundy|olive",
    "indigo|mauve|coral|peach|salmon|rose?|rust|amber|mustard|emerald|jade|ruby|sapphire|mint|plum|wine|charcoal|ebony",
    "auburn|chestnut|hazel|fuchsia|lilac|azure|cobalt|ocher|ochre|sepia|sienna|umber|taupe|cerise|vermilion|carmine",
    "cerulean|periwinkle|chartreuse|aqua|aquamarine|apricot|lime|lemon|brass|chrome|pewter|brindle|fawn|sorrel|palomino",
    "albino|tawn|redd|rudd|tann|rainbow|neon|pastel|fluorescent|bright|vivid|vibrant|hi-vis|high-visibility|camouflage|camo",
    "monochrome|gr[ae]yscale|dye|tie-dye|denim",
)
_COLOUR = re.compile(
    rf"\b(?:{'|'.join(_COLOURS)}|\w*colou?r\w*)(?:s|e|es|d|ed|en|y|ish|ly|head\w*)?\b", re.IGNORECASE
)


def _swap_side(match: re.Match[str]) -> str:
    side = match[0]
    other = "right" if side.lower() == "left" else "left"
    return other.upper() if side.isupper() else other.capitalize() if side[0].isupper() else other


_LEVELS = np.arange(256)


def _table(values: np.ndarray[Any, Any]) -> list[int]:
    """Return the lookup table of `Image.point` from new values of the 256 levels."""
    return values.round().clip(0, 255).astype(int).tolist()


def _adjust_brightness_and_contrast(image: Image.Image, brightness: float, contrast: float) -> Image.Image:
    return image.point(_table((_LEVELS * brightness - 128) * contrast + 128) * 3)


def _adjust_hue_and_saturation(image: Image.Image, hue: float, saturation: float) -> Image.Image:
    """Shift the hue by a share of the colour circle, and multiply the saturation."""
    tables = _table((_LEVELS + hue * 255) % 256) + _table(_LEVELS * saturation) + _table(_LEVELS)
    return image.convert("HSV").point(tables).convert("RGB")


def _move(image: Image.Image, shift: tuple[float, float], scale: float, angle: float) -> Image.Image:
    """Shift by a share of the sides, scale and rotate (radians) around the centre; edges are filled by mirroring."""
    width, height = image.size
    margin = math.ceil(0.35 * max(width, height))
    pixels = np.pad(np.asarray(image), ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    x0, y0 = width / 2, height / 2
    # PIL's affine transform maps positions of the result to positions of the padded source
    right = -cos * (x0 + shift[0] * width) - sin * (y0 + shift[1] * height) + x0 + margin
    down = sin * (x0 + shift[0] * width) - cos * (y0 + shift[1] * height) + y0 + margin
    return Image.fromarray(pixels).transform(
        (width, height), Image.Transform.AFFINE, (cos, sin, right, -sin, cos, down), Image.Resampling.BILINEAR
    )
