"""Picture loading, and preprocessing for the backbone.

Uses only Pillow and numpy: exported captioners run without torch.
"""

import importlib.util
import io
import math
import threading
import warnings
from collections.abc import Collection
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from myllm.config import PreprocessConfig
from myllm.errors import ConfigError, DataError
from myllm.files import Picture, read_picture

# A compressed file of a few kilobytes could otherwise decode to gigabytes.
MAX_PIXELS = 80_000_000
# Enough for MAX_PIXELS of uncompressed RGB with 16 bits a channel.
MAX_BYTES = 2**29
# Pillow's formats with their suffixes. Not every format that Pillow opens: EPS would start Ghostscript.
FORMATS = {
    "JPEG": ".jpg .jpeg .jpe .jfif .mpo", "JPEG2000": ".jp2 .j2k .jpx .jpf .jpc .j2c", "PNG": ".png .apng",
    "GIF": ".gif", "WEBP": ".webp", "BMP": ".bmp", "DIB": ".dib", "TIFF": ".tif .tiff",
    "PPM": ".ppm .pgm .pbm .pnm .pfm", "AVIF": ".avif .avifs", "ICO": ".ico",
}
if importlib.util.find_spec("pillow_heif") is not None:
    importlib.import_module("pillow_heif").register_heif_opener()
    FORMATS["HEIF"] = ".heic .heif .hif"
PICTURE_SUFFIXES = frozenset(" ".join(FORMATS.values()).split())
# A longer picture is cropped before it is resized: a strip of 1 x 60,000 pixels would grow to gigabytes.
MAX_ASPECT = 16
# Pillow refuses a PNG with more compressed text than 1 MB in one chunk; its limit for all text (64 MB) is enough.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
# warnings.catch_warnings changes the whole process, so threads open pictures (read their headers) one at a time.
_OPENING = threading.Lock()

# Formats that servers with vision-language models read.
SERVER_FORMATS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}
MAX_SERVER_BYTES = 2**22

# The web page that `myllm export --to web` writes implements the same ones.
INTERPOLATIONS = {
    name: Image.Resampling[name.upper()] for name in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
}


def load_image(source: Picture | str | bytes | Image.Image, min_side: int | None = None) -> Image.Image:
    """Return an upright RGB picture: transparency on white, grey scaled to 8 bits, the first frame of an animation.

    min_side: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, if no side gets shorter than this.
    Raises DataError with the file and the reason if it is missing, empty, not a picture, truncated or too large.
    """
    if isinstance(source, Image.Image):
        return _decode(source, "the given picture")
    name = "the given bytes" if isinstance(source, bytes) else str(source)
    image = _open(source, name)
    if min_side is not None and image.width * image.height <= MAX_PIXELS:
        image.draft(None, (min_side, min_side))
    return _decode(image, name)


def picture_pixels(picture: Picture) -> int:
    """Return the number of pixels of a picture, read from its head. Raises DataError as `load_image` does."""
    image = _open(picture, str(picture))
    return image.width * image.height


def suffix_of_content(picture: Picture) -> str:
    """Return the usual suffix of a picture's format, like .jpg. Raises DataError as `load_image` does."""
    image_format = str(_open(picture, str(picture)).format)
    return FORMATS.get(image_format, FORMATS["JPEG"]).split()[0]  # Pillow calls a JPEG with a preview MPO


def load_thumbnail(picture: Picture, side: int, mode: Literal["L", "YCbCr"]) -> NDArray[np.uint8]:
    """Return the upright picture squashed to a square: (side, side) uint8 of luma, or (side, side, 3) of YCbCr.

    A JPEG is decoded at a reduced size. Raises DataError as `load_image` does.
    """
    image = _open(picture, str(picture))
    image.draft("L" if mode == "L" else "RGB", (side, side))
    upright = _decode(image, str(picture)).convert(mode)
    return np.asarray(upright.resize((side, side), Image.Resampling.BILINEAR))


