"""Splits pictures into training, validation and other parts; all captions of a picture are in the same part.

Lists of names decide first, then the captions file; without either a hash of the picture's name decides.
"""

import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from myllm.data.images import MAX_BYTES
from myllm.data.names import NameIndex
from myllm.data.records import Findings, Record, quantity
from myllm.data.rows import decode_text, split_name
from myllm.data.stored import glob
from myllm.errors import ConfigError, DataError
from myllm.files import Picture, picture_size, read_picture

VAL_SHARE = 0.1
FLICKR8K_LISTS = {"train": "Flickr_8k.trainImages.txt", "val": "Flickr_8k.devImages.txt",
                  "test": "Flickr_8k.testImages.txt"}


def split_records(records: Sequence[Record], findings: Findings) -> dict[str, list[Record]]:
    """Return the records of each split by its name, in the order of `records`. There is always a `train` and a `val`.

    A record's own split decides. Of records without one, a tenth is for validation and the rest for training, by the
    hash of their names; if the data has no split `val`, so is a tenth of its training pictures. If byte-equal pictures
    are in different splits, only the copies of one split stay: those of a test split rather than of `val`, and those of
    `val` rather than of `train`. `findings` lists all of this.
    """
    equal_groups = _equal_groups(records)
    findings.equal_pictures += [" = ".join(record.name for record in group) for group in equal_groups if len(group) > 1]
    split_names = {record.split for record in records if record.split} | set(findings.splits)
    others = sorted(split_names - {"train", "val"})
    groups: dict[str, list[list[Record]]] = {name: [] for name in ("train", "val", *others)}
    undecided: list[list[Record]] = []
    for group in equal_groups:
        winner = min(filter(None, (record.split for record in group)), key=precedence, default=None)
        remaining = [record for record in group if (record.split or "train") == (winner or "train")]
        findings.dropped_copies += [
            f"{record.name} of {record.split or 'train'}, equal to one of {winner}"
            for record in group if record not in remaining
        ]
        if winner is None or (winner == "train" and "val" not in split_names):
            undecided.append(remaining)
        else:
            groups[winner].append(remaining)
    train, val = _split_by_hash(undecided, findings, may_be_empty=bool(groups["val"]))
    groups["train"] += train
    groups["val"] += val
    order = {record.name: index for index, record in enumerate(records)}
    return {
        name: sorted(itertools.chain(*members), key=lambda record: order[record.name])
        for name, members in groups.items()
    }


def check_both_sides(splits: Mapping[str, Sequence[Record]]) -> None:
    """Raise DataError if there are no pictures to train on, or none to validate on."""
    count = sum(map(len, splits.values()))
    for name, purpose in (("train", "train on"), ("val", "validate on")):
        if not splits[name]:
            sizes = ", ".join(f"{len(records):,} in {split}" for split, records in splits.items())
            raise DataError(
                f"the data has no picture to {purpose}: of {quantity(count, 'picture')}, {sizes}"
                + ("; too few different ones, so add pictures" if count < 3 else "")
                + f"; name pictures in splits/{name}.txt, or give other --data"
            )


def copies_left_out_of_training(records: Sequence[Record], splits: Mapping[str, Sequence[Record]]) -> list[Record]:
    """Return the training pictures that `split_records` dropped because a picture of another split has the same bytes.

    A captioner that another program trained has seen them.
    """
    used = {record.name for split in splits.values() for record in split}
    return [record for record in records if record.name not in used and record.split in ("train", None)]


def one_split(splits: Mapping[str, list[Record]], name: str, data: object) -> list[Record]:
    """Return the pictures of a split. Raises ConfigError for an unknown name, and DataError if the split is empty."""
    if name not in splits:
        raise ConfigError(f"--split {name!r}: {data} has {', '.join(splits)}")
    if not splits[name]:
        raise DataError(f"--split {name!r}: {data} has no picture in it; splits are {', '.join(splits)}")
    return splits[name]


