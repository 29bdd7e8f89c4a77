"""Which picture trains and which judges: by picture, never by caption, and the same for ever.

Official `splits/*.txt` decide where there are any, else a hash of the file's name, so that adding pictures moves none.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from myllm.data.records import Findings, Record
from myllm.errors import ConfigError, DataError

VAL_SHARE = 0.1


def split_records(
    records: Sequence[Record], folder: Path, findings: Findings, val_share: float = VAL_SHARE
) -> dict[str, list[Record]]:
    """Records of each split by its name, `train` and `val` always among them, in the order of `records`.

    Files `splits/NAME.txt` hold a picture's name a line. Without train.txt, all that no other file names trains;
    without val.txt, a share of the training pictures, chosen by the hash of their names, validates. Of byte-equal
    pictures in different splits the copy that judges stays and the other is dropped. All of this goes into `findings`.
    Raises DataError where there are too few pictures to have both sides, or a split file can't be read.
    """
    groups = _equal_groups(records)
    findings.equal_pictures += [" = ".join(record.name for record in group) for group in groups if len(group) > 1]
    official = _official(records, folder, findings)
    files = {path.stem for path in _split_files(folder)}
    rest = None if "train" in files else "train"
    sides: dict[str, list[Record]] = {name: [] for name in ("train", "val", *sorted(files - {"train", "val"}))}
    for group in groups:
        named = [(record, official.get(record.image, rest)) for record in group]
        winner = min((side for _, side in named if side), key=_precedence, default=None)
        for record, side in named:
            if side is None:
                findings.in_no_split.append(record.name)
            elif side == winner:
                sides[side].append(record)
            else:
                findings.dropped_copies.append(f"{record.name} of {side}, equal to one of {winner}")
    if "val" not in files:
        sides["train"], sides["val"] = _by_hash(sides["train"], groups, val_share)
        if not files and not sides["val"]:
            raise DataError(
                f"{folder}: {len(records)} picture{'s' * (len(records) != 1)}, too few different ones "
                "to train on some and validate on others; add pictures"
            )
    place = {record.image: index for index, record in enumerate(records)}
    return {name: sorted(side, key=lambda record: place[record.image]) for name, side in sides.items()}


def copies_left_out_of_training(
    records: Sequence[Record], folder: Path, splits: Mapping[str, Sequence[Record]]
) -> list[Record]:
    """Return the training pictures that `split_records` dropped because a judged picture has the same bytes.

    Other programs train on them.
    """
    used = {record.image for side in splits.values() for record in side}
    official = _official(records, folder, Findings())
    rest = None if any(path.stem == "train" for path in _split_files(folder)) else "train"
    return [r for r in records if r.image not in used and official.get(r.image, rest) == "train"]


def one_split(splits: Mapping[str, list[Record]], name: str, folder: Path) -> list[Record]:
    """The pictures of a split. Raises ConfigError where there is none of the name, and DataError where it is empty."""
    if name not in splits:
        raise ConfigError(f"--split {name!r}: {folder} has {', '.join(splits)}")
    if not splits[name]:
        raise DataError(f"--split {name!r}: {folder} has no picture in it; splits are {', '.join(splits)}")
    return splits[name]


def picture_digest(path: Path) -> str:
    """Equal for byte-equal files, and for no others."""
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def name_hash(*parts: object) -> int:
    """64 bits that depend on the text of `parts` alone: the same on every machine, in every version."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest())


def _precedence(split: str) -> tuple[int, str]:
    """Whose copy of a picture stays: what is judged last and most seldom keeps its pictures."""
    return {"train": 2, "val": 1}.get(split, 0), split


def _split_files(folder: Path) -> list[Path]:
    return sorted((folder / "splits").glob("*.txt"))


def _official(records: Sequence[Record], folder: Path, findings: Findings) -> dict[Path, str]:
    """The split of each picture that a file names."""
    named: dict[str, str] = {}
    for path in sorted(_split_files(folder), key=lambda path: _precedence(path.stem)):
        try:
            names = path.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read ({error}); expected a file name a line in UTF-8") from None
        for name in filter(None, (line.strip() for line in names)):
            if named.setdefault(name, path.stem) != path.stem:
                findings.in_two_splits.append(f"{name} in {path.stem} and {named[name]}, kept in {named[name]}")
    known = {record.name for record in records}
    findings.unknown_in_splits += [f"{name} in {split}" for name, split in named.items() if name not in known]
    if named and not known & named.keys():
        raise DataError(
            f"{folder / 'splits'}: none of the {len(named):,} names, such as {next(iter(named))!r}, is a captioned "
            f"picture, such as {records[0].name!r}; give file names as in the captions file, or remove the folder"
        )
    return {record.image: named[record.name] for record in records if record.name in named}


def _equal_groups(records: Sequence[Record]) -> list[list[Record]]:
    """Records by content, in order of their first. Only files of equal size are read."""
    sizes = [record.image.stat().st_size for record in records]
    shared = {size for size, count in Counter(sizes).items() if count > 1}
    groups: dict[str, list[Record]] = defaultdict(list)
    for record, size in zip(records, sizes, strict=True):
        groups[picture_digest(record.image) if size in shared else str(record.image)].append(record)
    return list(groups.values())


def _by_hash(
    train: Sequence[Record], groups: Iterable[Sequence[Record]], val_share: float
) -> tuple[list[Record], list[Record]]:
    """A group goes where its first record's name says, so that a copy added later moves nothing."""
    members = {record.image for record in train}
    inside = [[record for record in group if record.image in members] for group in groups]
    ranked = sorted((group for group in inside if group), key=lambda group: name_hash(group[0].name))
    cut = sum(name_hash(group[0].name) < val_share * 2**64 for group in ranked)
    if len(ranked) >= 2:  # a handful of pictures may fall on one side by chance
        cut = min(max(cut, 1), len(ranked) - 1)
    flat = [[record for group in part for record in group] for part in (ranked[cut:], ranked[:cut])]
    return flat[0], flat[1]
