"""Writes records in another format, so that reading the result gives the same names, captions and splits.

A new format is a function that writes into a folder, and a line in `WRITERS`.
"""

import csv
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from myllm.batched import batched
from myllm.config import CaptionsConfig
from myllm.data.images import MAX_BYTES, PICTURE_SUFFIXES, suffix_of_content
from myllm.data.records import Record
from myllm.data.sources import read_records
from myllm.data.split_lists import list_text
from myllm.data.tables import import_pyarrow
from myllm.errors import DataError
from myllm.files import atomic_folder, picture_size, read_picture
from myllm.progress import Progress, no_progress

IMAGES = "images"
SHARD_BYTES = 2**28
"""Size from which a tar or Parquet file is followed by another."""
PICTURES_IN_ROW_GROUP = 100

Write = Callable[[Sequence[Record], Path, Progress], None]


class Writer(NamedTuple):
    """How a format is written."""

    write: Write
    needs_suffix: bool
    """Whether a picture's name in this format is a file name, which ends with a suffix."""


def convert(records: Sequence[Record], to: str, out: Path, progress: Progress = no_progress) -> list[str]:
    """Write the records into a new folder in the format `to`; return how names changed, see `portable_records`.

    The folder appears when it is complete and was read back. Raises ConfigError if it exists, and DataError if the
    format cannot hold the names, captions or splits.
    """
    writer = WRITERS[to]
    portable, changes = portable_records(records, writer.needs_suffix)
    with atomic_folder(out) as part:
        writer.write(portable, part, progress)
        if to not in ("webdataset", "parquet"):
            _check_result(portable, part, to)
    return changes


def _check_result(records: Sequence[Record], folder: Path, to: str) -> None:
    """Raise DataError if reading the folder gives other names, captions or splits than those of the records."""
    expected, (result, _) = _contents(records), read_records(folder, CaptionsConfig(lowercase=False))
    contents = _contents(result)
    for name in expected | contents:
        if (before := expected.get(name)) != (after := contents.get(name)):
            raise DataError(
                f"picture {name} has {before} (captions, split) in the data, and would have {after} as {to}; choose "
                "another format with --to, or rename the picture"
            )


def _contents(records: Sequence[Record]) -> dict[str, tuple[tuple[str, ...], str | None]]:
    return {record.name: (record.captions, record.split) for record in records}


def portable_records(records: Sequence[Record], needs_suffix: bool) -> tuple[list[Record], list[str]]:
    """Return the records with names that are paths inside the data, and each change as 'OLD is now NEW'.

    needs_suffix: names without a picture's suffix get their picture's. Names that begin with '/' or '..' lose
    this. Either way a list that has the old name still finds the picture. Raises DataError if two names become one.
    """
    result, changes, names = list[Record](), list[str](), dict[str, str]()
    for record in records:
        path = PurePosixPath(record.name)
        parts = [part for part in path.parts if part not in (path.anchor, "..")]
        name = "/".join(parts) + picture_suffix(record) * needs_suffix
        other = names.setdefault(name, record.name)
        if other != record.name or not parts:
            raise DataError(f"{record.name} and {other} would both be called {name}; rename one of them")
        changes += [f"{record.name} is now {name}"] if name != record.name else []
        result.append(replace(record, name=name, source=""))
    return result, changes


def picture_suffix(record: Record) -> str:
    """Return the suffix that a picture's name lacks: its file's or its format's; empty if it has one."""
    name_suffix, file_suffix = (PurePosixPath(str(path)).suffix for path in (record.name, record.image))
    if name_suffix.lower() in PICTURE_SUFFIXES:
        return ""
    return file_suffix if file_suffix.lower() in PICTURE_SUFFIXES else suffix_of_content(record.image)


def picture_bytes(record: Record) -> bytes:
    """Return the content of a picture's file. Raises DataError if it cannot be read."""
    return read_picture(record.image, MAX_BYTES)


def write_csv(records: Sequence[Record], folder: Path, progress: Progress) -> None:
    """Write captions.csv with a row for each caption, and the pictures in images/."""
    has_splits = any(record.split for record in records)
    with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(["image", "caption", *["split"] * has_splits])
        for record in records:
            for caption in record.captions:
                # a cell that is a JSON list of texts holds several captions
                is_like_list = caption.startswith('["') and caption.endswith('"]')
                cell = json.dumps([caption]) if is_like_list else caption
                writer.writerow([record.name, cell, *[record.split or ""] * has_splits])
    copy_pictures(records, folder / IMAGES, progress)


