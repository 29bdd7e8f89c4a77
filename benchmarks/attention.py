"""Quality of heat maps: on scenes by the boxes of things, on photographs by deletion and insertion curves."""

import argparse
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from measures.deletion import Curves, judge_words
from measures.pointing import CENTRE, CHANCE, mean_pointing, point_words

from myllm import Captioner
from myllm.attribution.methods import METHODS
from myllm.data.images import load_image
from myllm.data.scenes import read_things
from myllm.data.sources import read_records
from myllm.data.splits import split_records

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "runs/demo"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEMO, help="a captioner of scenes")
    parser.add_argument("--data", type=Path, default=DEMO / "scenes", help="the scenes, with their boxes")
    parser.add_argument("--photos-model", type=Path, default=ROOT / "runs/photos", help="a captioner of photographs")
    parser.add_argument("--photos", type=Path, default=ROOT.parent / "shared/data/flickr8k", help="photographs")
    parser.add_argument("--scenes-count", type=int, default=400, help="scenes with two things or more, of split val")
    parser.add_argument("--photos-count", type=int, default=60, help="number of photographs, spread over split val")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    arguments = parser.parse_args()
    if arguments.model.exists() and arguments.data.is_dir():
        on_scenes(arguments.model, arguments.data, arguments.scenes_count, arguments.methods)
    else:
        print(f"scenes left out: no {arguments.model} or {arguments.data}; run `myllm demo` or give --model and --data")
    if arguments.photos_model.exists() and arguments.photos.is_dir():
        on_photos(arguments.photos_model, arguments.photos, arguments.photos_count, arguments.methods)
    else:
        print(
            f"photographs left out: no {arguments.photos_model} or {arguments.photos}; "
            "give --photos-model and --photos"
        )


def on_scenes(model: Path, data: Path, count: int, methods: Sequence[str]) -> None:
    captioner, things = Captioner.load(model, device="cpu"), read_things(data)
    paths = [path for path in val_pictures(captioner, data) if len(things[path.name]) >= 2][:count]
    images, boxes = [load_image(path) for path in paths], [things[path.name] for path in paths]
    words = list(point_words(captioner, images, boxes, methods))
    chance = mean_pointing(words)[CHANCE].hit
    print(f"\n{len(words)} words that name things, on {len(paths)} scenes of two things or more of {data}\n")
    print("| map | peak in a box of the thing | relative to chance | share in the boxes |\n|---|---|---|---|")
    for name, figures in mean_pointing(words).items():
        print(f"| {name} | {figures.hit:.1%} | {figures.hit / chance:.1f} x | {figures.energy:.1%} |")


def on_photos(model: Path, data: Path, count: int, methods: Sequence[str]) -> None:
    captioner = Captioner.load(model, device="cpu")
    paths = val_pictures(captioner, data)
    paths = paths[:: max(1, len(paths) // count)][:count]
    words = list(judge_words(captioner, paths, methods))
    print(f"\n{len(words)} content words of the captions of {len(paths)} photographs of {data.name}, split val\n")
    print(
        "| map | deletion (less is better) | insertion (more is better) | insertion - deletion "
        "| difference from `centre` (95 %) | ms a caption |\n|---|---|---|---|---|---|"
    )
    seconds = timed(captioner, paths[:10], methods)
    for name in words[0]:
        curves = [word[name] for word in words]
        deleted, inserted = fmean(curve.deletion for curve in curves), fmean(curve.insertion for curve in curves)
        low, high = interval([gain(word, name) - gain(word, CENTRE) for word in words])
        print(
            f"| {name} | {deleted:.3f} | {inserted:.3f} | {inserted - deleted:+.3f} "
            f"| {low:+.3f} to {high:+.3f} | {f'{1000 * seconds[name]:.0f}' if name in seconds else ''} |"
        )


def gain(word: Mapping[str, Curves], name: str) -> float:
    return word[name].insertion - word[name].deletion


def interval(values: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean."""
    rng = random.Random(0)
    means = sorted(fmean(rng.choices(values, k=len(values))) for _ in range(draws))
    return means[draws // 40], means[-draws // 40]


def timed(captioner: Captioner, paths: Sequence[Path], methods: Sequence[str]) -> dict[str, float]:
    """Return the seconds that each method takes for the maps of one caption."""
    captions = [captioner.caption(path) for path in paths]
    seconds = {}
    for method in methods:
        began = time.perf_counter()
        for path, caption in zip(paths, captions, strict=True):
            captioner.attention_maps(path, caption, method=method)
        seconds[method] = (time.perf_counter() - began) / len(paths)
    return seconds


def val_pictures(captioner: Captioner, data: Path) -> list[Path]:
    records, findings = read_records(data, captioner.captions)
    return [record.image for record in split_records(records, findings)["val"]]


if __name__ == "__main__":
    main()
