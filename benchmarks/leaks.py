"""Count which copies of pictures the leak check finds, and which different pictures it takes for copies.

    python benchmarks/leaks.py [--data DIR] [--copies 1000] [--split val] [--show DIR]

Copies of the split's pictures are made in a temporary folder and used as training data. Different pictures are those of
training and split, and drawn sets: shapes, digits, charts and scenes. `--show` saves pairs that are taken for copies.
"""

import argparse
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

from myllm.config import CaptionsConfig
from myllm.data.images import load_image
from myllm.data.records import Record
from myllm.data.scenes import draw_scene
from myllm.data.sources import read_records
from myllm.data.splits import split_records
from myllm.evaluation.leaks import find_leaks

Change = Callable[[Image.Image, random.Random], Image.Image]

FLICKR8K = Path(__file__).resolve().parents[2] / "shared" / "data" / "flickr8k"


def cropped(share: float, at_edge: bool) -> Change:
    """Cut off a share of width and height: around the middle, or all on one side of each."""

    def crop(image: Image.Image, rng: random.Random) -> Image.Image:
        width, height = round(image.width * (1 - share)), round(image.height * (1 - share))
        x, y = image.width - width, image.height - height
        left, top = (rng.choice((0, x)), rng.choice((0, y))) if at_edge else (x // 2, y // 2)
        return image.crop((left, top, left + width, top + height))

    return crop


def relit(factor: float) -> Change:
    return lambda image, _: ImageEnhance.Brightness(image).enhance(factor)


def half(image: Image.Image, _: random.Random) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2))


def all_at_once(image: Image.Image, rng: random.Random) -> Image.Image:
    return half(relit(1.2)(ImageOps.mirror(cropped(0.05, True)(image, rng)), rng), rng)


# Change and JPEG quality of each kind of copy.
COPIES: dict[str, tuple[Change, int]] = {
    "saved anew at quality 40": (lambda image, _: image, 40),
    "half the size": (half, 90),
    "20 % darker": (relit(0.8), 90),
    "20 % brighter": (relit(1.2), 90),
    "grey": (lambda image, _: image.convert("L"), 90),
    "mirrored": (lambda image, _: ImageOps.mirror(image), 90),
    "5 % cropped around the middle": (cropped(0.05, False), 90),
    "5 % cropped at one edge": (cropped(0.05, True), 90),
    "3 % cropped at one edge": (cropped(0.03, True), 90),
    "7 % cropped at one edge": (cropped(0.07, True), 90),
    "10 % cropped around the middle": (cropped(0.1, False), 90),
    "10 % cropped at one edge": (cropped(0.1, True), 90),
    "15 % cropped around the middle": (cropped(0.15, False), 90),
    "15 % cropped at one edge": (cropped(0.15, True), 90),
    "20 % cropped around the middle": (cropped(0.2, False), 90),
    "turned by a quarter": (lambda image, _: image.transpose(Image.Transpose.ROTATE_90), 90),
    "upside down": (lambda image, _: image.transpose(Image.Transpose.ROTATE_180), 90),
    "mirrored upside down": (lambda image, _: ImageOps.flip(image), 90),
    "framed by 5 %": (lambda image, _: ImageOps.expand(image, round(0.05 * image.width)), 90),
    "turned by 3 degrees": (lambda image, _: image.rotate(3), 90),
    "5 % at one edge, mirrored, brighter, half the size, quality 40": (all_at_once, 40),
}


