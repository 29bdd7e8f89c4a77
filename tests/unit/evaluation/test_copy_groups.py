"""Groups of copies within one data set: by bytes, by looks, and through chains of pairs."""

import random
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from myllm.data.records import Record
from myllm.evaluation.copies import find_copies, find_pairs, thumbnail
from myllm.evaluation.copy_groups import find_copy_groups, group_copies

Changes = dict[str, Image.Image]


def photo(seed: int) -> Image.Image:
    """Coloured noise of several scales, as detailed as a photograph."""
    rng = np.random.default_rng(seed)
    layers = [Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).resize((160, 160)) for side in (5, 20)]
    return Image.blend(*layers, 0.5)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """40 different pictures, and copies of the first three: of 0 by bytes, of 1 by looks, of 2 by both."""
    folder = tmp_path_factory.mktemp("pictures")
    images = {f"{number}.png": photo(number) for number in range(40)}
    images |= {"1 small.png": photo(1).resize((90, 90)), "1 mirrored.png": ImageOps.mirror(photo(1)),
               "2 dark.png": photo(2).point(lambda value: value * 0.8)}
    names = list(images)
    random.Random(0).shuffle(names)
    for name in names:
        images[name].save(folder / name)
    for copy, name in (("0 again.png", "0.png"), ("2 again.png", "2.png")):
        (folder / copy).write_bytes((folder / name).read_bytes())
        names.insert(7, copy)
    (folder / "broken.png").write_bytes((folder / "5.png").read_bytes()[:2000])
    return [Record(name, folder / name, ("a photo",)) for name in [*names, "broken.png"]]


GROUPS = {frozenset({"0.png", "0 again.png"}), frozenset({"1.png", "1 small.png", "1 mirrored.png"}),
          frozenset({"2.png", "2 again.png", "2 dark.png"})}


def names(groups: list[list[Record]]) -> set[frozenset[str]]:
    return {frozenset(record.name for record in group) for group in groups if len(group) > 1}


def test_copies_by_bytes_and_looks_are_in_one_group(records: list[Record]) -> None:
    copies = find_copy_groups(records, None)
    groups = group_copies(records, copies.pairs)
    assert names(groups) == GROUPS
    assert sum(map(len, groups)) == len(records)


def test_copies_by_bytes_only_if_no_looks_are_compared(records: list[Record]) -> None:
    copies = find_copy_groups(records, 0)
    assert (copies.alike, copies.compared) == ((), 0)
    assert names([list(group) for group in copies.equal]) == {
        frozenset({"0.png", "0 again.png"}), frozenset({"2.png", "2 again.png"})
    }


def test_looks_of_the_first_pictures_only_are_compared_if_there_is_a_limit(records: list[Record]) -> None:
    copies = find_copy_groups(records, 20)
    known = {record.name for record in records[:25]}  # some have equal bytes
    assert copies.compared == 20 and {record.name for pair in copies.alike for record in pair} <= known
    assert len(copies.equal) == 2


def test_broken_pictures_are_named_with_the_reason(records: list[Record]) -> None:
    broken = find_copy_groups(records, 0).broken
    assert list(broken) == ["broken.png"] and "damaged picture" in broken["broken.png"]


def test_find_pairs_finds_what_find_copies_finds_of_each_two(records: list[Record]) -> None:
    chosen = [thumbnail(record.image) for record in records if record.name[:2] in ("0.", "1 ", "1.", "2.", "3.")]
    expected = {
        (a, b) for a, b in combinations(range(len(chosen)), 2) if list(find_copies({0: chosen[a]}, {0: chosen[b]}))
    }
    assert set(find_pairs(chosen)) == expected and len(expected) == 3


def test_chains_of_pairs_are_one_group() -> None:
    a, b, c, d, e = (Record(name, Path(name), ("x",)) for name in "abcde")
    groups = group_copies([a, b, c, d, e], [(a, b), (d, c), (b, c)])
    assert names(groups) == {frozenset("abcd")} and len(groups) == 2
