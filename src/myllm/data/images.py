"""From a file of any kind to the array that the backbone reads, and pictures changed so that captions stay true.

Needs Pillow and numpy alone: captioners are run without torch too.
"""

import io
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from myllm.config import PreprocessConfig
from myllm.errors import ConfigError, DataError

# Above this a few kilobytes of file could fill the memory; below it Pillow's own limit keeps quiet.
MAX_PIXELS = 80_000_000
# Not all that Pillow opens: EPS would start Ghostscript.
FORMATS = ("JPEG", "JPEG2000", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "ICO")
# Longer pictures lose their ends before they are resized; a strip of 1 x 60,000 would grow to gigabytes.
MAX_ASPECT = 16

# The page of `myllm export --to web` resizes by these, too; newer versions of Pillow have more.
INTERPOLATIONS = {
    name: Image.Resampling[name.upper()] for name in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
}


def load_image(source: Path | str | bytes | Image.Image) -> Image.Image:
    """An upright RGB picture: alpha on white, 16 bits scaled to 8, the first frame of an animation.

    Raises DataError, naming the file and the reason, for what is missing, empty, no picture, truncated or too large.
    """
    if isinstance(source, Image.Image):
        return _decoded(source, "the given picture")
    name = "the given bytes" if isinstance(source, bytes) else str(source)
    return _decoded(_opened(source, name), name)


def grey_thumbnail(path: Path, side: int) -> NDArray[np.uint8]:
    """(side, side) uint8: the luma of an upright picture, squashed to a square.

    Of a JPEG only as much is decoded as that takes. Raises DataError as `load_image`.
    """
    image = _opened(path, str(path))
    image.draft("L", (side, side))
    upright = _decoded(image, str(path)).convert("L")
    return np.asarray(upright.resize((side, side), Image.Resampling.BILINEAR))


def ycbcr_thumbnail(path: Path, side: int) -> NDArray[np.uint8]:
    """Return an upright picture squashed to a square: (side, side, 3) uint8, luma and two colour differences.

    A JPEG is decoded only as far as needed. Raises DataError as `load_image`.
    """
    image = _opened(path, str(path))
    image.draft("RGB", (side, side))
    upright = _decoded(image, str(path)).convert("YCbCr")
    return np.asarray(upright.resize((side, side), Image.Resampling.BILINEAR))


def as_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """(3, H, W) uint8."""
    return np.array(image).transpose(2, 0, 1).copy()


