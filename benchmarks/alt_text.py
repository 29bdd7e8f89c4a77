"""Measure how many alternative texts name something false, by the share of pictures that get one, on Flickr8k.

A text is false if it names a thing of the word list that none of the picture's five captions names; two stricter
measures also count places, then colours and numbers. Captions are chosen by confidence, as `myllm alt` does; each fifth
of the pictures has a calibration learned from the others. Prints a table, and draws docs/alt-text.png.

    python benchmarks/alt_text.py --model runs/photos
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from myllm import Captioner
from myllm.apps.alt_pictures import complexity
from myllm.apps.alt_wording import alternative_text
from myllm.caption import Caption
from myllm.config import DecodeConfig
from myllm.data.images import load_image
from myllm.data.records import Record
from myllm.data.sources import read_records
from myllm.data.splits import split_records
from myllm.evaluation.calibration import cross_fitted
from myllm.evaluation.evaluate import caption_records
from myllm.evaluation.plots import FAINT, MARK, VAL, render
from myllm.files import atomic_write
from myllm.metrics.hallucination import compare_names
from myllm.metrics.score import tokenized
from myllm.metrics.wilson import wilson_interval

ROOT = Path(__file__).resolve().parents[1]
FLICKR8K = ROOT.parent / "shared/data/flickr8k"
COVERAGES = tuple(share / 100 for share in (5, 10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100))
GOAL_FALSE, GOAL_COVERAGE = 0.05, 0.3


class Point(NamedTuple):
    """What happens if only the most confident share of pictures gets a text."""

    coverage: float
    min_confidence: float
    false: float
    """Share of the texts with a thing that no reference names."""
    false_place: float
    """The same, or a place."""
    any_false: float
    """The same, or a colour or number."""
    count: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "runs/photos")
    parser.add_argument("--data", type=Path, default=FLICKR8K)
    parser.add_argument("--split", default="val")
    parser.add_argument("--limit", type=int, help="only the first LIMIT pictures")
    parser.add_argument("--beams", type=int, help="default: the model's own")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs/alt-text.png")
    arguments = parser.parse_args()
    if not arguments.data.is_dir() or not arguments.model.exists():
        print(f"skipped: {arguments.data} or {arguments.model} is missing; give --data and --model")
        return
    captioner = Captioner.load(arguments.model)
    records, findings = read_records(arguments.data, captioner.captions)
    chosen = split_records(records, findings)[arguments.split][: arguments.limit]
    decode = captioner.decode_options(**({"beams": arguments.beams} if arguments.beams else {}))
    records, captions = choose_by_confidence(captioner, chosen, decode)
    references = [record.captions for record in records]
    texts = [alternative_text(caption.text, is_cut=caption.ended_by == "length") for caption in captions]
    points = curve([caption.confidence for caption in captions], texts, references)
    charts = sum(bool(complexity(load_image(record.image), "")) for record in records)
    print(f"{len(texts):,} pictures of {arguments.split}, beams {decode.beams}; {charts} look like charts\n")
    print_table(points)
    with atomic_write(arguments.plot) as file:
        file.write(render(draw(points), ".png"))
    print(f"\nwrote {arguments.plot}")


def choose_by_confidence(
    captioner: Captioner, records: Sequence[Record], decode: DecodeConfig
) -> tuple[list[Record], list[Caption]]:
    """Return the readable pictures and their captions, chosen by a calibration learned from the other four fifths."""
    split = caption_records(captioner, records, decode)
    fitted = cross_fitted(split.captions, [record.captions for record in split.records])
    captions = dict[int, Caption]()
    for calibration in {id(caption.calibration): caption.calibration for caption in fitted}.values():
        rows = [row for row, caption in enumerate(fitted) if caption.calibration is calibration]
        calibrated = Captioner(replace(captioner.checkpoint, calibration=calibration), captioner.device)
        fifth = [split.records[row] for row in rows]
        best = caption_records(calibrated, fifth, replace(decode, rank_by="confidence")).captions
        captions |= zip(rows, best, strict=True)
    return split.records, [captions[row] for row in range(len(captions))]


def curve(
    confidence: Sequence[float], texts: Sequence[str], references: Sequence[Sequence[str]]
) -> list[Point]:
    """Return a point for each of COVERAGES."""
    named = [
        compare_names(words, tokenized(captions))
        for words, captions in zip(tokenized(texts), references, strict=True)
    ]
    things = np.array([bool(row["things"].invented) for row in named])
    places = things | np.array([bool(row["places"].invented) for row in named])
    anything = np.array([any(kind.invented for kind in row.values()) for row in named])
    order = np.argsort(-np.asarray(confidence), kind="stable")
    points = []
    for coverage in COVERAGES:
        chosen = order[: math.ceil(coverage * len(order))]
        lowest = float(confidence[chosen[-1]])
        shares = [float(kind[chosen].mean()) for kind in (things, places, anything)]
        points.append(Point(coverage, lowest, *shares, len(chosen)))
    return points


def print_table(points: Sequence[Point]) -> None:
    print("| pictures that get a text | confidence at least | false thing (95 %) | or place | or colour, number |")
    print("|---|---|---|---|---|")
    for point in points:
        low, high = wilson_interval(point.false, point.count)
        print(
            f"| {point.coverage:.0%} | {point.min_confidence:.3f} | {point.false:.1%} ({low:.1%} to {high:.1%}) | "
            f"{point.false_place:.1%} | {point.any_false:.1%} |"
        )
    reached = [point for point in points if point.false <= GOAL_FALSE]
    if reached:
        print(f"\nat most {GOAL_FALSE:.0%} false: {reached[-1].coverage:.0%}, --min-confidence "
              f"{reached[-1].min_confidence:.2f}; the goal is {GOAL_COVERAGE:.0%}")
    else:
        print(f"\nno share of the pictures has at most {GOAL_FALSE:.0%} false texts")


def draw(points: Sequence[Point]) -> Figure:
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    percents = [100 * point.coverage for point in points]
    low, high = zip(*(wilson_interval(point.false, point.count) for point in points), strict=True)
    axes.fill_between(percents, 100 * np.array(low), 100 * np.array(high), color=VAL, alpha=0.15, linewidth=0)
    axes.plot(percents, [100 * point.false for point in points], color=VAL, marker="o", label="a thing")
    axes.plot(percents, [100 * point.false_place for point in points], color=FAINT, marker="^", label="or a place")
    axes.plot(
        percents, [100 * point.any_false for point in points], color=MARK, marker="s", label="or a colour or number"
    )
    axes.plot([100 * GOAL_COVERAGE], [100 * GOAL_FALSE], color=FAINT, marker="+", markersize=12, linestyle="none",
              label="goal")
    axes.set(xlim=(0, 100), xlabel="pictures that get a text, %", ylabel="texts that name something false, %")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
