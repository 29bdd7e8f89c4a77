"""Reads COCO's caption annotations and Karpathy's JSON."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from myllm.config import CaptionsConfig
from myllm.data.records import Findings
from myllm.data.rows import CaptionFile, Row, checked_name, objects, split_name
from myllm.errors import DataError


def is_coco(file: CaptionFile, captions: CaptionsConfig) -> bool:
    """Return whether the file is a JSON object with images and annotations."""
    return isinstance(file.json, dict) and file.json.keys() >= {"images", "annotations"}


def read_coco(file: CaptionFile, captions: CaptionsConfig, findings: Findings) -> Iterator[Row]:
    """Yield the annotations, by picture; the split is in the file's name, as in captions_val2014.json."""
    path = file.path
    images = list(objects(path, file.json["images"], "image"))
    texts: dict[str, list[tuple[str, Any]]] = defaultdict(list)
    for position, entry in objects(path, file.json["annotations"], "annotation"):
        texts[checked_name(path, position, entry.get("image_id"))].append((position, entry.get("caption")))
    pictures = _Pictures(file)
    for position, entry in images:
        identity = entry.get("id")
        name = pictures.check(position, entry.get("file_name", identity), identity)
        for caption_position, caption in texts.pop(checked_name(path, position, identity), ()):
            yield Row(caption_position, name, caption, file.split, identity)
    for identity, rest in texts.items():
        raise DataError(f"{path}: {rest[0][0]} is of picture {identity}, which is not listed in images")


def is_karpathy(file: CaptionFile, captions: CaptionsConfig) -> bool:
    """Return whether the file is a JSON object with images, and without COCO's annotations."""
    return isinstance(file.json, dict) and "images" in file.json and "annotations" not in file.json


def read_karpathy(file: CaptionFile, captions: CaptionsConfig, findings: Findings) -> Iterator[Row]:
    """Yield the sentences of each picture; its name is filepath/filename, and restval is train."""
    pictures = _Pictures(file)
    for position, entry in objects(file.path, file.json["images"], "image"):
        identity, split = entry.get("cocoid", entry.get("imgid")), entry.get("split")
        name = entry.get("filename", identity)
        if entry.get("filepath"):
            name = f"{entry['filepath']}/{name}"
        name = pictures.check(position, name, identity)
        part = split_name(split) if isinstance(split, str) and split else None
        for sentence_position, sentence in objects(file.path, entry.get("sentences"), f"{position}, sentence"):
            yield Row(sentence_position, name, sentence.get("raw"), part, identity)


class _Pictures:
    """The pictures of a file so far; no two have the same name or the same id."""

    def __init__(self, file: CaptionFile) -> None:
        self.path, self.names, self.ids = file.path, set[str](), dict[str, str]()

    def check(self, position: str, written: Any, identity: Any) -> str:
        """Return the picture's name. Raises DataError if another picture has its name or its id."""
        name = checked_name(self.path, position, written)
        if name in self.names:
            raise DataError(f"{self.path}: {position} is a second picture called {name}; add folders to their names")
        self.names.add(name)
        if identity is not None:
            other = self.ids.setdefault(checked_name(self.path, position, identity), name)
            if other != name:
                raise DataError(f"{self.path}: {position}, {name}, has the id {identity}, as {other} has")
        return name