def named_splits(
    names: Sequence[str], file_splits: Mapping[str, str | None], root: Path, findings: Findings
) -> dict[str, str | None]:
    """Return the split of each picture of a data folder, None where the hash is to decide.

    file_splits: those in the captions file; lists of names in `splits/NAME.txt`, or Flickr8k's lists, replace them.
    Pictures that no list names are for training, but left out if there is a list of training pictures. Raises DataError
    for a list that is empty, or has a name that fits several pictures.
    """
    lists = split_lists(root)
    split_names = set(lists) or set(filter(None, file_splits.values()))
    findings.splits += sorted(split_names - set(findings.splits))
    rest = "train" if "val" in split_names else None
    if not lists:
        return {name: file_splits[name] or rest for name in names}
    listed = _listed(names, lists, root, findings)
    if "train" in lists:
        findings.in_no_split += [name for name in names if name not in listed]
        return {name: listed[name] for name in names if name in listed}
    return {name: listed.get(name, rest) for name in names}


def picture_digest(picture: Picture) -> str:
    """Return a hash of a picture's bytes. Raises DataError if it cannot be read or is too large for a picture."""
    return hashlib.blake2b(read_picture(picture, MAX_BYTES), digest_size=16).hexdigest()


def name_hash(*parts: object) -> int:
    """Return 64 bits that depend only on the text of `parts`: the same on every machine and in every version."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest())


def precedence(split: str) -> tuple[int, str]:
    """Sort key of splits; of equal pictures the copy in the first split stays. Test splits are before val and train."""
    return {"train": 2, "val": 1}.get(split, 0), split


def split_lists(root: Path) -> dict[str, Path]:
    """Return the lists of a data folder by split."""
    lists = {split_name(path.stem): path for path in glob(root, "splits/*.txt")}
    flickr8k = {split: [*glob(root, name), *glob(root, f"*/{name}")] for split, name in FLICKR8K_LISTS.items()}
    return lists or {split: paths[-1] for split, paths in flickr8k.items() if paths}


def _listed(names: Sequence[str], lists: Mapping[str, Path], root: Path, findings: Findings) -> dict[str, str]:
    """Return the split of each picture that a list names by its path, the end of it, or without its suffix."""
    index = NameIndex(names)
    result: dict[str, str] = {}
    unknown = list[str]()
    for split in sorted(lists, key=precedence):
        lines = [line.strip() for line in decode_text(lists[split]).split("\n")]
        if not any(lines):
            raise DataError(f"{lists[split]}: names no picture; write the name of a picture on each line, or remove it")
        for number, written in enumerate(lines, 1):
            if not written:
                continue
            matches = index.find_path(written)
            if len(matches) > 1:
                raise DataError(
                    f"{lists[split]}: line {number:,}, {written!r}, may be {' or '.join(sorted(matches)[:4])}; write "
                    "the path"
                )
            if not matches:
                unknown.append(f"{written} in {split}")
            for name in matches:
                if result.setdefault(name, split) != split:
                    findings.in_two_splits.append(f"{name} in {split} and {result[name]}, kept in {result[name]}")
    findings.unknown_in_splits += unknown
    if not result:
        raise DataError(
            f"{next(iter(lists.values())).parent}: none of the {len(unknown):,} names, such as {unknown[0]}, is a "
            f"captioned picture, such as {names[0]!r}; write names as in the captions file, or remove the lists"
        )
    return result


def _equal_groups(records: Sequence[Record]) -> list[list[Record]]:
    """Group records by content, in order of the first of each group. Only files of equal size are read."""
    sizes = [picture_size(record.image) for record in records]
    shared = {size for size, count in Counter(sizes).items() if count > 1 and size <= MAX_BYTES}
    groups: dict[str, list[Record]] = defaultdict(list)
    for record, size in zip(records, sizes, strict=True):
        groups[picture_digest(record.image) if size in shared else record.name].append(record)
    return list(groups.values())


def _split_by_hash(
    groups: Iterable[list[Record]], findings: Findings, may_be_empty: bool
) -> tuple[list[list[Record]], list[list[Record]]]:
    """Return training and validation groups, by the hash of a group's first name: a copy added later moves nothing.

    Groups in the lowest tenth of all hashes are for validation. If there is none, the lowest is, so that few pictures
    can be trained on: adding pictures then may replace it, but never makes a training picture one for validation.
    """

    def value(group: list[Record]) -> int:
        return name_hash(group[0].name.removeprefix(group[0].source))

    ranked = sorted(groups, key=value)
    cut = sum(value(group) < VAL_SHARE * 2**64 for group in ranked)
    if cut == 0 and len(ranked) > 1 and not may_be_empty:
        cut = 1
        findings.lone_validation.append(ranked[0][0].name)
    return ranked[cut:], ranked[:cut]
