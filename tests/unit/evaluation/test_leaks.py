"""Copies are planted among drawn pictures that are otherwise all different."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from myllm.data.records import Record
from myllm.data.scenes import draw_scene
from myllm.evaluation.leaks import NOT_DETECTED, Leaks, PicturePair, find_leaks


def drawing(seed: int, size: tuple[int, int] = (240, 180)) -> Image.Image:
    """Forty shapes on a slope of light."""
    rng = random.Random(seed)
    slope = np.add.outer(np.linspace(0, rng.uniform(-90, 90), size[1]), np.linspace(0, rng.uniform(-90, 90), size[0]))
    image = Image.fromarray((128 + slope).clip(0, 255).astype(np.uint8)).convert("RGB")
    draw = ImageDraw.Draw(image)
    for _ in range(40):
        x, y, radius = rng.randrange(size[0]), rng.randrange(size[1]), rng.randrange(4, 40)
        colour = (rng.randrange(256), rng.randrange(256), rng.randrange(256))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return image


def sky(seed: int) -> Image.Image:
    """A slope of light with a camera's noise."""
    rng = np.random.default_rng(seed)
    light = np.linspace(200, 150 + seed, 180)[:, None] + rng.normal(0, 3, (180, 240))
    return Image.fromarray(light.clip(0, 255).astype(np.uint8)).convert("RGB")


def saved(image: Image.Image, path: Path, *captions: str, **options: object) -> Record:
    image.save(path, **options)
    return Record(path.name, path, captions)


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder = tmp_path_factory.mktemp("training")
    return [saved(drawing(seed), folder / f"{seed}.png", f"drawing number {seed}") for seed in range(30)]


