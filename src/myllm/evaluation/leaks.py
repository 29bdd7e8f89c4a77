"""What is judged and in training too, so that it can be counted, named and left out of figures.

Pictures are held against each other by bytes, then by a perceptual hash, whose finds are confirmed by their details.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from myllm.batched import batched
from myllm.data.images import grey_thumbnail
from myllm.data.records import Record
from myllm.data.splits import picture_digest
from myllm.errors import DataError
from myllm.metrics.ptb import ptb_tokenize

Mask = NDArray[np.bool_]
Signs = NDArray[np.float32]
GreyImage = NDArray[np.uint8]
Windows = NDArray[np.float32]

SIDE = 48
# Both limits were measured by benchmarks/leaks.py on copies and on 6 million pairs of different photographs.
WAVES = 10  # WAVES**2 - 1 bits of hash
MAX_DIFFERENT = 30  # bits
MIN_CORRELATION = 0.9
CONFIRMED = 10  # nearest pictures by hash
WINDOWS = [(1.0, 0.0, 0.0)]  # the whole; then what a crop leaves: its share of a side, and where it lies
WINDOWS += [(zoom, x, y) for zoom in (0.975, 0.95, 0.925, 0.9) for x, y in product((0, 0.5, 1), repeat=2)]
WINDOW_SIDE = 24
MIN_DETAIL = 1.0  # grey levels; clear sky and blank pages have less, and all look alike


@dataclass(frozen=True, eq=False)
class Leaks:
    """What N judged pictures share with training; of several sources of a picture or caption one is named."""

    training: int
    """How many training pictures were searched."""
    equal: tuple[tuple[str, str], ...]
    """Names of a judged and a training picture of the same bytes."""
    alike: tuple[tuple[str, str], ...]
    """Names of a judged and a training picture that are copies by their looks, and not by bytes."""
    repeated: tuple[tuple[str, str, str], ...]
    """Names of a judged and a training picture, and a caption of the first that has the words of one of the second."""
    broken: tuple[str, ...]
    """Names of pictures on either side that could not be read, and so were not compared."""
    pictures: Mask
    """(N,): the picture is in training too."""
    captions: Mask
    """(N,): one of the picture's captions is in training too, word for word."""

    def lines(self, shown: int = 3) -> list[str]:
        """Sentences for people, with the first few names of each kind."""
        if not self.training:
            return ["No training pictures are known, so that nothing can be told of leaks."]
        total, count = f"{len(self.pictures):,}", int(self.pictures.sum())
        finds = (
            _listed([f"{judged} = {trained}" for judged, trained in self.equal], shown, "same bytes: "),
            _listed([f"{judged} ~ {trained}" for judged, trained in self.alike], shown, "alike: "),
        )
        lines = [f"None of {total} pictures is among the {self.training:,} of training, by bytes or by looks."]
        if count:
            lines = [f"{count:,} of {total} pictures {_be(count)} in training too ({'; '.join(filter(None, finds))})."]
        count = int(self.captions.sum())
        said = _listed([f"{caption!r} of {judged} and {trained}" for judged, trained, caption in self.repeated], shown)
        told = f" ({said})" if said else ""
        lines.append(f"Pictures that share a caption with training, word for word: {count:,} of {total}{told}.")
        if self.broken:
            count = len(self.broken)
            lines.append(f"{count:,} {_be(count)} unreadable and not compared ({_listed(self.broken, shown)}).")
        return lines


def find_leaks(
    training: Sequence[Record], judged: Sequence[Record], progress: Callable[[int, int], None] | None = None
) -> Leaks:
    """Judged pictures that are training pictures too, and judged captions that are training captions too.

    A copy is found where it was saved anew, resized, relit, turned grey or mirrored, or lost a few percent at its
    edges; see docs/evaluation.md for how surely. `progress` is told how many pictures of how many have been read.
    """
    nothing = np.zeros(len(judged), dtype=np.bool_)
    if not training:
        return Leaks(0, (), (), (), (), nothing, nothing)
    looks = list(_looked([*training, *judged], progress))
    trained, asked = looks[: len(training)], looks[len(training) :]
    sources = {look[0]: record.name for record, look in reversed([*zip(training, trained, strict=True)]) if look}
    equal = {place: sources[look[0]] for place, look in enumerate(asked) if look and look[0] in sources}
    rest = {place: look[1] for place, look in enumerate(asked) if look and place not in equal}
    thumbnails = {place: look[1] for place, look in enumerate(trained) if look}
    alike = {place: training[source].name for place, source in _copies(rest, thumbnails)}
    repeated = _repeated(training, judged)
    pictures, captions = nothing.copy(), nothing.copy()
    pictures[[*equal, *alike]] = True
    captions[[*repeated]] = True
    return Leaks(
        training=len(training),
        equal=tuple((judged[place].name, name) for place, name in equal.items()),
        alike=tuple((judged[place].name, name) for place, name in alike.items()),
        repeated=tuple((judged[place].name, *found) for place, found in repeated.items()),
        broken=tuple(r.name for r, look in zip([*training, *judged], looks, strict=True) if look is None),
        pictures=pictures,
        captions=captions,
    )


