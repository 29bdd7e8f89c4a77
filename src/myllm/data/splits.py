"""Splits pictures into training, validation and other parts; all captions of a picture are in the same part.

Files `splits/*.txt` decide; without them a hash of the file's name does, so that adding pictures moves none.
"""

import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from myllm.data.images import MAX_BYTES
from myllm.data.records import Findings, Record, decode_text
from myllm.errors import ConfigError, DataError
from myllm.files import read_data

VAL_SHARE = 0.1


def split_records(records: Sequence[Record], folder: Path, findings: Findings) -> dict[str, list[Record]]:
    """Return the records of each split by its name, in the order of `records`. There is always a `train` and a `val`.

    Files `splits/NAME.txt` hold a picture's name on each line. Without train.txt, all pictures that no file names are
    for training. Without val.txt, a tenth of the training pictures are for validation instead, chosen by the hash of
    their names. If byte-equal pictures are in different splits, only the copies of one split stay: those of a test
    split rather than of `val`, and those of `val` rather than of `train`. `findings` lists all of this.
    Raises DataError if there are too few pictures for both sides, or a split file cannot be read.
    """
    equal_groups = _equal_groups(records)
    findings.equal_pictures += [" = ".join(record.name for record in group) for group in equal_groups if len(group) > 1]
    split_of = _official(records, folder, findings)
    files = {path.stem for path in _split_files(folder)}
    groups: dict[str, list[list[Record]]] = {name: [] for name in ("train", "val", *sorted(files - {"train", "val"}))}
    for group in equal_groups:
        winner = min(filter(None, (split_of[record.image] for record in group)), key=_precedence, default=None)
        if winner is not None:
            groups[winner].append([record for record in group if split_of[record.image] == winner])
        for record in group:
            split = split_of[record.image]
            if split is None:
                findings.in_no_split.append(record.name)
            elif split != winner:
                findings.dropped_copies.append(f"{record.name} of {split}, equal to one of {winner}")
    if "val" not in files:
        groups["train"], groups["val"] = _split_by_hash(groups["train"])
        if not files and not groups["val"]:
            raise DataError(
                f"{folder}: {len(records)} picture{'s' * (len(records) != 1)}, too few different ones "
                "to train on some and validate on others; add pictures"
            )
    order = {record.image: index for index, record in enumerate(records)}
    return {
        name: sorted(itertools.chain(*members), key=lambda record: order[record.image])
        for name, members in groups.items()
    }


def copies_left_out_of_training(
    records: Sequence[Record], folder: Path, splits: Mapping[str, Sequence[Record]]
) -> list[Record]:
    """Return the training pictures that `split_records` dropped because a picture of another split has the same bytes.

    A captioner that another program trained has seen them.
    """
    used = {record.image for split in splits.values() for record in split}
    split_of = _official(records, folder, Findings())
    return [record for record in records if record.image not in used and split_of[record.image] == "train"]


def one_split(splits: Mapping[str, list[Record]], name: str, folder: Path) -> list[Record]:
    """Return the pictures of a split. Raises ConfigError for an unknown name, and DataError if the split is empty."""
    if name not in splits:
        raise ConfigError(f"--split {name!r}: {folder} has {', '.join(splits)}")
    if not splits[name]:
        raise DataError(f"--split {name!r}: {folder} has no picture in it; splits are {', '.join(splits)}")
    return splits[name]


def picture_digest(path: Path) -> str:
    """Return a hash of the file's bytes. Raises DataError if it cannot be read or is too large for a picture."""
    return hashlib.blake2b(read_data(path, MAX_BYTES), digest_size=16).hexdigest()


def name_hash(*parts: object) -> int:
    """Return 64 bits that depend only on the text of `parts`: the same on every machine and in every version."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest())


def _precedence(split: str) -> tuple[int, str]:
    """Sort key of splits; of equal pictures the copy in the first split stays. Test splits are before val and train."""
    return {"train": 2, "val": 1}.get(split, 0), split


def _split_files(folder: Path) -> list[Path]:
    return sorted((folder / "splits").glob("*.txt"))


def _official(records: Sequence[Record], folder: Path, findings: Findings) -> dict[Path, str | None]:
    """Return the split of each picture, None if it is in none; without train.txt, the rest is for training."""
    named: dict[str, str] = {}
    files = sorted(_split_files(folder), key=lambda path: _precedence(path.stem))
    for path in files:
        for name in filter(None, map(str.strip, decode_text(path).split("\n"))):
            if named.setdefault(name, path.stem) != path.stem:
                findings.in_two_splits.append(f"{name} in {path.stem} and {named[name]}, kept in {named[name]}")
    known = {record.name for record in records}
    findings.unknown_in_splits += [f"{name} in {split}" for name, split in named.items() if name not in known]
    if named and not known & named.keys():
        raise DataError(
            f"{folder / 'splits'}: none of the {len(named):,} names, such as {next(iter(named))!r}, is a captioned "
            f"picture, such as {records[0].name!r}; give file names as in the captions file, or remove the folder"
        )
    rest = None if any(path.stem == "train" for path in files) else "train"
    return {record.image: named.get(record.name, rest) for record in records}


def _equal_groups(records: Sequence[Record]) -> list[list[Record]]:
    """Group records by content, in order of the first of each group. Only files of equal size are read."""
    sizes = [record.image.stat().st_size for record in records]
    shared = {size for size, count in Counter(sizes).items() if count > 1 and size <= MAX_BYTES}
    groups: dict[str, list[Record]] = defaultdict(list)
    for record, size in zip(records, sizes, strict=True):
        groups[picture_digest(record.image) if size in shared else str(record.image)].append(record)
    return list(groups.values())


def _split_by_hash(groups: Iterable[list[Record]]) -> tuple[list[list[Record]], list[list[Record]]]:
    """Return training and validation groups, by the hash of a group's first name: a copy added later moves nothing."""
    ranked = sorted(groups, key=lambda group: name_hash(group[0].name))
    cut = sum(name_hash(group[0].name) < VAL_SHARE * 2**64 for group in ranked)
    if len(ranked) >= 2:  # all of a few pictures may have hashes of one side
        cut = min(max(cut, 1), len(ranked) - 1)
    return ranked[cut:], ranked[:cut]
