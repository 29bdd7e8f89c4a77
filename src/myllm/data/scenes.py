"""Scenes: small drawn pictures with captions that are known to be true, the data set that comes with the package.

A picture depends only on its seed, part and number, so that each can be drawn again to the byte. Scenes are written in
the Flickr30k layout, with the boxes of the things in `boxes.jsonl`.
"""

import itertools
import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from myllm.errors import ConfigError, DataError

PICTURE_SIZE = 64
SUPERSAMPLING = 4
COLOURS = {
    "red": (214, 38, 38), "orange": (244, 136, 24), "yellow": (246, 224, 40), "green": (36, 178, 60),
    "blue": (40, 84, 226), "purple": (146, 50, 186), "white": (244, 244, 244), "black": (28, 28, 32),
}
RADII = {"small": (7.0, 8.0), "big": (10.5, 12.0)}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "big": ("big", "large")}
COUNT_WORDS = {1: "one", 2: "two", 3: "three"}
# Words between two groups, in reading order and in reverse.
RELATION_WORDS = {"left": (("left of",), ("right of",)), "above": (("above", "over"), ("below", "under"))}
# Colour of each ground, the grid (columns, rows) of random values that makes its texture, and the texture's strength.
GROUNDS = {
    "grass": ((92, 116, 74), (48, 12), 26),
    "sand": ((190, 172, 132), (64, 64), 22),
    "water": ((98, 134, 156), (5, 24), 24),
    "wood": ((138, 104, 76), (3, 14), 26),
    "stone": ((128, 128, 126), (9, 9), 28),
}
Point = tuple[float, float]


@dataclass(frozen=True)
class Thing:
    """A drawn thing; box is (left, top, right, bottom) in pixels, right and bottom excluded."""

    kind: str
    colour: str
    size: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Group:
    """Things of one kind, colour and size, which a caption names together."""

    count: int
    size: str
    colour: str
    kind: str


@dataclass(frozen=True)
class Scene:
    """Content of a picture: groups in reading order, and the relation of the first to the second."""

    groups: tuple[Group, ...]
    things: tuple[Thing, ...]
    relation: str
    ground: str
    captions: tuple[str, ...]


def _arc(angles: Iterable[float], x: float = 0.0, y: float = 0.0, radius: float = 1.0) -> list[Point]:
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


def _star() -> list[Point]:
    tips, dents = ([math.pi * index / 5 - math.pi / 2 for index in range(first, 10, 2)] for first in (0, 1))
    return [point for pair in zip(_arc(tips), _arc(dents, radius=0.42), strict=True) for point in pair]


def _heart() -> list[Point]:
    xs = [16 * math.sin(t) ** 3 for t in TURN]
    ys = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in TURN]
    return [(x / 17, -(y + 2.5) / 16) for x, y in zip(xs, ys, strict=True)]


def _moon() -> list[Point]:
    outer = _arc(math.radians(45 + 270 * index / 20) for index in range(21))
    return outer + _arc((math.radians(285 - 210 * index / 14) for index in range(15)), x=0.5, radius=0.75)


TURN = [2 * math.pi * index / 28 for index in range(28)]
# Faces of each kind: lightness and outline in units of the radius, y down. Lightness 0 cuts a hole.
OUTLINES: dict[str, list[tuple[float, list[Point]]]] = {
    "ball": [(1.0, _arc(TURN)), (1.35, _arc(TURN, -0.35, -0.35, 0.2))],
    "cube": [
        (1.4, [(-0.82, -0.38), (-0.38, -0.82), (0.82, -0.82), (0.38, -0.38)]),
        (1.0, [(-0.82, -0.38), (0.38, -0.38), (0.38, 0.82), (-0.82, 0.82)]),
        (0.6, [(0.38, -0.38), (0.82, -0.82), (0.82, 0.38), (0.38, 0.82)]),
    ],
    "cone": [(1.0, [(0, -1), (0.85, 0.65), (0.45, 0.9), (0, 0.96), (-0.45, 0.9), (-0.85, 0.65)])],
    "star": [(1.0, _star())],
    "heart": [(1.0, _heart())],
    "ring": [(1.0, _arc(TURN)), (0.0, _arc(TURN, radius=0.5))],
    "cross": [(1.0, [
        (-0.32, -1), (0.32, -1), (0.32, -0.32), (1, -0.32), (1, 0.32), (0.32, 0.32),
        (0.32, 1), (-0.32, 1), (-0.32, 0.32), (-1, 0.32), (-1, -0.32), (-0.32, -0.32),
    ])],
    "moon": [(1.0, _moon())],
}
KINDS = tuple(OUTLINES)
PLURALS = {kind: kind + ("es" if kind == "cross" else "s") for kind in KINDS}
# A held-out colour for each kind, and each colour once, so that training still has every word.
HELD_OUT = frozenset((kind, tuple(COLOURS)[(3 * index + 1) % len(COLOURS)]) for index, kind in enumerate(KINDS))
PAIRS = tuple(itertools.product(KINDS, COLOURS))
SEEN_PAIRS = tuple(pair for pair in PAIRS if pair not in HELD_OUT)
BOXES_FILE = "boxes.jsonl"


