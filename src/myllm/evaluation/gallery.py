"""The gallery of a report: which pictures, in which orders, each with what is said of it and what was looked at."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from myllm.data.images import load_image
from myllm.data.records import Record
from myllm.errors import DataError

EACH = 12
"""Pictures of each order that the gallery is certain to have, its first ones."""
THUMBNAIL = 320
SMALL = 128  # pixels a side; what is smaller is drawn, and JPEG would smear it
QUALITIES = (82, 65, 45, 25)
MAP_SIDE = 32
# bytes in all, before base64 makes four of three; a page is to stay under 5 MB, whatever is in it
THUMBNAIL_BYTES, MAP_BYTES = 2_000_000, 1_000_000
MAX_REFERENCES = 10
PLACES = (
    ("at the upper left", "at the top", "at the upper right"),
    ("on the left", "in the middle", "on the right"),
    ("at the lower left", "at the bottom", "at the lower right"),
)

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class WordMap:
    """A word of a caption as it stands there, or a punctuation mark."""

    text: str
    map: Floats | None = None
    """(H, W), in the picture's own proportions, at least 0: how much each place was looked at."""
    confidence: float | None = None


WordMapsOf = Callable[[int], Sequence[WordMap]]
"""From the place of a picture among those judged to the words of its caption in order; asked for those shown alone."""


@dataclass(frozen=True)
class Order:
    """A way to sort the gallery."""

    key: str
    label: str
    places: Sequence[int]
    """All N pictures' places, those to be seen first in front."""


@dataclass(frozen=True)
class Thumbnail:
    """A picture inside the page."""

    uri: str
    width: int
    height: int

    @property
    def is_small(self) -> bool:
        """Whether each of its pixels is to be seen."""
        return max(self.width, self.height) < SMALL


@dataclass(frozen=True)
class WordSpan:
    """A stretch of a caption."""

    text: str
    seen: str = ""
    """A map as `width,height,base64 of a byte a place`; none where there is nothing to see."""
    told: str = ""
    """The same in words, with the word's confidence."""


@dataclass(frozen=True)
class GalleryCaptions:
    """What one captioner says of N pictures."""

    captions: Sequence[str]
    cider_d: Sequence[float] | Floats
    scores: Sequence[float] | None = None
    confidence: Sequence[float] | None = None
    look: WordMapsOf | None = None


@dataclass(frozen=True)
class PictureCaption:
    """A caption in the gallery."""

    text: str
    pieces: Sequence[WordSpan]
    cider_d: float
    score: float | None
    confidence: float | None


@dataclass(frozen=True)
class GalleryPicture:
    """A picture in the gallery."""

    name: str
    thumbnail: Thumbnail | None
    """None where the picture cannot be read any more."""
    spoken: Sequence[PictureCaption]
    references: Sequence[str]
    left_out: int
    """References beyond `MAX_REFERENCES`."""
    ranks: dict[str, int]
    """Its place in each order."""


def gallery_orders(said: GalleryCaptions, seed: int = 0) -> list[Order]:
    """Random first: what is seen before anyone sorts is not picked."""
    worst = np.argsort(np.asarray(said.cider_d), kind="stable")
    best = np.argsort(-np.asarray(said.cider_d), kind="stable")
    orders = [_random(len(worst), seed), Order("best", "Best", best.tolist()), Order("worst", "Worst", worst.tolist())]
    if said.confidence is not None:
        sure = np.argsort(-np.asarray(said.confidence), kind="stable").tolist()
        unsure = np.argsort(np.asarray(said.confidence), kind="stable").tolist()
        orders += [Order("sure", "Most confident", sure), Order("unsure", "Least confident", unsure)]
    return orders


def comparison_orders(a: GalleryCaptions, b: GalleryCaptions, seed: int = 0) -> list[Order]:
    """Where either is ahead, and where both do well or badly."""
    ours, theirs = np.asarray(a.cider_d), np.asarray(b.cider_d)
    keys = {
        "ahead": ("B ahead", ours - theirs), "behind": ("A ahead", theirs - ours),
        "best": ("Both good", -(ours + theirs)), "worst": ("Both poor", ours + theirs),
    }
    found = [Order(key, label, np.argsort(by, kind="stable").tolist()) for key, (label, by) in keys.items()]
    return [_random(len(ours), seed), *found]


