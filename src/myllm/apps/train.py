"""`myllm train`: from a folder of pictures and captions to a run folder."""

import csv
import io
import shlex
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tokenizers import Tokenizer

from myllm.apps import run_folder
from myllm.apps.console import Display, TrainingDisplay
from myllm.apps.data_folder import report_findings
from myllm.apps.dry_run_text import dry_run_as_json, dry_run_as_text
from myllm.apps.options import TrainOptions
from myllm.apps.printing import print_json
from myllm.caption import Sample
from myllm.checkpoints import lora, native
from myllm.checkpoints.average import mix_with_base
from myllm.checkpoints.card import flatten
from myllm.data.records import quantity
from myllm.data.scenes import read_things
from myllm.data.sources import data_name, data_paths
from myllm.device import choose_device, choose_precision
from myllm.errors import ConfigError, DataError
from myllm.evaluation.evaluate import Data, Evaluation, evaluate
from myllm.evaluation.plots import CURVES, save_plots
from myllm.evaluation.report import progress_report, write_report
from myllm.files import lock_folder, remove_unfinished
from myllm.inference.captioner import Captioner
from myllm.model.lora import adapted_layers
from myllm.model.weight_files import count_parameters
from myllm.presets import PRESETS
from myllm.training import run_state
from myllm.training.dry_run import PICTURES, dry_run
from myllm.training.index import save_index
from myllm.training.prepare import Prepared, prepare
from myllm.training.ranks import Ranks, started_by_torchrun
from myllm.training.run_sequence import run_sequence, with_saved_options
from myllm.training.run_state import RunState
from myllm.training.trainer import Trainer
from myllm.training.watch import StepReport
from myllm.training_config import TrainConfig

CHECKPOINTS = (native.FILE_NAME, lora.FOLDER, run_state.FILE_NAME, run_state.PREVIOUS_NAME)
STEPS_PER_EVENT = 10
MAX_DRAWING_SHARE = 0.05
"""Of the time that a run takes: the share that drawing its curves and its report after epochs may take."""


def train(options: TrainOptions) -> int:
    """Train, evaluate the best checkpoint on the validation split, and complete the run folder."""
    out = Path(options.out)
    with started_by_torchrun(options.devices) as ranks:
        display = Display(options.quiet or not ranks.is_first, options.json)
        preset = PRESETS[options.preset] if options.preset else {}
        given_options = {*options.given_names, *(name for name, _ in flatten(preset, "."))}
        if options.dry_run:
            return try_run(options, given_options, display, ranks)
        with lock_folder(out) if ranks.is_first else nullcontext():
            evaluation = run_all(options, given_options, display, ranks)
    if evaluation is None:
        return 0
    if options.json:
        print_json(evaluation.as_json())
    display.say("")
    display.print(run_folder.evaluation_as_text(evaluation), style="bold")
    files = sorted(path.name + "/" * path.is_dir() for path in out.iterdir())
    display.print(f"Wrote {options.out}: {', '.join(files)}")
    display.say(f"Caption with: myllm caption PICTURES --model {shlex.quote(options.out)}")
    return 0


def run_all(
    options: TrainOptions, given_options: Collection[str], display: Display, ranks: Ranks
) -> Evaluation | None:
    """Make the run and its `next_runs`, or resume them; evaluate the last. None in all processes but the first."""
    config, out = options.config, Path(options.out)
    if options.resume and (saved := run_folder.read_config(out)).get("next_runs"):
        config = with_saved_options(config, saved, given_options)
    runs = runs_of(config, options)
    folders = [Path(run.out) for run in runs]
    if ranks.is_first:
        check_run_folder(folders, options.resume, options.overwrite)
    if config.base is not None and Path(config.base).resolve().is_relative_to(out.resolve()):
        raise ConfigError(f"--base {config.base} is inside --out {out}, which the run writes; give another --out")
    begun = [number for number, folder in enumerate(folders) if options.resume and run_state.exists(folder)]

    def begin(run: TrainConfig) -> None:
        if run.out == str(folders[0]) and not begun:
            for folder in folders:
                remove_checkpoints(folder)
        run_folder.write_config(config if config.next_runs else run, out)

    for number in range(max(begun, default=0), len(runs)):
        if len(runs) > 1:
            display.say(f"Run {number + 1} of {len(runs)}", style="bold")
        run, given = runs[number], set(given_options)
        if number and "next_runs" in options.given_names:
            given |= {name for name, _ in flatten(config.next_runs[number - 1], ".")}
        if number and run.max_minutes:
            unused = run_state.unused_minutes(folders[number - 1]) if ranks.is_first else 0.0
            run = replace(run, max_minutes=run.max_minutes + ranks.from_first(unused))
        try:
            is_last = number == len(runs) - 1
            trained = run_training(run, display, number in begun, given, ranks, begin, is_last)
        except SystemExit:
            again = f"myllm train --out {shlex.quote(options.out)} --resume"
            display.print(f"Interrupted, and saved in {out}. Resume with:\n  {again}")
            raise
    return finish(*trained, display) if ranks.is_first else None