class Preprocess:
    """A picture as the backbone's input, equal to timm's own transform for evaluation."""

    def __init__(self, config: PreprocessConfig) -> None:
        """Raises ConfigError for an unknown interpolation."""
        self.config = config
        self.size = (config.image_size[0], config.image_size[1])
        self._scaled = [math.floor(side / config.crop_pct) for side in self.size]
        if config.interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise ConfigError(f"preprocess.interpolation is {config.interpolation!r}; expected one of {known}")
        self._interpolation = INTERPOLATIONS[config.interpolation]

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """(3, H, W) float32, normalised."""
        return self.normalise(self.resize(image))

    def resize(self, image: Image.Image) -> NDArray[np.uint8]:
        """(3, H, W) uint8, resized and cropped as crop_mode says."""
        height, width = self.size
        if image.size != (width, height) or self._scaled != [height, width]:
            kept = _limited(*image.size)
            image = image if kept == (0, 0, *image.size) else image.crop(kept)
            image = self._crop(image.resize(self._scaled_size(*image.size), self._interpolation))
        return as_pixels(image)

    def normalise(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(..., 3, H, W) uint8 -> float32 with the backbone's mean and standard deviation."""
        mean, std = (np.array(one, np.float32)[:, None, None] for one in (self.config.mean, self.config.std))
        floats = pixels.astype(np.float32)
        floats /= 255
        floats -= mean
        floats /= std
        return floats

    def window(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """(left, top, right, bottom): what the backbone sees of an upright picture of (width, height), in its pixels.

        A border that is added lies beyond the picture's edges.
        """
        kept, target = _limited(*size), self.size[::-1]
        scaled = self._scaled_size(kept[2] - kept[0], kept[3] - kept[1])
        begins, ends = [], []
        for begin, end, length, seen in zip(kept[:2], kept[2:], scaled, target, strict=True):
            pasted, cut = _offsets(length, seen)
            pixel = (end - begin) / length
            begins.append(begin + (cut - pasted) * pixel)
            ends.append(begin + (cut - pasted + seen) * pixel)
        return begins[0], begins[1], ends[0], ends[1]

    def _scaled_size(self, width: int, height: int) -> tuple[int, int]:
        """squash: both sides to the target; border: the longer side fits in; center: the shorter side fills."""
        if self.config.crop_mode == "squash":
            size = self._scaled
        elif self.config.crop_mode == "center" and self._scaled[0] == self._scaled[1]:
            # cut down, not rounded, as torchvision has it
            size = [self._scaled[0] * side // min(width, height) for side in (height, width)]
        else:
            ratios = (height / self._scaled[0], width / self._scaled[1])
            ratio = max(ratios) if self.config.crop_mode == "border" else min(ratios)
            size = [max(1, round(side / ratio)) for side in (height, width)]
        return size[1], size[0]

    def _crop(self, image: Image.Image) -> Image.Image:
        """The middle of the picture, with a border where it is too small: the mean's colour, or black."""
        height, width = self.size
        border = self.config.crop_mode == "border"
        colour = tuple(round(255 * value) for value in self.config.mean) if border else (0, 0, 0)
        whole = Image.new("RGB", (max(width, image.width), max(height, image.height)), colour)
        (x, left), (y, top) = _offsets(image.width, width), _offsets(image.height, height)
        whole.paste(image, (x, y))
        return whole.crop((left, top, left + width, top + height))


def augment(image: Image.Image, captions: Sequence[str], rng: random.Random) -> tuple[Image.Image, tuple[str, ...]]:
    """A picture flipped, relit, shifted, scaled and turned a little, with captions that are true of it.

    A flip swaps left and right in the captions, or is not done; colours stay where a caption names one.
    """
    kept = tuple(captions)
    mirrored = mirrored_captions(captions)
    if rng.random() < 0.5 and mirrored is not None:
        image, kept = ImageOps.mirror(image), mirrored
    image = _relight(image, rng.uniform(0.8, 1.2), rng.uniform(0.8, 1.2))
    hue, saturation = rng.uniform(-0.05, 0.05), rng.uniform(0.7, 1.3)
    if not any(_COLOUR.search(caption) for caption in captions):
        image = _recolour(image, hue, saturation)
    shift = rng.uniform(-0.06, 0.06), rng.uniform(-0.06, 0.06)
    return _move(image, shift, scale=rng.uniform(0.9, 1.1), turn=math.radians(rng.uniform(-10, 10))), kept


def mirrored_captions(captions: Sequence[str]) -> tuple[str, ...] | None:
    """The captions of the mirrored picture, left and right swapped; None where one might not be true of it.

    Only plain places are swapped ("on the left", "left of", "left hand"): not "has left", "right now", nor anything
    beside words of writing, as writing can't be read mirrored.
    """
    if any(_UNMIRRORABLE.search(_PLACE.sub("", caption)) for caption in captions):
        return None
    return tuple(_SIDE.sub(_swapped, caption) if _PLACE.search(caption) else caption for caption in captions)


_SIDE = re.compile(r"\b(left|right)(?=\b|most|hand)", re.IGNORECASE)
_WHOSE = "the|his|her|its|their|our|my|your|a|one"
_PART = "side|hand|arm|leg|foot|knee|shoulder|elbow|eye|ear|wing|paw|half|edge|corner|end|lane|wall|wheel"
_PLACES = (
    # "to the left", "on his far right", but not "to the right person"
    rf"\b(?:to|on|at|from|in|towards?) (?:(?:{_WHOSE}) )?(?:(?:far|upper|lower|top|bottom) )?(?:left|right)"
    r"(?= ?[.,;:!)]| ?$| (?:of|and|is|are|with|in|on|while|as)\b)",
    # "left of two cubes", but not all that is "left of the cake"
    r"(?:^|\b(?!(?:is|are|was|were|all|only|nothing|little) )\w+,? )(?:left|right) of "
    r"(?:an?|the|one|two|three|it|him|her|them)\b",
    rf"\b(?:{_WHOSE}|upper|lower|top|bottom) (?:left|right)(?:-?hand|-?most)?(?= (?:{_PART})s?\b)",
)
_PLACE = re.compile("|".join(_PLACES), re.IGNORECASE)
# Left and right in any other use, other words of turning, their kin in other tongues, and what is written.
_UNMIRRORABLE = re.compile(
    r"\b(?:left|right)|clockwise|\d|[\"\u201c\u201d]"
    r"|\b(?:links|rechts|gauche|droite|(?:izquierd|derech|sinistr|destr|esquerd|direit)[ao])\b"
    r"|\b(?:sign|word|letter|number|logo|label|clock|map|text|read|say|spell|writ|writt)(?:s|es|ed|e|en|ing)?\b",
    re.IGNORECASE,
)
_COLOUR = re.compile(
    r"\b(?:red|redd|orange|yellow|green|blue?|purple|pink|brown|black|white|gr[ae]y|gold|silver|tan|beige|violet|teal"
    r"|turquoise|cyan|magenta|maroon|crimson|scarlet|navy|khaki|cream|ivory|lavender|bronze|copper|blond|brunette|ginger"
    r"|rainbow|\w*colou?r\w*)(?:s|e|es|ed|en|y|ish|head\w*)?\b",
    re.IGNORECASE,
)


def _swapped(match: re.Match[str]) -> str:
    side = match[0]
    other = "right" if side.lower() == "left" else "left"
    return other.upper() if side.isupper() else other.capitalize() if side[0].isupper() else other


def _opened(source: Path | str | bytes, name: str) -> Image.Image:
    """A picture whose pixels are not decoded yet."""
    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror or error})") from None
    if not content:
        raise DataError(f"{name}: the file is empty (0 bytes)")
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: refused, {error}") from None
    except Exception:  # Pillow's readers raise almost anything on a damaged header
        raise DataError(f"{name}: not a picture; readable are {', '.join(FORMATS)}") from None


def _decoded(image: Image.Image, name: str) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height}"
        raise DataError(f"{name}: refused, {size} is above the limit of {MAX_PIXELS:,} pixels; make it smaller")
    try:
        image.load()
    except Exception as error:  # as in load_image
        raise DataError(f"{name}: damaged picture ({error})") from None
    try:
        return _as_rgb(_upright(image))
    except Exception as error:
        raise DataError(f"{name}: {image.mode} pixels cannot be turned into RGB ({error})") from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        # asked first, as the transposition copies the picture even where nothing is to be turned
        return image if image.getexif().get(ExifTags.Base.Orientation, 1) == 1 else ImageOps.exif_transpose(image)
    except Exception:  # broken camera data are no reason to lose a good picture
        return image


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _grey_to_8_bits(np.asarray(image, dtype=np.float64)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA") if image.mode != "La" else image.convert("LA").convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _grey_to_8_bits(values: np.ndarray[Any, Any]) -> Image.Image:
    """0..1 and 0..65535 as they are meant; what lies outside of both is stretched from its least to its greatest."""
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = 0.0, 1.0 if values.max() <= 1 else 65535.0
    if values.min() < 0 or values.max() > 65535:
        low, high = values.min(), values.max()
    return Image.fromarray(((values - low) / (high - low) * 255).round().astype(np.uint8))


def _limited(width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of what is left of a picture that is too long."""
    longest = MAX_ASPECT * min(width, height)
    left, top = max(0, width - longest) // 2, max(0, height - longest) // 2
    return left, top, left + min(width, longest), top + min(height, longest)


def _offsets(length: int, target: int) -> tuple[int, int]:
    """Where along one side a scaled picture is pasted into the whole, and where the target is cut from that."""
    whole = max(length, target)
    return (whole - length) // 2, round((whole - target) / 2)


_LEVELS = np.arange(256)


def _table(values: np.ndarray[Any, Any]) -> list[int]:
    """What `Image.point` makes of each of 256 levels."""
    return cast(list[int], values.round().clip(0, 255).astype(int).tolist())


def _relight(image: Image.Image, brightness: float, contrast: float) -> Image.Image:
    return image.point(_table((_LEVELS * brightness - 128) * contrast + 128) * 3)


def _recolour(image: Image.Image, hue: float, saturation: float) -> Image.Image:
    """hue: turn of the colour circle, 1 is once around; saturation: factor."""
    tables = _table((_LEVELS + hue * 255) % 256) + _table(_LEVELS * saturation) + _table(_LEVELS)
    return image.convert("HSV").point(tables).convert("RGB")


def _move(image: Image.Image, shift: tuple[float, float], scale: float, turn: float) -> Image.Image:
    """Around the centre; what comes in at the edges is the picture's own mirror image."""
    width, height = image.size
    margin = math.ceil(0.35 * max(width, height))
    pixels = np.pad(np.asarray(image), ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    cos, sin = math.cos(turn) / scale, math.sin(turn) / scale
    x0, y0 = width / 2, height / 2
    # from a place in the result to a place in the padded source
    right = -cos * (x0 + shift[0] * width) - sin * (y0 + shift[1] * height) + x0 + margin
    down = sin * (x0 + shift[0] * width) - cos * (y0 + shift[1] * height) + y0 + margin
    return Image.fromarray(pixels).transform(
        (width, height), Image.Transform.AFFINE, (cos, sin, right, -sin, cos, down), Image.Resampling.BILINEAR
    )
