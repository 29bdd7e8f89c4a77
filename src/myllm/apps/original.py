"""The seed's own command: train with preset seed, then caption sample pictures."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from myllm.apps.cli import DONE, given_value, main_verb


def main(words: Sequence[str], repository: Path) -> int:
    """`myllm train` with the seed's preset, data and run folder where none are given, then the demo loop."""
    options = list(words)
    defaults = {"preset": "seed", "data": find_data(repository), "out": repository / "captioner"}
    for option, value in defaults.items():
        if given_value(words, option) is None:
            options += [f"--{option}", str(value)]
    code = main_verb("train", options)
    if code != DONE or {"-h", "--help"} & set(options):
        return code
    return show_samples(Path(str(given_value(options, "out"))))


def find_data(repository: Path) -> Path:
    """data/ in the repository, else in the working directory; the first where there is neither, for the message."""
    places = [repository / "data", Path.cwd() / "data"]
    return next((place for place in places if place.is_dir()), places[0])


def show_samples(run: Path) -> int:
    """The sample pictures with their captions: printed, and shown where there is a display."""
    for line in (run / "samples.jsonl").read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        print(
            f"{Path(sample['image']).name}\n   caption:   {sample['caption']}\n   reference: {sample['references'][0]}"
        )
    print(f"The pictures with their captions: {run / 'samples.png'}")
    if _has_display():
        Image.open(run / "samples.png").show(title="captions")
    return DONE


def _has_display() -> bool:
    return sys.stdout.isatty() and (sys.platform != "linux" or bool(os.environ.get("DISPLAY")))
