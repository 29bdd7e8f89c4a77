"""Divides pictures into splits by the hash of their names, and writes the lists that `myllm train` reads."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from myllm.data.records import Record
from myllm.data.splits import name_hash
from myllm.errors import ConfigError, DataError
from myllm.files import atomic_folder

Groups = Sequence[Sequence[Record]]


def divide(groups: Groups, shares: Mapping[str, float], seed: int) -> dict[str, list[Record]]:
    """Return the records of `train` and of each split in `shares`: about that share of the groups, and at least one.

    A group's split depends on the seed and the group's shortest name only. Raises DataError for too few groups.

    shares: of `val` and `test`. `val` takes the lowest hashes and `test` the highest, so that changing one share only
    moves pictures between that split and `train`.
    """
    ranked = sorted(groups, key=lambda group: _position(group, seed))
    positions = [_position(group, seed) for group in ranked]
    # a split with a share gets at least one group
    counts = {
        "val": max(sum(position < shares.get("val", 0) for position in positions), shares.get("val", 0) > 0),
        "test": max(sum(position >= 1 - shares.get("test", 0) for position in positions), shares.get("test", 0) > 0),
    }
    end, start = counts["val"], len(ranked) - counts["test"]
    if end >= start:
        raise DataError(
            f"the data has {len(ranked):,} pictures that are not copies of each other: too few to divide them into "
            f"train and {' and '.join(name for name, count in counts.items() if count)}; add pictures"
        )
    parts = {"train": ranked[end:start], "val": ranked[:end], "test": ranked[start:]}
    return {
        name: sorted((record for group in part for record in group), key=lambda record: record.name)
        for name, part in parts.items() if part
    }


def _position(group: Sequence[Record], seed: int) -> float:
    """Return a number from 0 to 1 that depends on the seed and the group's shortest name.

    The shortest, because copies that are added later tend to have longer names: 1.jpg and 1-small.jpg. With seed 0, a
    tenth for val is the split of `split_records` without lists.
    """
    record = min(group, key=lambda record: (len(record.name), record.name))
    name = record.name.removeprefix(record.source)
    return name_hash(*([seed] if seed else []), name) / 2**64


def check_no_lists(folder: Path, overwrite: bool) -> None:
    """Raise ConfigError if the folder has lists that may not be replaced, or other files, which would be lost."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else [folder] if folder.exists() else []
    others = [entry.name for entry in entries if entry.suffix != ".txt" or entry.is_dir()]
    if others:
        raise ConfigError(f"{folder} holds {others[0]}, which is not a list of a split; give another --out")
    if entries and not overwrite:
        raise ConfigError(
            f"{folder} holds {', '.join(entry.name for entry in entries[:4])} already; replace the lists by "
            "--overwrite, or give another --out"
        )


def write_lists(splits: Mapping[str, Sequence[Record]], folder: Path) -> None:
    """Write a list of names for each split; the lists that the folder had are replaced, all at once.

    Raises DataError for a name that a list cannot hold, or of a split that cannot be a file's.
    """
    texts = {name: list_text(name, records) for name, records in splits.items()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part") as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        with atomic_folder(new) as part:
            for name, text in texts.items():
                (part / f"{name}.txt").write_text(text, encoding="utf-8", newline="\n")
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise


def list_text(split: str, records: Sequence[Record]) -> str:
    """Return the text of a split's list: a name on each line. Raises DataError if a name cannot be read back."""
    if not split or Path(split).name != split or "\\" in split:
        raise DataError(f"the split {split!r} cannot be the name of a list; give it a name without '/'")
    for record in records:
        if "\n" in record.name or "\r" in record.name:
            raise DataError(f"picture {record.name!r}: a list cannot hold a name with a line end; rename the picture")
    return "".join(f"{record.name}\n" for record in records)
