import pytest

from myllm.data.scenes import COLOURS, GROUNDS, KINDS, PLURALS
from myllm.metrics.lexicon import Lexicon, colours, things

COCO = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign",
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella",
    "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard",
    "surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, oranges",
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop",
    "computer mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase",
    "scissors, teddy bear, hair drier, toothbrush",
)

SMALL = Lexicon(
    """
# a comment
: team
person: person/people, man/men, +@shirt
animal: animal
dog < animal: dog, lab
hot dog < food: hot dog
food: food, berry, dish
toy: toy, ~box
ball: ball, tennis ball
pants: pants/
sheep < animal: =sheep
shirt: shirt
water: water, +swimming
lake < water: lake
cart: carriage
pram: carriage
"""
)


def named(caption: str, lexicon: Lexicon = SMALL) -> list[str]:
    return ["/".join(sorted(mention.classes)) for mention in lexicon.mentions(caption.split())]


@pytest.mark.parametrize(
    ("caption", "classes"),
    [
        ("two men and a lab", ["person", "dog"]),
        ("berries on dishes in boxes", ["food", "food", "toy"]),
        ("a hot dog", ["hot dog"]),
        ("hot dogs and dogs", ["hot dog", "dog"]),
        ("the dog toy", ["toy"]),
        ("a dog team", []),
        ("dogs men", ["dog", "person"]),
        ("a man boxes", ["person"]),
        ("a red box", ["toy"]),
        ("box", ["toy"]),
        ("a pant and pants", ["pants"]),
        ("sheep", ["sheep"]),
        ("a carriage", ["cart/pram"]),
        ("hot", []),
        ("", []),
    ],
)
def test_a_caption_names_classes(caption: str, classes: list[str]) -> None:
    assert named(caption) == classes


@pytest.mark.parametrize(
    ("reference", "possible", "impossible"),
    [
        ("a dog", {"dog", "animal"}, {"sheep", "food"}),
        ("an animal", {"dog", "animal", "sheep"}, {"food"}),
        ("a dog toy", {"dog", "toy"}, {"ball"}),
        ("a man boxes", {"person", "toy"}, {"shirt"}),
        ("swimming", {"water"}, {"lake"}),
        ("water", {"water", "lake"}, set()),
        ("a dog-like thing", {"dog"}, set()),
        ("a shirt", {"shirt", "person"}, {"pants"}),
        ("a carriage", {"cart", "pram"}, set()),
    ],
)
def test_a_reference_leaves_classes_possible(reference: str, possible: set[str], impossible: set[str]) -> None:
    found = SMALL.supported([reference.split()])
    assert found >= possible and not found & impossible


@pytest.mark.parametrize("thing", ", ".join(COCO).split(", "))
def test_each_kind_of_coco_is_in_the_noun_list(thing: str) -> None:
    assert len(named(f"the {thing}", things())) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_scenes_speak_of_things_in_the_noun_list(kind: str) -> None:
    assert named(f"a red {kind}", things()) == named(f"two red {PLURALS[kind]}", things()) != []


def test_scenes_grounds_and_colours_are_in_the_lists() -> None:
    assert all(len(named(f"a thing on {ground}", things())) == 1 for ground in GROUNDS)
    assert [named(colour, colours()) for colour in COLOURS] == [[colour] for colour in COLOURS]


def test_classes_of_scenes_are_all_different() -> None:
    assert len({*(named(f"a red {kind}", things())[0] for kind in KINDS)}) == len(KINDS)


@pytest.mark.parametrize(
    ("caption", "classes"),
    [
        ("a man in a grey t-shirt swings at a tennis ball", ["person", "shirt", "ball"]),
        ("children cross the street", ["person", "street"]),
        ("the leaves of a tree", ["plant", "tree"]),
        ("a woman watches geese and wolves", ["person", "bird", "wolf"]),
        ("a couple of women at a bus stop", ["person", "bus"]),
        ("a couple on a sofa", ["person", "couch"]),
        ("a boy poses for the camera", ["person"]),
        ("a soccer team", []),
        ("a football player kicks a football", ["person", "ball"]),
        ("water bottles in snow", ["bottle", "snow"]),
        ("an orange", ["orange"]),
        ("an orange shirt", ["shirt"]),
        ("another dog watches", ["dog"]),
    ],
)
def test_everyday_words_are_read_as_a_person_would(caption: str, classes: list[str]) -> None:
    assert named(caption, things()) == classes


@pytest.mark.parametrize(
    ("caption", "classes"),
    [("a gray dog", ["grey"]), ("blonde hair and blond hair", ["golden", "golden"]), ("red white", ["red", "white"])],
)
def test_colours_have_synonyms(caption: str, classes: list[str]) -> None:
    assert ["/".join(form.classes) for form, _, _ in colours().find(caption.split())] == classes


def test_every_broader_class_stands_in_the_list_too() -> None:
    named_by_words = {name for form in things().forms.values() for name in form.classes}
    assert set(things().broader) - named_by_words == {"place"}
    assert set(colours().broader) == {name for form in colours().forms.values() for name in form.classes}
