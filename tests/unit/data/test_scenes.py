import itertools
import re
from dataclasses import replace

import numpy as np
import pytest

from myllm.data.scenes import COLOURS, HELD_OUT, KINDS, PICTURE_SIZE, Scene, Thing, draw_scene
from myllm.evaluation.scenes import judge_scene_caption

DRAWN = [draw_scene(7, part, number) for part in ("train", "val", "heldout") for number in range(170)]
SCENES = [scene for _, scene in DRAWN]


def pairs(scene: Scene) -> set[tuple[str, str]]:
    return {(thing.kind, thing.colour) for thing in scene.things}


def things(*groups: tuple[int, str, str]) -> list[Thing]:
    """Return things of groups (count, colour, kind)."""
    return [Thing(kind, colour, "big", (0, 0, 9, 9)) for count, colour, kind in groups for _ in range(count)]


def test_draw_scene_depends_only_on_seed_part_and_number() -> None:
    image, scene = draw_scene(1, "train", 5)
    again, others = draw_scene(1, "train", 5), [draw_scene(2, "train", 5), draw_scene(1, "val", 5)]
    assert again[0].tobytes() == image.tobytes() and again[1] == scene
    assert all(other.tobytes() != image.tobytes() for other, _ in others)


def test_draw_scene_makes_small_rgb_pictures() -> None:
    assert {(image.size, image.mode) for image, _ in DRAWN} == {((PICTURE_SIZE, PICTURE_SIZE), "RGB")}


def test_scene_captions_are_true_and_complete() -> None:
    for scene in SCENES:
        assert len(scene.captions) == 5
        for caption in scene.captions:
            verdict = judge_scene_caption(caption, scene.things)
            assert verdict.true and verdict.complete and verdict.placed is not False, (caption, scene.groups)


def test_scenes_have_every_kind_colour_and_count() -> None:
    assert {thing.kind for scene in SCENES for thing in scene.things} == set(KINDS)
    assert {thing.colour for scene in SCENES for thing in scene.things} == set(COLOURS)
    assert {group.count for scene in SCENES for group in scene.groups} == {1, 2, 3}


def test_scenes_have_held_out_pairs_only_in_part_heldout() -> None:
    assert not any(pairs(scene) & HELD_OUT for scene in SCENES[:340])
    assert all(pairs(scene) & HELD_OUT for scene in SCENES[340:])


def test_held_out_pairs_have_each_kind_and_colour_once() -> None:
    assert len(HELD_OUT) == len({kind for kind, _ in HELD_OUT}) == len({colour for _, colour in HELD_OUT}) == 8


def test_scene_boxes_are_inside_the_picture_and_have_the_colour() -> None:
    for image, scene in DRAWN:
        pixels = np.asarray(image, dtype=int)
        for thing in scene.things:
            left, top, right, bottom = thing.box
            assert 0 <= left < right <= PICTURE_SIZE and 0 <= top < bottom <= PICTURE_SIZE
            inside = pixels[top:bottom, left:right].reshape(-1, 3)
            distance = np.abs(inside - COLOURS[thing.colour]).max(1)
            # tint of up to 16 and noise of up to 9; some faces of balls and cubes are lighter or darker
            assert (distance < 60).mean() > 0.15, thing


def test_scene_things_do_not_cover_the_middle_of_others() -> None:
    for scene in SCENES:
        for thing, other in itertools.permutations(scene.things, 2):
            x, y = (thing.box[0] + thing.box[2]) / 2, (thing.box[1] + thing.box[3]) / 2
            assert not (other.box[0] + 2 < x < other.box[2] - 2 and other.box[1] + 2 < y < other.box[3] - 2)


def test_scene_relations_agree_with_the_boxes() -> None:
    for scene in SCENES:
        if scene.relation in ("left", "above"):
            side = 0 if scene.relation == "left" else 1
            first = [thing.box for thing in scene.things[: scene.groups[0].count]]
            second = [thing.box for thing in scene.things[scene.groups[0].count :]]
            middles = [[(box[side] + box[side + 2]) / 2 for box in boxes] for boxes in (first, second)]
            assert max(middles[0]) < min(middles[1]), scene.captions