def runs_of(config: TrainConfig, options: TrainOptions) -> list[TrainConfig]:
    """Return the configurations of the run and of its `next_runs`.

    Options of the command line hold for all runs of a preset; next runs of the user's own say what differs.
    """
    return run_sequence(config, () if "next_runs" in options.given_names else options.given_names)


def check_run_folder(folders: Sequence[Path], resume: bool = False, overwrite: bool = False) -> None:
    """Raise ConfigError if a run would be lost, or if there is none to resume.

    folders: of a sequence of runs; the last one holds the others.
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite: one continues the run, the other deletes it; give only one")
    out = folders[-1]
    existing = [str((folder / name).relative_to(out)) for folder in folders for name in CHECKPOINTS
                if (folder / name).exists()]
    if resume and not any(map(run_state.exists, folders)):
        raise ConfigError(
            f"--resume: {out / run_state.FILE_NAME} is missing, so there is no run to resume; "
            "give the --out of the run, or leave out --resume to start one"
        )
    if existing and not (resume or overwrite):
        raise ConfigError(
            f"--out {out} holds a run already ({', '.join(existing)}); continue it by --resume, replace it by "
            "--overwrite, or give another --out"
        )


def run_training(
    config: TrainConfig, display: Display, resume: bool, given_options: Collection[str], ranks: Ranks,
    begin: Callable[[TrainConfig], None], is_last: bool = True,
) -> tuple[TrainConfig, Prepared, RunState]:
    """Train into `config.out`; return the final configuration, the data and the state.

    With `resume`, options that are not given are those that the run began with. given_options: names of the options
    that were given: they count also where they equal the default, see `prepare`. begin: called with the final
    configuration, in the first process, once the run is ready to write into its folder. is_last: whether `finish`
    comes next.
    Raises SystemExit, with the run saved, if a signal ends it.
    """
    out = Path(config.out)
    content: dict[str, Any] = {}
    if resume:
        content, saved_file = run_state.load(out)
        config, changes = run_state.resumed_config(content["config"], config, given_options)
        if saved_file.name == run_state.PREVIOUS_NAME:
            display.warn(f"{run_state.FILE_NAME} is missing or damaged, so the run resumes from {saved_file}")
        for change in changes:
            display.warn(change)
    device = choose_device(config.devices)
    processes = f" in each of {ranks.count} processes" if ranks.count > 1 else ""
    precision = choose_precision(config.precision, device, config.vision.frozen)
    display.say(f"Training on {device} in {precision}, seed {config.seed}{processes}")
    with display.progress() as progress, ranks.first_before_others():
        tokenizer = Tokenizer.from_str(content["tokenizer"]) if resume else None
        prepared = prepare(config, progress, given_options, tokenizer)
    config = prepared.config
    recorder = _Recorder(display, out) if ranks.is_first else _NoRecorder()
    if ranks.is_first:
        print_data(prepared, config, display)
    with recorder.bar, closing(recorder):
        trainer = Trainer(config, prepared, recorder, ranks)
        if resume:
            trainer.resume(content, saved_file)
            recorder.rows = list(trainer.state.history)
            display.say(f"Resuming at epoch {trainer.state.epoch + 1}, step {trainer.state.step}")
        if ranks.is_first:
            remove_unfinished(out)
            begin(config)
        stopped_by = trainer.train()
    if stopped_by is not None or not is_last:  # `finish` draws those of the last run
        recorder.draw()
    if stopped_by is not None:
        raise SystemExit(128 + stopped_by)
    if ranks.is_first and config.base is not None and config.base_share:
        mix_with_base(out / native.FILE_NAME, config.base, config.base_share)
        display.say(f"{out / native.FILE_NAME} is a mean with {config.base_share:.0%} of {config.base}'s weights")
    return config, prepared, trainer.state


def try_run(options: TrainOptions, given_options: Collection[str], display: Display, ranks: Ranks) -> int:
    """Print the memory and time that the run would need, without writing into its folder; return the exit code."""
    if options.resume:
        raise ConfigError("--dry-run with --resume: a dry run is the beginning of a new run; leave out one of the two")
    next_runs = runs_of(options.config, options)[1:]
    recorder = _NoRecorder(display.warn) if ranks.is_first else _NoRecorder()
    with display.progress() as progress:
        with ranks.first_before_others():
            prepared = prepare(options.config, progress, given_options, pictures=PICTURES)
        result = dry_run(prepared.config, prepared, progress, recorder, ranks)
    if options.json and ranks.is_first:
        print_json(dry_run_as_json(result, prepared, next_runs))
    elif ranks.is_first:
        print_data(prepared, prepared.config, display)
        display.print(dry_run_as_text(result, prepared, next_runs))
    return 0


def remove_checkpoints(out: Path) -> None:
    """Delete the checkpoints of a run that is replaced, so that none of them is taken for the new run's."""
    for name in CHECKPOINTS:
        if (out / name).is_dir():
            shutil.rmtree(out / name)
        else:
            (out / name).unlink(missing_ok=True)


