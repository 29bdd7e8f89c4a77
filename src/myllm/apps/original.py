"""The original script's command: train with the preset vit-gpt2, then print captions of sample pictures."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from myllm.apps.cli import DONE, exit_code, parse_verb
from myllm.apps.options import DEFAULT_PRESET
from myllm.apps.printing import printable
from myllm.apps.run_folder import SAMPLES_FILE, SAMPLES_PICTURE


def main(words: Sequence[str], repository: Path) -> int:
    """Run `myllm train WORDS` with the original's preset, data and run folder as defaults; then show samples."""
    defaults = {"preset": DEFAULT_PRESET, "data": str(find_data(repository)), "out": str(repository / "captioner")}

    def train_and_show() -> int:
        options = parse_verb("train", words, defaults)
        from myllm.apps.train import train

        code = train(options)
        return show_samples(Path(options.out)) if code == DONE else code

    return exit_code(train_and_show)


def find_data(repository: Path) -> Path:
    """Return data/ in the repository, or else in the working directory; if neither exists, the first."""
    folders = [repository / "data", Path.cwd() / "data"]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def show_samples(run: Path) -> int:
    """Print captions of sample pictures with a reference, and show the pictures if there is a display."""
    for line in (run / SAMPLES_FILE).read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        name, caption, reference = Path(sample["image"]).name, sample["caption"], sample["references"][0]
        print(printable(f"{name}\n   caption:   {caption}\n   reference: {reference}", keep="\n"))
    print(f"The pictures with their captions: {run / SAMPLES_PICTURE}")
    if sys.stdout.isatty() and (sys.platform != "linux" or os.environ.get("DISPLAY")):
        Image.open(run / SAMPLES_PICTURE).show(title="captions")
    return DONE
