"""The files of a run folder and of other folders with results: their names, and functions that write them."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from myllm.caption import CaptionerProtocol, Sample
from myllm.data.records import quantity
from myllm.errors import ConfigError
from myllm.evaluation.calibration import ConfidenceReport, calibrate, described
from myllm.evaluation.evaluate import Evaluation, describe_search
from myllm.evaluation.judge import MAIN
from myllm.evaluation.slices import worst_first
from myllm.files import atomic_write, json_text
from myllm.training_config import TrainConfig

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.json"
REPORT_FILE = "report.html"
SAMPLES_FILE = "samples.jsonl"
SAMPLES_PICTURE = "samples.png"
SAMPLES = 20  # in samples.png and samples.jsonl
WEAKEST_SLICES = 3  # printed with the figures


def unused(out: str) -> Path:
    """Return the path to write. Raises ConfigError if something is there already."""
    if Path(out).exists():
        raise ConfigError(f"--out {out} is there already; give another name, or remove it")
    return Path(out)


def output_folder(out: str | None, file: str, overwrite: bool) -> Path | None:
    """Return the folder for results with a report, or None.

    Raises ConfigError if it has `file` and may not be overwritten, and ModuleNotFoundError if reports cannot be drawn.
    """
    if out is None:
        return None
    if not overwrite and (Path(out) / file).exists():
        raise ConfigError(f"--out {out} holds {file} already; replace it by --overwrite, or give another folder")
    import_module("myllm.evaluation.heatmaps")  # needs matplotlib and torch; better missed now than after the work
    return Path(out)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically."""
    with atomic_write(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def write_config(config: TrainConfig, out: Path) -> None:
    """Write config.yaml, which `--config` reads."""
    options = json.loads(json.dumps(asdict(config)))  # YAML has lists, but no tuples
    write_text(out / CONFIG_FILE, yaml.safe_dump(options, sort_keys=False, allow_unicode=True))


def read_config(out: Path) -> dict[str, Any]:
    """Return the options in config.yaml, or none if it is missing or is not YAML."""
    with suppress(OSError, ValueError, yaml.YAMLError):
        options = yaml.safe_load((out / CONFIG_FILE).read_text(encoding="utf-8"))
        return options if isinstance(options, dict) else {}
    return {}


def write_jsonl(path: Path, rows: Sequence[object]) -> None:
    """Write a file of JSON lines, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_samples(samples: Sequence[Sample], out: Path) -> None:
    """Write samples.jsonl: a line for each picture, with its caption and references."""
    write_jsonl(out / SAMPLES_FILE, [
        {"image": sample.name, "caption": sample.caption, "references": list(sample.references)}
        for sample in samples
    ])


def write_evaluation(
    captioner: CaptionerProtocol, evaluation: Evaluation, out: Path, facts: Mapping[str, str], *,
    title: str, history: Sequence[dict[str, float | str]] = (),
) -> None:
    """Write metrics.json, samples.jsonl, samples.png, report.html, and the plots of words, confidence and training.

    facts, title and history are for the report: date, data and model of the evaluation; and rows of metrics.csv.
    """
    from myllm.evaluation import plots
    from myllm.evaluation.heatmaps import make_word_maps  # imports torch and matplotlib
    from myllm.evaluation.report import evaluation_report, write_report

    write_text(out / METRICS_FILE, json_text(evaluation.as_json()))
    samples = [
        Sample(record.name, record.image, evaluation.captions[index].text, record.captions)
        for index in evaluation.spread(SAMPLES) for record in [evaluation.records[index]]
    ]
    write_samples(samples, out)
    plots.plot_samples(samples, out / SAMPLES_PICTURE)
    plots.save_plots(plots.WORD_PLOTS, evaluation.words, out)
    if history:
        plots.save_plots(plots.CURVES, history, out)
    if evaluation.trust is not None:
        plots.save_plots(plots.CONFIDENCE_PLOTS, evaluation.trust, out)
    maps = make_word_maps(captioner, evaluation.records, evaluation.captions)
    write_report(out / REPORT_FILE, evaluation_report(title, facts, evaluation, history, maps))


def save_calibration(model: Path, evaluation: Evaluation) -> None:
    """Calibrate confidence on an evaluation's captions, and save the calibration in the model's file or folder.

    Raises DataError if there are too few words to learn from; the model then stays as it was.
    """
    from myllm.checkpoints import native

    references = [record.captions for record in evaluation.records]
    native.write_calibration(calibrate(evaluation.captions, references, described(evaluation.protocol)), model)


def evaluation_as_text(evaluation: Evaluation) -> str:
    """Return the figures as a few lines of text, with how they were measured."""
    protocol = evaluation.protocol
    first = (
        f"Split {protocol['split']}, {quantity(protocol['pictures'], 'picture')}, "
        f"{describe_search(protocol['decode'])}, tokenizer {protocol['tokenizer']}:"
    )
    slices = [
        f"{MAIN} {part.value:.3f} ({part.interval[0]:.3f} to {part.interval[1]:.3f}) of "
        f"{quantity(part.pictures, 'picture')}, {part.kind}: {part.label}"
        for part in worst_first(evaluation.slices)[:WEAKEST_SLICES]
    ]
    confidence = [] if evaluation.trust is None else _confidence_lines(evaluation.trust)
    return "\n  ".join([first, *evaluation.judgement.lines(), *evaluation.describe_leaks(), *slices, *confidence])


def _confidence_lines(report: ConfidenceReport) -> list[str]:
    source = "a calibration of other pictures" if report.is_cross_fitted else "the captioner's own calibration"
    return [
        f"confidence by {source}: off by {report.word_error:.3f} in the mean for a word, by "
        f"{report.caption_error:.3f} for a caption",
        report.describe_sorting(MAIN),
    ]


def current_time() -> str:
    """Return day, hour and time zone, for reports."""
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