def print_data(prepared: Prepared, config: TrainConfig, display: Display) -> None:
    """Print faults in the data, its size and the size of the model."""
    report_findings(prepared.findings, display)
    if config.vision.frozen and config.augment:
        display.warn("--augment has no effect with --vision.frozen: features are stored; --views stores more of them")
    if config.views > 1 and not config.vision.frozen:
        display.warn("--views has no effect without --vision.frozen: a backbone that trains sees pictures by --augment")
    captions = sum(len(record.captions) for record in prepared.train.records)
    display.say(
        f"{quantity(len(prepared.train.records), 'training picture')} with {quantity(captions, 'caption')}, "
        f"{quantity(len(prepared.val.records), 'validation picture')}; {prepared.tokenizer.get_vocab_size():,} tokens; "
        f"{count_parameters(prepared.model) / 1e6:.1f} M parameters"
    )
    adapters = [layer for _, layer in adapted_layers(prepared.model)]
    if adapters:
        trained = sum(layer.lora_A.weight.numel() + layer.lora_B.weight.numel() for layer in adapters)
        layers = f"{quantity(len(adapters), 'layer')} of {config.base}"
        display.say(f"Only {trained / 1e6:.2f} M of these train: the adapters of {layers}")


def finish(
    config: TrainConfig, prepared: Prepared, state: RunState, display: Display,
    new_scenes: Mapping[str, Mapping[str, float]] | None = None,
) -> Evaluation:
    """Evaluate captioner.pt on the validation pictures; write metrics.json, the samples and report.html.

    new_scenes: for the report, figures on further drawn scenes; see `Evaluation`.
    """
    display.say(
        f"Trained for {state.seconds / 60:.1f} minutes; steps waited for data in {state.wait_share:.0%} of the time"
    )
    paths, out = data_paths(config.data), Path(config.out)
    if config.decode.rank_by == "retrieval":
        with display.progress() as progress:
            device = choose_device(config.devices)
            save_index(out / native.FILE_NAME, prepared.train, config.decode, device, progress)
    elif config.lora.rank:  # a run that was resumed may have other defaults than its best epoch
        lora.write_decode(config.decode, out / lora.FOLDER)
    else:
        native.write_decode(config.decode, out / native.FILE_NAME)
    captioner = Captioner.load(config.out, device=config.devices)
    things = read_things(paths[0]) if len(paths) == 1 else {}
    data = Data("val", prepared.val.records, prepared.train.records, things, data_name(config.data))
    with display.progress() as progress:
        evaluation = evaluate(captioner, data, config.decode, progress=progress)
    evaluation = replace(evaluation, new_scenes=new_scenes or {})
    facts = report_facts(config, prepared, state)
    run_folder.write_evaluation(captioner, evaluation, out, facts, title=out.resolve().name, history=state.history)
    if not config.lora.rank:  # an adapter has no place for a calibration
        try:
            run_folder.save_calibration(out, evaluation)
        except DataError as error:
            display.say(f"Confidence is not calibrated: {error}")
    return evaluation


