"""`myllm train`: from a folder of pictures and captions to a run folder."""

import csv
import io
import json
import shlex
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from tensorboardX import SummaryWriter

from myllm.apps.calibrate import calibrate_model, describe_confidence
from myllm.apps.console import Display, TrainingDisplay
from myllm.apps.options import RunOptions
from myllm.caption import Sample
from myllm.checkpoints import lora, native
from myllm.config import TrainConfig
from myllm.data.scenes import read_things
from myllm.device import choose_device, choose_precision
from myllm.errors import ConfigError, DataError
from myllm.evaluation.evaluate import Data, Evaluation, describe_search, evaluate
from myllm.evaluation.heatmaps import make_word_maps
from myllm.evaluation.judge import MAIN
from myllm.evaluation.plots import plot_confidence, plot_curves, plot_samples, plot_words
from myllm.evaluation.report import evaluation_report, write_report
from myllm.files import atomic_write, lock_folder
from myllm.inference.captioner import Captioner
from myllm.model.lora import adapted_layers
from myllm.model.weight_files import count_parameters
from myllm.training import run_state
from myllm.training.prepare import Prepared, prepare
from myllm.training.run_state import RunState
from myllm.training.trainer import SAMPLES, StepReport, Trainer

CONFIG_FILE = "config.yaml"
WEAKEST = 3  # slices that are told
STEPS_PER_EVENT = 10
METRICS_FILE = "metrics.json"
REPORT_FILE = "report.html"
CHECKPOINTS = (native.FILE_NAME, lora.FOLDER, run_state.FILE_NAME)


def train(config: TrainConfig, options: RunOptions, given_options: Collection[str] = ()) -> int:
    """Train, judge the best checkpoint on the validation split, and leave the run folder complete."""
    display = Display(options.quiet, options.json)
    finished, evaluation = run_training(config, options, display, given_options)
    if not finished:
        return 130
    assert evaluation is not None
    if options.json:
        print(json.dumps(evaluation.as_json(), ensure_ascii=False))
    display.say("")
    display.console.print(describe(evaluation), style="bold", highlight=False)
    display.console.print(
        f"Wrote {config.out}: {', '.join(sorted(p.name + '/' * p.is_dir() for p in Path(config.out).iterdir()))}"
    )
    display.say(f"Caption with: myllm caption PICTURES --model {shlex.quote(config.out)}")
    return 0


def run_training(
    config: TrainConfig, options: RunOptions, display: Display, given_options: Collection[str] = ()
) -> tuple[bool, Evaluation | None]:
    """Whether the run came to its end, and then its final figures."""
    with lock_folder(Path(config.out)):
        return _run_training(config, options, display, given_options)


def _run_training(
    config: TrainConfig, options: RunOptions, display: Display, given_options: Collection[str]
) -> tuple[bool, Evaluation | None]:
    out = Path(config.out)
    check_run_folder(out, options)
    check_base(config)
    device = choose_device(config.devices)
    display.say(f"Training on {device.type} in {choose_precision(config.precision, device)}, seed {config.seed}")
    with display.counting() as progress:
        prepared = prepare(config, progress, given_options)
    config = prepared.config
    describe_data(prepared, config, display)
    with TrainingDisplay(display) as shown:
        recorder = _Recorder(shown, out)
        trainer = Trainer(config, prepared, recorder)
        # what is there is touched only now that the run can begin, or go on
        if options.resume:
            trainer.resume()
            recorder.rows = list(trainer.state.history)
            display.say(f"Going on from epoch {trainer.state.epoch + 1}, step {trainer.state.step}")
        else:
            remove_checkpoints(out)
        write_text(out / CONFIG_FILE, yaml.safe_dump(_plain(asdict(config)), sort_keys=False, allow_unicode=True))
        finished = trainer.train()
    if not finished:
        display.console.print(
            f"Interrupted, and saved in {out}. Go on with:\n"
            f"  myllm train --config {shlex.quote(str(out / CONFIG_FILE))} --resume"
        )
        return False, None
    return True, finish(config, prepared, trainer.state, display)


