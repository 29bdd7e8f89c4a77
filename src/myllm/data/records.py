"""A picture with its captions, and the unusual findings in a data set."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from myllm.files import Picture

MAX_NAMES = 3


@dataclass(frozen=True)
class Record:
    """A picture with all its captions."""

    name: str
    """The picture's identity: its path relative to the data, with '/' and in Unicode NFC."""
    image: Picture
    """Where its bytes are."""
    captions: tuple[str, ...]
    split: str | None = None
    """The split that the data itself puts it into; None: the hash of its name decides."""
    source: str = ""
    """What the name begins with if several data folders are mixed, like "flickr8k/"."""


def _finding(noun: str, fault: str, plural: str = "") -> list[str]:
    return field(default_factory=list, metadata={"phrases": (f"{noun} {fault}", f"{plural or noun + 's'} {fault}")})


@dataclass
class Findings:
    """What is unusual in the data, by kind. Each list holds the names of pictures, or lines of a file."""

    recovered_rows: list[str] = _finding("row", "recovered")
    unreadable_rows: list[str] = _finding("row", "unreadable and left out")
    empty_captions: list[str] = _finding("empty caption", "left out")
    missing_pictures: list[str] = _finding("captioned picture", "missing")
    unused_pictures: list[str] = _finding("picture", "without captions")
    broken_pictures: list[str] = _finding("broken picture", "left out")
    equal_pictures: list[str] = _finding("group", "of byte-equal pictures")
    dropped_copies: list[str] = _finding("copy", "dropped, as another split has the picture", plural="copies")
    in_two_splits: list[str] = _finding("picture", "named in two splits")
    in_no_split: list[str] = _finding("picture", "in no split and left out")
    unknown_in_splits: list[str] = _finding("unknown picture", "named in splits")
    lone_validation: list[str] = _finding("picture", "for validation, as no name's hash is in the lowest tenth")
    cut_archives: list[str] = _finding("archive", "that is cut or damaged, of which the whole members are used")
    left_out_members: list[str] = _finding("archive member", "left out")
    cut_captions: list[str] = _finding("caption", "cut at the context's end")
    not_english: list[str] = _finding(
        "caption", "not known to be English, so that no picture is flipped and no hue is shifted"
    )
    repaired_features: list[str] = _finding("damaged feature", "recomputed")
    formats: list[str] = field(default_factory=list, compare=False)
    """What was read, like "Karpathy JSON: dataset.json". This and `splits` are nothing unusual, and not in `lines`."""
    splits: list[str] = field(default_factory=list, compare=False)
    """Splits that the data itself names, even if none of their pictures is there."""

    def lines(self) -> list[str]:
        """Return a sentence for each kind of finding: how many there are, and the first names."""
        return [
            counted(names, *kind.metadata["phrases"])
            for kind in fields(self) if kind.metadata and (names := getattr(self, kind.name))
        ]


def quantity(count: int, noun: str) -> str:
    """Return '1 picture' or '2,000 pictures'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def counted(names: Sequence[str], singular: str, plural: str) -> str:
    """Return how many names there are, with the noun in the right number and the first `MAX_NAMES` names."""
    more = f", and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else ""
    return f"{len(names):,} {plural if len(names) > 1 else singular} ({'; '.join(names[:MAX_NAMES])}{more})"
