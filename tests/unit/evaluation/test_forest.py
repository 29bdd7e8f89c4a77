import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm.data.records import Record
from myllm.evaluation.compare import compare
from myllm.evaluation.forest import Scale, difference_groups, score_groups, slice_groups, truth_group
from myllm.evaluation.judge import judge_captions
from myllm.evaluation.slices import Slice

CAPTIONS = [
    f"a {colour} {thing} on grass" for colour in ("red", "blue", "green") for thing in ("dog", "cat", "ball", "boat")
]
REFERENCES = [[caption, f"{caption} today"] for caption in CAPTIONS]
RECORDS = [Record(f"{index}.png", b"", tuple(captions)) for index, captions in enumerate(REFERENCES)]
WORSE = ["two blue horses by a lake"] * 6 + CAPTIONS[6:]


def position(text: str) -> float:
    return float(text.removesuffix("%"))


def test_scale_maps_values_linearly_within_the_plot() -> None:
    scale = Scale([-1.0, 0.0, 1.0])
    low, middle, high = (position(scale.percent(value)) for value in (-1, 0, 1))
    assert 0 < low < high < 100 and middle == 50 and position(scale.width((-1, 0))) == pytest.approx(high - middle)
    assert [text for _, text in scale.labels] == ["-1", "0", "1"]
    assert [text for _, text in Scale([0, 0.5], is_share=True).labels] == ["0%", "50%"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 10), st.floats(0, 3)), min_size=1, max_size=9))
def test_every_dot_interval_and_band_lies_within_the_plot(rows: list[tuple[str, float, float]]) -> None:
    slices = [Slice(kind, "x", 40, value, 0, (value - width, value + width)) for kind, value, width in sorted(rows)]
    groups = slice_groups(slices, 5.0, (4.5, 5.5))
    numbers = [5.0, 4.5, 5.5, *(number for part in slices for number in (part.value, *part.interval))]
    for group in groups:
        assert all(0 <= position(group.scale.percent(number)) <= 100 for number in numbers)
        assert group.scale == groups[0].scale and len(group.scale.ticks) >= 2
    assert sum(len(group.dots) for group in groups) == len(slices)


def test_slices_keep_their_order_and_the_weakest_kind_comes_first() -> None:
    def part(kind: str, label: str, value: float) -> Slice:
        return Slice(kind, label, 40, value, 0, (value - 0.1, value + 0.1))

    people = [part("people", "none", 1.0), part("people", "one", 0.7)]
    slices = [*people, part("light", "dark", 0.6), part("light", "bright", 1.3)]
    groups = slice_groups(slices, 1.0, (0.9, 1.1))
    assert [(group.title, [dot.label for dot in group.dots]) for group in groups] == [
        ("Light", ["dark", "bright"]), ("People", ["none", "one"])
    ]
    assert [dot.tone for group in groups for dot in group.dots] == ["worse", "better", "unsure", "worse"]
    assert slice_groups([], 1.0, (0.9, 1.1)) == []


def test_differences_are_grouped_by_direction_and_coloured_by_who_is_better() -> None:
    groups = difference_groups(compare(("good", CAPTIONS), ("bad", WORSE), RECORDS, "val"))
    assert [group.title for group in groups] == ["CIDEr-D", "Higher is better", "Lower is better"]
    assert [group.scale.percent(0) for group in groups] == ["50.00%"] * 3
    dots = {dot.label: dot for group in groups for dot in group.dots}
    assert dots["CIDEr-D"].tone == "worse" and dots["CIDEr-D"].value < 0
    assert dots["CHAIRi"].tone == "worse" and dots["CHAIRi"].value > 0
    swapped = difference_groups(compare(("bad", WORSE), ("good", CAPTIONS), RECORDS, "val"))
    assert {dot.tone for group in swapped for dot in group.dots if dot.label in ("CIDEr-D", "CHAIRi")} == {"better"}
    same = difference_groups(compare(("one", CAPTIONS), ("two", CAPTIONS), RECORDS, "val"))
    assert {dot.tone for group in same for dot in group.dots} == {"unsure"}


def test_difference_of_few_pictures_has_no_p() -> None:
    groups = difference_groups(compare(("A", CAPTIONS[:2]), ("B", WORSE[:2]), RECORDS[:2], "val"))
    assert not [dot.detail for group in groups for dot in group.dots if "p" in dot.detail or "None" in dot.detail]


def test_scores_compare_the_captioner_with_people_and_controls() -> None:
    judgement = judge_captions(CAPTIONS, REFERENCES, blind="a dog")
    (group,) = score_groups(judgement)
    assert [dot.label for dot in group.dots] == ["People", "This captioner", "No picture", "Shuffled pictures"]
    assert group.dots[0].value == judgement.people["CIDEr-D"][0] and group.line == 0 == group.scale.ticks[0]
    (group,) = score_groups(judge_captions(CAPTIONS, [captions[:1] for captions in REFERENCES]))
    assert [dot.label for dot in group.dots] == ["This captioner", "Shuffled pictures"]


def test_truth_has_held_out_pairs_if_they_were_judged() -> None:
    truth = {"true": 0.5, "complete": 0.25}
    assert [dot.label for dot in truth_group(truth, 100, {}).dots] == ["True", "Complete"]
    group = truth_group(truth, 100, {"held-out pairs": {"true": 1.0, "complete": 0.0, "pictures": 400}})
    assert [(dot.label, dot.text) for dot in group.dots] == [
        ("True", "50%"), ("True, held out", "100%"), ("Complete", "25%"), ("Complete, held out", "0%")
    ]
    assert all(dot.interval and dot.interval[0] <= dot.value <= dot.interval[1] + math.ulp(1) for dot in group.dots)
