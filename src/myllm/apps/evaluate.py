"""`myllm evaluate`: caption a split and score it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from myllm.apps.console import Display
from myllm.apps.folder import open_captioner
from myllm.apps.options import EvaluateOptions
from myllm.apps.train import METRICS_FILE, describe, write_evaluation, write_text
from myllm.caption import Describer
from myllm.config import CaptionsConfig, DecodeConfig
from myllm.data.records import Record, read_records
from myllm.data.scenes import BOXES_FILE, read_things
from myllm.data.splits import one_split, split_records
from myllm.errors import ConfigError
from myllm.evaluation.evaluate import JUDGEMENT, Evaluation, evaluate, judge_scenes, told_judgement


def evaluate_split(options: EvaluateOptions, decode: Mapping[str, Any]) -> int:
    """Print the figures of a split; with --out, write metrics.json, captions.jsonl and samples."""
    display = Display(options.quiet, options.json)
    if options.out is not None and not options.overwrite and (Path(options.out) / METRICS_FILE).exists():
        raise ConfigError(
            f"--out {options.out} holds {METRICS_FILE} already; replace it by --overwrite, or give another folder"
        )
    captioner = open_captioner(options.model, options.devices, options.precision, options.adapter)
    records = records_of(Path(options.data), options.split, captioner.captions, display)[: options.limit]
    with display.counting() as progress:
        evaluation = evaluate(
            captioner, records, options.split, captioner.decode_options(**decode), options.batch_size,
            progress=lambda done, total: progress("captioning", done, total),
        )  # fmt: skip
    if (Path(options.data) / BOXES_FILE).is_file():
        things = read_things(Path(options.data))
        texts = [one.text for one in evaluation.captions]
        # pictures that someone put beside the scenes have no boxes
        if all(record.name in things for record in evaluation.records):
            evaluation.truth.update(judge_scenes(texts, [things[record.name] for record in evaluation.records]))
    for reason in evaluation.broken:
        display.warn(f"left out: {reason}")
    if options.out is not None:
        write_evaluation(evaluation, Path(options.out))
        write_text(Path(options.out) / "captions.jsonl", captions_jsonl(evaluation))
    if options.json:
        print(json.dumps(evaluation.as_json(), ensure_ascii=False))
    else:
        display.console.print(describe(evaluation))
        if evaluation.truth:
            display.console.print(f"  {told_judgement(evaluation.truth)}\n{JUDGEMENT}")
    return 0


def evaluate_shown(
    name: str, captioner: Describer, records: Sequence[Record], split: str, decode: DecodeConfig, display: Display
) -> Evaluation:
    """`evaluate`, with a bar that says who captions: `name`."""
    with display.counting() as progress:
        return evaluate(
            captioner, records, split, decode,
            progress=lambda done, total: progress(f"captioning with {name}", done, total),
        )  # fmt: skip


def captions_jsonl(evaluation: Evaluation) -> str:
    """A line a picture: caption, score, its own figures."""
    rows = []
    for at, (record, caption) in enumerate(zip(evaluation.records, evaluation.captions, strict=True)):
        figures = {name: round(float(values[at]), 6) for name, values in evaluation.per_image.items()}
        rows.append({"image": record.name, "caption": caption.text, "score": round(caption.score, 6), **figures})
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def records_of(data: Path, split: str, captions: CaptionsConfig, display: Display) -> list[Record]:
    """The pictures of a split with their captions, read as `captions` says."""
    records, findings = read_records(data, captions)
    splits = split_records(records, data, findings)
    for line in findings.lines():
        display.warn(line)
    return one_split(splits, split, data)
