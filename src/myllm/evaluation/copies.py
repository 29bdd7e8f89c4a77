"""Find pictures that look like copies of others: resaved, resized, relit, grey, mirrored, turned or cropped.

Candidates are the pictures whose fine details correlate most, at a small size. A candidate is aligned with the picture;
it is a copy if the two then agree in all parts and in colour.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, reduce
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from myllm.batched import batched
from myllm.data.images import load_thumbnail
from myllm.files import Picture
from myllm.progress import Progress, no_progress

Array = NDArray[np.float32]
# A crop: the share of each side that is kept, and its position in x and y, from 0 (left, top) to 1 (right, bottom).
Window = tuple[float, float, float]


class Limits(NamedTuple):
    """Limits that a copy must keep after alignment."""

    min_correlation: float
    max_block_error: float  # error of a block relative to its contrast
    block_share: float  # share of the blocks that must keep max_block_error
    max_colour_error: float  # relative to the colours of the picture


# All limits were measured by benchmarks/leaks.py.
LIMITS, LIMITS_OF_SIMPLE = Limits(0.9, 0.6, 0.9, 0.4), Limits(0.98, 0.35, 1.0, 0.15)
BLANK = 3.0  # grey levels; a block with less contrast is blank
MIN_BUSY = 0.43  # a picture is simple if a smaller share of its blocks is not blank
SIDE, CHROMA_SIDE = 48, 12  # of a thumbnail
CANDIDATES, CANDIDATE_SIDE = 8, 10  # number of training pictures compared in full with each picture
BATCH = 16  # pictures whose candidates are found at once
ALIGNED_SIDE, MIN_ALIGNED = 24, 0.6  # MIN_ALIGNED is a correlation of details
FINE_SIDE, BLOCK = 40, 8
NOISE = 6.0  # grey levels by which compression may change a block
MIN_DETAIL = 1.0  # grey levels; clear sky and blank pages have less, and all look alike
MIN_COLOUR = 4.0  # root mean square of Cb and Cr around their centre; grey pictures have less
MIN_LIGHT, MAX_LIGHT = 0.7, 1.4  # factor by which contrast may change


def _windows(*zooms: float) -> tuple[Window, ...]:
    return (1.0, 0.0, 0.0), *((zoom, x, y) for zoom in zooms for x, y in product((0.0, 0.5, 1.0), repeat=2))


WHOLE = _windows()
CROPS = _windows(0.87)
WINDOWS = _windows(0.95, 0.9, 0.85)


# A matrix that replaces each value by the mean of the nine around it.
_BLUR = np.eye(SIDE, dtype=np.float32)[np.add.outer(np.arange(SIDE), np.arange(-4, 5)).clip(0, SIDE - 1)].mean(axis=1)


class Thumbnail(NamedTuple):
    """A small version of a picture, for comparison with others."""

    luma: NDArray[np.uint8]
    """(SIDE, SIDE)"""
    chroma: NDArray[np.uint8]
    """(2, CHROMA_SIDE, CHROMA_SIDE)"""

    def orientations(self) -> "list[Thumbnail]":
        """Return the picture in its 8 orientations: as it is and mirrored, each in four rotations."""
        return [
            Thumbnail(*(np.rot90(plane[..., ::step], turns, axes=(-2, -1)) for plane in self))
            for step, turns in product((1, -1), range(4))
        ]


def thumbnail(picture: Picture) -> Thumbnail:
    """Return the thumbnail of a picture. Raises DataError as `load_image` does."""
    ycbcr = load_thumbnail(picture, SIDE, "YCbCr").transpose(2, 0, 1)
    step = SIDE // CHROMA_SIDE
    chroma = ycbcr[1:].reshape(2, CHROMA_SIDE, step, CHROMA_SIDE, step).mean(axis=(2, 4)).round().astype(np.uint8)
    return Thumbnail(ycbcr[0].copy(), chroma)


def find_copies(judged: Mapping[int, Thumbnail], training: Mapping[int, Thumbnail]) -> Iterator[tuple[int, int]]:
    """Yield (judged key, training key) for each judged picture that is a copy of a training picture."""
    if not judged or not training:
        return
    keys, pictures, known = list(training), list(training.values()), _crops(training.values())
    for batch in batched(judged, BATCH):
        orientations = [judged[key].orientations() for key in batch]
        for key, sides, agreement in zip(batch, orientations, _agreements(orientations, known), strict=True):
            copies = (keys[index] for index in _copies_of(sides, agreement, pictures))
            if (copy := next(copies, None)) is not None:
                yield key, copy


def find_pairs(pictures: Sequence[Thumbnail], progress: Progress = no_progress) -> Iterator[tuple[int, int]]:
    """Yield the indices of each two pictures of which one is a copy of the other, the lower first.

    The time is proportional to the square of their number. Of more than `CANDIDATES` copies of one picture not every
    pair is found, but each copy is in a pair.
    """
    if len(pictures) < 2:
        return
    known = _crops(pictures)
    for batch in batched(range(len(pictures)), BATCH):
        orientations, later = [pictures[index].orientations() for index in batch], batch[0]
        agreements = _agreements(orientations, known[:, later:])
        for index, sides, agreement in zip(batch, orientations, agreements, strict=True):
            agreement[:, : index - later + 1] = -np.inf  # the picture itself, and those before it
            for other in _copies_of(sides, agreement, pictures[later:]):
                yield index, later + other
        progress("comparing pictures", batch[-1] + 1, len(pictures))


def _crops(pictures: Iterable[Thumbnail]) -> Array:
    """Return what proposes candidates: (windows, pictures, values); the first window is the whole picture."""
    return np.stack([details(picture.luma, CROPS, CANDIDATE_SIDE) for picture in pictures], axis=1)


def _agreements(orientations: Sequence[Sequence[Thumbnail]], known: Array) -> Array:
    """Return how far pictures agree with known ones: (pictures, orientations, known)."""
    ours = _crops(side for sides in orientations for side in sides)
    # Either picture may be cropped.
    pairs = [(0, window) for window in range(len(CROPS))] + [(window, 0) for window in range(1, len(CROPS))]
    return reduce(np.maximum, (ours[a] @ known[b].T for a, b in pairs)).reshape(len(orientations), -1, known.shape[1])


def _copies_of(sides: Sequence[Thumbnail], agreement: Array, known: Sequence[Thumbnail]) -> Iterator[int]:
    """Yield the indices of the known pictures that a picture is a copy of, those that agree most first.

    sides: the picture's orientations. agreement: (orientations, known), -inf for pictures that are not candidates.
    """
    best = agreement.max(axis=0)
    for index in map(int, np.argsort(-best, kind="stable")[:CANDIDATES]):
        if best[index] > -np.inf and is_copy(sides[int(agreement[:, index].argmax())], known[index]):
            yield index


def is_copy(picture: Thumbnail, other: Thumbnail) -> bool:
    """Whether one picture is a copy or a crop of the other; both must be in the same orientation.

    Mostly blank pictures, such as a shape on white, often differ only in the size, position and colour of the
    thing that they show. They are compared without alignment, because all of that has to agree.
    """
    blocks = picture.luma.reshape(SIDE // 4, 4, SIDE // 4, 4)
    is_simple = (blocks.std(axis=(1, 3)) > BLANK).mean() < MIN_BUSY
    limits, windows = (LIMITS_OF_SIMPLE, WHOLE) if is_simple else (LIMITS, WINDOWS)
    picture_details, other_details = (details(view.luma, windows, ALIGNED_SIDE) for view in (picture, other))
    part, whole, correlations = picture, other, other_details @ picture_details[0]
    if (inside_picture := picture_details @ other_details[0]).max() > correlations.max():
        part, whole, correlations = other, picture, inside_picture
    if correlations.max() < MIN_ALIGNED:
        return False
    if not is_simple:
        windows = _neighbours(windows[correlations.argmax()])
    target, matches = resampled(part.luma, WHOLE, FINE_SIDE), resampled(whole.luma, windows, FINE_SIDE)
    correlations = _normalized(matches) @ _normalized(target)[0]
    nearest = correlations.argmax()
    match = matches[nearest]
    light, offset = np.polyfit(match.ravel(), target.ravel(), 1)
    return bool(
        correlations[nearest] >= limits.min_correlation
        and (not is_simple or MIN_LIGHT <= light <= MAX_LIGHT)
        and _block_error(target[0], match, light * match + offset, limits.block_share) <= limits.max_block_error
        and _is_same_colour(part.chroma, resampled(whole.chroma, windows[nearest : nearest + 1], CHROMA_SIDE), limits)
    )


@cache
def _neighbours(window: Window) -> tuple[Window, ...]:
    """Return windows that are a little larger, smaller or moved."""
    zoom, x, y = window
    near = [window]
    for change in (-0.03, -0.015, 0.0, 0.015, 0.03):
        size = min(1.0, zoom + change)
        left, top, free = x * (1 - zoom), y * (1 - zoom), max(1 - size, 1e-9)
        for across, down in product((-0.015, 0.0, 0.015), repeat=2):
            near.append((size, min(1, max(0, (left + across) / free)), min(1, max(0, (top + down) / free))))
    return tuple(dict.fromkeys(near))


def _block_error(target: Array, match: Array, relit: Array, share: float) -> float:
    """Return the quantile `share`, over blocks, of the error relative to the contrast."""
    planes = np.stack([target - relit.clip(0, 255), target, match])
    blocks = np.lib.stride_tricks.sliding_window_view(planes, (BLOCK, BLOCK), axis=(1, 2))
    blocks = blocks[:, :: BLOCK // 2, :: BLOCK // 2]
    contrast = blocks[1:].var(axis=(-2, -1)).max(axis=0)
    return float(np.quantile(np.sqrt((blocks[0] ** 2).mean(axis=(-2, -1)) / (contrast + NOISE**2)), share))


def _is_same_colour(part: NDArray[np.uint8], match: Array, limits: Limits) -> bool:
    """Whether the colours agree, except for a change of light."""
    a, b = part.astype(np.float32) - 128, match - 128
    if limits is LIMITS and min(_rms(a), _rms(b)) < MIN_COLOUR:  # a grey copy has no colours to compare
        return True
    scale = np.clip((a * b).sum() / max(1e-6, (b * b).sum()), MIN_LIGHT, MAX_LIGHT)
    return _rms(a - scale * b) <= max(limits.max_colour_error * _rms(a), 1.0)


def _rms(values: Array) -> float:
    return float(np.sqrt((values**2).mean()))


def details(luma: NDArray[np.uint8], windows: tuple[Window, ...], side: int) -> Array:
    """Return what blurring removes from windows of a picture: (windows, side**2), each of norm 1 or 0.

    Plain skies and gradual changes of light, which many pictures have in common, are removed.
    """
    return _normalized(resampled(luma - _BLUR @ luma @ _BLUR.T, windows, side), MIN_DETAIL * side)


def _normalized(planes: Array, min_norm: float = 1e-6) -> Array:
    """Return planes as vectors of mean 0 and norm 1, or of norm 0 if it was below `min_norm`."""
    values = planes.reshape(len(planes), -1)
    values = values - values.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    norms[norms < min_norm] = np.inf
    return np.asarray(values / norms, dtype=np.float32)


def resampled(plane: NDArray[np.uint8] | Array, windows: tuple[Window, ...], side: int) -> Array:
    """Return windows of a picture: (windows, side, side)."""
    rows, columns = _samplers(windows, side, plane.shape[-1])
    return np.asarray(rows @ plane @ columns, dtype=np.float32)


@cache
def _samplers(windows: tuple[Window, ...], side: int, source: int) -> tuple[Array, Array]:
    """Return matrices for bilinear resampling: (windows, side, source) for rows, and for columns its transpose."""
    zooms, x, y = np.transpose(windows)[..., None, None]
    scale = source * zooms / side

    def matrices(position: Array) -> Array:
        centres = position * source * (1 - zooms) + (np.arange(side)[:, None] + 0.5) * scale
        weights = np.maximum(0, 1 - np.abs(np.arange(source) + 0.5 - centres) / np.maximum(1, scale))
        return (weights / weights.sum(axis=2, keepdims=True)).astype(np.float32)

    return matrices(y), matrices(x).swapaxes(1, 2)