def within(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    width, height = image.size
    return image.crop((round(left * width), round(top * height), round(right * width), round(bottom * height)))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "saved anew": lambda image: image,
    "half the size": lambda image: image.resize((120, 90)),
    "twice the size": lambda image: image.resize((480, 360)),
    "another shape": lambda image: image.resize((200, 200)),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "grey": lambda image: image.convert("L"),
    "mirrored": ImageOps.mirror,
    "cropped around the middle": lambda image: within(image, 0.025, 0.025, 0.975, 0.975),
    "cropped at a corner": lambda image: within(image, 0.05, 0.05, 1, 1),
    "mirrored and cropped": lambda image: ImageOps.mirror(within(image, 0, 0.05, 0.95, 1)),
    "turned by a quarter": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "upside down": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "mirrored upside down": ImageOps.flip,
    "cropped by 15 % around the middle": lambda image: within(image, 0.075, 0.075, 0.925, 0.925),
    "cropped by 10 % at a corner": lambda image: within(image, 0.1, 0.1, 1, 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_copies_are_found_by_their_looks(change: str, training: list[Record], tmp_path: Path) -> None:
    copy = saved(CHANGES[change](drawing(7)), tmp_path / "copy.jpg", quality=40)
    other = saved(drawing(1000), tmp_path / "other.jpg")
    leaks = find_leaks(training, [other, copy])
    assert leaks.alike == (("copy.jpg", "7.png"),)
    assert leaks.equal == ()
    assert leaks.pictures.tolist() == [False, True]


def test_copies_turned_by_exif_orientation_are_found(training: list[Record], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter, clockwise
    lying = drawing(3).transpose(Image.Transpose.ROTATE_90)
    assert find_leaks(training, [saved(lying, tmp_path / "lying.jpg", exif=exif)]).alike == (("lying.jpg", "3.png"),)


def test_pictures_with_equal_bytes_are_not_listed_as_alike(training: list[Record], tmp_path: Path) -> None:
    (tmp_path / "renamed.png").write_bytes(training[4].image.read_bytes())
    leaks = find_leaks(training, [Record("renamed.png", tmp_path / "renamed.png", ())])
    assert (leaks.equal, leaks.alike) == ((("renamed.png", "4.png"),), ())
    assert leaks.pictures.all()


def test_training_pictures_are_all_found_in_the_training_data(training: list[Record]) -> None:
    assert find_leaks(training, training).equal == tuple((record.name, record.name) for record in training)


def shape(seed: int, is_centred: bool = False) -> Image.Image:
    """One coloured shape on white; half of the kinds are circles."""
    rng = random.Random(seed)
    image = Image.new("RGB", (200, 200), "white")
    radius = rng.uniform(24, 70)
    x, y = (100, 100) if is_centred else (rng.uniform(radius, 200 - radius), rng.uniform(radius, 200 - radius))
    shapes = [ImageDraw.Draw(image).ellipse, ImageDraw.Draw(image).rectangle]
    colour = (rng.randrange(256), rng.randrange(256), rng.randrange(200))
    rng.choice(shapes)((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return image


@pytest.mark.parametrize("draw", [shape, lambda seed: shape(seed, is_centred=True)])
def test_simple_pictures_are_taken_for_copies_less_than_once_in_a_hundred(
    draw: Callable[[int], Image.Image], tmp_path: Path
) -> None:
    records = [saved(draw(seed), tmp_path / f"{seed}.png") for seed in range(200)]
    assert len(find_leaks(records[:100], records[100:]).pairs) <= 1


def test_a_simple_picture_in_another_colour_is_not_a_copy(tmp_path: Path) -> None:
    red, green, resaved = (tmp_path / name for name in ("red.png", "green.png", "red.jpg"))
    image = Image.new("RGB", (200, 200), "white")
    for colour, path in (((200, 40, 40), red), ((40, 130, 40), green)):
        ImageDraw.Draw(image).ellipse((60, 60, 140, 140), fill=colour)
        image.save(path)
    Image.open(red).save(resaved, quality=40)
    training = [Record(red.name, red, ())]
    judged = [Record(green.name, green, ()), Record(resaved.name, resaved, ())]
    assert find_leaks(training, judged).pictures.tolist() == [False, True]


@pytest.mark.parametrize("draw", [drawing, sky, lambda seed: draw_scene(0, "train", seed)[0]])
def test_different_pictures_are_not_copies(draw: Callable[[int], Image.Image], tmp_path: Path) -> None:
    records = [saved(draw(seed), tmp_path / f"{seed}.png") for seed in range(60)]
    assert not find_leaks(records[:30], records[30:]).pictures.any()


def test_blank_pictures_are_equal_only_by_bytes(tmp_path: Path) -> None:
    greys = [saved(Image.new("L", (64, 64), level), tmp_path / f"{level}.png") for level in (0, 90, 91, 255)]
    assert not find_leaks(greys[:2], greys[2:]).pictures.any()
    assert find_leaks(greys[:2], greys[1:]).equal == (("90.png", "90.png"),)


def test_captions_are_repeated_if_their_words_are_equal(training: list[Record], tmp_path: Path) -> None:
    judged = [
        saved(drawing(100), tmp_path / "a.png", "something else", "Drawing number 5 ."),
        saved(drawing(101), tmp_path / "b.png", "drawing number", "."),
    ]
    leaks = find_leaks([*training, Record(training[0].image.name, training[0].image, ("!",))], judged)
    assert leaks.repeated == (("a.png", "5.png", "Drawing number 5 ."),)
    assert leaks.captions.tolist() == [True, False]
    assert not leaks.pictures.any()


def test_unreadable_pictures_are_named_and_the_others_compared(training: list[Record], tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    copy = saved(drawing(2), tmp_path / "copy.jpg")
    broken = Record("broken.jpg", tmp_path / "broken.jpg", ("drawing number 1",))
    judged = [broken, Record("gone.jpg", tmp_path / "gone.jpg", ()), copy]
    leaks = find_leaks(training, judged)
    assert leaks.broken == ("broken.jpg", "gone.jpg")
    assert leaks.pictures.tolist() == [False, False, True]
    assert leaks.captions.tolist() == [True, False, False]
    assert leaks.lines()[-1] == "2 could not be read and were not compared (broken.jpg, gone.jpg)."
    assert find_leaks(judged[:2], judged[:2]).pictures.tolist() == [False, False]


def test_without_training_data_leaks_are_unknown(training: list[Record]) -> None:
    leaks = find_leaks([], training)
    assert not leaks.pictures.any()
    assert not leaks.captions.any()
    assert len(leaks.pictures) == len(training)
    assert leaks.lines() == ["The training pictures are not known, so leaks cannot be looked for."]


def test_lines_name_copies_and_state_the_limits() -> None:
    def pair(judged: str, training: str, is_equal: bool) -> PicturePair:
        return PicturePair(Record(judged, Path(judged), ()), Record(training, Path(training), ()), is_equal)

    mask = np.array([True, True, True] + [False] * 997)
    pairs = (pair("a", "b", True), pair("c", "d", True), pair("e", "f", False))
    leaks = Leaks(6000, pairs, (), (), mask, mask & False)
    assert leaks.lines() == [
        "3 of 1,000 pictures are in the training data, too (same bytes: a = b, c = d; alike: e ~ f). " + NOT_DETECTED,
        "Pictures that share a caption with the training data, word for word: 0 of 1,000.",
    ]
    assert "(same bytes: a = b and 1 more; alike: e ~ f)." in leaks.lines(shown=1)[0]
    clean = Leaks(6000, (), (("a", "b", "a dog"),), (), mask & False, np.arange(1000) == 0)
    assert clean.lines() == [
        "None of 1,000 pictures is a copy of one of the 6,000 in the training data. " + NOT_DETECTED,
        "Pictures that share a caption with the training data, word for word: 1 of 1,000 ('a dog' of a and b).",
    ]


def test_lines_of_one_picture_speak_of_one_picture() -> None:
    mask = np.array([True])
    pair = PicturePair(Record("a", Path("a"), ()), Record("b", Path("b"), ()), True)
    assert Leaks(5, (pair,), (), (), mask, mask).lines()[0].startswith("1 of 1 picture is in the training data")
    assert Leaks(5, (), (), (), ~mask, ~mask).lines()[0].startswith("None of 1 picture is a copy")


def test_pairs_give_both_pictures_in_the_order_of_the_judged_ones(training: list[Record], tmp_path: Path) -> None:
    copy = saved(drawing(7), tmp_path / "copy.jpg", quality=40)
    leaks = find_leaks(training, [copy, saved(drawing(1000), tmp_path / "other.jpg"), training[3]])
    assert [(pair.judged, pair.training, pair.is_equal) for pair in leaks.pairs] == [
        (copy, training[7], False), (training[3], training[3], True)
    ]


def test_progress_counts_every_picture(training: list[Record]) -> None:
    calls: list[tuple[int, int]] = []
    find_leaks(training[:3], training[3:5], lambda _, done, total: calls.append((done, total)))
    assert calls == [(number, 5) for number in range(1, 6)]


@given(st.lists(st.sampled_from(["a dog", "a cat", "A dog .", "two men"]), max_size=6), st.data())
def test_repeated_captions_equal_a_search_through_all(captions: list[str], data: st.DataObject) -> None:
    judged = data.draw(st.lists(st.sampled_from(["a dog", "a man", "a cat!", "A Dog"]), min_size=1, max_size=4))
    nowhere = Path("nowhere.png")
    training = [Record("x", nowhere, tuple(captions))]
    leaks = find_leaks(training, [Record("x", nowhere, (caption,)) for caption in judged])
    plain = {caption.lower().rstrip(" .!") for caption in captions}
    assert leaks.captions.tolist() == [caption.lower().rstrip(" .!") in plain for caption in judged]


@pytest.mark.slow
@pytest.mark.needs_data
def test_different_photographs_are_not_copies(shared_data: Path) -> None:
    paths = sorted((shared_data / "flickr30k_images").iterdir())[:1200]
    records = [Record(path.name, path, ()) for path in paths]
    assert find_leaks(records[::2], records[1::2]).alike == ()
