"""Reads data folders and files into records, or only into references: captions by picture, without the pictures."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from myllm.config import CaptionsConfig
from myllm.data.formats import Format, find_captions
from myllm.data.images import PICTURE_SUFFIXES
from myllm.data.names import NameIndex
from myllm.data.records import Findings, Record
from myllm.data.rows import CaptionFile, checked_caption, checked_name
from myllm.data.splits import named_splits, one_split, precedence, split_records
from myllm.data.stored import glob, open_archive, walk
from myllm.errors import DataError
from myllm.files import Picture, StoredImage
from myllm.hub import describe, is_id

PICTURE_FOLDERS = (
    "flickr30k_images", "images", "Images", "Flicker8k_Dataset", "Flickr8k_Dataset", "flickr30k-images",
    "train2014", "val2014", "test2014", "train2017", "val2017", "test2017",
)
Sources = str | Path | Sequence[str | Path]
"""What --data names: one or several folders and files."""


@dataclass
class _Picture:
    """What the captions files of a data folder say of a picture."""

    captions: list[str] = field(default_factory=list)
    split: str | None = None
    identity: str | None = None
    image: Picture | None = None
    """Where its bytes are, if the format says."""
    file: CaptionFile | None = None
    """The file that says where."""


@dataclass(frozen=True)
class References:
    """Captions that people wrote, by picture."""

    captions: dict[str, list[str]]
    """Captions by the picture's name."""
    ids: dict[str, str]
    """Names by the ids of the pictures in the file, as text."""
    source: str
    """The file or folder, for messages."""


def data_paths(data: Sources) -> list[Path]:
    """Return the folders and files that --data names."""
    return [Path(path) for path in ([data] if isinstance(data, str | Path) else data)]


def data_name(data: Sources) -> str:
    """Return the name of the data set, without the folders that it lies in."""
    return " + ".join(path.resolve().name for path in data_paths(data))


def read_records(
    data: Sources, captions: CaptionsConfig, use_lists: bool = True, keep_uncaptioned: bool = False
) -> tuple[list[Record], Findings]:
    """Return the records of the data in the order of its rows; missing pictures are only in the findings.

    use_lists: follow lists of splits; otherwise splits are those of the captions file, and no picture is left out.
    keep_uncaptioned: return pictures whose captions are all empty, too.
    Raises DataError with the fix if the data, its captions or all of its pictures cannot be used.
    """
    findings, records = Findings(), list[Record]()
    for root, paths, source in _roots(data):
        pictures = _read_pictures(paths, captions, findings, keep_uncaptioned)
        images = _locate(root, paths, pictures, findings)
        if not images:
            raise DataError(_all_missing(root, paths, pictures))
        records += _records(root, source, pictures, images, findings, use_lists)
    return records, findings


def read_references(data: Sources, split: str | None, captions: CaptionsConfig) -> tuple[References, Findings]:
    """Return the references in the data, of a split if one is named; captions keep their case.

    The pictures need not be there, except to split them by hash. Raises DataError or ConfigError.
    """
    captions, source = replace(captions, lowercase=False), " and ".join(map(str, data_paths(data)))
    findings, records, are_there = Findings(), list[Record](), True
    texts, ids = dict[str, list[str]](), dict[str, str]()
    for root, paths, source in _roots(data):
        pictures = _read_pictures(paths, captions, findings)
        texts |= {source + name: picture.captions for name, picture in pictures.items()}
        ids |= {picture.identity: source + name for name, picture in pictures.items() if picture.identity is not None}
        if split is not None:
            images = _locate(root, paths, pictures, Findings())
            are_there = are_there and bool(images)
            nowhere: dict[str, Picture] = dict.fromkeys(pictures, root / "missing")
            records += _records(root, source, pictures, images or nowhere, findings)
    if split is not None:
        if not are_there and not findings.splits:
            raise DataError(f"{source}: has no splits; leave out --split {split}")
        splits = split_records(records, findings) if are_there else _by_split(records)
        names = {record.name for record in one_split(splits, split, source)}
        texts = {name: captions for name, captions in texts.items() if name in names}
    return References(texts, {key: name for key, name in ids.items() if name in texts}, source), findings


def _records(
    root: Path, source: str, pictures: Mapping[str, _Picture], images: Mapping[str, Picture], findings: Findings,
    use_lists: bool = True,
) -> list[Record]:
    """Return the records of the pictures that have an image, with their splits."""
    from_rows = {name: pictures[name].split for name in images}
    splits = named_splits(list(images), from_rows, root, findings) if use_lists else from_rows
    return [
        Record(source + name, images[name], tuple(pictures[name].captions), split, source)
        for name, split in splits.items()
    ]


