"""`myllm average`: the mean of several captioners' weights, compared with each of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from myllm.apps.console import Display
from myllm.apps.data_folder import caption_split, load_split
from myllm.apps.options import AverageOptions
from myllm.apps.run_folder import unused
from myllm.checkpoints import formats, native
from myllm.checkpoints.average import average
from myllm.data.records import Record
from myllm.device import choose_device
from myllm.inference.captioner import Captioner
from myllm.metrics.score import score_captions

COLUMNS = ("BLEU-4", "ROUGE-L", "CIDEr-D")


def average_models(options: AverageOptions) -> int:
    """Write the average to --out; with --data, print the figures of each captioner and of the average on a split."""
    display, paths, out = Display(options.quiet), [Path(path) for path in options.paths], unused(options.out)
    checkpoints = [formats.load(path) for path in options.paths]
    if any(checkpoint.index is not None for checkpoint in checkpoints):
        display.warn(
            "the average has no captions of training pictures, so it ranks by score; figures of all are by score"
        )
        checkpoints = [native.without_index(checkpoint) for checkpoint in checkpoints]
    records: Sequence[Record] = ()
    if options.data is not None:
        captions = checkpoints[0].captions
        records = load_split(options.data, options.split, captions, display, limit=options.limit).records
        display.say(f"{'':<30} {'  '.join(f'{name:>8}' for name in COLUMNS)}   on {options.split}")
        for path, checkpoint in zip(options.paths, checkpoints, strict=True):
            print_figures(path, checkpoint, records, options, display)
    mean = average(checkpoints, paths, options.weights)
    if records:
        figures = print_figures("their average", mean, records, options, display)
        of_mean = {name: figures[name] for name in COLUMNS}
        mean = replace(mean, provenance={**mean.provenance, f"figures on {options.split}": of_mean})
    native.save(mean, out)
    display.say(f"The average of {len(paths)} captioners is in {out}")
    return 0


def print_figures(
    name: str, checkpoint: native.Checkpoint, records: Sequence[Record], options: AverageOptions, display: Display
) -> dict[str, float]:
    """Caption the pictures, print a row of figures, and return all of them."""
    captioner = Captioner(checkpoint, choose_device(options.devices))
    split = caption_split(name, captioner, records, display, captioner.decode)
    references = [record.captions for record in split.records]
    texts = [caption.text for caption in split.captions]
    figures = score_captions(texts, references, ("BLEU", "ROUGE-L", "CIDEr")).corpus
    display.say(f"{name[-30:]:<30} {'  '.join(f'{figures[column]:8.4f}' for column in COLUMNS)}")
    return figures