def check_run_folder(out: Path, options: RunOptions) -> None:
    """Raises ConfigError where a run would be lost, or there is none to go on with."""
    if options.resume and options.overwrite:
        raise ConfigError("--resume and --overwrite: one goes on with the run, the other throws it away; give one")
    existing = [name for name in CHECKPOINTS if (out / name).exists()]
    if options.resume and run_state.FILE_NAME not in existing:
        raise ConfigError(
            f"--resume: {out / run_state.FILE_NAME} is not there, so there is no run to go on with; "
            "give the --out of the run, or leave out --resume to start one"
        )
    if existing and not (options.resume or options.overwrite):
        raise ConfigError(
            f"--out {out} holds a run already ({', '.join(existing)}); go on with it by --resume, replace it by "
            "--overwrite, or give another --out"
        )


def check_base(config: TrainConfig) -> None:
    """Raises ConfigError where the run would write over the captioner that it goes on from."""
    if config.base is not None and Path(config.base).resolve().is_relative_to(Path(config.out).resolve()):
        raise ConfigError(f"--base {config.base} lies in --out {config.out}, which is written; give another --out")


def remove_checkpoints(out: Path) -> None:
    """Those of the run that a new one replaces: its first epochs may fall short of what the old one reached."""
    for name in CHECKPOINTS:
        if (out / name).is_dir():
            shutil.rmtree(out / name)
        else:
            (out / name).unlink(missing_ok=True)


def describe_data(prepared: Prepared, config: TrainConfig, display: Display) -> None:
    """Sizes, and what was noticed in the data."""
    for line in prepared.findings.lines():
        display.warn(line)
    if config.vision.frozen and config.augment:
        display.warn("--augment has no effect with --vision.frozen: the stored features are of unchanged pictures")
    captions = sum(len(record.captions) for record in prepared.train.records)
    parameters = count_parameters(prepared.model)
    display.say(
        f"{len(prepared.train.records):,} training pictures with {captions:,} captions, {len(prepared.val.records):,} "
        f"validation pictures; {prepared.tokenizer.get_vocab_size():,} tokens; {parameters / 1e6:.1f} M parameters"
    )
    adapters = [layer for _, layer in adapted_layers(prepared.model)]
    if adapters:
        trained = sum(layer.lora_A.weight.numel() + layer.lora_B.weight.numel() for layer in adapters)
        display.say(f"Of these {trained / 1e6:.2f} M train: adapters of {len(adapters)} layers of {config.base}")


def finish(config: TrainConfig, prepared: Prepared, state: RunState, display: Display) -> Evaluation:
    """Judge captioner.pt on the validation pictures; write metrics.json, the samples and report.html."""
    captioner = Captioner.load(config.out, device=config.devices)
    folder = Path(config.data)
    data = Data("val", prepared.val.records, prepared.train.records, read_things(folder), folder.resolve().name)
    with display.counting() as progress:
        evaluation = evaluate(captioner, data, config.decode, progress=progress)
    out = Path(config.out)
    write_evaluation(evaluation, out)
    if config.base is None:  # an adapter changes weights, and has no place for a calibration
        try:
            calibrate_model(out, evaluation)
        except DataError as error:
            display.say(f"Confidence is not calibrated: {error}")
    facts, look = (
        report_facts(config, prepared, state),
        make_word_maps(captioner, evaluation.records, evaluation.captions),
    )
    write_report(out / REPORT_FILE, evaluation_report(out.resolve().name, facts, evaluation, state.history, look))
    return evaluation