def _by_split(records: Iterable[Record]) -> dict[str, list[Record]]:
    splits: dict[str, list[Record]] = {}
    for record in records:
        splits.setdefault(record.split or "train", []).append(record)
    return splits


def _roots(data: Sources) -> list[tuple[Path, list[Path], str]]:
    """Return each data folder, its sources, and what its pictures' names begin with: nothing if there is only one.

    The folder of a file is the one that it is in, so that two files of one folder share the pictures.
    """
    roots: dict[Path, list[Path]] = {}
    names_of: dict[Path, tuple[str, ...]] = {}
    for path in data_paths(data):
        source = path
        if not path.exists():
            if not is_id(str(path)):
                raise DataError(
                    f"{path}: no such folder or file; give a folder with captions and pictures, or a file of captions, "
                    "as --data, or draw a folder with 'myllm scenes --out data --count 2000'"
                )
            path = _download(str(path))
        folder = path if path.is_dir() else path.parent
        root = next((root for root in roots if root.samefile(folder)), folder)
        if path not in roots.setdefault(root, []):
            roots[root].append(path)
        names_of.setdefault(root, (source if source != path else root.resolve()).parts)
    parts = list(names_of.values())
    # the fewest last parts of the paths that differ
    count = next((count for count in range(1, 100) if len({ends[-count:] for ends in parts}) == len(parts)), 1)
    names = ["/".join(ends[-count:]) + "/" if len(roots) > 1 else "" for ends in parts]
    return [(root, paths, name) for (root, paths), name in zip(roots.items(), names, strict=True)]


def _download(source: str) -> Path:
    """Return the folder with the data of the repository user/name or user/name@revision, from the cache if it is there.

    Interrupted downloads resume. Raises DataError, which says what to do.
    """
    from huggingface_hub import snapshot_download  # takes a while to import

    repo, _, revision = source.partition("@")
    try:
        return Path(snapshot_download(repo, repo_type="dataset", revision=revision or None))
    except Exception as error:  # the network's errors have no other common base
        raise DataError(f"{source}: no such folder or file; as data of a hub, {describe(error)}") from error


def _read_pictures(
    paths: Sequence[Path], captions: CaptionsConfig, findings: Findings, keep_uncaptioned: bool = False
) -> dict[str, _Picture]:
    """Return the pictures that the captions files name, in the order of their rows; those without a caption if kept."""
    pictures: dict[str, _Picture] = {}
    files = [file for path in paths for file in find_captions(path, captions)]
    findings.formats += _described(files)
    clashes = set[str]()
    for form, file in files:
        names: dict[Any, str] = {}
        for row in form.read(file, captions, findings):
            name = names.get(row.image) if isinstance(row.image, str) else None
            if name is None:
                name = checked_name(file.path, row.position, row.image)
                names[row.image] = name
            if isinstance(row.picture, StoredImage):
                name = _told_apart(name, row.picture, file, pictures, clashes)
            caption = checked_caption(file.path, row.position, name, row.caption)
            if not caption:
                findings.empty_captions.append(f"{f'{file.name}, ' * (len(files) > 1)}{row.position}: {name}")
                if not keep_uncaptioned:
                    continue
            picture = pictures.setdefault(name, _Picture())
            if caption:
                picture.captions.append(caption.lower() if captions.lowercase else caption)
            if row.picture is not None:
                picture.image, picture.file = row.picture, file
            if row.identity is not None:
                picture.identity = checked_name(file.path, row.position, row.identity)
            if row.split is not None and row.split != picture.split:
                named = [split for split in (picture.split, row.split) if split is not None]
                picture.split = min(named, key=precedence)
                if len(named) > 1:
                    finding = f"{name} in {named[0]} and {named[1]}, kept in {picture.split}"
                    findings.in_two_splits += [finding] if finding not in findings.in_two_splits else []
    if not pictures:
        source = " and ".join(str(file.path) for _, file in files)
        raise DataError(f"{source}: no row holds a caption; all are empty or cannot be read")
    return pictures


def _described(files: Sequence[tuple[Format, CaptionFile]]) -> list[str]:
    """Describe the files that are read, in a line for each file, or for all parts of a data set."""
    lines = {f"{form.name}: {file.path}": form for form, file in files}
    parts = [line for line, form in lines.items() if form.is_in_parts]
    more = f" and {len(parts) - 1:,} more" if len(parts) > 1 else ""
    return [line for line in lines if line not in parts] + [line + more for line in parts[:1]]


