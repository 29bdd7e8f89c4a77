import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm.data.scenes import draw_scene
from myllm.evaluation.scenes import judge_scene_caption, named_groups
from myllm.metrics.hallucination import Named, compare_names, hallucination, invented_spans

REFERENCES = [
    "a man and a boy play with a red frisbee",
    "two people in a park",
    "a person throws a disc to a child in a blue t-shirt",
]


def compare(caption: str, references: Sequence[str] = REFERENCES) -> dict[str, Named]:
    return compare_names(caption.split(), [reference.split() for reference in references])


@pytest.mark.parametrize(
    ("caption", "invented"),
    [
        ("a girl with a frisbee", ()),  # which person it is is a detail
        ("a man with a dog", ("dog",)),
        ("a man in a coat", ()),  # people wear clothes, said or not
        ("a man in a top hat with dogs and a hot dog", ("hat", "dogs", "hot dog")),
        ("a dog leash", ("leash",)),
        ("nothing", ()),
    ],
)
def test_things_that_no_reference_names_are_invented(caption: str, invented: tuple[str, ...]) -> None:
    assert compare(caption)["things"].invented == invented


@pytest.mark.parametrize(
    ("caption", "invented"),
    [
        ("A man in a Top Hat with dogs, and a hot dog.", ["Hat", "dogs", "hot dog"]),
        ("Three green boats on the beach", ["Three", "green", "boats", "beach"]),
        ("a red frisbee", []),
        ("", []),
        ("ein Hund", []),
    ],
)
def test_invented_spans_are_those_of_the_captions_own_characters(caption: str, invented: list[str]) -> None:
    assert [caption[begin:end] for begin, end in invented_spans(caption, REFERENCES)] == invented


def test_places_are_counted_separately() -> None:
    result = compare("a man in a park on the beach with a ball")
    assert (result["things"], result["places"]) == ((2, ("ball",)), (2, ("beach",)))


@pytest.mark.parametrize(
    ("caption", "reference", "invented"),
    [
        ("an animal", "a puppy", ()),
        ("a puppy", "an animal", ()),
        ("a cat", "a puppy", ("cat",)),
        ("a bike", "a cyclist", ()),
        ("a bicycle", "a motorbike", ("bicycle",)),
        ("a rose", "some flowers", ()),
    ],
)
def test_broader_narrower_and_implied_words_are_not_invented(
    caption: str, reference: str, invented: tuple[str, ...]
) -> None:
    assert compare(caption, [reference])["things"].invented == invented


@pytest.mark.parametrize(
    ("caption", "reference", "invented"),
    [
        ("a gray and white dog", "a grey dog", ("white",)),
        ("a blond boy", "a blonde boy", ()),
        ("a tan dog", "a light brown dog", ()),
        ("a red-haired man in red", "a red-haired man", ()),
        ("a black dog", "a black-and-white dog", ()),
        ("a green ball", "a ball", ("green",)),
    ],
)
def test_colours_that_no_reference_names_are_invented(caption: str, reference: str, invented: tuple[str, ...]) -> None:
    assert compare(caption, [reference])["colours"].invented == invented


@pytest.mark.parametrize(
    ("caption", "reference", "invented"),
    [
        ("two dogs", "2 dogs run", ()),
        ("two dogs", "three dogs", ("two",)),
        ("a couple of dogs", "two dogs", ()),
        ("a couple of dogs", "four dogs", ("couple",)),
        ("a couple on a bench", "four people", ()),
        ("a pair of shoes", "a man", ()),
        ("three people", "a man and two girls", ()),
        ("three people", "a man in two shoes", ("three",)),
        ("two animals", "a dog and a cat", ()),
        ("two people", "a couple kisses", ()),
        ("two dogs", "dogs play", ("two",)),  # which says nothing of how many
        ("one dog chases another", "two dogs", ()),
        ("a boy with number 5", "a boy", ()),
        ("a five year old", "a boy", ()),
        ("10 men", "ten men", ()),
    ],
)
def test_numbers_that_no_reference_names_or_shows_are_invented(
    caption: str, reference: str, invented: tuple[str, ...]
) -> None:
    assert compare(caption, [reference])["numbers"].invented == invented


def test_figures_are_shares_of_what_is_named() -> None:
    captions = ["a dog and a red cat", "two horses on the beach", "it is there"]
    references = [["a dog"], ["horses on a beach", "three horses"], ["a dog"]]
    figures = hallucination([c.split() for c in captions], [[r.split() for r in group] for group in references])
    assert {name: figure.corpus for name, figure in figures.items()} == {
        "CHAIRi": 1 / 3, "CHAIRs": 1 / 3, "places_wrong": 0, "colours_wrong": 1, "counts_wrong": 1
    }
    assert figures["CHAIRi"].per_image.tolist() == pytest.approx([1 / 2, 0, math.nan], nan_ok=True)
    assert figures["CHAIRi"].of([1, 2]) == 0


