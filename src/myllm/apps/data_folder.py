"""What several verbs do with a data folder, with a progress bar: draw one, load a split of one, caption the split."""

from collections.abc import Sequence
from pathlib import Path

from myllm.apps.console import Display
from myllm.caption import CaptionerProtocol
from myllm.config import CaptionsConfig, DecodeConfig
from myllm.data.records import Findings, Record
from myllm.data.scenes import read_things, write_scenes
from myllm.data.sources import Sources, data_name, data_paths, read_records
from myllm.data.splits import copies_left_out_of_training, one_split, split_records
from myllm.evaluation.evaluate import CaptionedSplit, Data, caption_records, failures


def load_split(
    data: Sources, split: str, captions: CaptionsConfig, display: Display, *,
    limit: int | None = None, training: str | None = None,
) -> Data:
    """Return the pictures of a split, and the training pictures to look for leaks in; warn of faults in the data.

    captions: how captions are read. limit: use only the first pictures. training: data folder of pictures that were all
    trained on; by default, the split train of `data`. Raises DataError or ConfigError.
    """
    records, findings = read_records(data, captions)
    splits = split_records(records, findings)
    report_findings(findings, display)
    trained = [*splits["train"], *copies_left_out_of_training(records, splits)] if split != "train" else []
    if training is not None:
        trained, _ = read_records(training, captions)
    paths = data_paths(data)
    judged = one_split(splits, split, " and ".join(map(str, paths)))[:limit]
    things = read_things(paths[0]) if len(paths) == 1 else {}
    return Data(split, judged, trained, things, data_name(data))


def report_findings(findings: Findings, display: Display) -> None:
    """Print the files that were read and their formats, and warn of anything unusual in them."""
    for line in findings.formats:
        display.say(f"Reading {line}")
    for line in findings.lines():
        display.warn(line)


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