@pytest.mark.parametrize(
    ("caption", "is_true", "is_complete"),
    [
        ("two blue cubes left of a red ball", True, True),
        ("a red ball right of two tiny blue cubes on grass", True, True),
        ("A Red Ball and two blue cubes", True, True),
        ("a red ball", True, False),
        ("two red balls and two blue cubes", True, False),
        ("a red ball and a blue cube", True, False),
        ("a red ball and a red ball and two blue cubes", True, False),
        ("a green ball and two blue cubes", False, False),
        ("a red ball and two blue cubes and a white star", False, False),
        ("a red cube and two blue balls", False, False),
        ("", False, False),
        ("a ball on grass", False, False),
    ],
)
def test_judge_scene_caption_finds_false_and_incomplete_ones(caption: str, is_true: bool, is_complete: bool) -> None:
    verdict = judge_scene_caption(caption, things((1, "red", "ball"), (2, "blue", "cube")))
    assert (verdict.true, verdict.complete) == (is_true, is_complete)


@pytest.mark.parametrize(
    ("caption", "invented", "miscoloured", "miscounted"),
    [
        ("a red ball and two blue cubes", False, False, False),
        ("a red ball", False, False, False),
        ("a red ball and two blue stars", True, False, False),
        ("a blue ball and two blue cubes", False, True, False),
        ("two red balls and two blue cubes", False, False, True),
        ("three green stars and a red cube and a blue cube", True, True, True),
        ("grass", False, False, False),
    ],
)
def test_judge_scene_caption_says_what_is_wrong(
    caption: str, invented: bool, miscoloured: bool, miscounted: bool
) -> None:
    verdict = judge_scene_caption(caption, things((1, "red", "ball"), (2, "blue", "cube")))
    assert (verdict.invented, verdict.miscoloured, verdict.miscounted) == (invented, miscoloured, miscounted)


def test_judge_scene_caption_is_true_unless_something_is_invented_or_miscoloured() -> None:
    for scene, other in itertools.pairwise(SCENES):
        verdict = judge_scene_caption(other.captions[0], scene.things)
        assert verdict.true == (not verdict.invented and not verdict.miscoloured)


@pytest.mark.parametrize(
    ("caption", "is_placed"),
    [
        ("a red ball left of two blue cubes", True),
        ("two blue cubes right of a red ball on grass", True),
        ("a red ball right of two blue cubes", False),
        ("two blue cubes left of a red ball", False),
        ("a red ball above two blue cubes", False),
        ("two blue cubes over a red ball", True),
        ("a red ball under two tiny blue cubes", True),
        ("a red ball left of a green cube", False),
        ("a red ball and two blue cubes", None),
        ("left of", None),
    ],
)
def test_judge_scene_caption_checks_relations(caption: str, is_placed: bool | None) -> None:
    boxes = [Thing("ball", "red", "small", (5, 40, 15, 50)), *(
        Thing("cube", "blue", "small", (left, 10, left + 10, 20)) for left in (2, 40)
    )]
    assert judge_scene_caption(caption, boxes).placed is is_placed


def test_judge_scene_caption_finds_left_and_right_false_in_the_mirrored_picture() -> None:
    captions = [(caption, scene) for scene in SCENES for caption in scene.captions if re.search("left|right", caption)]
    assert captions
    for caption, scene in captions:
        boxes = [thing.box for thing in scene.things]
        mirrored = [
            replace(thing, box=(-right, top, -left, bottom))
            for thing, (left, top, right, bottom) in zip(scene.things, boxes, strict=True)
        ]
        assert judge_scene_caption(caption, mirrored).placed is False


def test_judge_scene_caption_finds_captions_false_in_other_colours() -> None:
    for scene in SCENES[:100]:
        recoloured = [replace(thing, colour="teal") for thing in scene.things]
        assert not any(judge_scene_caption(caption, recoloured).true for caption in scene.captions)
