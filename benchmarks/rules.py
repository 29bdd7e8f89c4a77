"""Prints a markdown table: the captions of the same three scenes with each decoding option in turn."""

import argparse
from pathlib import Path
from typing import Any

import torch

from myllm import Captioner
from myllm.data.scenes import draw_scene

SEED = 2_000_003
OPTIONS: list[dict[str, Any]] = [
    {},
    {"beams": 4},
    {"beams": 4, "length_penalty": -2.0},
    {"beams": 4, "length_penalty": 1.5, "early_stopping": "never"},
    {"beams": 4, "num_beam_groups": 4, "diversity_penalty": 3.0},
    {"do_sample": True},
    {"do_sample": True, "temperature": 2.0},
    {"do_sample": True, "temperature": 2.0, "top_k": 3},
    {"do_sample": True, "temperature": 2.0, "top_p": 0.7},
    {"do_sample": True, "temperature": 2.0, "min_p": 0.3},
    {"do_sample": True, "temperature": 2.0, "typical_p": 0.5},
    {"do_sample": True, "num_return_sequences": 8, "rank_by": "score"},
    {"do_sample": True, "num_return_sequences": 8, "rank_by": "consensus"},
    {"contrastive_weight": 1.0},
    {"repetition_penalty": 3.0},
    {"no_repeat_ngram_size": 2},
    {"min_new_tokens": 12},
    {"max_new_tokens": 4},
    {"prefix": "there is"},
    {"bad_words": ("red", "blue", "green", "on")},
    {"only_words": ("a", "two", "white", "blue", "green", "cube", "rings", "star", "on", "wood", "water")},
    {"force_words": ("next to",), "beams": 4},
    {"regex": "(a|two) (red|green|blue|white) (star|rings|cube)"},
    {"stop_strings": (" of", " and")},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="runs/demo", help="a captioner of scenes")
    arguments = parser.parse_args()
    if not Path(arguments.model).exists():
        print(f"left out: {arguments.model} does not exist; run `make demo`, or give another as --model")
        return
    captioner = Captioner.load(arguments.model)
    scenes = [draw_scene(SEED, "val", number) for number in (2, 3, 5)]
    pictures = [image for image, _ in scenes]
    print(f"| option | {' | '.join(scene.captions[0] for _, scene in scenes)} |\n|---|---|---|---|")
    for options in OPTIONS:
        generator = torch.Generator().manual_seed(0)
        captions = captioner.caption_batch(pictures, generator=generator, **options)
        label = ", ".join(f"{name} {_readable(value)}".strip() for name, value in options.items()) or "greedy"
        print(f"| {label} | {' | '.join(caption.text for caption in captions)} |")


def _readable(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(value)
    return "" if value is True else f"`{value}`".replace("|", "\\|") if isinstance(value, str) else str(value)


if __name__ == "__main__":
    main()