def draw_scene(seed: int, part: str, number: int) -> tuple[Image.Image, Scene]:
    """Return picture `number` of a part (train, val or heldout), 64 x 64 RGB, and its content.

    Only part heldout has the pairs of kind and colour in `HELD_OUT`: at least one in each picture.
    """
    rng = random.Random(f"{seed}/{part}/{number}")
    positions = None
    while positions is None:  # sometimes there is no room for all things
        groups = _choose_groups(rng, part)
        relation = rng.choice(("left", "above")) if len(groups) == 2 else "list"
        positions = _choose_positions(rng, groups, relation)
    ground = rng.choice(tuple(GROUNDS))
    image = _draw_ground(rng, ground)
    things = tuple(_draw_thing(image, rng, group, centre, radius) for group, centre, radius in positions)
    image = _add_noise(image, rng)
    captions = tuple(_caption(rng, groups, relation, ground) for _ in range(5))
    return image, Scene(groups, things, relation, ground, captions)


def _choose_groups(rng: random.Random, part: str) -> tuple[Group, ...]:
    counts = rng.choice(((1,), (2,), (3,), (1, 1), (1, 1), (1, 2), (2, 1), (1, 1, 1)))
    pairs = list(rng.sample(SEEN_PAIRS if part != "heldout" else PAIRS, len(counts)))
    if part == "heldout" and not HELD_OUT.intersection(pairs):
        pairs[rng.randrange(len(pairs))] = rng.choice(sorted(HELD_OUT))
    return tuple(
        Group(count, rng.choice(tuple(RADII)), colour, kind)
        for count, (kind, colour) in zip(counts, pairs, strict=True)
    )


def _choose_positions(
    rng: random.Random, groups: Sequence[Group], relation: str
) -> list[tuple[Group, Point, float]] | None:
    """Return centres and radii without overlap, or None if there is no room. Groups are in strips in reading order."""
    positions: list[tuple[Group, Point, float]] = []
    middle = rng.uniform(0.42, 0.58)
    edges = {1: (0.0, 1.0), 2: (0.0, middle, 1.0), 3: (0.0, 0.333, 0.667, 1.0)}[len(groups)]
    for index, group in enumerate(groups):
        for _ in range(group.count):
            radius = rng.uniform(*RADII[group.size])
            low, high = edges[index] * PICTURE_SIZE + radius, edges[index + 1] * PICTURE_SIZE - radius
            if len(groups) == 3:  # a strip of a third is narrower than a big thing
                low = high = (low + high) / 2
            if low > high:
                return None
            for _ in range(20):
                along, across = rng.uniform(low, high), rng.uniform(radius + 1, PICTURE_SIZE - radius - 1)
                centre = (across, along) if relation == "above" else (along, across)
                if all(math.dist(centre, other) > radius + reach + 1.5 for _, other, reach in positions):
                    break
            else:
                return None
            positions.append((group, centre, radius))
    return positions


def _draw_ground(rng: random.Random, ground: str) -> Image.Image:
    base, (columns, rows), strength = GROUNDS[ground]
    grain = Image.frombytes("L", (columns, rows), rng.randbytes(columns * rows))
    texture = np.asarray(grain.resize((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.BILINEAR), dtype=np.float32)
    light = rng.uniform(0.85, 1.12)
    slope = np.linspace(-rng.uniform(-12, 12), rng.uniform(-12, 12), PICTURE_SIZE, dtype=np.float32)[:, None]
    shade = (texture / 255 - 0.5) * 2 * strength + slope
    pixels = np.asarray(base, dtype=np.float32) * light + shade[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _draw_thing(image: Image.Image, rng: random.Random, group: Group, centre: Point, radius: float) -> Thing:
    base = [min(255, max(0, value + rng.randint(-16, 16))) for value in COLOURS[group.colour]]
    angle = math.radians(rng.uniform(-18, 18))
    reach = math.ceil(radius) + 2
    left, top = math.floor(centre[0]) - reach, math.floor(centre[1]) - reach
    side = 2 * reach + 1
    patch = Image.new("RGBA", (side * SUPERSAMPLING, side * SUPERSAMPLING))
    draw = ImageDraw.Draw(patch)
    for lightness, outline in OUTLINES[group.kind]:
        points = [
            (
                round((centre[0] - left + radius * (x * math.cos(angle) - y * math.sin(angle))) * SUPERSAMPLING),
                round((centre[1] - top + radius * (x * math.sin(angle) + y * math.cos(angle))) * SUPERSAMPLING),
            )
            for x, y in outline
        ]
        alpha = 255 if lightness else 0
        # the summand keeps the faces of dark things apart, which a product would leave all dark
        fill = tuple(min(255, max(0, round(value * lightness + 90 * (lightness - 1)))) for value in base)
        edge = tuple(round(value * 0.6) for value in fill)
        draw.polygon(points, fill=(*fill, alpha), outline=(*edge, alpha), width=2)
    patch = patch.reduce(SUPERSAMPLING)
    image.paste(patch, (left, top), patch)
    box = patch.getchannel("A").point(lambda value: 255 * (value > 127)).getbbox() or (0, 0, side, side)
    x0, y0, x1, y1 = (left + box[0], top + box[1], left + box[2], top + box[3])
    clipped = (max(0, x0), max(0, y0), min(PICTURE_SIZE, x1), min(PICTURE_SIZE, y1))
    return Thing(group.kind, group.colour, group.size, clipped)


def _add_noise(image: Image.Image, rng: random.Random) -> Image.Image:
    noise = np.random.default_rng(rng.getrandbits(64)).integers(-9, 10, (PICTURE_SIZE, PICTURE_SIZE, 3), dtype=np.int16)
    return Image.fromarray((np.asarray(image, dtype=np.int16) + noise).clip(0, 255).astype(np.uint8))


def _phrase(rng: random.Random, group: Group, with_size: bool) -> str:
    words = [group.colour, group.kind if group.count == 1 else PLURALS[group.kind]]
    if with_size:
        words.insert(0, rng.choice(SIZE_WORDS[group.size]))
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article if group.count == 1 else COUNT_WORDS[group.count], *words])


