"""Copies are planted among drawn pictures, which otherwise share nothing."""

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
from myllm.evaluation.leaks import Leaks, find_leaks


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
    return Record(path, captions)


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
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_is_found_by_its_looks_and_named(change: str, training: list[Record], tmp_path: Path) -> None:
    copy = saved(CHANGES[change](drawing(7)), tmp_path / "copy.jpg", quality=40)
    other = saved(drawing(1000), tmp_path / "other.jpg")
    found = find_leaks(training, [other, copy])
    assert found.alike == (("copy.jpg", "7.png"),)
    assert found.equal == ()
    assert found.pictures.tolist() == [False, True]


def test_a_picture_turned_by_its_camera_is_the_picture_turned(training: list[Record], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter, clockwise
    lying = drawing(3).transpose(Image.Transpose.ROTATE_90)
    assert find_leaks(training, [saved(lying, tmp_path / "lying.jpg", exif=exif)]).alike == (("lying.jpg", "3.png"),)


def test_equal_bytes_are_told_apart_from_equal_looks(training: list[Record], tmp_path: Path) -> None:
    (tmp_path / "renamed.png").write_bytes(training[4].image.read_bytes())
    found = find_leaks(training, [Record(tmp_path / "renamed.png", ())])
    assert (found.equal, found.alike) == ((("renamed.png", "4.png"),), ())
    assert found.pictures.all()


def test_all_of_training_is_found_in_training(training: list[Record]) -> None:
    assert find_leaks(training, training).equal == tuple((record.name, record.name) for record in training)


@pytest.mark.parametrize("draw", [drawing, sky, lambda seed: draw_scene(0, "train", seed)[0]])
def test_different_pictures_are_not_taken_for_copies(draw: Callable[[int], Image.Image], tmp_path: Path) -> None:
    records = [saved(draw(seed), tmp_path / f"{seed}.png") for seed in range(60)]
    assert not find_leaks(records[:30], records[30:]).pictures.any()


def test_blank_pictures_are_equal_by_bytes_alone(tmp_path: Path) -> None:
    greys = [saved(Image.new("L", (64, 64), level), tmp_path / f"{level}.png") for level in (0, 90, 91, 255)]
    assert not find_leaks(greys[:2], greys[2:]).pictures.any()
    assert find_leaks(greys[:2], greys[1:]).equal == (("90.png", "90.png"),)


def test_captions_are_the_same_by_their_words(training: list[Record], tmp_path: Path) -> None:
    judged = [
        saved(drawing(100), tmp_path / "a.png", "something else", "Drawing number 5 ."),
        saved(drawing(101), tmp_path / "b.png", "drawing number", "."),
    ]
    found = find_leaks([*training, Record(training[0].image, ("!",))], judged)
    assert found.repeated == (("a.png", "5.png", "Drawing number 5 ."),)
    assert found.captions.tolist() == [True, False]
    assert not found.pictures.any()


def test_an_unreadable_picture_is_named_and_the_others_are_compared(training: list[Record], tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    copy = saved(drawing(2), tmp_path / "copy.jpg")
    judged = [Record(tmp_path / "broken.jpg", ("drawing number 1",)), Record(tmp_path / "gone.jpg", ()), copy]
    found = find_leaks(training, judged)
    assert found.broken == ("broken.jpg", "gone.jpg")
    assert found.pictures.tolist() == [False, False, True]
    assert found.captions.tolist() == [True, False, False]
    assert found.lines()[-1] == "2 are unreadable and not compared (broken.jpg, gone.jpg)."
    assert find_leaks(judged[:2], judged[:2]).pictures.tolist() == [False, False]


def test_without_training_it_says_that_it_knows_nothing(training: list[Record]) -> None:
    found = find_leaks([], training)
    assert not found.pictures.any()
    assert not found.captions.any()
    assert len(found.pictures) == len(training)
    assert found.lines() == ["No training pictures are known, so that nothing can be told of leaks."]


def test_finds_are_told_in_sentences() -> None:
    mask = np.array([True, True, True] + [False] * 997)
    found = Leaks(6000, (("a", "b"), ("c", "d")), (("e", "f"),), (), (), mask, mask & False)
    assert found.lines() == [
        "3 of 1,000 pictures are in training too (same bytes: a = b, c = d; alike: e ~ f).",
        "Pictures that share a caption with training, word for word: 0 of 1,000.",
    ]
    assert found.lines(shown=1)[0].endswith("(same bytes: a = b and 1 more; alike: e ~ f).")
    clean = Leaks(6000, (), (), (("a", "b", "a dog"),), (), mask & False, np.arange(1000) == 0)
    assert clean.lines() == [
        "None of 1,000 pictures is among the 6,000 of training, by bytes or by looks.",
        "Pictures that share a caption with training, word for word: 1 of 1,000 ('a dog' of a and b).",
    ]


def test_progress_is_told_of_every_picture(training: list[Record]) -> None:
    told: list[tuple[int, int]] = []
    find_leaks(training[:3], training[3:5], lambda done, total: told.append((done, total)))
    assert told == [(number, 5) for number in range(1, 6)]


@given(st.lists(st.sampled_from(["a dog", "a cat", "A dog .", "two men"]), max_size=6), st.data())
def test_a_caption_is_repeated_where_a_search_through_all_finds_it(captions: list[str], data: st.DataObject) -> None:
    asked = data.draw(st.lists(st.sampled_from(["a dog", "a man", "a cat!", "A Dog"]), min_size=1, max_size=4))
    nowhere = Path("nowhere.png")
    found = find_leaks([Record(nowhere, tuple(captions))], [Record(nowhere, (caption,)) for caption in asked])
    plain = {caption.lower().rstrip(" .!") for caption in captions}
    assert found.captions.tolist() == [caption.lower().rstrip(" .!") in plain for caption in asked]


@pytest.mark.needs_data
def test_different_photographs_are_not_taken_for_copies(shared_data: Path) -> None:
    paths = sorted((shared_data / "flickr30k_images").iterdir())[:1200]
    records = [Record(path, ()) for path in paths]
    assert find_leaks(records[::2], records[1::2]).alike == ()
