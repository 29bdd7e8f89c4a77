"""Finds a picture by what other files call it: its path, the end of it, without a suffix, or a number."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from myllm.data.images import PICTURE_SUFFIXES
from myllm.data.rows import normal_name

Parts = tuple[str, ...]
# COCO writes its ids with leading zeros, after the name of the split: COCO_val2014_000000391895
NUMBER = re.compile(r"(?:COCO_\w+_)?0*(\d+)")


class NameIndex:
    """Names of pictures. Two paths are of one picture if one is the end of the other: `data/a/1.jpg` and `a/1.jpg`."""

    def __init__(self, names: Iterable[str], ids: Mapping[str, str] | None = None) -> None:
        """ids: names by the numbers of the pictures."""
        names = list(names)
        self.exact = dict(ids or {}) | {name: name for name in names}
        self.by_path, self.by_end = defaultdict[Parts, set[str]](set), defaultdict[Parts, set[str]](set)
        self.by_number = defaultdict[str, set[str]](set)
        for name in names:
            for parts in _paths(name):
                self.by_path[parts].add(name)
                for start in range(len(parts)):
                    self.by_end[parts[start:]].add(name)
            self.by_number[_number(name)].add(name)
        for identity, name in (ids or {}).items():
            self.by_number[_number(identity)].add(name)

    def candidates(self, name: str, by_number: bool = True) -> set[str]:
        """Return the pictures that may be meant: none, one, or several that share the name.

        by_number: 42 and 000000000042.jpg may be the picture with the id 42, or COCO_val2014_000000000042.jpg.
        """
        name = normal_name(name)
        if name in self.exact:
            return {self.exact[name]}
        several: set[str] = set()
        for parts in _paths(name):
            ends = [self.by_end.get(parts), *(self.by_path.get(parts[start:]) for start in range(1, len(parts)))]
            for names in filter(None, ends):
                if len(names) == 1:
                    return set(names)
                several = several or names
        number = _number(name) if by_number and ("/" not in name or len(PurePosixPath(name).stem) >= 12) else ""
        return several or (set(self.by_number.get(number, ())) if number else set())

    def find_path(self, name: str) -> set[str]:
        """Return the pictures that a path, the end of it or a stem may mean; a picture's suffix means no other one."""
        candidates, suffix = self.candidates(name, by_number=False), PurePosixPath(name).suffix.lower()
        if suffix not in PICTURE_SUFFIXES:
            return candidates
        return {other for other in candidates if PurePosixPath(other).suffix.lower() == suffix}

    def find(self, name: str) -> str | None:
        """Return the picture that a name means; None if there is none, or more than one."""
        candidates = self.candidates(name)
        return next(iter(candidates)) if len(candidates) == 1 else None


def _paths(name: str) -> tuple[Parts, Parts]:
    """Return the parts of a path with its suffix, and without."""
    path = PurePosixPath(name)
    return path.parts, (*path.parts[:-1], path.stem)


def _number(name: str) -> str:
    """Return the number that a name is, without leading zeros, or ''."""
    match = NUMBER.fullmatch(PurePosixPath(name).stem)
    return match[1] if match else ""
