"""What several verbs do with a data folder, with a progress bar: draw one, load a split of one, caption the split."""

from collections.abc import Sequence
from pathlib import Path

from myllm.apps.console import Display
from myllm.caption import CaptionerProtocol
from myllm.config import CaptionsConfig, DecodeConfig
from myllm.data.records import Record, read_records
from myllm.data.scenes import read_things, write_scenes
from myllm.data.splits import copies_left_out_of_training, one_split, split_records
from myllm.evaluation.evaluate import CaptionedSplit, Data, caption_records, failures


def load_split(
    data: str, split: str, captions: CaptionsConfig, display: Display, *,
    limit: int | None = None, training: str | None = None,
) -> Data:
    """Return the pictures of a split, and the training pictures to look for leaks in; warn of faults in the data.

    captions: how captions are read. limit: use only the first pictures. training: data folder of pictures that were all
    trained on; by default, the split train of `data`. Raises DataError or ConfigError.
    """
    folder = Path(data)
    records, findings = read_records(folder, captions)
    splits = split_records(records, folder, findings)
    for line in findings.lines():
        display.warn(line)
    trained = [*splits["train"], *copies_left_out_of_training(records, folder, splits)] if split != "train" else []
    if training is not None:
        trained, _ = read_records(Path(training), captions)
    judged = one_split(splits, split, folder)[:limit]
    return Data(split, judged, trained, read_things(folder), folder.resolve().name)


def caption_split(
    name: str, captioner: CaptionerProtocol, records: Sequence[Record], display: Display, decode: DecodeConfig,
    batch_size: int = 32,
) -> CaptionedSplit:
    """Caption the pictures, with a progress bar that names the captioner; warn of pictures that fail."""
    with display.progress() as progress:
        split = caption_records(captioner, records, decode, batch_size, progress, f"captioning with {name}")
    for fault in split.broken:
        display.warn(f"left out: {fault}")
    for fault in failures(split.records, split.captions):
        display.warn(f"counted as an empty caption: {fault}")
    return split


def draw_with_progress(folder: Path, count: int, seed: int, display: Display) -> None:
    """Draw scenes into a folder, with a progress bar. Raises ConfigError, before it writes, for too few scenes."""
    with display.progress() as progress:
        for done in write_scenes(folder, count, seed):
            progress("drawing scenes", done, count)
