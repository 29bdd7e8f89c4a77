"""`myllm scenes`: draw pictures with captions to train on."""

import shlex
from pathlib import Path

from myllm.apps.console import Display
from myllm.apps.data_folder import draw_with_progress
from myllm.apps.options import ScenesOptions


def scenes(options: ScenesOptions) -> int:
    """Draw scenes into a new folder."""
    display = Display(options.quiet)
    draw_with_progress(Path(options.out), options.count, options.seed, display)
    display.print(
        f"Wrote {options.count:,} scenes to {options.out}. Train on them with: "
        f"myllm train --preset scenes --data {shlex.quote(options.out)} --out captioner"
    )
    return 0
