"""Find pictures that are copies of others by their looks: resaved, resized, relit, grey, mirrored, turned or cropped.

A perceptual hash proposes candidates; each is aligned and confirmed, so that it must agree in every part and in colour.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from myllm.batched import batched
from myllm.data.images import load_thumbnail

Signs = NDArray[np.float32]
Array = NDArray[np.float32]

# All limits were measured by benchmarks/leaks.py.
SIDE = 48  # of the luma of a thumbnail; colour has a quarter of that
CHROMA_SIDE = 12
WAVES = 10  # the hash has WAVES**2 - 1 bits
MAX_DIFFERENT = 30  # bits
CONFIRMED = 12  # nearest pictures by hash
CROP = 0.9  # share of a side that is left in the cropped pictures that are hashed, too
ZOOMS = (0.95, 0.9, 0.85)
WINDOW_SIDE = 24  # of windows while they are aligned
FINE_SIDE, BLOCK = 40, 8  # of windows when they are confirmed
BLANK = 3.0  # grey levels; blocks with less contrast are blank
MIN_BUSY = 0.43  # share of blocks that are not blank; pictures with fewer are simple
MIN_CORRELATION_OF_SIMPLE, MAX_BLOCK_ERROR_OF_SIMPLE, MAX_COLOUR_ERROR_OF_SIMPLE = 0.98, 0.35, 0.15
MIN_ALIGNED = 0.6  # correlation of details
MIN_CORRELATION = 0.9
MAX_BLOCK_ERROR = 0.6  # error of a block relative to its contrast; in all blocks but a few
BLOCK_SHARE = 0.9
NOISE = 6.0  # grey levels of a block that compression may change
MIN_DETAIL = 1.0  # grey levels; clear sky and blank pages have less, and all look alike
MIN_COLOUR = 4.0  # of the colour differences; grey pictures have less
MAX_COLOUR_ERROR = 0.4  # relative to the colour of the picture

Window = tuple[float, float, float]  # share of a side that is left, and where it lies in x and y, each 0 to 1
WHOLE: Window = (1.0, 0.0, 0.0)
WINDOWS = [WHOLE, *((zoom, x, y) for zoom in ZOOMS for x, y in product((0.0, 0.5, 1.0), repeat=2))]
# Mirrored or not, then turned by quarters.
ORIENTATIONS = [(is_mirrored, turns) for is_mirrored in (False, True) for turns in range(4)]


class Thumbnail(NamedTuple):
    """A picture as it is compared."""

    luma: NDArray[np.uint8]
    """(SIDE, SIDE)"""
    chroma: NDArray[np.uint8]
    """(CHROMA_SIDE, CHROMA_SIDE, 2)"""

    def oriented(self, is_mirrored: bool, turns: int) -> "Thumbnail":
        """Return it mirrored, then turned by quarters."""
        return Thumbnail(*(np.rot90(plane[:, ::-1] if is_mirrored else plane, turns) for plane in self))


def thumbnail(path: Path) -> Thumbnail:
    """Read a picture. Raises DataError as `load_image`."""
    ycbcr = load_thumbnail(path, SIDE, "YCbCr")
    step = SIDE // CHROMA_SIDE
    chroma = ycbcr[..., 1:].reshape(CHROMA_SIDE, step, CHROMA_SIDE, step, 2).mean(axis=(1, 3)).round().astype(np.uint8)
    return Thumbnail(ycbcr[..., 0].copy(), chroma)


def find_copies(judged: Mapping[int, Thumbnail], training: Mapping[int, Thumbnail]) -> Iterator[tuple[int, int]]:
    """Yield the keys of each judged picture that is a copy of a training picture, and of that picture."""
    if not judged or not training:
        return
    keys, known = list(training), list(training.values())
    whole = signs(np.stack([picture.luma for picture in known]), WHOLE)
    crops = [signs(np.stack([picture.luma for picture in known]), window) for window in _CROPS]
    for batch in batched(judged, 64):
        agreement = _agreement([judged[key] for key in batch], whole, crops)  # (orientations, batch, training)
        for row, key in enumerate(batch):
            best = agreement[:, row].max(axis=0)
            near = np.flatnonzero(best >= whole.shape[1] - 2 * MAX_DIFFERENT)
            near = near[np.argsort(-best[near], kind="stable")][:CONFIRMED]
            for column in near:
                orientation = ORIENTATIONS[int(agreement[:, row, column].argmax())]
                if is_simple(judged[key].luma):
                    is_found = is_copy_of_simple(judged[key], known[column])
                else:
                    is_found = is_copy(judged[key].oriented(*orientation), known[column])
                if is_found:
                    yield key, keys[column]
                    break


_CROPS: list[Window] = [(CROP, x, y) for x, y in product((0.0, 0.5, 1.0), repeat=2)]


def _agreement(pictures: list[Thumbnail], whole: Signs, crops: list[Signs]) -> Array:
    """Return equal bits minus different ones, for each orientation: (orientations, pictures, training).

    Crops on either side are tried for pictures that are upright, mirrored or not.
    """
    rows = []
    for is_mirrored, turns in ORIENTATIONS:
        turned = np.stack([picture.oriented(is_mirrored, turns).luma for picture in pictures])
        own = signs(turned, WHOLE)
        best = own @ whole.T
        if turns == 0:
            for window, cropped in zip(_CROPS, crops, strict=True):
                np.maximum(best, own @ cropped.T, out=best)
                np.maximum(best, signs(turned, window) @ whole.T, out=best)
        rows.append(best)
    return np.stack(rows)


def signs(luma: NDArray[np.uint8], window: Window = WHOLE) -> Signs:
    """Return perceptual hashes: the signs (N, WAVES**2 - 1) of the lowest waves of the discrete cosine transform.

    luma: (N, SIDE, SIDE). The constant wave, brightness, is left out. After pHash (Zauner, 2010), which compares with
    the median of the waves instead of 0.
    """
    zoom, x, y = window
    waves = _waves(zoom, y) @ luma.astype(np.float32) @ _waves(zoom, x).T
    return np.sign(waves.reshape(len(luma), -1)[:, 1:])


@lru_cache
def _waves(zoom: float, position: float) -> Array:
    """Cosine waves over part of a side: (WAVES, SIDE)."""
    phase = (np.arange(SIDE) + 0.5 - position * SIDE * (1 - zoom)) / (SIDE * zoom)
    inside = (phase > 0) & (phase < 1)
    waves = np.cos(np.pi * np.outer(np.arange(WAVES), phase)) * inside
    waves[1:] -= inside * (waves[1:].sum(axis=1, keepdims=True) / inside.sum())
    return waves.astype(np.float32)


def is_simple(luma: NDArray[np.uint8]) -> bool:
    """Whether most of a picture is blank, as a shape on white, a digit or a chart is."""
    blocks = luma.reshape(SIDE // 4, 4, SIDE // 4, 4)
    return bool((blocks.std(axis=(1, 3)) > BLANK).mean() < MIN_BUSY)


def is_copy_of_simple(picture: Thumbnail, other: Thumbnail) -> bool:
    """Whether a mostly blank picture is a copy of the other one, neither cropped nor turned.

    Many such pictures differ only in the size, position and colour of what they show, so these have to agree.
    """
    if _details(picture.luma.tobytes())[0] @ _details(other.luma.tobytes())[0] < MIN_ALIGNED:
        return False
    a, b = picture.luma.astype(np.float32), other.luma.astype(np.float32)
    light = ((a - a.mean()) * (b - b.mean())).sum() / max(1e-6, ((b - b.mean()) ** 2).sum())
    return (
        0.7 <= light <= 1.4
        and _correlation(a, b) >= MIN_CORRELATION_OF_SIMPLE
        and _block_error(a, b, 1.0) <= MAX_BLOCK_ERROR_OF_SIMPLE
        and _is_same_colour(picture.chroma, other.chroma, WHOLE, MAX_COLOUR_ERROR_OF_SIMPLE)
    )


def is_copy(picture: Thumbnail, other: Thumbnail) -> bool:
    """Whether one picture is the other, or what cropping leaves of it; both are upright."""
    ours, theirs = _details(picture.luma.tobytes()), _details(other.luma.tobytes())
    inside_other, inside_picture = theirs @ ours[0], ours @ theirs[0]
    if inside_other.max() >= inside_picture.max():
        return _is_confirmed(picture, other, WINDOWS[int(inside_other.argmax())], float(inside_other.max()))
    return _is_confirmed(other, picture, WINDOWS[int(inside_picture.argmax())], float(inside_picture.max()))


def _is_confirmed(part: Thumbnail, whole: Thumbnail, window: Window, correlation: float) -> bool:
    """Align `part` with a window of `whole` more finely, then compare every block and the colours."""
    if correlation < MIN_ALIGNED:
        return False
    target = _resized(part.luma, WHOLE)
    best = max(_neighbours(window), key=lambda near: _correlation(target, _resized(whole.luma, near)))
    match = _resized(whole.luma, best)
    return (
        _correlation(target, match) >= MIN_CORRELATION
        and _block_error(target, match) <= MAX_BLOCK_ERROR
        and (
            _is_grey(part.chroma) or _is_grey(whole.chroma)  # a grey copy has no colours to compare
            or _is_same_colour(part.chroma, whole.chroma, best, MAX_COLOUR_ERROR)
        )
    )


def _neighbours(window: Window) -> list[Window]:
    zoom, x, y = window
    near: list[Window] = [window]
    for change in (-0.03, -0.015, 0.0, 0.015, 0.03):
        size = min(1.0, zoom + change)
        free = 1 - size
        left, top = x * (1 - zoom), y * (1 - zoom)
        for across, down in product((-0.015, 0.0, 0.015), repeat=2):
            if free > 0:
                near.append((size, min(1, max(0, (left + across) / free)), min(1, max(0, (top + down) / free))))
    return near


def _resized(luma: NDArray[np.uint8], window: Window) -> Array:
    """Return a window of a picture: (FINE_SIDE, FINE_SIDE)."""
    zoom, x, y = window
    left, top = x * SIDE * (1 - zoom), y * SIDE * (1 - zoom)
    box = (left, top, left + SIDE * zoom, top + SIDE * zoom)
    image = Image.fromarray(np.ascontiguousarray(luma))
    return np.asarray(image.resize((FINE_SIDE, FINE_SIDE), Image.Resampling.BILINEAR, box), dtype=np.float32)


def _correlation(one: Array, other: Array) -> float:
    a, b = one - one.mean(), other - other.mean()
    return float((a * b).sum() / max(1e-6, np.sqrt((a * a).sum() * (b * b).sum())))


def _block_error(target: Array, match: Array, share: float = BLOCK_SHARE) -> float:
    """Return a high quantile, over blocks, of their error relative to their contrast, after a change of light."""
    a, b = target - target.mean(), match - match.mean()
    relit = target.mean() + b * ((a * b).sum() / max(1e-6, (b * b).sum()))
    error = target - relit.clip(0, 255)
    blocks = np.lib.stride_tricks.sliding_window_view(np.stack([error, target, match]), (BLOCK, BLOCK), axis=(1, 2))
    blocks = blocks[:, :: BLOCK // 2, :: BLOCK // 2]
    contrast = np.maximum(blocks[1].var(axis=(-2, -1)), blocks[2].var(axis=(-2, -1)))
    ratio = np.sqrt((blocks[0] ** 2).mean(axis=(-2, -1)) / (contrast + NOISE**2))
    return float(np.quantile(ratio, share))


def _is_same_colour(part: NDArray[np.uint8], whole: NDArray[np.uint8], window: Window, limit: float) -> bool:
    """Whether colours agree up to a change of light."""
    zoom, x, y = window
    left, top = x * CHROMA_SIDE * (1 - zoom), y * CHROMA_SIDE * (1 - zoom)
    box = (left, top, left + CHROMA_SIDE * zoom, top + CHROMA_SIDE * zoom)
    planes = [Image.fromarray(np.ascontiguousarray(whole[..., plane])) for plane in range(2)]
    match = np.stack([np.asarray(p.resize((CHROMA_SIDE,) * 2, Image.Resampling.BILINEAR, box)) for p in planes], -1)
    a, b = part.astype(np.float32) - 128, match.astype(np.float32) - 128
    scale = np.clip((a * b).sum() / max(1e-6, (b * b).sum()), 0.7, 1.4)
    return float(_rms(a - scale * b)) <= max(limit * _rms(a), 1.0)


def _is_grey(chroma: NDArray[np.uint8]) -> bool:
    return _rms(chroma.astype(np.float32) - 128) < MIN_COLOUR


def _rms(values: Array) -> float:
    return float(np.sqrt((values**2).mean()))


@lru_cache(maxsize=256)
def _details(luma: bytes) -> Array:
    """Return details of a picture, then of its windows: (windows, values), each of norm 1 or 0.

    Details are what blurring removes: skies and slopes of light, which many pictures share, are not among them.
    """
    image = Image.frombytes("L", (SIDE, SIDE), luma)
    blurred = np.asarray(image.filter(ImageFilter.BoxBlur(4)), dtype=np.float32)
    details = Image.fromarray(np.asarray(image, dtype=np.float32) - blurred)
    parts = []
    for zoom, x, y in WINDOWS:
        left, top = x * SIDE * (1 - zoom), y * SIDE * (1 - zoom)
        box = (left, top, left + SIDE * zoom, top + SIDE * zoom)
        parts.append(np.asarray(details.resize((WINDOW_SIDE, WINDOW_SIDE), Image.Resampling.BILINEAR, box)).ravel())
    values = np.stack(parts)
    values = values - values.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(lengths < MIN_DETAIL * WINDOW_SIDE, np.inf, lengths)
