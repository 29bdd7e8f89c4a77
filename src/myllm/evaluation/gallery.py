"""The gallery of a report: which pictures it shows, in which orders, with captions, references and word maps."""

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from myllm.data.images import load_image
from myllm.data.records import Record
from myllm.errors import DataError
from myllm.files import Picture

PICTURES_PER_ORDER = 12
"""Number of pictures that the gallery contains of each order."""
THUMBNAIL_SIDE = 320  # pixels
SMALL_SIDE = 128  # pixels; a smaller picture is probably drawn, and JPEG would blur its edges
JPEG_QUALITIES = (82, 65, 45, 25)
MAP_SIDE = 32
MAX_RATIO = 16
"""Times the even share at which a heat map has its strongest colour; the weakest is at 1 / MAX_RATIO."""
# bytes for the whole gallery, before base64 adds a third, so that a page of any pictures stays under 5 MB
THUMBNAIL_BYTES, MAP_BYTES = 2_000_000, 1_000_000
MAX_REFERENCES = 10
LOCATIONS = (
    ("at the upper left", "at the top", "at the upper right"),
    ("on the left", "in the middle", "on the right"),
    ("at the lower left", "at the bottom", "at the lower right"),
)

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class WordMap:
    """A word as the caption spells it, and where in the picture the captioner looked when it wrote the word."""

    text: str
    map: Floats | None = None
    """(H, W) in the picture's proportions, each value at least 0; None if the word has no map."""
    confidence: float | None = None


WordMapsOf = Callable[[int], Sequence[WordMap]]
"""Function from the index of a judged picture to the words of its caption, in order."""


@dataclass(frozen=True)
class Order:
    """A way to sort the gallery."""

    key: str
    label: str
    indices: Sequence[int]
    """All N pictures; the gallery begins with the first."""


@dataclass(frozen=True)
class Thumbnail:
    """A picture as part of the page."""

    uri: str
    """A data URI."""
    width: int
    height: int

    @property
    def is_small(self) -> bool:
        """Whether the page should enlarge it with sharp pixels."""
        return max(self.width, self.height) < SMALL_SIDE


@dataclass(frozen=True)
class WordSpan:
    """A part of a caption: a word with a map, an invented word, or text between such words."""

    text: str
    map: str = ""
    """`width,height,` and then the base64 of one byte per cell; empty without a map."""
    description: str = ""
    """The map in words, the word's confidence, and whether it is invented."""
    is_invented: bool = False


@dataclass(frozen=True)
class GalleryCaptions:
    """One captioner's captions of N pictures, with their scores and confidence."""

    captions: Sequence[str]
    cider_d: Sequence[float] | Floats
    scores: Sequence[float] | None = None
    confidence: Sequence[float] | None = None
    word_maps: WordMapsOf | None = None
    invented: Callable[[int], Sequence[tuple[int, int]]] = lambda index: ()
    """Function from the index of a picture to (begin, end) of the words of its caption that are invented."""


@dataclass(frozen=True)
class PictureCaption:
    """A caption under a picture of the gallery."""

    text: str
    spans: Sequence[WordSpan]
    """The whole text, in parts."""
    cider_d: float
    score: float | None
    confidence: float | None


@dataclass(frozen=True)
class GalleryPicture:
    """A picture of the gallery."""

    name: str
    thumbnail: Thumbnail | None
    """None if the picture can no longer be read."""
    captions: Sequence[PictureCaption]
    """One from each captioner."""
    references: Sequence[str]
    omitted_references: int
    """Number of references beyond `MAX_REFERENCES`."""
    ranks: dict[str, int]
    """The picture's position in each order, by the order's key."""


def gallery_orders(captions: GalleryCaptions) -> list[Order]:
    """Return the orders for one captioner. The first is random, for an unbiased first impression."""
    keys = {"best": ("Best", -np.asarray(captions.cider_d)), "worst": ("Worst", np.asarray(captions.cider_d))}
    if captions.confidence is not None:
        confidence = np.asarray(captions.confidence)
        keys |= {"confident": ("Most confident", -confidence), "unconfident": ("Least confident", confidence)}
    return _orders(keys)


def comparison_orders(a: GalleryCaptions, b: GalleryCaptions) -> list[Order]:
    """Return the orders for two captioners: a random one, where either is better, and where both are good or poor."""
    of_a, of_b = np.asarray(a.cider_d), np.asarray(b.cider_d)
    return _orders({
        "b_better": ("B better", of_a - of_b), "a_better": ("A better", of_b - of_a),
        "best": ("Both good", -(of_a + of_b)), "worst": ("Both poor", of_a + of_b),
    })