def report_facts(config: TrainConfig, prepared: Prepared, state: RunState) -> dict[str, str]:
    """Return, for the report, when the run finished, its model, duration and data."""
    return {
        "Finished": run_folder.current_time(),
        "Data": data_name(config.data),
        "Training pictures": f"{len(prepared.train.records):,}",
        "Their captions": f"{sum(len(record.captions) for record in prepared.train.records):,}",
        "Epochs": f"{state.epoch:,}, the best is {state.best_epoch:,}",
        "Steps": f"{state.step:,}",
        "Minutes of training": f"{state.seconds / 60:.1f}",
        "Waiting for data": f"{state.wait_share:.0%}",
        "Seed": str(config.seed),
        "Backbone": config.vision.name,
        "Parameters": f"{count_parameters(prepared.model) / 1e6:.1f} M",
    }


class _Recorder:
    """After each epoch, updates metrics.csv, samples, the TensorBoard events and the display; curves and report, too,
    unless epochs are so short that drawing them would take too large a share of the time.
    """

    def __init__(self, display: Display, out: Path) -> None:
        self.training_display, self.out = TrainingDisplay(display), out
        self.bar = self.training_display.bar
        self.rows: list[dict[str, float | str]] = []
        self.undrawn: Sequence[Sample] | None = None
        """Samples of the last epoch, if its curves and report are not drawn yet."""
        self.begin, self.drawing_seconds, self.last_drawing = time.monotonic(), 0.0, 1.0
        self.warn = display.warn

    @cached_property
    def events(self) -> SummaryWriter:
        """Writer of TensorBoard events, created when first used: a run that fails to begin leaves no file."""
        return SummaryWriter(str(self.out))

    def close(self) -> None:
        """Write the TensorBoard events that still wait, and end the thread that writes them."""
        with suppress(OSError):  # of a full disk, which has ended the run with its own message
            if "events" in vars(self):
                self.events.close()

    def step(self, report: StepReport) -> None:
        """Show the step, and write every tenth one to TensorBoard: each write waits for the device."""
        self.training_display.step(report)
        if report.step % STEPS_PER_EVENT == 0:
            for name in ("loss", "learning_rate", "gradient_norm", "tokens_per_second"):
                self.events.add_scalar(f"step/{name}", getattr(report, name), report.step)

    def epoch(self, row: dict[str, float | str], samples: Sequence[Sample]) -> None:
        self.rows.append(row)
        table = io.StringIO()
        writer = csv.DictWriter(table, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        run_folder.write_text(self.out / "metrics.csv", table.getvalue())
        run_folder.write_samples(samples, self.out)
        self.undrawn = samples
        allowed = MAX_DRAWING_SHARE * (time.monotonic() - self.begin)
        if self.drawing_seconds + self.last_drawing <= allowed:
            self.draw()
        for name, value in row.items():
            if not isinstance(value, str):
                self.events.add_scalar(name, value, int(row["step"]))
        self.events.flush()
        self.training_display.epoch(row, samples)

    def draw(self) -> None:
        """Draw the curves and the report up to the last epoch, if they are not drawn yet."""
        if self.undrawn is None:
            return
        begin, row = time.monotonic(), self.rows[-1]
        save_plots(CURVES, self.rows, self.out)
        facts = {"Epochs so far": f"{row['epoch']:,}", "Minutes of training": f"{row['minutes']:.1f}"}
        report = progress_report(self.out.resolve().name, facts, self.undrawn, self.rows)
        write_report(self.out / run_folder.REPORT_FILE, report)
        self.undrawn, self.last_drawing = None, time.monotonic() - begin
        self.drawing_seconds += self.last_drawing


class _NoRecorder:
    """Reporter of the processes that neither print nor write; a dry run prints warnings."""

    rows: Sequence[dict[str, float | str]] = ()
    bar = nullcontext()

    def __init__(self, warn: Callable[[str], object] = bool) -> None:
        self.print_warning = warn

    def close(self) -> None:
        """Do nothing."""

    def step(self, report: StepReport) -> None:
        """Do nothing."""

    def epoch(self, row: dict[str, float | str], samples: Sequence[Sample]) -> None:
        """Do nothing."""

    def draw(self) -> None:
        """Do nothing."""

    def warn(self, message: str) -> None:
        self.print_warning(message)
