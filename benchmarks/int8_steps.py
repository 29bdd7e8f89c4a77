"""Compares decoding steps in fp32 and int8: processor time of one thread, the two in turns.

    python benchmarks/int8_steps.py [--rounds 5]

The decoders have random weights. To compare two versions of this project, run it with each on PYTHONPATH.
"""

import argparse
from statistics import median
from time import process_time
from typing import Any

import numpy as np
import torch

from myllm import CaptionerConfig, GPTConfig, VisionConfig, VisionGPT2
from myllm.inference.onnx_stepper import OnnxStepper
from myllm.model.kv_cache import ImageKV

DECODERS = {
    "GPT-2 small": GPTConfig(),
    "3 blocks of 256, 3,000 tokens": GPTConfig(vocab_size=3000, n_layer=3, n_head=4, n_embd=256),
}
CAPTIONS = (1, 8, 32, 128)
IMAGE_TOKENS = 49
STEPS = 4
SECONDS = 0.5
"""Processor time of one measurement; with few captions, the steps are repeated until it is reached."""


def image_kv(config: GPTConfig, count: int) -> ImageKV:
    """Return random keys and values of `count` images."""
    shape = (count, config.n_head, IMAGE_TOKENS, config.n_embd // config.n_head)
    return ImageKV(tuple((torch.randn(shape), torch.randn(shape)) for _ in range(config.n_layer)))


def seconds_per_step(stepper: OnnxStepper, images: ImageKV) -> float:
    """Return the processor time of a step of one caption for each image."""
    tokens = np.random.default_rng(0).integers(1000, size=(STEPS, images.batch_size, 1, 1))
    start, steps = process_time(), 0
    while (seconds := process_time() - start) < SECONDS:
        state: Any = stepper.start(images)
        for newest in tokens:
            _, state = stepper.step(newest, state)
        steps += STEPS
    return seconds / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    print("| decoder | captions | fp32, ms a step | int8, ms a step | times as fast, median (range) |")
    print("|---|---|---|---|---|")
    for name, text in DECODERS.items():
        model = VisionGPT2(CaptionerConfig(VisionConfig("vit_mini_conv8_64", pretrained=False), text, "last")).eval()
        exact, int8 = (OnnxStepper(model, precision, threads=1) for precision in ("fp32", "int8"))
        for count in CAPTIONS:
            images = image_kv(text, count)
            for stepper in (exact, int8):
                stepper.step(np.ones((count, 1, 1), np.int64), stepper.start(images))  # the first time is slower
            pairs = [(seconds_per_step(exact, images), seconds_per_step(int8, images)) for _ in range(rounds)]
            slow, fast = (1000 * median(seconds) for seconds in zip(*pairs, strict=True))
            ratios = sorted(before / after for before, after in pairs)
            spread = f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            print(f"| {name} | {count} | {slow:.2f} | {fast:.2f} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
