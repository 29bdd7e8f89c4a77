"""Reads captions that are spread over files: Flickr8k's token file, metadata in folders, and files next to pictures."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from myllm.config import CaptionsConfig
from myllm.data.images import PICTURE_SUFFIXES
from myllm.data.records import Findings
from myllm.data.rows import CaptionFile, Row, decode_text, parse_json
from myllm.data.stored import walk
from myllm.data.table_formats import find_columns, is_object_table, is_table, read_object_table, read_table
from myllm.errors import DataError

TOKEN_LINE = re.compile(r"([^\t\r\n]*)#(\d+)\t(.*)")
SIDECAR_SUFFIXES = (".txt", ".caption", ".json")


def is_tokens(file: CaptionFile, captions: CaptionsConfig) -> bool:
    """Return whether the first line is 'NAME#NUMBER<tab>CAPTION'."""
    return not file.is_folder and TOKEN_LINE.match(file.text.lstrip()) is not None


def read_tokens(file: CaptionFile, captions: CaptionsConfig, findings: Findings) -> Iterator[Row]:
    """Yield the lines 'NAME#NUMBER<tab>CAPTION' of Flickr8k.token.txt."""
    for number, line in enumerate(re.split(r"\r\n|\n|\r", file.text), 1):
        match = TOKEN_LINE.fullmatch(line)
        if match is not None:
            yield Row(f"line {number:,}", match[1], match[3])
        elif line.strip():
            findings.unreadable_rows.append(f"line {number:,}: {line.strip()}")


def is_metadata(file: CaptionFile, captions: CaptionsConfig) -> bool:
    """Return whether the file is a Hugging Face metadata.jsonl or metadata.csv."""
    return file.path.stem == "metadata" and (is_table(file, captions) or is_object_table(file, captions))


def read_metadata(file: CaptionFile, captions: CaptionsConfig, findings: Findings) -> Iterator[Row]:
    """Yield the rows; names are relative to the metadata's folder, which may be named after a split."""
    folder = file.path.parent.relative_to(file.root).as_posix()
    prefix, split = ("", None) if folder == "." else (f"{folder}/", CaptionFile(file.path.parent, file.root).split)
    read = read_object_table if is_object_table(file, captions) else read_table
    for row in read(file, captions, findings):
        yield row._replace(image=f"{prefix}{row.image}", split=row.split or split)


def _sidecars(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield each picture that has a file of captions next to it, with that file."""
    files = set(walk(folder))
    for picture in sorted(files):
        if picture.suffix.lower() in PICTURE_SUFFIXES:
            beside = (base for suffix in SIDECAR_SUFFIXES for base in (
                picture.with_suffix(suffix), picture.with_name(picture.name + suffix)
            ))
            sidecar = next((path for path in beside if path in files), None)
            if sidecar is not None:
                yield picture, sidecar


def is_sidecar_folder(file: CaptionFile, captions: CaptionsConfig) -> bool:
    """Return whether a picture in the folder has a file of captions next to it."""
    return file.is_folder and next(_sidecars(file.path), None) is not None


def read_sidecars(file: CaptionFile, captions: CaptionsConfig, findings: Findings) -> Iterator[Row]:
    """Yield the captions in each picture's file: lines of .txt and .caption, or the text, list or object of .json."""
    for picture, sidecar in _sidecars(file.path):
        row = partial(Row, image=picture.relative_to(file.root).as_posix(), picture=picture)
        where = sidecar.relative_to(file.root).as_posix()
        text = decode_text(sidecar)
        if not text.strip():
            yield row(position=where, caption="")
        elif sidecar.suffix == ".json":
            for number, caption in enumerate(_captions_of_json(sidecar, text, captions), 1):
                yield row(position=f"{where}, caption {number}", caption=caption)
        else:
            for number, line in enumerate(re.split(r"\r\n|\n|\r", text), 1):
                if line.strip():
                    yield row(position=f"{where}, line {number:,}", caption=line)


def _captions_of_json(path: Path, text: str, captions: CaptionsConfig) -> list[object]:
    content = parse_json(text, str(path))
    if isinstance(content, dict):
        _, caption = find_columns(content, captions)
        if caption is None:
            raise DataError(f"{path}: has {', '.join(content)[:100]}; expected a caption, a text, or a list of texts")
        content = content[caption]
    return content if isinstance(content, list) else [content]