def _caption(rng: random.Random, groups: Sequence[Group], relation: str, ground: str) -> str:
    with_size = rng.random() < 0.5
    phrases = [_phrase(rng, group, with_size) for group in groups]
    if len(groups) == 1:
        body = phrases[0]
    elif len(groups) == 3:
        body = rng.choice(("{}, {} and {}", "{} and {} and {}", "{} with {} and {}")).format(*phrases)
    else:
        forward, backward = RELATION_WORDS[relation]
        form = rng.random()
        words = ("and", "next to", "beside") if form < 0.3 else forward if form < 0.75 else backward
        body = f" {rng.choice(words)} ".join(phrases if form < 0.75 else reversed(phrases))
    be = "is" if groups[0].count == 1 else "are"
    opening = f"there {be} " if len(groups) == 1 and rng.random() < 0.3 else ""
    return f"{opening}{body}{rng.choice(('', f' on {ground}'))}"


def write_scenes(out: Path, count: int, seed: int) -> Iterator[int]:
    """Write `count` pictures, a twentieth of them for val and for heldout each; yields the number done after each.

    Raises ConfigError if `count` is too small to split, and DataError if `out` is not empty.
    """
    if count < 20:
        raise ConfigError(f"--count {count}: at least 20 pictures are needed to have a training, val and heldout part")
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out} is not empty; give another --out, so that scenes are not mixed with other files")
    twentieth = count // 20
    sizes = {"train": count - 2 * twentieth, "val": twentieth, "heldout": twentieth}
    jobs = [(part, number) for part, size in sizes.items() for number in range(size)]
    images = out / "flickr30k_images"
    images.mkdir(parents=True, exist_ok=True)
    (out / "splits").mkdir()
    with (
        ProcessPoolExecutor(2) as pool,
        (out / "results.csv").open("w", encoding="utf-8", newline="\n") as captions,
        (out / BOXES_FILE).open("w", encoding="utf-8", newline="\n") as boxes,
    ):
        captions.write("image_name| comment_number| comment\n")
        for done, (name, scene) in enumerate(pool.map(partial(_write_scene, images, seed), jobs, chunksize=64), 1):
            captions.writelines(f"{name}| {index}| {text}\n" for index, text in enumerate(scene.captions))
            boxes.write(json.dumps({"image": name, "things": [asdict(thing) for thing in scene.things]}) + "\n")
            yield done
    for part, size in sizes.items():
        names = "".join(f"{_file_name(part, number)}\n" for number in range(size))
        (out / "splits" / f"{part}.txt").write_text(names, encoding="utf-8")


def _file_name(part: str, number: int) -> str:
    return f"{part}_{number:06d}.png"


def _write_scene(folder: Path, seed: int, job: tuple[str, int]) -> tuple[str, Scene]:
    """Draw picture `job` (part, number) into a folder, and return its file name and content."""
    image, scene = draw_scene(seed, *job)
    image.save(folder / _file_name(*job), compress_level=1)
    return _file_name(*job), scene


def read_things(folder: Path) -> dict[str, tuple[Thing, ...]]:
    """Return the things of each picture of a scenes folder by the picture's name; empty for other folders."""
    path = folder / BOXES_FILE
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines() if path.is_file() else ())
    return {
        row["image"]: tuple(Thing(**thing | {"box": tuple(thing["box"])}) for thing in row["things"]) for row in rows
    }
