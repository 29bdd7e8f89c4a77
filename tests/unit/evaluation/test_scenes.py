import pytest

from myllm.data.scenes import Thing
from myllm.evaluation.scenes import (
    describe_scene_figures,
    find_named,
    judge_scene_caption,
    named_groups,
    score_scene_captions,
    wrong_spans,
)

BALL = Thing("ball", "red", "big", (0, 0, 9, 9))
CUBE = Thing("cube", "blue", "big", (20, 0, 29, 9))


def test_named_groups_are_read_with_count_colour_and_kind() -> None:
    assert named_groups("Two small red balls left of an orange cube") == [(2, "red", "ball"), (1, "orange", "cube")]
    assert named_groups("nothing here") == []


def test_find_named_returns_each_noun_with_the_things_it_can_mean() -> None:
    ((span, things),) = find_named("a red ball and a green star", [BALL, CUBE])
    assert "a red ball and a green star"[slice(*span)] == "ball" and things == [BALL]


@pytest.mark.parametrize(
    ("caption", "right"),
    [
        ("a red ball left of a blue cube", True),
        ("a red ball right of a blue cube", False),
        ("a blue cube right of a red ball", True),
        ("a red ball above a green star", False),
        ("a red ball", None),
    ],
)
def test_judge_scene_caption_checks_relations_against_positions(caption: str, right: bool | None) -> None:
    assert judge_scene_caption(caption, [BALL, CUBE]).placed is right


def test_score_scene_captions_returns_shares_of_captions() -> None:
    captions = ["a red ball", "two red balls", "a blue ball", ""]
    assert score_scene_captions(captions, [[BALL]] * 4) == {
        "true": 0.5, "complete": 0.25, "invented": 0, "miscoloured": 0.25, "miscounted": 0.25
    }
    captions = ["a red ball left of a blue cube", "a red ball right of a blue cube", "a red ball", ""]
    figures = score_scene_captions(captions, [[BALL, CUBE]] * 4)
    assert figures["placed"] == 0.5
    assert describe_scene_figures(figures) == "true  75.0%   complete  50.0%   placed  50.0%"


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        ("a red ball left of a blue cube", []),
        ("a blue ball and a red star", ["blue", "star"]),
        ("Two big red balls above a blue cube", ["Two"]),
        ("", []),
    ],
)
def test_wrong_spans_are_nouns_colours_and_numbers_that_were_not_drawn(caption: str, wrong: list[str]) -> None:
    assert [caption[begin:end] for begin, end in wrong_spans(caption, [BALL, CUBE])] == wrong
