import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from myllm.data.records import Record
from myllm.data.scenes import Thing
from myllm.evaluation.slices import Slices, count_people, measure_slices, slice_pictures, worst_first
from myllm.metrics.ptb import ptb_tokenize
from myllm.metrics.result import MetricResult, mean_of


def record(*captions: str) -> Record:
    """A picture that can't be read."""
    return Record("nowhere.png", Path("nowhere.png"), captions)


def members(slices: Slices, kind: str) -> dict[str, list[int]]:
    """The places of each slice's pictures, by the first word of its label."""
    return {label.split(" (")[0]: np.flatnonzero(mask).tolist() for label, mask in slices[kind].items()}


def test_pictures_are_grouped_into_thirds_by_caption_length() -> None:
    records = [record("dog " * count, "dog " * (count + 2) + ".") for count in (9, 1, 5, 2, 8, 4)]
    slices = slice_pictures(records)
    assert members(slices, "caption length") == {"short": [1, 3], "medium": [2, 5], "long": [0, 4]}
    assert list(slices["caption length"]) == [
        "short (to 3.0 words)", "medium", "long (from 9.0 words)"
    ]


@pytest.mark.parametrize(
    ("caption", "people"),
    [
        ("Two dogs run on the beach .", 0),
        ("a pair of shoes", 0),
        ("A man in a red shirt", 1),
        ("Two dogs chase a boy .", 1),
        ("a toddler boy", 1),
        ("a man and a woman", 2),
        ("two male skiers", 2),
        ("two young men play", 2),
        ("A couple sits on a bench .", 2),
        ("a couple of kids with three balls", 2),
        ("a man and two girls", 3),
        ("people in a street", 3),
        ("a group of ladies", 3),
        ("A crowd watches .", 3),
        ("a team of dogs", 0),
        ("five policemen", 3),
        ("a woman, a girl, a boy and a baby", 3),
    ],
)
def test_people_are_counted_by_the_words_for_them(caption: str, people: int) -> None:
    assert count_people(ptb_tokenize(caption)) == people


def test_number_of_people_is_the_median_over_the_references() -> None:
    records = [
        record("a dog", "a dog", "a man and his dog"),
        record("a man", "a boy", "two boys"),
        record("people", "two men", "a man and a woman"),
        record("a crowd", "people", "a man"),
        record("a dog", "a man"),
    ]
    assert members(slice_pictures(records), "people") == {"none": [0], "one": [1, 4], "two": [2], "three or more": [3]}


def test_drawn_scenes_are_grouped_by_the_number_of_things() -> None:
    records = [Record(f"{count}.png", Path(f"{count}.png"), ("a man",)) for count in range(6)]
    things = {f"{count}.png": [Thing("ball", "red", "big", (0, 0, 9, 9))] * count for count in range(5)}
    slices = slice_pictures(records, things=things)
    assert members(slices, "things") == {"none": [0], "one": [1], "two": [2], "three or more": [3, 4]}
    assert "people" not in slices


def test_pictures_are_grouped_by_brightness_and_broken_ones_left_out(tmp_path: Path) -> None:
    records = []
    for level in (0, 255, 51, 102, 153, 204):
        path = tmp_path / f"{level}.png"
        Image.new("RGB", (30, 20), (level, level, level)).save(path)
        records.append(Record(path.name, path, ("a dog",)))
    slices = slice_pictures([*records, record("a dog")])
    assert members(slices, "brightness") == {"dark": [0, 2], "medium": [3, 4], "bright": [1, 5]}
    assert next(iter(slices["brightness"])) == "dark (to 20% of white)"


def test_words_are_rare_if_few_training_captions_use_them() -> None:
    training = ["a dog runs"] * 8 + ["a cat runs"] * 4 + ["the lynx runs"] * 2
    records = [record(caption) for caption in ("a dog", "of", "the lynx", "a cat", "an ocelot", "dog", "a cat .")]
    slices = slice_pictures(records, training)
    assert members(slices, "rare words") == {"common": [0, 5], "medium": [3, 6], "rare": [2, 4]}
    bounds = [f"{math.log(42 / count):.1f} nats" for count in (8, 2)]
    assert list(slices["rare words"]) == [f"common (to {bounds[0]})", "medium", f"rare (from {bounds[1]})"]


