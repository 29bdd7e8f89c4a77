"""The figures of a dry run as text and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.filesize import decimal

from myllm.data.records import quantity
from myllm.training.dry_run import PICTURES, TIMED_STEPS, DryRun
from myllm.training.prepare import Prepared
from myllm.training.step_memory import USABLE_SHARE
from myllm.training_config import TrainConfig


def dry_run_as_json(result: DryRun, prepared: Prepared, next_runs: Sequence[TrainConfig] = ()) -> dict[str, Any]:
    """Return the same figures in bytes and seconds."""
    return {**asdict(result), "assumptions": assumptions(prepared, result.processes, next_runs)}


def dry_run_as_text(result: DryRun, prepared: Prepared, next_runs: Sequence[TrainConfig] = ()) -> str:
    """Return a line for each question, and the assumptions under it. next_runs: that follow this run."""
    memory, step, times, config = result.memory, result.step, result.times, prepared.config
    processes = f" in {result.processes} processes" if result.processes > 1 else ""
    parts = [f"{times.steps:,} steps {duration(times.training)}"]
    parts += [f"{quantity(times.epochs, 'validation')} and the evaluation {duration(times.validation)}"]
    parts += [f"features {duration(times.features)}, once"] * (times.features > 0)
    fits = quantity(result.largest_batch, "picture") if result.largest_batch else "not even one picture fits"
    fits += ", all training pictures" * (result.largest_batch == len(prepared.train.records))
    counts = {**result.parameters, "total": sum(result.parameters.values())}
    trained = {**result.trained, "total": sum(result.trained.values())}
    rows = {
        "parameters": f"{'all':>12}{'trained':>14}",
        **{f"  {part}": f"{count:>12,}{trained[part]:>14,}" for part, count in counts.items()},
        "memory of a step": f"{decimal(memory.step)} for {quantity(config.batch_size, 'picture')}{processes}",
        "  weights": decimal(memory.weights),
        "  gradients": decimal(memory.gradients),
        "  optimizer": decimal(memory.optimizer),
        "  activations": f"{decimal(memory.activations)}, {decimal(memory.activations_per_picture)} a picture",
        "largest batch": f"{fits}, in {USABLE_SHARE:.0%} of the {decimal(memory.available)} available",
        "FLOPs of a step": f"{step.flops:.3g}, {step.flops / step.seconds / 1e9:,.0f} GFLOP/s",
        "time of a step": f"{duration(step.seconds)}, mean of {TIMED_STEPS}: "
        f"{step.pictures / step.seconds:,.1f} pictures/s, {step.tokens / step.seconds:,.0f} tokens/s",
        "waiting for data": f"{step.wait_seconds / step.seconds:.1%} of a step",
        "time of the run": f"{duration(times.total)}: {', '.join(parts)}",
    }
    lines = [f"On {result.device} in {result.precision}; nothing is written into {config.out}."]
    lines += [f"{name:<18}{text}" for name, text in rows.items()]
    return "\n".join([*lines, *assumptions(prepared, result.processes, next_runs)])


def assumptions(prepared: Prepared, processes: int, next_runs: Sequence[TrainConfig]) -> list[str]:
    """Return the assumptions behind the figures."""
    config, read = prepared.config, min(PICTURES, len(prepared.train.records))
    sentences = {
        f"Measured with {quantity(read, 'picture')} of each split, which stand for the others.": True,
        "Captions in validation are taken to be as long as the references.": True,
        f"Steps are those of stage {config.stages[-1]}; earlier stages train less and are faster.":
            len(config.stages) > 1,
        "Memory and FLOPs are those of one process.": processes > 1,
        "Features that are stored already take no time.": config.vision.frozen,
        "--patience may end the run earlier.": config.patience,
        f"Training takes at most {config.max_minutes or 0:g} minutes (--max_minutes).": config.max_minutes,
    }
    return [
        *(sentence for sentence, applies in sentences.items() if applies),
        *(
            f"Not included: run {number} of {1 + len(next_runs)}, {limits(run)}."
            for number, run in enumerate(next_runs, start=2)
        ),
    ]


def limits(run: TrainConfig) -> str:
    """Return the limits of a run that follows another, as text."""
    parts = [quantity(run.epochs, "epoch")]
    if run.max_steps:
        parts.append(f"at most {quantity(run.max_steps, 'step')}")
    if run.max_minutes:
        parts.append(f"at most {run.max_minutes:g} minutes of training and what the run before leaves")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Return seconds as text, like 0.21 s, 3 min 5 s or 12 h 30 min."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"