def recall(records: list[Record], change: Change, quality: int) -> tuple[float, int]:
    """Return the share of pictures whose copy is found, and how many are taken for the copy of another."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        copies = []
        for record in records:
            path = Path(folder) / f"{record.image.stem}.jpg"
            change(load_image(record.image), rng).convert("RGB").save(path, quality=quality)
            copies.append(Record(path.name, path, ()))
        leaks = find_leaks(copies, records)
    right = sum(pair.judged.image.stem == pair.training.image.stem for pair in leaks.pairs)
    return right / len(records), len(leaks.pairs) - right


def shape(seed: int) -> Image.Image:
    """One coloured shape on white."""
    rng = random.Random(seed)
    image = Image.new("RGB", (200, 200), "white")
    draw = ImageDraw.Draw(image)
    radius = rng.uniform(24, 70)
    x, y = rng.uniform(radius, 200 - radius), rng.uniform(radius, 200 - radius)
    colour = (rng.randrange(256), rng.randrange(256), rng.randrange(200))
    corners = rng.choice((2, 3, 4, 5))
    if corners == 2:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    else:
        draw.regular_polygon((x, y, radius), corners, fill=colour)
    return image


def digit(seed: int) -> Image.Image:
    """A white digit on black, moved and turned a little."""
    rng = random.Random(seed)
    image = Image.new("L", (112, 112))
    font = ImageFont.load_default(rng.uniform(60, 90))
    ImageDraw.Draw(image).text((30 + rng.uniform(-8, 8), rng.uniform(0, 16)), str(rng.randrange(10)), 255, font)
    return image.rotate(rng.uniform(-15, 15))


def chart(seed: int) -> Image.Image:
    """Eight bars of random heights over the same axes."""
    rng = random.Random(seed)
    image = Image.new("RGB", (320, 240), "white")
    draw = ImageDraw.Draw(image)
    draw.line((40, 10, 40, 210, 310, 210), fill="black")
    for bar in range(8):
        draw.text((54 + bar * 32, 214), "ABCDEFGH"[bar], fill="black")
        draw.rectangle((50 + bar * 32, 210 - rng.uniform(5, 190), 72 + bar * 32, 209), fill=(40, 90, 190))
    return image


DRAWN: dict[str, tuple[Callable[[int], Image.Image], int]] = {
    "one coloured shape on white": (shape, 400),
    "digits": (digit, 400),
    "bar charts": (chart, 400),
    "drawn scenes": (lambda seed: draw_scene(0, "train", seed)[0], 2000),
}


def false_copies(draw: Callable[[int], Image.Image], count: int) -> float:
    """Return the share of different drawn pictures that are taken for copies; one half is the training data."""
    with tempfile.TemporaryDirectory() as folder:
        records = [Record(f"{seed}.png", Path(folder) / f"{seed}.png", ()) for seed in range(count)]
        for seed, record in enumerate(records):
            draw(seed).save(record.image)
        return len(find_leaks(records[::2], records[1::2]).pairs) / len(records[1::2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=FLICKR8K)
    parser.add_argument("--copies", type=int, default=1000)
    parser.add_argument("--split", default="val")
    parser.add_argument("--show", type=Path, help="folder for pairs side by side")
    arguments = parser.parse_args()
    print("| different pictures | taken for copies |\n|---|---|")
    for name, (draw, count) in DRAWN.items():
        share = false_copies(draw, count)
        print(f"| {count // 2:,} {name}, {count // 2:,} others in training | {share:.1%} |", flush=True)
    if not arguments.data.is_dir():
        print("no Flickr8k here, so photographs are left out; give a data folder as --data")
        return
    records, findings = read_records(arguments.data, CaptionsConfig())
    splits = split_records(records, findings)
    training, judged = splits["train"], splits[arguments.split]
    start = perf_counter()
    leaks = find_leaks(training, judged)
    print(f"\n{len(training):,} training and {len(judged):,} judged photographs in {perf_counter() - start:.1f} s")
    print("\n".join(leaks.lines(shown=20)))
    if arguments.show:
        arguments.show.mkdir(parents=True, exist_ok=True)
        for index, pair in enumerate(leaks.pairs):
            sides = [load_image(record.image).resize((224, 224)) for record in (pair.judged, pair.training)]
            Image.fromarray(np.concatenate([np.asarray(side) for side in sides], axis=1)).save(
                arguments.show / f"{index:02}.png"
            )

    print(f"\n| copy of {len(judged[: arguments.copies]):,} pictures | found | taken for another |\n|---|---|---|")
    for name, (change, quality) in COPIES.items():
        share, wrong = recall(judged[: arguments.copies], change, quality)
        print(f"| {name} | {share:.1%} | {wrong} |", flush=True)


if __name__ == "__main__":
    main()