def test_a_third_of_equal_values_stays_together() -> None:
    records = [record(caption) for caption in ("dog", "dog runs", "dog runs", "cat runs", "dog runs", "dog")]
    slices = slice_pictures(records)
    assert members(slices, "caption length") == {"short": [0, 5], "long": [1, 2, 3, 4]}


def test_without_training_captions_references_give_word_frequencies() -> None:
    records = [record(caption) for caption in ("dog", "cat", "dog", "lynx", "puma", "cat", "dog", "yak", "cat")]
    assert members(slice_pictures(records), "rare words") == {"common": [0, 1, 2, 5, 6, 8], "rare": [3, 4, 7]}


def test_a_kind_with_one_group_is_left_out() -> None:
    assert slice_pictures([record("a dog"), record("a dog"), record("a dog")]) == {}
    assert slice_pictures([]) == {}


@given(st.lists(st.lists(st.sampled_from(["a dog", "two men run", "people", "."]), max_size=3), max_size=12))
def test_no_picture_is_in_two_slices_of_a_kind(captions: list[list[str]]) -> None:
    for masks in slice_pictures([record(*few) for few in captions]).values():
        assert (np.sum(list(masks.values()), axis=0) <= 1).all()
        assert all(mask.any() for mask in masks.values())


def mask(total: int, *members: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.isin(np.arange(total), members)


def test_slices_come_worst_first_with_their_difference_to_the_whole() -> None:
    values = [0.5, 0.25, 1.0, 0.25]
    slices = {"light": {"dark": mask(4, 1, 3), "bright": mask(4, 0, 2)}, "people": {"one": mask(4, 0, 1, 3)}}
    rows = worst_first(measure_slices(slices, mean_of(values), min_pictures=2))
    assert [(row.kind, row.label, row.pictures) for row in rows] == [
        ("light", "dark", 2), ("people", "one", 3), ("light", "bright", 2)
    ]
    assert [row.value for row in rows] == pytest.approx([0.25, 1 / 3, 0.75])
    assert [row.difference for row in rows] == pytest.approx([-0.25, -1 / 6, 0.25])
    assert [row.interval for row in rows] == [(0.25, 0.25), (0.25, 0.5), (0.5, 1.0)]


def test_slices_of_few_pictures_are_left_out() -> None:
    slices = {"light": {"dark": mask(50, *range(30)), "dim": mask(50, *range(29)), "bright": mask(50)}}
    assert [row.label for row in measure_slices(slices, mean_of(np.arange(50.0)))] == ["dark"]
    assert len(measure_slices(slices, mean_of(np.arange(50.0)), min_pictures=1)) == 2


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(0, 2)), min_size=1, max_size=20))
def test_a_slice_has_the_value_of_its_pictures_alone(pictures: Sequence[tuple[int, int, int]]) -> None:
    """For a figure that is a ratio of sums, as BLEU's are, and no mean."""
    sums = np.array([picture[:2] for picture in pictures], dtype=np.float64)
    figure = MetricResult(sums[:, 0] / sums[:, 1], sums, lambda of: np.asarray(of[..., 0] / of[..., 1]))
    labels = np.array([picture[2] for picture in pictures])
    masks_by_label = {str(number): labels == number for number in range(3)}
    rows = measure_slices({"third": masks_by_label}, figure, min_pictures=1)
    for row in rows:
        masks = [picture for picture in pictures if str(picture[2]) == row.label]
        assert row.value == pytest.approx(sum(hits for hits, _, _ in masks) / sum(of for _, of, _ in masks))
    assert [row.label for row in rows] == [label for label, mask in masks_by_label.items() if mask.any()]