def _looked(
    records: Sequence[Record], progress: Callable[[int, int], None] | None
) -> Iterator[tuple[str, GreyImage] | None]:
    """Each picture's digest and thumbnail; None for those that can't be read."""
    with ThreadPoolExecutor() as pool:
        for done, look in enumerate(pool.map(_look, records), start=1):
            if progress is not None:
                progress(done, len(records))
            yield look


def _look(record: Record) -> tuple[str, GreyImage] | None:
    try:
        return picture_digest(record.image), grey_thumbnail(record.image, SIDE)
    except (DataError, OSError):
        return None


def _copies(judged: dict[int, GreyImage], training: dict[int, GreyImage]) -> Iterator[tuple[int, int]]:
    """Places of judged pictures that have a copy in training, each with the place of its nearest."""
    if not judged or not training:
        return
    places, known = list(training), signs(np.stack(list(training.values())))
    # mirroring a picture turns the waves around that have an odd number of half periods across it
    mirror = (-1.0) ** np.tile(np.arange(WAVES), WAVES)[1:].astype(np.float32)
    for batch in batched(judged, 64):
        own = signs(np.stack([judged[place] for place in batch]))
        agreement = np.stack([own @ known.T, (own * mirror) @ known.T])  # (2, batch, training)
        for row, place in enumerate(batch):
            best = agreement[:, row].max(axis=0)
            near = np.flatnonzero(best >= known.shape[1] - 2 * MAX_DIFFERENT)
            near = near[np.argsort(-best[near], kind="stable")][:CONFIRMED]
            candidates = [(bool(agreement[:, row, column].argmax()), places[column]) for column in near]
            source = _first_copy(judged[place], candidates, training)
            if source is not None:
                yield place, source


def _first_copy(
    picture: GreyImage, candidates: Sequence[tuple[bool, int]], training: dict[int, GreyImage]
) -> int | None:
    """The first of the candidates, places with whether to mirror, whose details are the picture's."""
    ours: dict[bool, Windows] = {}
    for is_mirrored, place in candidates:
        if is_mirrored not in ours:
            ours[is_mirrored] = windows(picture[:, ::-1] if is_mirrored else picture)
        if correlation(ours[is_mirrored], windows(training[place])) >= MIN_CORRELATION:
            return place
    return None


def signs(thumbnails: GreyImage) -> Signs:
    """Perceptual hashes: the signs (N, WAVES**2 - 1) of the lowest waves of the discrete cosine transform.

    thumbnails: (N, SIDE, SIDE). The constant wave, brightness, is left out. After pHash (Zauner, 2010), which
    compares with the waves' median; with zero a mirrored picture's hash needs no second transform.
    """
    cosines = np.cos(np.pi / SIDE * np.outer(np.arange(WAVES), np.arange(SIDE) + 0.5)).astype(np.float32)
    waves = cosines @ thumbnails.astype(np.float32) @ cosines.T
    return np.sign(waves.reshape(len(thumbnails), -1)[:, 1:])


def correlation(ours: Windows, theirs: Windows) -> float:
    """How far the details of one are those of the other, or of a part of it that cropping leaves: 1 is wholly."""
    return float(max((ours @ theirs[0]).max(), (theirs @ ours[0]).max()))


def windows(thumbnail: GreyImage) -> Windows:
    """Details of a picture, then of its parts that cropping may leave: (windows, values), each of norm 1 or 0.

    Details are what blurring takes away: skies and slopes of light, which many pictures share, are not among them.
    """
    image = Image.fromarray(thumbnail)
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
    return np.where(lengths >= MIN_DETAIL * WINDOW_SIDE, values / np.maximum(lengths, 1e-9), 0)


def _repeated(training: Sequence[Record], judged: Sequence[Record]) -> dict[int, tuple[str, str]]:
    """By the place of a judged picture: the training picture that shares a caption's words, and the caption."""
    known: dict[tuple[str, ...], str] = {}
    for record in training:
        for caption in record.captions:
            known.setdefault(tuple(ptb_tokenize(caption)), record.name)
    known.pop((), None)  # captions of punctuation alone say nothing
    found: dict[int, tuple[str, str]] = {}
    for place, record in enumerate(judged):
        for caption in record.captions:
            source = known.get(tuple(ptb_tokenize(caption)))
            if source is not None:
                found.setdefault(place, (source, caption))
    return found


def _listed(names: Sequence[str], shown: int, opening: str = "") -> str:
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return f"{opening}{', '.join(names[:shown])}{more}" if names else ""


def _be(count: int) -> str:
    return "is" if count == 1 else "are"
