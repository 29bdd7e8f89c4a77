"""`myllm average`: the mean of several captioners' weights, beside each of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from myllm.apps.console import Display
from myllm.apps.convert import unused
from myllm.apps.evaluate import caption_with_progress, load_split
from myllm.apps.options import AverageOptions
from myllm.checkpoints import formats, native
from myllm.checkpoints.average import average
from myllm.data.records import Record
from myllm.device import choose_device
from myllm.inference.captioner import Captioner
from myllm.metrics.score import score_captions

SHOWN = ("BLEU-4", "ROUGE-L", "CIDEr-D")


def average_models(models: Sequence[str], options: AverageOptions, decode: Mapping[str, Any]) -> int:
    """Write the mean to --out; with --data, print the figures of each captioner and of the mean on a split."""
    display, paths, out = Display(options.quiet), [Path(model) for model in models], unused(options.out)
    checkpoints = [formats.load(model) for model in models]
    records: Sequence[Record] = ()
    if options.data is not None:
        records = load_split(Path(options.data), options.split, checkpoints[0].captions, display).records
        display.say(f"{'':<30} {'  '.join(f'{name:>8}' for name in SHOWN)}   on {options.split}")
        for path, checkpoint in zip(paths, checkpoints, strict=True):
            judge(str(path), checkpoint, records, options, display)
    mean = average(checkpoints, paths, options.weights)
    if records:
        figures = judge("their mean", mean, records, options, display)
        told = {name: figures[name] for name in SHOWN}
        mean = replace(mean, provenance={**mean.provenance, f"figures on {options.split}": told})
    native.save(mean, out)
    display.say(f"The mean of {len(paths)} captioners is in {out}")
    return 0


def judge(
    name: str, checkpoint: native.Checkpoint, records: Sequence[Record], options: AverageOptions, display: Display
) -> dict[str, float]:
    """Print a row of figures, and return them all."""
    captioner = Captioner(checkpoint, choose_device(options.devices))
    said = caption_with_progress(name, captioner, records, display, captioner.decode)
    texts, references = [caption.text for caption in said.captions], [record.captions for record in said.records]
    figures = score_captions(texts, references, ("BLEU", "ROUGE-L", "CIDEr")).corpus
    display.say(f"{name[-30:]:<30} {'  '.join(f'{figures[figure]:8.4f}' for figure in SHOWN)}")
    return figures
