"""Find judged pictures and captions that are in the training data, too, so that they can be named and left out."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from myllm.data.records import Record
from myllm.data.splits import picture_digest
from myllm.errors import DataError
from myllm.evaluation.copies import Thumbnail, find_copies, thumbnail
from myllm.metrics.ptb import ptb_tokenize
from myllm.progress import Progress, no_progress

Mask = NDArray[np.bool_]

NOT_DETECTED = (
    "Not looked for: copies turned by less than a quarter, or with more than about 15 % of a side cut off or added; "
    "and, of mostly blank pictures such as a shape on white, copies that are cropped, mirrored, turned or grey."
)


@dataclass(frozen=True)
class PicturePair:
    """A judged picture and the training picture that it is a copy of."""

    judged: Record
    training: Record
    is_equal: bool
    """The files are equal byte for byte; otherwise the pictures look alike."""


@dataclass(frozen=True, eq=False)
class Leaks:
    """What N judged pictures share with the training data. If there are several sources, one is named."""

    training: int
    """Number of training pictures searched."""
    pairs: tuple[PicturePair, ...]
    """Copies, in the order of the judged pictures."""
    repeated: tuple[tuple[str, str, str], ...]
    """Names of a judged and a training picture, and a caption of the first that has the words of one of the second."""
    broken: tuple[str, ...]
    """Names of pictures on either side that could not be read, and so were not compared."""
    pictures: Mask
    """(N,): the picture is in the training data."""
    captions: Mask
    """(N,): one of the picture's captions is in the training data, word for word."""

    @property
    def equal(self) -> tuple[tuple[str, str], ...]:
        """Names of judged and training pictures with the same bytes."""
        return tuple((pair.judged.name, pair.training.name) for pair in self.pairs if pair.is_equal)

    @property
    def alike(self) -> tuple[tuple[str, str], ...]:
        """Names of judged and training pictures that are copies by their looks, but not by bytes."""
        return tuple((pair.judged.name, pair.training.name) for pair in self.pairs if not pair.is_equal)

    def lines(self, shown: int = 3) -> list[str]:
        """Return sentences for people, with the first few names of each kind."""
        if not self.training:
            return ["The training pictures are not known, so leaks cannot be looked for."]
        total, count = f"{len(self.pictures):,}", len(self.pairs)
        kinds = (
            _listed([f"{judged} = {trained}" for judged, trained in self.equal], shown, "same bytes: "),
            _listed([f"{judged} ~ {trained}" for judged, trained in self.alike], shown, "alike: "),
        )
        if count:
            verb, named = "is" if count == 1 else "are", "; ".join(filter(None, kinds))
            first = f"{count:,} of {total} pictures {verb} in the training data, too ({named})."
        else:
            first = f"None of {total} pictures is a copy of one of the {self.training:,} in the training data."
        examples = [f"{caption!r} of {judged} and {trained}" for judged, trained, caption in self.repeated]
        named = f" ({_listed(examples, shown)})" if examples else ""
        lines = [
            f"{first} {NOT_DETECTED}",
            f"Pictures that share a caption with the training data, word for word: {int(self.captions.sum()):,} of "
            f"{total}{named}.",
        ]
        if self.broken:
            count = len(self.broken)
            verb = "was" if count == 1 else "were"
            lines.append(f"{count:,} could not be read and {verb} not compared ({_listed(self.broken, shown)}).")
        return lines


def find_leaks(training: Sequence[Record], judged: Sequence[Record], progress: Progress = no_progress) -> Leaks:
    """Find judged pictures that are copies of training pictures, and judged captions that are training captions.

    Copies are found by bytes, then by looks: resaved, resized, relit, grey, mirrored, turned by quarters or cropped;
    docs/evaluation.md says how reliably.
    """
    pictures, captions = np.zeros(len(judged), dtype=np.bool_), np.zeros(len(judged), dtype=np.bool_)
    if not training:
        return Leaks(0, (), (), (), pictures, captions)
    read = list(_read_all([*training, *judged], progress))
    trained, own = read[: len(training)], read[len(training) :]
    sources = {entry[0]: index for index, entry in reversed(list(enumerate(trained))) if entry}
    equal = {index: sources[entry[0]] for index, entry in enumerate(own) if entry and entry[0] in sources}
    others = {index: entry[1] for index, entry in enumerate(own) if entry and index not in equal}
    alike = dict(find_copies(others, {index: entry[1] for index, entry in enumerate(trained) if entry}))
    repeated = _repeated_captions(training, judged)
    pictures[[*equal, *alike]] = True
    captions[[*repeated]] = True
    return Leaks(
        training=len(training),
        pairs=tuple(
            PicturePair(judged[index], training[source], index in equal)
            for index, source in sorted((equal | alike).items())
        ),
        repeated=tuple((judged[index].name, *source) for index, source in repeated.items()),
        broken=tuple(r.name for r, entry in zip([*training, *judged], read, strict=True) if entry is None),
        pictures=pictures,
        captions=captions,
    )


def _read_all(records: Sequence[Record], progress: Progress) -> Iterator[tuple[str, Thumbnail] | None]:
    """Yield each picture's digest and thumbnail; None for those that cannot be read."""
    with ThreadPoolExecutor() as pool:
        for done, entry in enumerate(pool.map(_read, records), start=1):
            progress("looking for leaks", done, len(records))
            yield entry


def _read(record: Record) -> tuple[str, Thumbnail] | None:
    try:
        return picture_digest(record.image), thumbnail(record.image)
    except (DataError, OSError):
        return None


def _repeated_captions(training: Sequence[Record], judged: Sequence[Record]) -> dict[int, tuple[str, str]]:
    """Return, by index of a judged picture, the training picture that shares a caption's words, and the caption."""
    known: dict[tuple[str, ...], str] = {}
    for record in training:
        for caption in record.captions:
            known.setdefault(tuple(ptb_tokenize(caption)), record.name)
    known.pop((), None)  # captions of punctuation only
    repeated: dict[int, tuple[str, str]] = {}
    for index, record in enumerate(judged):
        for caption in record.captions:
            source = known.get(tuple(ptb_tokenize(caption)))
            if source is not None:
                repeated.setdefault(index, (source, caption))
    return repeated


def _listed(names: Sequence[str], shown: int, opening: str = "") -> str:
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return f"{opening}{', '.join(names[:shown])}{more}" if names else ""