def build_gallery(
    records: Sequence[Record], sides: Sequence[GalleryCaptions], orders: Sequence[Order]
) -> list[GalleryPicture]:
    """The gallery: the first `EACH` pictures of each order, in the first order. Each of `sides` speaks of `records`."""
    chosen = {place for order in orders for place in order.places[:EACH]}
    ranked = {order.key: [place for place in order.places if place in chosen] for order in orders}
    ranks = {key: {place: rank for rank, place in enumerate(places)} for key, places in ranked.items()}
    places = ranked[orders[0].key]
    words = [[_words(side, place) for place in places] for side in sides]
    count = sum(word.map is not None for side in words for own in side for word in own)
    map_side = min(MAP_SIDE, int((MAP_BYTES / max(1, count)) ** 0.5))
    shown = []
    for at, place in enumerate(places):
        record = records[place]
        spoken = [
            _spoken(side, place, split_words[at], map_side) for side, split_words in zip(sides, words, strict=True)
        ]
        shown.append(
            GalleryPicture(
                record.name, _thumbnail(record.image, THUMBNAIL_BYTES // len(places)), spoken,
                record.captions[:MAX_REFERENCES], max(0, len(record.captions) - MAX_REFERENCES),
                {key: own[place] for key, own in ranks.items()},
            )
        )
    return shown


def describe_position(seen: Floats) -> str:
    """Where most of a map (H, W) lies, in words, by the ninths of the picture: `mostly at the top` and so on."""
    # by the middles of its places, as a map of one row lies in the middle
    rows, columns = (((np.arange(side) + 0.5) * 3 / side).astype(int) for side in seen.shape)
    sums = np.zeros((3, 3))
    np.add.at(sums, (rows[:, None], columns[None]), seen)
    row, column = np.unravel_index(int(sums.argmax()), sums.shape)
    # less than twice its even share does not stand out
    how = "mostly" if sums.max() > 2 / 9 * sums.sum() else "all over, most"
    return f"{how} {PLACES[row][column]}"


def _random(count: int, seed: int) -> Order:
    return Order("random", "Random", np.random.default_rng(seed).permutation(count).tolist())


def _words(said: GalleryCaptions, place: int) -> list[WordMap]:
    """Its words with maps that are small already, so that those of a whole gallery fit in memory."""
    if said.look is None:
        return []
    return [WordMap(word.text, _shrunk(word.map, MAP_SIDE), word.confidence) for word in said.look(place)]


def _shrunk(seen: Floats | None, side: int) -> Floats | None:
    """At most `side` on its longer side; None where nothing was looked at."""
    if seen is None or not seen.size or not np.isfinite(seen).all() or seen.max() <= 0:
        return None
    height, width = seen.shape
    scale = min(1.0, side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = Image.fromarray(np.asarray(seen, np.float32)).resize(size, Image.Resampling.BOX)
    return np.asarray(small, np.float32).clip(min=0)


def _spoken(said: GalleryCaptions, place: int, words: Sequence[WordMap], map_side: int) -> PictureCaption:
    text = said.captions[place]
    return PictureCaption(
        text, _pieces(text, words, map_side), float(said.cider_d[place]),
        None if said.scores is None else said.scores[place],
        None if said.confidence is None else said.confidence[place],
    )


def _pieces(text: str, words: Sequence[WordMap], map_side: int) -> list[WordSpan]:
    """The whole text, cut so that each word with a map is a piece."""
    pieces, end = [], 0
    for word in words:
        start = text.find(word.text, end) if word.text else -1
        seen = _shrunk(word.map, map_side)
        if start < 0 or seen is None:
            continue
        pieces += [WordSpan(text[end:start]), WordSpan(word.text, _packed(seen), _told(word, seen))]
        end = start + len(word.text)
    return [piece for piece in [*pieces, WordSpan(text[end:])] if piece.text]


def _packed(seen: Floats) -> str:
    """From the least to the most that was looked at: a map that is nearly even shows where it is not."""
    height, width = seen.shape
    extent = float(seen.max() - seen.min())
    values = np.rint(255 * (seen - seen.min()) / (extent or 1)).astype(np.uint8)
    return f"{width},{height},{base64.b64encode(values.tobytes()).decode()}"


def _told(word: WordMap, seen: Floats) -> str:
    sure = "" if word.confidence is None else f"; confidence {word.confidence:.0%}"
    return f"“{word.text}”: looked {describe_position(seen)}{sure}"


def _thumbnail(path: Path, most_bytes: int) -> Thumbnail | None:
    """The coarser the more bytes it would take."""
    try:
        image = load_image(path)
    except DataError:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    forms = [("png", 0)] * (max(image.size) < SMALL) + [("jpeg", quality) for quality in QUALITIES]
    for kind, quality in forms:
        buffer = BytesIO()
        image.save(buffer, kind, quality=quality, optimize=True)
        if buffer.tell() <= most_bytes:
            break
    uri = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Thumbnail(uri, *image.size)
