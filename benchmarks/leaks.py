"""Counts which copies of pictures the leak check finds, and which different pictures it takes for copies.

    python benchmarks/leaks.py --data DIR [--copies 1000] [--split val] [--show DIR]

Copies are made of the split's pictures in a temporary folder and looked for as a training set would be. `--show` draws
the pairs of training and split that the check finds, and the nearest ones that it does not take, side by side.
"""

import argparse
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from myllm.config import CaptionsConfig
from myllm.data.images import grey_thumbnail, load_image
from myllm.data.records import Record, read_records
from myllm.data.splits import split_records
from myllm.evaluation import leaks
from myllm.evaluation.leaks import find_leaks

Change = Callable[[Image.Image, random.Random], Image.Image]

FLICKR8K = Path(__file__).resolve().parents[2] / "shared" / "data" / "flickr8k"


def cropped(share: float, at_edge: bool) -> Change:
    """Without a share of width and height: around the middle, or all on one side of each."""

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


# What is done, and the JPEG quality of the copy.
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
    "5 % at one edge, mirrored, brighter, half the size, quality 40": (all_at_once, 40),
}


def recall(records: list[Record], change: Change, quality: int) -> tuple[float, int]:
    """The share of pictures whose copy is found, and how many are taken for the copy of another."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        copies = []
        for record in records:
            path = Path(folder) / f"{record.image.stem}.jpg"
            change(load_image(record.image), rng).save(path, quality=quality)
            copies.append(Record(path, ()))
        found = find_leaks(copies, records)
    pairs = [(Path(judged).stem, Path(source).stem) for judged, source in (*found.equal, *found.alike)]
    right = sum(judged == source for judged, source in pairs)
    return right / len(records), len(pairs) - right


def near_pairs(training: list[Record], judged: list[Record]) -> list[tuple[float, int, Record, Record]]:
    """All pairs within the hash's limit: correlation of details, differing bits, judged, training."""
    ours, theirs = ([grey_thumbnail(record.image, leaks.SIDE) for record in side] for side in (judged, training))
    known = leaks.signs(np.stack(theirs))
    straight, turned = (leaks.signs(np.stack(side)) @ known.T for side in (ours, [one[:, ::-1] for one in ours]))
    bits = ((known.shape[1] - np.maximum(straight, turned)) / 2).round().astype(int)
    pairs = []
    for row, column in np.argwhere(bits <= leaks.MAX_DIFFERENT):
        one = ours[row] if straight[row, column] >= turned[row, column] else ours[row][:, ::-1]
        best = leaks.correlation(leaks.windows(one), leaks.windows(theirs[column]))
        pairs.append((best, int(bits[row, column]), judged[row], training[column]))
    return sorted(pairs, key=lambda pair: -pair[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=FLICKR8K)
    parser.add_argument("--copies", type=int, default=1000)
    parser.add_argument("--split", default="val")
    parser.add_argument("--show", type=Path, help="folder for pairs side by side")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        print("left out: there is no Flickr8k here; give a data folder as --data")
        return
    records, findings = read_records(arguments.data, CaptionsConfig())
    sides = split_records(records, arguments.data, findings)
    training, judged = sides["train"], sides[arguments.split]

    start = perf_counter()
    found = find_leaks(training, judged)
    print(f"{len(training):,} training and {len(judged):,} judged pictures in {perf_counter() - start:.1f} s")
    print("\n".join(found.lines(shown=20)))
    pairs = near_pairs(training, judged)
    print(f"\nOf {len(training) * len(judged):,} pairs {len(pairs):,} differ in at most {leaks.MAX_DIFFERENT} bits;")
    print("correlation of details, bits, and names of the nearest:")
    for index, (best, bits, first, second) in enumerate(pairs[:12]):
        print(f"{best:.3f}  {bits:2}  {first.name}  {second.name}")
        if arguments.show:
            arguments.show.mkdir(parents=True, exist_ok=True)
            both = [load_image(one.image).resize((224, 224)) for one in (first, second)]
            Image.fromarray(np.concatenate([np.asarray(one) for one in both], axis=1)).save(
                arguments.show / f"{index:02}_{best:.3f}.png"
            )

    print(f"\n| copy of {len(judged[: arguments.copies]):,} pictures | found | taken for another |\n|---|---|---|")
    for name, (change, quality) in COPIES.items():
        share, wrong = recall(judged[: arguments.copies], change, quality)
        print(f"| {name} | {share:.1%} | {wrong} |", flush=True)


if __name__ == "__main__":
    main()
