"""Read all pictures of a data set once: which are broken, and which are copies of each other, by bytes and by looks."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from myllm.data.records import Record
from myllm.data.splits import picture_digest
from myllm.errors import DataError
from myllm.evaluation.copies import Thumbnail, find_pairs, thumbnail
from myllm.progress import Progress, no_progress

Pair = tuple[Record, Record]
Read = tuple[str, Thumbnail]
"""Hash of a picture's bytes, and its thumbnail."""


@dataclass(frozen=True)
class Copies:
    """What N pictures share."""

    equal: tuple[tuple[Record, ...], ...]
    """Groups of pictures with the same bytes."""
    alike: tuple[Pair, ...]
    """Pictures that look like copies of each other, though their bytes differ; of equal pictures the first is named."""
    compared: int
    """Number of pictures with different bytes whose looks were compared; 0 if none were."""
    broken: Mapping[str, str]
    """Why pictures cannot be read, by their names."""

    @property
    def pairs(self) -> list[Pair]:
        """Pairs of copies that connect each group."""
        return [(group[0], copy) for group in self.equal for copy in group[1:]] + list(self.alike)


def find_copy_groups(records: Sequence[Record], looks: int | None, progress: Progress = no_progress) -> Copies:
    """Read all pictures, and find copies among them.

    looks: compare the looks of at most this many pictures, the first; None: of all. The time is proportional to the
    square of this number.
    """
    broken, thumbnails = dict[str, str](), dict[str, Thumbnail]()
    by_digest = defaultdict[str, list[Record]](list)
    for record, result in zip(records, read_pictures(records, "reading pictures", progress), strict=True):
        if isinstance(result, str):
            broken[record.name] = result
        else:
            digest, small = result
            by_digest[digest].append(record)
            if looks is None or len(thumbnails) < looks:
                thumbnails.setdefault(digest, small)
    firsts = [group[0] for group in by_digest.values()]  # in the order of `thumbnails`
    pairs = find_pairs(list(thumbnails.values()), progress)
    similar = tuple((firsts[index], firsts[other]) for index, other in pairs)
    equal = tuple(tuple(group) for group in by_digest.values() if len(group) > 1)
    return Copies(equal, similar, len(thumbnails), broken)


def group_copies(records: Iterable[Record], pairs: Iterable[Pair]) -> list[list[Record]]:
    """Return the records in groups: those that a chain of pairs connects are in one. Most groups have one record."""
    groups = {record.name: [record] for record in records}
    for a, b in pairs:
        group, other = groups[a.name], groups[b.name]
        if group is not other:
            group += other
            groups |= {record.name: group for record in other}
    return list({id(group): group for group in groups.values()}.values())


def read_pictures(records: Sequence[Record], job: str, progress: Progress) -> Iterator[Read | str]:
    """Yield each picture's hash and thumbnail, or why it cannot be read. job: what `progress` shows."""
    with ThreadPoolExecutor() as pool:
        for done, result in enumerate(pool.map(_read, records), start=1):
            progress(job, done, len(records))
            yield result


def _read(record: Record) -> Read | str:
    try:
        return picture_digest(record.image), thumbnail(record.image)
    except (DataError, OSError) as error:
        return str(error)