def report_facts(config: TrainConfig, prepared: Prepared, state: RunState) -> dict[str, str]:
    """When the run was, and what was trained on what."""
    parameters = count_parameters(prepared.model)
    return {
        "Finished": current_time(),
        "Data": Path(config.data).resolve().name,
        "Training pictures": f"{len(prepared.train.records):,}",
        "Their captions": f"{sum(len(record.captions) for record in prepared.train.records):,}",
        "Epochs": f"{state.epoch:,}, the best is {state.best_epoch:,}",
        "Steps": f"{state.step:,}",
        "Minutes of training": f"{state.seconds / 60:.1f}",
        "Seed": str(config.seed),
        "Backbone": config.vision.name,
        "Parameters": f"{parameters / 1e6:.1f} M",
    }


def current_time() -> str:
    """Day, hour and time zone, for facts of a report."""
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")


def write_evaluation(evaluation: Evaluation, out: Path) -> None:
    """metrics.json, samples.jsonl, samples.png, and the plots of words and of confidence."""
    write_text(out / METRICS_FILE, json.dumps(evaluation.as_json(), indent=2, ensure_ascii=False) + "\n")
    samples = [
        Sample(evaluation.records[at].image, evaluation.captions[at].text, evaluation.records[at].captions)
        for at in evaluation.spread(SAMPLES)
    ]
    write_samples(samples, out)
    plot_samples(samples, out / "samples.png")
    plot_words(evaluation.words, out)
    if evaluation.trust is not None:
        plot_confidence(evaluation.trust, out)


def write_samples(samples: Sequence[Sample], out: Path) -> None:
    """samples.jsonl: a picture a line, with its caption and references."""
    rows = [
        {"image": str(sample.image), "caption": sample.caption, "references": list(sample.references)}
        for sample in samples
    ]
    write_text(out / "samples.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Atomically, in UTF-8."""
    with atomic_write(path) as file:
        file.write(text.encode())


def describe(evaluation: Evaluation) -> str:
    """The figures in a few lines, with what they were measured by."""
    protocol = evaluation.protocol
    search = describe_search(protocol["decode"])
    first = (
        f"Split {protocol['split']}, {protocol['pictures']:,} pictures, {search}, tokenizer {protocol['tokenizer']}:"
    )
    weak = [
        f"{MAIN} {part.value:.3f} ({part.interval[0]:.3f} to {part.interval[1]:.3f}) of {part.pictures:,} pictures, "
        f"{part.kind}: {part.label}"
        for part in evaluation.slices[:WEAKEST]
    ]
    sure = [] if evaluation.trust is None else describe_confidence(evaluation.trust)
    return "\n  ".join([first, *evaluation.judgement.lines(), *evaluation.describe_leaks(), *weak, *sure])


class _Recorder:
    """Keeps metrics.csv, the curves and the TensorBoard events up to date after each epoch, and tells the display."""

    def __init__(self, shown: TrainingDisplay, out: Path) -> None:
        self.shown, self.out = shown, out
        self.rows: list[dict[str, float | str]] = []
        self.warn = shown.warn

    @cached_property
    def events(self) -> SummaryWriter:
        """Opened at the first use, so that a run which cannot start leaves no file of events."""
        return SummaryWriter(str(self.out))

    def step(self, report: StepReport) -> None:
        """Show the step, and write every tenth one to TensorBoard: each write waits for the device."""
        self.shown.step(report)
        if report.step % STEPS_PER_EVENT == 0:
            for name in ("loss", "learning_rate", "gradient_norm"):
                self.events.add_scalar(f"step/{name}", getattr(report, name), report.step)

    def epoch(self, row: dict[str, float | str], samples: Sequence[Sample]) -> None:
        self.rows.append(row)
        table = io.StringIO()
        writer = csv.DictWriter(table, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.out / "metrics.csv", table.getvalue())
        write_samples(samples, self.out)
        plot_curves(self.rows, self.out)
        for name, value in row.items():
            if not isinstance(value, str):
                self.events.add_scalar(name, value, int(row["step"]))
        self.events.flush()
        self.shown.epoch(row, samples)


def _plain(value: Any) -> Any:
    """Tuples as lists, which is what YAML knows."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
