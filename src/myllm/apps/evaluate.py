"""`myllm evaluate`: caption a split and score it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from myllm.apps.calibrate import calibrate_model, check_calibratable
from myllm.apps.caption import open_captioner
from myllm.apps.console import Display
from myllm.apps.options import EvaluateOptions
from myllm.apps.train import METRICS_FILE, REPORT_FILE, current_time, describe, write_evaluation, write_text
from myllm.caption import CaptionerProtocol
from myllm.config import CaptionsConfig, DecodeConfig
from myllm.data.records import Record, read_records
from myllm.data.scenes import read_things
from myllm.data.splits import copies_left_out_of_training, one_split, split_records
from myllm.device import choose_device
from myllm.errors import ConfigError, DataError
from myllm.evaluation.clipscore import clip_scores
from myllm.evaluation.evaluate import CaptionedSplit, Data, Evaluation, caption_records, evaluate
from myllm.evaluation.heatmaps import make_word_maps
from myllm.evaluation.report import evaluation_report, write_report
from myllm.evaluation.scenes import JUDGEMENT, describe_scene_figures


def evaluate_split(options: EvaluateOptions, decode: Mapping[str, Any]) -> int:
    """Print the figures of a split; with --out, write metrics.json, captions.jsonl, samples and report.html."""
    display = Display(options.quiet, options.json)
    if options.out is not None and not options.overwrite and (Path(options.out) / METRICS_FILE).exists():
        raise ConfigError(
            f"--out {options.out} holds {METRICS_FILE} already; replace it by --overwrite, or give another folder"
        )
    if options.calibrate:
        check_calibratable(options)
    captioner = open_captioner(options.model, options.devices, options.precision, options.adapter)
    data = load_split(Path(options.data), options.split, captioner.captions, display, options.training)
    data = replace(data, records=data.records[: options.limit])
    with display.counting() as progress:
        metrics = None if options.metrics is None else options.metrics.split(",")
        evaluation = evaluate(
            captioner, data, captioner.decode_options(**decode), options.batch_size, progress, metrics
        )
        if options.clip is not None:
            texts = [caption.text for caption in evaluation.captions]
            figures = clip_scores(
                options.clip, [record.image for record in evaluation.records], texts,
                [record.captions for record in evaluation.records], choose_device(options.devices),
                partial(progress, "looking with CLIP"),
            )
            evaluation = evaluation.with_figures(figures, clip=options.clip)
    if options.calibrate:
        try:
            calibrate_model(Path(options.model), evaluation)
        except DataError as error:
            display.warn(f"confidence is not calibrated: {error}")
            judgement = evaluation.judgement.with_protocol(not_calibrated=str(error))
            evaluation = replace(evaluation, judgement=judgement)
    for reason in evaluation.broken:
        display.warn(f"left out: {reason}")
    if options.out is not None:
        write_evaluation(evaluation, Path(options.out))
        write_text(Path(options.out) / "captions.jsonl", captions_jsonl(evaluation))
        facts = {"Written": current_time(), "Captioner": options.model, "Data": Path(options.data).resolve().name}
        title = Path(options.model).resolve().name
        look = make_word_maps(captioner, evaluation.records, evaluation.captions)
        write_report(Path(options.out) / REPORT_FILE, evaluation_report(title, facts, evaluation, word_maps=look))
    if options.json:
        print(json.dumps(evaluation.as_json(), ensure_ascii=False))
    else:
        display.console.print(describe(evaluation))
        if evaluation.truth:
            display.console.print(f"  {describe_scene_figures(evaluation.truth)}\n{JUDGEMENT}")
    return 0


def caption_with_progress(
    name: str,
    captioner: CaptionerProtocol,
    records: Sequence[Record],
    display: Display,
    decode: DecodeConfig,
    batch_size: int = 32,
) -> CaptionedSplit:
    """`caption_records`, with a bar that says who captions: `name`; what could not be read is told."""
    with display.counting() as progress:
        said = caption_records(
            captioner, records, decode, batch_size,
            lambda done, total: progress(f"captioning with {name}", done, total),
        )
    for reason in said.broken:
        display.warn(f"left out: {reason}")
    return said


def captions_jsonl(evaluation: Evaluation) -> str:
    """A line a picture: caption, score, its own figures."""
    rows = []
    for at, (record, caption) in enumerate(zip(evaluation.records, evaluation.captions, strict=True)):
        values = {name: float(of_pictures[at]) for name, of_pictures in evaluation.per_image.items()}
        figures = {name: None if math.isnan(value) else round(value, 6) for name, value in values.items()}
        told = {"score": round(caption.score, 6), "confidence": round(caption.confidence, 6)}
        rows.append({"image": record.name, "caption": caption.text, **told, **figures})
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def load_split(
    folder: Path, split: str, captions: CaptionsConfig, display: Display, training: str | None = None
) -> Data:
    """The pictures of a split with their captions, read as `captions` says, and what to look for leaks in.

    training: another data folder, whose pictures all count as trained on; else the folder's own split `train`.
    """
    records, findings = read_records(folder, captions)
    splits = split_records(records, folder, findings)
    for line in findings.lines():
        display.warn(line)
    trained = [*splits["train"], *copies_left_out_of_training(records, folder, splits)] if split != "train" else []
    if training is not None:
        trained, _ = read_records(Path(training), captions)
    return Data(split, one_split(splits, split, folder), trained, read_things(folder), folder.resolve().name)