THINGS = ["dog", "cat", "car", "piano", "kite", "sandwich", "umbrella", "ladder"]
some_things = st.lists(st.sampled_from(THINGS), max_size=5)


@given(some_things, st.lists(some_things, min_size=1, max_size=3))
def test_chair_is_the_share_of_names_outside_the_references(named: list[str], by_references: list[list[str]]) -> None:
    def sentence(names: list[str]) -> list[str]:
        return " and ".join(f"a {name}" for name in names).split()

    figures = hallucination([sentence(named)], [[sentence(names) for names in by_references]])
    wrong = [name for name in named if all(name not in names for names in by_references)]
    share, captions = (len(wrong) / len(named), float(bool(wrong))) if named else (math.nan, math.nan)
    assert figures["CHAIRi"].corpus == pytest.approx(share, nan_ok=True)
    assert figures["CHAIRs"].corpus == pytest.approx(captions, nan_ok=True)
    assert figures["CHAIRi"].denominator == len(named)


def test_inventions_by_references_equal_those_by_what_was_drawn() -> None:
    scenes = [draw_scene(3, "val", number)[1] for number in range(200)]
    order = random.Random(0).sample(range(200), 200)
    verdicts = set()
    for scene, other in zip(scenes, (scenes[index] for index in order), strict=True):
        caption = other.captions[0].removesuffix(f" on {other.ground}")
        words = caption.split()
        result = compare_names(words, [reference.split() for reference in scene.captions])
        assert bool(result["things"].invented) == judge_scene_caption(caption, scene.things).invented
        drawn = {thing.colour for thing in scene.things}
        assert bool(result["colours"].invented) == any(colour not in drawn for _, colour, _ in named_groups(caption))
        verdicts.add((bool(result["things"].invented), bool(result["colours"].invented)))
    assert len(verdicts) == 4


def test_shares_of_nothing_have_no_value() -> None:
    """As in captions of another language, or without numbers."""
    figures = hallucination([["كلب", "يجري"], ["رجل"]], [[["كلب"]], [["رجل"]]])
    assert all(math.isnan(figure.corpus) and figure.denominator == 0 for figure in figures.values())


@pytest.mark.parametrize(
    ("caption", "reference"),
    [
        ("two glasses of wine on a table", "two wine glasses on a table"),
        ("two glasses on a table", "two wine glasses on a table"),
        ("bottles of wine", "two wine bottles"),
        ("a bottle of water", "a man with a water bottle"),
        ("a glass of water", "a water glass"),
        ("a woman holding a cup", "a woman with a drink"),
        ("an orange on a plate", "fruit on a plate"),
        ("a man peels an orange and an apple", "a man with fruit"),
        ("oranges in a bowl", "fruit in a dish"),
        ("a skillet on the stove", "a frying pan on a stovetop"),
        ("a player throws the ball to the basket", "basketball players"),
        ("a woman hits a ball over the net", "a woman plays tennis"),
        ("a four wheel drive car", "a car"),
        ("a man in red watches", "a man wearing red looks on"),
        ("the child in brown stands below", "a child in brown"),
        ("a dog in front of the camera takes a toy", "a picture of a dog with a ball"),
        ("a seal on a rock", "a sea lion on the rocks"),
        ("a polar bear cub", "two bears"),
        ("a glass of orange juice", "a drink on a table"),
        ("green beans on a plate", "vegetables on a dish"),
        ("an orange cat", "a ginger cat"),
        ("a microwave oven", "a microwave"),
        ("two pairs of shoes", "four shoes"),
    ],
)
def test_other_words_for_the_same_thing_are_not_invented(caption: str, reference: str) -> None:
    assert [kind for kind, named in compare(caption, [reference]).items() if named.invented] == []


@pytest.mark.parametrize(
    ("caption", "colours"),
    [("an orange and white shirt", 2), ("a boy in orange", 1), ("an orange jacket", 1), ("an orange on a plate", 0),
     ("an orange", 0), ("two oranges", 0), ("orange juice", 0), ("an orange cone", 1)],
)
def test_orange_is_a_colour_or_a_fruit(caption: str, colours: int) -> None:
    assert compare(caption, ["a man"])["colours"].total == colours
