"""Find judged pictures and captions that are in the training data, too, so that they can be named and left out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from myllm.data.records import Record, quantity
from myllm.evaluation.copies import find_copies
from myllm.evaluation.copy_groups import read_pictures
from myllm.metrics.ptb import ptb_tokenize
from myllm.progress import Progress, no_progress

Mask = NDArray[np.bool_]

NOT_DETECTED = (
    "Not looked for: copies turned by less than a quarter, or with more than about 15 % of a side cut off or added; "
    "and, of mostly blank pictures such as a shape on white, copies that are cropped, mirrored, turned or grey."
)


@dataclass(frozen=True)
class PicturePair:
    """A judged picture, and a training picture of which it is a copy."""

    judged: Record
    training: Record
    is_equal: bool
    """The files are equal byte for byte; otherwise the pictures look alike."""


@dataclass(frozen=True, eq=False)
class Leaks:
    """What N judged pictures share with the training data; of several equal training pictures one is named."""

    training: int
    """Number of training pictures searched."""
    pairs: tuple[PicturePair, ...]
    """Copies, in the order of the judged pictures."""
    repeated: tuple[tuple[str, str, str], ...]
    """(judged picture, training picture, caption): names, and a caption that both have, word for word."""
    broken: tuple[str, ...]
    """Names of judged and training pictures that could not be read and so were not compared."""
    pictures: Mask
    """(N,): the picture is in the training data."""
    captions: Mask
    """(N,): one of the picture's captions is in the training data, word for word."""

    def as_json(self) -> dict[str, Any]:
        """Return the entries for metrics.json: the shared pictures and captions, by their names."""
        shared = {"equal": self.equal, "alike": self.alike, "repeated_captions": self.repeated}
        return {"training_pictures": self.training, **shared}

    @property
    def equal(self) -> tuple[tuple[str, str], ...]:
        """Names of judged and training pictures with the same bytes."""
        return tuple((pair.judged.name, pair.training.name) for pair in self.pairs if pair.is_equal)

    @property
    def alike(self) -> tuple[tuple[str, str], ...]:
        """Names of judged and training pictures that are copies by their looks, but not by bytes."""
        return tuple((pair.judged.name, pair.training.name) for pair in self.pairs if not pair.is_equal)

    def lines(self, shown: int = 3) -> list[str]:
        """Return sentences, with the first `shown` names of each kind."""
        if not self.training:
            return ["The training pictures are not known, so leaks cannot be looked for."]
        total, count, broken = quantity(len(self.pictures), "picture"), len(self.pairs), len(self.broken)
        first = f"None of {total} is a copy of one of the {self.training:,} in the training data."
        if count:
            equal = _listed([f"{judged} = {trained}" for judged, trained in self.equal], shown, "same bytes: ")
            similar = _listed([f"{judged} ~ {trained}" for judged, trained in self.alike], shown, "alike: ")
            named = "; ".join(filter(None, (equal, similar)))
            verb = "is" if count == 1 else "are"
            first = f"{count:,} of {total} {verb} in the training data, too ({named})."
        examples = [f"{caption!r} of {judged} and {trained}" for judged, trained, caption in self.repeated]
        named = f" ({_listed(examples, shown)})" if examples else ""
        shared = f"word for word: {int(self.captions.sum()):,} of {len(self.captions):,}{named}."
        lines = [f"{first} {NOT_DETECTED}", f"Pictures that share a caption with the training data, {shared}"]
        if broken:
            verb = "was" if broken == 1 else "were"
            lines.append(f"{broken:,} could not be read and {verb} not compared ({_listed(self.broken, shown)}).")
        return lines


def find_leaks(training: Sequence[Record], judged: Sequence[Record], progress: Progress = no_progress) -> Leaks:
    """Find judged pictures that are copies of training pictures, and judged captions that are training captions.

    Copies are found by bytes, then by looks: resaved, resized, relit, grey, mirrored, turned by quarters or cropped;
    docs/evaluation.md says how reliably.
    """
    pictures, captions = np.zeros(len(judged), dtype=np.bool_), np.zeros(len(judged), dtype=np.bool_)
    if not training:
        return Leaks(0, (), (), (), pictures, captions)
    records = [*training, *judged]
    results = read_pictures(records, "looking for leaks", progress)
    read = [None if isinstance(result, str) else result for result in results]
    known = {index: entry for index, entry in enumerate(read[: len(training)]) if entry}
    readable = {index: entry for index, entry in enumerate(read[len(training) :]) if entry}
    sources = {digest: index for index, (digest, _) in reversed(known.items())}
    sources_of = {index: sources[digest] for index, (digest, _) in readable.items() if digest in sources}
    equal = set(sources_of)
    others = {index: small for index, (_, small) in readable.items() if index not in equal}
    sources_of |= find_copies(others, {index: small for index, (_, small) in known.items()})
    repeated = _repeated_captions(training, judged)
    pictures[[*sources_of]] = True
    captions[[*repeated]] = True
    return Leaks(
        len(training),
        tuple(PicturePair(judged[i], training[source], i in equal) for i, source in sorted(sources_of.items())),
        tuple((judged[index].name, *source) for index, source in repeated.items()),
        tuple(record.name for record, entry in zip(records, read, strict=True) if entry is None),
        pictures, captions,
    )


def _repeated_captions(training: Sequence[Record], judged: Sequence[Record]) -> dict[int, tuple[str, str]]:
    """Return, by index of a judged picture, the training picture that shares a caption's words, and the caption."""
    # Both loops run backwards, so that the first picture and the first caption overwrite later ones.
    known = {tuple(ptb_tokenize(c)): record.name for record in reversed(training) for c in record.captions}
    known.pop((), None)  # captions of punctuation only
    return {
        index: (known[words], caption)
        for index, record in enumerate(judged)
        for caption in reversed(record.captions)
        if (words := tuple(ptb_tokenize(caption))) in known
    }


def _listed(names: Sequence[str], limit: int, opening: str = "") -> str:
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return f"{opening}{', '.join(names[:limit])}{more}" if names else ""