def write_jsonl(records: Sequence[Record], folder: Path, progress: Progress) -> None:
    """Write captions.jsonl with an object for each picture, and the pictures in images/."""
    has_splits = any(record.split for record in records)
    with (folder / "captions.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        for record in records:
            row = {"image": record.name, "captions": record.captions, **({"split": record.split} if has_splits else {})}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    copy_pictures(records, folder / IMAGES, progress)


def write_sidecars(records: Sequence[Record], folder: Path, progress: Progress) -> None:
    """Write each picture with a .txt next to it, a caption on each line, and the lists of splits."""
    copy_pictures(records, folder, progress)
    for record, sidecar in zip(records, sidecar_names(records), strict=True):
        with (folder / sidecar).open("x", encoding="utf-8", newline="\n") as file:
            file.write(caption_lines(record))
    write_split_lists(records, folder)


def write_webdataset(
    records: Sequence[Record], folder: Path, progress: Progress, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write tar files of each split, in which a picture is followed by its captions in a .txt, a caption on each line.

    The same records give the same bytes: members have no owner and no date. Splits are in the names of the files; if
    they are not called train, val or test, there are also lists.
    """
    done, sidecars = 0, dict(zip([record.name for record in records], sidecar_names(records), strict=True))
    for split, shards in shards_by_split(records, shard_bytes).items():
        for number, shard in enumerate(shards):
            with tarfile.open(folder / f"{split or 'data'}-{number:06d}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
                for record in shard:
                    _add_member(tar, record.name, picture_bytes(record))
                    _add_member(tar, sidecars[record.name], caption_lines(record).encode())
                    done += 1
                    progress("writing pictures", done, len(records))
    if not by_split(records).keys() <= {None, "train", "val", "test"}:
        write_split_lists(records, folder)


def _add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_parquet(
    records: Sequence[Record], folder: Path, progress: Progress, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write tables of each split with the columns image, captions and split, as Hugging Face datasets reads them."""
    pa = import_pyarrow(folder)
    features = {
        "image": {"_type": "Image"},
        "captions": {"_type": "List", "feature": {"_type": "Value", "dtype": "string"}},
        "split": {"_type": "Value", "dtype": "string"},
    }
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("captions", pa.list_(pa.string())),
         ("split", pa.string())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    done = 0
    for split, shards in shards_by_split(records, shard_bytes).items():
        for number, shard in enumerate(shards):
            path = folder / f"{split or 'data'}-{number:05d}-of-{len(shards):05d}.parquet"
            with pa.parquet.ParquetWriter(path, schema) as writer:
                for group in batched(shard, PICTURES_IN_ROW_GROUP):
                    rows = [_parquet_row(record) for record in group]
                    writer.write_table(pa.Table.from_pylist(rows, schema))
                    done += len(rows)
                    progress("writing pictures", done, len(records))


def _parquet_row(record: Record) -> dict[str, Any]:
    image = {"bytes": picture_bytes(record), "path": record.name}
    return {"image": image, "captions": record.captions, "split": record.split}


def copy_pictures(records: Sequence[Record], folder: Path, progress: Progress) -> None:
    """Copy pictures byte for byte into a folder, under their names."""
    for done, record in enumerate(records, 1):
        path = folder / f"{record.name}{picture_suffix(record)}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(picture_bytes(record))
        progress("copying pictures", done, len(records))


def sidecar_names(records: Sequence[Record]) -> list[str]:
    """Return the name of the captions' file of each picture: a.txt of a.jpg, but a.jpg.txt if there is an a.png too."""
    stems = [PurePosixPath(record.name).with_suffix("").as_posix() for record in records]
    counts = Counter(stems)
    return [
        f"{record.name if counts[stem] > 1 else stem}.txt" for record, stem in zip(records, stems, strict=True)
    ]


def caption_lines(record: Record) -> str:
    """Return the captions, one on each line. A mark of byte order is doubled, since readers remove one."""
    text = "".join(f"{caption}\n" for caption in record.captions)
    return f"\ufeff{text}" if text.startswith("\ufeff") else text


def write_split_lists(records: Sequence[Record], folder: Path) -> None:
    """Write a list of the names of each split into splits/; nothing if the records have no splits.

    Raises DataError if some records have none, but would get one from the lists of the others.
    """
    splits = by_split(records)
    if None in splits and splits.keys() & {"train", "val"}:
        raise DataError(
            f"picture {splits[None][0].name} is in no split, but others are; lists cannot say this: choose --to csv, "
            "jsonl or parquet, or divide the data with `myllm data split`"
        )
    for split, members in splits.items():
        if split is not None:
            text = list_text(split, members)
            (folder / "splits").mkdir(exist_ok=True)
            (folder / "splits" / f"{split}.txt").write_text(text, encoding="utf-8", newline="\n")


def by_split(records: Sequence[Record]) -> dict[str | None, list[Record]]:
    """Return the records of each split, in the order of the first of each."""
    result: dict[str | None, list[Record]] = {}
    for record in records:
        result.setdefault(record.split, []).append(record)
    return result


def shards_by_split(records: Sequence[Record], shard_bytes: int) -> dict[str | None, list[list[Record]]]:
    """Return the records of each split in shards of about `shard_bytes` bytes of pictures."""
    splits = by_split(records)
    for split, members in splits.items():
        list_text(split or "data", members)  # checks that the split's name can be a file's
    return {split: list(_shards(members, shard_bytes)) for split, members in splits.items()}


def _shards(records: Sequence[Record], shard_bytes: int) -> Iterator[list[Record]]:
    shard, size = list[Record](), 0
    for record in records:
        shard.append(record)
        size += picture_size(record.image)
        if size >= shard_bytes:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


WRITERS: Mapping[str, Writer] = {
    "csv": Writer(write_csv, needs_suffix=False),
    "jsonl": Writer(write_jsonl, needs_suffix=False),
    "webdataset": Writer(write_webdataset, needs_suffix=True),
    "parquet": Writer(write_parquet, needs_suffix=False),
    "sidecar": Writer(write_sidecars, needs_suffix=True),
}
