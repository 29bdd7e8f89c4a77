"""Draws how the time of captioning grows with pictures, beams, tokens and picture size, and prints how linear it is.

    python benchmarks/growth.py [--out docs/growth.png] [--rounds 3]

ViT-B/16 and GPT-2 small with random weights, in fp32 on the CPU, as in `benchmarks/decode.py`.
"""

import argparse
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
import numpy as np
import torch
from decode import FULL, processor, seconds

from myllm.config import CaptionerConfig, DecodeConfig, GPTConfig, VisionConfig
from myllm.decoding.engine import SearchRequest
from myllm.decoding.search import generate
from myllm.inference.onnx_stepper import OnnxStepper
from myllm.model.vision_gpt2 import VisionGPT2

Job = Callable[[], object]


@dataclass
class Curve:
    """Seconds that a job takes, by the one number that varies."""

    name: str
    fixed: str
    """The other numbers, in words."""
    jobs: dict[int, Job]
    taken: dict[int, list[float]] = field(default_factory=dict)

    def measure(self, rounds: int) -> None:
        """Time every job in every round, in random order, so that other load on the machine affects all alike."""
        for job in self.jobs.values():
            job()
        self.taken = {value: [] for value in self.jobs}
        for number in range(rounds):
            for value in random.Random(number).sample(list(self.jobs), len(self.jobs)):
                self.taken[value].append(seconds(self.jobs[value]))

    def draw(self, axes: plt.Axes, degree: int) -> None:
        """Draw the medians over the polynomial with the smallest relative deviation, and print a row of figures."""
        values, medians = np.array(list(self.taken)), np.array([median(times) for times in self.taken.values()])
        fit = np.polynomial.Polynomial.fit(values, medians, degree, w=1 / medians)
        deviation = np.abs(medians / fit(values) - 1)
        axes.plot(values, fit(values), color="0.75", linewidth=4)
        axes.plot(values, medians, "o", color="#1f5fa8", markersize=4)
        ranges = zip(*((min(times), max(times)) for times in self.taken.values()), strict=True)
        axes.vlines(values, *ranges, color="#1f5fa8")
        axes.set(xlabel=f"{self.name} ({self.fixed})", ylabel="seconds", ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
        curve = "a straight line" if degree == 1 else "a parabola"
        largest = f"{deviation.max():.1%} at {values[deviation.argmax()]}"
        row = self.name, f"{values[0]} to {values[-1]}", curve, f"{deviation.mean():.1%}", largest
        print(f"| {' | '.join(row)} |", flush=True)


class Bench:
    """A model for each picture size, all with the same decoder."""

    def __init__(self, sizes: Iterable[int]) -> None:
        torch.manual_seed(0)
        self.models = {
            size: VisionGPT2(
                CaptionerConfig(VisionConfig(pretrained=False, image_size=size), GPTConfig(), "last")
            ).eval()
            for size in sizes
        }
        self.stepper = OnnxStepper(self.models[224])
        for model in self.models.values():
            model.decoder = self.stepper.decoder

    @torch.inference_mode()
    def caption(self, pictures: int = 8, beams: int = 1, length: int = 32, size: int = 224) -> None:
        decode = DecodeConfig(beams=beams, min_new_tokens=length, max_new_tokens=length)
        image = self.models[size].encode(torch.zeros(pictures, 3, size, size))
        generate(SearchRequest(self.stepper, image, pictures, FULL.end, decode))

    def curve(self, name: str, fixed: str, argument: str, values: Iterable[int], **others: int) -> Curve:
        return Curve(name, fixed, {value: partial(self.caption, **{argument: value}, **others) for value in values})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/growth.png"))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    sizes = range(128, 385, 32)
    bench = Bench(sizes)
    curves = [
        bench.curve("pictures", "greedy", "pictures", (1, 2, 4, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33)),
        bench.curve("beams", "4 pictures", "beams", range(1, 9), pictures=4),
        bench.curve("tokens", "8 pictures, greedy", "length", (4, 8, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65)),
        bench.curve("pixels a side", "4 pictures, greedy", "size", sizes, pictures=4),
    ]
    print(f"{processor()}\n\n| what grows | from, to | fitted | mean deviation | maximum |\n|---|---|---|---|---|")
    figure, grid = plt.subplots(2, 2, figsize=(9, 6), layout="constrained")
    for curve, axes in zip(curves, grid.flat, strict=True):
        curve.measure(arguments.rounds)
        # image tokens grow with the square of the side
        curve.draw(axes, degree=2 if curve.name == "pixels a side" else 1)
    figure.savefig(arguments.out, dpi=120)


if __name__ == "__main__":
    main()
