import random

import numpy as np
import pytest
from PIL import Image

from myllm.data.augmentation import are_english, augment, is_english, mirrored_captions


def halves(left: str = "red", right: str = "blue") -> Image.Image:
    image = Image.new("RGB", (40, 40), left)
    image.paste(right, (20, 0, 40, 40))
    return image


@pytest.mark.parametrize(
    ("caption", "mirrored"),
    [
        ("a dog on the left .", "a dog on the right ."),
        ("a red ball left of two blue cubes", "a red ball right of two blue cubes"),
        ("to the right of a moon, to the left of a ring", "to the left of a moon, to the right of a ring"),
        ("Left of the man stands a dog", "Right of the man stands a dog"),
        ("he holds it in his left hand", "he holds it in his right hand"),
        ("a man at the far right and a dog", "a man at the far left and a dog"),
        ("a bright red dress", "a bright red dress"),
        ("a dog runs .", "a dog runs ."),
    ],
)
def test_mirrored_captions_swap_left_and_right(caption: str, mirrored: str) -> None:
    assert mirrored_captions([caption]) == (mirrored,)
    assert mirrored_captions([mirrored]) == (caption,)


@pytest.mark.parametrize(
    "caption",
    [
        "the man has left the room", "what is left of the cake", "a man standing right behind him",
        "water left behind", "a man turns right", "to the right person", "a stop sign", "the words on a shirt",
        "player number 7", 'it says "go"', "un chien à gauche", "the cat is to the left and has left",
        "a man turns clockwise", "all that is left of the wall",
        "собака слева от дерева", "ein Hund läuft links", "perro a la izquierda", "een hond rechts in het gras",
        "cane a sinistra", "dog running",
    ],
)
def test_mirrored_captions_are_none_if_one_might_be_false(caption: str) -> None:
    assert mirrored_captions(["a dog", caption]) is None


def hues(image: Image.Image) -> set[int]:
    return set(np.unique(np.asarray(image.convert("HSV"))[..., 0]).tolist())


def test_augment_swaps_left_and_right_with_a_flip() -> None:
    flips = set()
    for seed in range(40):
        image, (caption,) = augment(halves(), ["a red half left of a blue half"], random.Random(seed))
        red, _, blue = image.getpixel((5, 20))
        flips.add(red > blue)
        assert (red > blue) == (caption == "a red half left of a blue half")
    assert flips == {True, False}


def test_augment_does_not_flip_if_a_caption_might_be_false() -> None:
    for seed in range(40):
        image, captions = augment(halves(), ["the dog has left"], random.Random(seed))
        assert captions == ("the dog has left",)
        assert image.getpixel((5, 20))[0] > image.getpixel((5, 20))[2]


@pytest.mark.parametrize(("caption", "is_kept"), [
    ("a dog", False), ("a man with a bicycle on the street", False),
    ("a reddish dog", True), ("a blonde", True), ("a burgundy dress", True), ("an olive jacket", True),
    ("a dog with a tawny coat", True), ("the greenish sea", True), ("a rosy face", True), ("in fuchsia", True),
    ("una mujer con vestido rojo", True), ("собака", True),
])
def test_augment_keeps_the_hue_if_a_caption_names_a_colour(caption: str, is_kept: bool) -> None:
    plain = Image.new("RGB", (16, 16), (200, 40, 40))
    augmented = set.union(*(hues(augment(plain, [caption], random.Random(seed))[0]) for seed in range(20)))
    assert (augmented == {0}) == is_kept


def test_augment_depends_only_on_its_generator() -> None:
    image = halves()
    first, second = (augment(image, ["a dog"], random.Random(3)) for _ in range(2))
    assert first[0].tobytes() == second[0].tobytes() and first[1] == second[1]
    assert augment(image, ["a dog"], random.Random(4))[0].tobytes() != first[0].tobytes()


def test_augment_neither_flips_nor_shifts_hues_in_a_data_set_that_is_not_english() -> None:
    for seed in range(40):
        image, captions = augment(halves(), ["a dog on the left"], random.Random(seed), in_english=False)
        assert captions == ("a dog on the left",) and image.getpixel((5, 20))[0] > image.getpixel((5, 20))[2]
        plain = Image.new("RGB", (16, 16), (200, 40, 40))
        assert hues(augment(plain, ["a dog"], random.Random(seed), in_english=False)[0]) == {0}


ENGLISH = ["A dog runs .", "two kids on a beach", "the man's hat", "man in red shirt", "a café", "people playing"]
OTHERS = {
    "German": ["ein hund rennt über die wiese", "zwei kinder spielen im sand", "ein mann links neben einem auto"],
    "Dutch": ["een hond rent in het gras", "twee kinderen spelen in het zand", "een man staat links van een auto"],
    "French": ["un chien court à gauche d'un arbre", "un homme en chemise rouge", "une femme a un chapeau"],
    "Spanish": ["un perro corre a la izquierda", "un hombre con una camisa roja", "la calle", "perro a la derecha"],
    "Italian": ["un cane corre in un prato", "una donna a sinistra in rosso", "il cane nero in acqua"],
    "Portuguese": ["um cachorro corre na grama", "uma mulher anda na rua a esquerda", "o homem com camisa vermelha"],
    "Danish": ["en hund og en mand", "en rød trøje"],
    "Hungarian": ["egy kutya fut a fűben", "a férfi balra áll"],
    "Indonesian": ["seekor anjing berlari di atas rumput", "dua anak bermain di pantai"],
    "Russian": ["собака бежит слева", "мужчина в красной рубашке"],
    "Chinese": ["一只狗在左边", "两个孩子在海滩上"],
    "tags": ["dog", "grass, dog", "1girl, solo"],
}


def test_is_english_needs_a_common_word_and_plain_letters() -> None:
    assert [is_english(caption) for caption in ENGLISH] == [True, True, True, True, False, False]


@pytest.mark.parametrize("language", OTHERS)
def test_is_english_takes_no_other_language_for_it(language: str) -> None:
    assert not any(map(is_english, OTHERS[language]))


def test_are_english_decides_for_the_whole_data_set() -> None:
    english = ["a dog on the beach"] * 97
    assert are_english([*english, *["dog running"] * 3]) and not are_english([*english, *["un chien"] * 4])


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (30, 80)])
def test_augment_keeps_the_size_and_changes_little(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (120, 130, 140))
    changed, _ = augment(image, ["a grey picture"], random.Random(0))
    assert changed.size == size
    assert np.abs(np.asarray(changed, dtype=int) - np.asarray(image, dtype=int)).max() < 60
