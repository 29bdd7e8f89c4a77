from dataclasses import replace

import pytest
import torch
from measures.pointing import Pointing, centre, in_boxes, mean_pointing, point, point_words

from myllm.attribution.methods import METHODS
from myllm.checkpoints.native import Checkpoint
from myllm.data.scenes import Thing, draw_scene
from myllm.evaluation.scenes import find_named
from myllm.inference.captioner import Captioner

RED, BLUE, OTHER = (
    Thing("star", "red", "small", (2, 4, 12, 14)), Thing("star", "blue", "big", (30, 30, 50, 50)),
    Thing("star", "red", "small", (40, 0, 50, 10)),
)


def test_point_counts_a_maximum_in_any_box_as_a_hit() -> None:
    inside = in_boxes([RED.box, OTHER.box], (64, 64))
    heat = torch.full((64, 64), 0.001)
    for x, y, is_hit in ((2, 4, True), (11, 13, True), (12, 13, False), (45, 5, True), (40, 40, False)):
        marked = heat.clone()
        marked[y, x] = 1
        assert point(marked, inside).hit == is_hit


def test_point_energy_is_the_share_of_the_map_in_the_boxes() -> None:
    inside = in_boxes([RED.box, OTHER.box], (64, 64))
    assert point(torch.ones(64, 64), inside).energy == pytest.approx(200 / 64**2)
    assert point(7 * inside.float(), inside) == Pointing(1, 1)
    assert point(torch.zeros(64, 64), inside) == Pointing(0, 0)


def test_centre_has_its_maximum_in_the_middle() -> None:
    heat = centre(40, 60)
    assert heat.max() == heat[20, 30] and heat[0, 0] == heat.min()
    assert heat[20, 45] / heat[20, 30] == pytest.approx(0.6065, rel=0.1)


def test_find_named_returns_things_of_the_named_kind_and_colour() -> None:
    caption = "Two small red stars left of a blue star and a green heart"
    spans = find_named(caption, [RED, BLUE, OTHER])
    assert [(caption[begin:end], things) for (begin, end), things in spans] == [
        ("stars", [RED, OTHER]), ("star", [BLUE]),
    ]


def test_point_words_judges_each_naming_word_by_each_method(tiny_checkpoint: Checkpoint) -> None:
    captioner = Captioner(tiny_checkpoint, torch.device("cpu"))
    scenes = [draw_scene(0, "val", number) for number in range(3)]
    [first, *_] = scenes[0][1].things
    text = f"a {first.colour} {first.kind}"
    captioner.decode = replace(captioner.decode, regex=text, max_new_tokens=20)
    images, things = [image for image, _ in scenes], [scene.things for _, scene in scenes]
    words = list(point_words(captioner, images, things, list(METHODS)))
    boxes = [
        [thing.box for thing in scene if (thing.kind, thing.colour) == (first.kind, first.colour)] for scene in things
    ]
    shares = [float(in_boxes(scene_boxes, (64, 64)).float().mean()) for scene_boxes in boxes if scene_boxes]
    assert [word["chance"] for word in words] == [Pointing(share, share) for share in shares]
    assert set(words[0]) == {*METHODS, "chance", "centre"}
    for word in words:
        assert all(0 <= word[method].energy <= 1 and word[method].hit in (0, 1) for method in (*METHODS, "centre"))


def test_mean_pointing_averages_over_words() -> None:
    words = [{"a": Pointing(1, 0.5), "b": Pointing(0, 0.25)}, {"a": Pointing(0, 0.1), "b": Pointing(0, 0.75)}]
    assert mean_pointing(words) == {"a": Pointing(0.5, pytest.approx(0.3)), "b": Pointing(0, 0.5)}
    assert mean_pointing([]) == {}