def build_gallery(
    records: Sequence[Record], sides: Sequence[GalleryCaptions], orders: Sequence[Order]
) -> list[GalleryPicture]:
    """Return the first pictures of each order, sorted by the first order. sides: captions of `records` by captioner."""
    chosen = {index for order in orders for index in order.indices[:PICTURES_PER_ORDER]}
    sorted_indices = {order.key: [index for index in order.indices if index in chosen] for order in orders}
    indices = sorted_indices[orders[0].key]
    map_count = sum(len(side.captions[index].split()) for side in sides if side.word_maps for index in indices)
    map_side = min(MAP_SIDE, int((MAP_BYTES / max(1, map_count)) ** 0.5))
    return [
        GalleryPicture(
            name=records[index].name,
            thumbnail=make_thumbnail(records[index].image, THUMBNAIL_BYTES // len(indices)),
            captions=[_picture_caption(side, index, map_side) for side in sides],
            references=records[index].captions[:MAX_REFERENCES],
            omitted_references=max(0, len(records[index].captions) - MAX_REFERENCES),
            ranks={key: in_order.index(index) for key, in_order in sorted_indices.items()},
        )
        for index in indices
    ]


def make_thumbnail(picture: Picture, max_bytes: int, side: int = THUMBNAIL_SIDE) -> Thumbnail | None:
    """Return a picture in at most `side` pixels a side, with a JPEG quality that keeps it within `max_bytes`.

    The lowest quality is used even if the result is larger. None if the picture can't be read.
    """
    try:
        image = load_image(picture)
    except DataError:
        return None
    image.thumbnail((side, side))
    encodings = [("png", 0)] * (max(image.size) < SMALL_SIDE) + [("jpeg", quality) for quality in JPEG_QUALITIES]
    for kind, quality in encodings:
        buffer = BytesIO()
        image.save(buffer, kind, quality=quality, optimize=True)
        if buffer.tell() <= max_bytes:
            break
    uri = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Thumbnail(uri, *image.size)


def relative_strength(word_map: Floats) -> Floats:
    """Return a map (H, W) on a scale that is the same for every map, so that an even map looks weaker than a sharp one.

    The scale is logarithmic: 0.5 is the even share (the mean of the map), 1 at least `MAX_RATIO` times as much, and 0
    at most a `MAX_RATIO`th of it, also for a map that is zero everywhere.
    """
    ratios = word_map / (float(word_map.mean()) or 1)
    return 0.5 + 0.5 * np.log(ratios.clip(1 / MAX_RATIO, MAX_RATIO)) / np.log(MAX_RATIO)


def describe_position(word_map: Floats) -> str:
    """Say where most of a map (H, W) lies, by the ninths of the picture: `mostly at the top` and so on."""
    # a cell counts for the ninth that its centre lies in
    rows, columns = (((np.arange(side) + 0.5) * 3 / side).astype(int) for side in word_map.shape)
    sums = np.zeros((3, 3))
    np.add.at(sums, (rows[:, None], columns[None]), word_map)
    row, column = np.unravel_index(int(sums.argmax()), sums.shape)
    # a ninth stands out if it has at least twice its even share
    extent = "mostly" if sums.max() > 2 / 9 * sums.sum() else "all over, most"
    return f"{extent} {LOCATIONS[row][column]}"


def _orders(keys: dict[str, tuple[str, Floats]]) -> list[Order]:
    """Return a random order, then one for each key, given its label and (N,) values; the lowest value comes first."""
    orders = [Order(key, label, np.argsort(values, kind="stable").tolist()) for key, (label, values) in keys.items()]
    shuffled = np.random.default_rng(0).permutation(len(orders[0].indices)).tolist()
    return [Order("random", "Random", shuffled), *orders]


def _shrink(word_map: Floats | None, side: int) -> Floats | None:
    """Return the map with at most `side` cells on its longer side; None if it is empty, all zeros or not finite."""
    if word_map is None or not word_map.size or not np.isfinite(word_map).all() or word_map.max() <= 0:
        return None
    height, width = word_map.shape
    scale = min(1.0, side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = Image.fromarray(np.asarray(word_map, np.float32)).resize(size, Image.Resampling.BOX)
    return np.asarray(small, np.float32).clip(min=0)


def _picture_caption(captions: GalleryCaptions, index: int, map_side: int) -> PictureCaption:
    text, words = captions.captions[index], captions.word_maps(index) if captions.word_maps else ()
    return PictureCaption(
        text, _spans(text, words, captions.invented(index), map_side), float(captions.cider_d[index]),
        None if captions.scores is None else captions.scores[index],
        None if captions.confidence is None else captions.confidence[index],
    )


def _spans(
    text: str, words: Sequence[WordMap], invented: Sequence[tuple[int, int]], map_side: int
) -> list[WordSpan]:
    """Split the text so that each word with a map, and each invented word, is a span."""
    spans, end = list[WordSpan](), 0
    for word in words:
        start = text.find(word.text, end) if word.text else -1
        small = _shrink(word.map, map_side)
        if start < 0 or small is None:
            continue
        spans += _mark(text, end, start, invented)
        end = start + len(word.text)
        is_invented = any(begin < end and start < stop for begin, stop in invented)
        confidence = "" if word.confidence is None else f"; confidence {word.confidence:.0%}"
        description = f"“{word.text}”: {'invented; ' * is_invented}looked {describe_position(small)}{confidence}"
        spans.append(WordSpan(word.text, _pack_map(small), description, is_invented))
    return [span for span in [*spans, *_mark(text, end, len(text), invented)] if span.text]


def _mark(text: str, start: int, stop: int, invented: Sequence[tuple[int, int]]) -> Iterator[WordSpan]:
    """Yield the spans of a part of the text that has no maps."""
    for begin, end in invented:
        if start <= begin and end <= stop:
            yield WordSpan(text[start:begin])
            yield WordSpan(text[begin:end], is_invented=True)
            start = end
    yield WordSpan(text[start:stop])


def _pack_map(word_map: Floats) -> str:
    """Encode a map for `WordSpan`: its `relative_strength`, from 0 to 255."""
    height, width = word_map.shape
    values = np.rint(255 * relative_strength(word_map)).astype(np.uint8)
    return f"{width},{height},{base64.b64encode(values.tobytes()).decode()}"