def server_picture(
    picture: Picture, max_side: int, formats: Collection[str] = tuple(SERVER_FORMATS)
) -> tuple[str, bytes]:
    """Return a picture as a server reads it: media type and bytes, no side longer than `max_side`.

    These are the original bytes of an upright picture in one of `formats` that is small enough and has no camera data,
    such as the place where it was taken; otherwise a new JPEG. Raises DataError as `load_image` does.
    """
    content = read_picture(picture, MAX_BYTES)
    image = _open(content, str(picture))
    decoded = _decode(image, str(picture))
    is_small = len(content) <= MAX_SERVER_BYTES and max(decoded.size) <= max_side
    if is_small and image.format in formats and _is_plain(image):
        return SERVER_FORMATS[str(image.format)], content
    decoded.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    decoded.save(file, "JPEG", quality=90)
    return SERVER_FORMATS["JPEG"], file.getvalue()


def as_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels of an RGB picture: (3, H, W) uint8."""
    return np.array(image).transpose(2, 0, 1).copy()


class Preprocess:
    """Turns a picture into the backbone's input, exactly as timm's transform for evaluation does.

    `load` decodes a JPEG of more than four times the input's size at a reduced size, as libjpeg does in a third of the
    time; the input then differs by 0.001 of its range.
    """

    def __init__(self, config: PreprocessConfig) -> None:
        """Raises ConfigError for an unknown interpolation."""
        self.config = config
        self.size = height, width = config.image_size
        self._scaled = math.floor(height / config.crop_pct), math.floor(width / config.crop_pct)
        if config.interpolation not in INTERPOLATIONS:
            expected = ", ".join(INTERPOLATIONS)
            raise ConfigError(f"preprocess.interpolation is {config.interpolation!r}; expected one of {expected}")

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """Return the normalised input: (3, H, W) float32."""
        return self.normalise(self.resize(image))

    def load(self, source: Picture | str | bytes | Image.Image) -> Image.Image:
        """Return a picture for `resize`, still at least twice as large if reduced. Raises DataError."""
        return load_image(source, 2 * max(self._scaled))

    def resize(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return the picture resized and cropped as `crop_mode` says: (3, H, W) uint8."""
        height, width = self.size
        if image.size != (width, height) or self._scaled != self.size:
            box = _limit_aspect(*image.size)
            image = image if box == (0, 0, *image.size) else image.crop(box)
            interpolation = INTERPOLATIONS[self.config.interpolation]
            image = self._crop(image.resize(self._scaled_size(*image.size), interpolation))
        return as_pixels(image)

    def normalise(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Normalise with the backbone's mean and standard deviation: (..., 3, H, W) uint8 -> float32."""
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (self.config.mean, self.config.std))
        floats = pixels.astype(np.float32)
        floats /= 255
        floats -= mean
        floats /= std
        return floats

    def window(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return the part of an upright picture of (width, height) that the backbone reads.

        The part is (left, top, right, bottom) in the picture's pixels; an added border lies outside of the picture.
        """
        box, target = _limit_aspect(*size), self.size[::-1]
        scaled = self._scaled_size(box[2] - box[0], box[3] - box[1])
        sides = []
        for begin, end, length, target_length in zip(box[:2], box[2:], scaled, target, strict=True):
            pasted, cut = _offsets(length, target_length)
            pixel = (end - begin) / length
            sides.append((begin + (cut - pasted) * pixel, begin + (cut - pasted + target_length) * pixel))
        (left, right), (top, bottom) = sides
        return left, top, right, bottom

    def _scaled_size(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) to resize to before the crop.

        squash: both sides become the target's; border: the longer side fits in; center: the shorter side fills.
        """
        target_height, target_width = self._scaled
        if self.config.crop_mode == "squash":
            return target_width, target_height
        if self.config.crop_mode == "center" and target_height == target_width:
            # rounded down, as torchvision does
            return target_width * width // min(width, height), target_width * height // min(width, height)
        choose = max if self.config.crop_mode == "border" else min
        ratio = choose(height / target_height, width / target_width)
        return max(1, round(width / ratio)), max(1, round(height / ratio))

    def _crop(self, image: Image.Image) -> Image.Image:
        """Return the middle of the picture; a smaller one gets a border in the mean's colour, or in black."""
        height, width = self.size
        border = self.config.crop_mode == "border"
        colour = tuple(round(255 * value) for value in self.config.mean) if border else (0, 0, 0)
        whole = Image.new("RGB", (max(width, image.width), max(height, image.height)), colour)
        (x, left), (y, top) = _offsets(image.width, width), _offsets(image.height, height)
        whole.paste(image, (x, y))
        return whole.crop((left, top, left + width, top + height))


def _open(source: Picture | str | bytes, name: str) -> Image.Image:
    """Return a picture whose pixels are not decoded yet."""
    content = source if isinstance(source, bytes) else read_picture(source, MAX_BYTES)
    if not content:
        raise DataError(f"{name}: the file is empty (0 bytes)")
    try:
        with _OPENING, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_decode` raises an error instead
            return Image.open(io.BytesIO(content), formats=list(FORMATS))
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: refused, {error}") from None
    except Exception:  # Pillow's readers raise many kinds of errors on a damaged header
        raise DataError(f"{name}: not a picture; readable are {', '.join(FORMATS)}") from None


def _decode(image: Image.Image, name: str) -> Image.Image:
    """Return the upright RGB picture."""
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height}"
        raise DataError(f"{name}: refused, {size} is above the limit of {MAX_PIXELS:,} pixels; make it smaller")
    try:
        image.load()
    except Exception as error:  # as in `_open`
        raise DataError(f"{name}: damaged picture ({error})") from None
    try:
        return _as_rgb(_upright(image))
    except Exception as error:
        raise DataError(f"{name}: {image.mode} pixels cannot be turned into RGB ({error})") from None


def _is_plain(image: Image.Image) -> bool:
    """Return whether it has usual pixels, one frame and no camera data."""
    try:
        is_animated = getattr(image, "is_animated", False)
        return image.mode in ("L", "P", "RGB", "RGBA") and not is_animated and not image.getexif()
    except Exception:  # damaged after the first frame, or broken camera data
        return False


def _upright(image: Image.Image) -> Image.Image:
    try:
        # exif_transpose copies a picture that is upright already
        return image if image.getexif().get(ExifTags.Base.Orientation, 1) == 1 else ImageOps.exif_transpose(image)
    except Exception:  # a good picture with broken camera data is used as it is
        return image


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        return _scale_grey(np.asarray(image, dtype=np.float64)).convert("RGB")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        straight = image.convert("LA") if image.mode == "La" else image  # Pillow does not convert La to RGBA
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, straight.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _scale_grey(values: np.ndarray[Any, Any]) -> Image.Image:
    """Scale grey values to 8 bits; white is the smallest of 1, 255 and 65535 that is not exceeded.

    Values below 0 or above 65535 have no such meaning: black is then the smallest value, and white the largest; a
    picture of a single value is black.
    """
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = 0.0, next((white for white in (1.0, 255.0, 65535.0) if values.max() <= white), math.inf)
    if values.min() < 0 or math.isinf(high):
        low, high = values.min(), values.max()
    span = high - low or 1.0
    return Image.fromarray(((values - low) / span * 255).round().astype(np.uint8))


def _limit_aspect(width: int, height: int) -> tuple[int, int, int, int]:
    """Return the middle (left, top, right, bottom) that is at most MAX_ASPECT times as long as it is wide."""
    longest = MAX_ASPECT * min(width, height)
    left, top = max(0, width - longest) // 2, max(0, height - longest) // 2
    return left, top, left + min(width, longest), top + min(height, longest)


def _offsets(length: int, target: int) -> tuple[int, int]:
    """Return the positions, along one side, of the scaled picture in the canvas and of the target that is cut out."""
    whole = max(length, target)
    return (whole - length) // 2, round((whole - target) / 2)