def _told_apart(
    name: str, image: StoredImage, file: CaptionFile, pictures: dict[str, _Picture], clashes: set[str]
) -> str:
    """Return the name of a picture in an archive or a table: two of them may have pictures of one name.

    These get their file's name in front; the first one is renamed when the second is found. Raises DataError if they
    are in one file.
    """
    other = pictures.get(name)
    if name not in clashes and other is not None and isinstance(other.image, StoredImage) and other.image != image:
        is_equal = other.image.size == image.size
        if other.file is file and not is_equal:
            raise DataError(f"{image} is a second picture called {name}; give each picture another name")
        is_equal = is_equal and (other.file is file or other.image.read() == image.read())
        if other.file is not None and not is_equal:
            clashes.add(name)
            pictures[_name_with_file(name, other.file)] = pictures.pop(name)
    return _name_with_file(name, file) if name in clashes else name


def _name_with_file(name: str, file: CaptionFile) -> str:
    return f"{PurePosixPath(file.name).with_suffix('')}/{name}"


def _locate(
    root: Path, paths: Sequence[Path], pictures: Mapping[str, _Picture], findings: Findings
) -> dict[str, Picture]:
    """Return where each picture is that is there. Raises DataError if a name fits pictures of two folders.

    Names are paths below a picture folder, or below the data folder; letters may be composed or not, and the suffix
    may be missing.
    """
    picture_folders, others = name_folders(root, paths)
    images = {name: picture.image for name, picture in pictures.items() if picture.image is not None}
    listed = {folder: _files(folder) for folder in picture_folders}

    def missing() -> list[str]:
        return [name for name in pictures if name not in images]

    for name in missing():
        candidates = [files[name] for files in listed.values() if name in files]
        if len(candidates) > 1:
            raise DataError(
                f"two pictures are called {name}: {candidates[0]} and {candidates[1]}; "
                "write their folders in the captions file"
            )
        candidates += [folder / name for folder in others if not candidates and (folder / name).is_file()]
        if candidates:
            images[name] = candidates[0]
    if missing() or (not listed and root in paths):
        listed[root] = _files(root)
    if missing():  # Kaggle's captions.txt in the folder of Images.zip
        listed |= {path: _archived(path) for path in (*glob(root, "*.zip"), *glob(root, "*.tar"))}
    for files in listed.values() if missing() else ():
        index = NameIndex(file for file in files if PurePosixPath(file).suffix.lower() in PICTURE_SUFFIXES)
        for name in missing():
            has_suffix = PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES
            file = name if name in files else None if has_suffix else index.find(name)
            images |= {name: files[file]} if file is not None else {}
    if len(listed) > 1:
        listed.pop(root, None)  # it also has the files of the picture folders, and other pictures
    findings.missing_pictures += missing()
    used = set(images.values())
    unused = {
        picture: name for files in listed.values() for name, picture in files.items()
        if picture not in used and PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES
    }
    findings.unused_pictures += sorted(unused.values())
    return {name: images[name] for name in pictures if name in images}


def name_folders(root: Path, paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the picture folders, and the other folders, that the names of pictures may be relative to."""
    folders = [root / name for name in PICTURE_FOLDERS if (root / name).is_dir()]
    if root in paths:
        return folders, [root]
    if not folders:  # annotations/captions_val2014.json, with the pictures in val2014/
        folders = [root.parent / name for name in PICTURE_FOLDERS if (root.parent / name).is_dir()]
    return folders, [root, Path()]  # captions of `myllm caption` name pictures from where it ran


def _archived(path: Path) -> dict[str, Picture]:
    """Return the files of an archive by their path in it, and in its picture folder."""
    members: dict[str, Picture] = dict(open_archive(path).members)
    return members | {inner: member for name, member in members.items() if (inner := name.partition("/")[2])}


def _files(folder: Path) -> dict[str, Picture]:
    """Return all files below a folder by their relative path in NFC."""
    return {unicodedata.normalize("NFC", path.relative_to(folder).as_posix()): path for path in walk(folder)}


def _all_missing(root: Path, paths: Sequence[Path], pictures: Mapping[str, _Picture]) -> str:
    picture_folders, _ = name_folders(root, paths)
    folders = " and ".join(map(str, [*picture_folders, root]))
    return (
        f"{root}: all {len(pictures):,} captioned pictures are missing; looked in {folders} for "
        f"{next(iter(pictures))!r} and the others; put the pictures there under the names of the captions file"
    )
