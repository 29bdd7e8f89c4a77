"""The figures of a dry run as text and as JSON."""

from dataclasses import asdict
from typing import Any

from myllm.data.records import quantity
from myllm.training.dry_run import PICTURES, DryRun
from myllm.training.prepare import Prepared
from myllm.training.step_memory import USABLE_SHARE
from myllm.training.trial import TIMED_STEPS


def dry_run_as_json(result: DryRun, prepared: Prepared) -> dict[str, Any]:
    """Return the same figures in bytes and seconds."""
    figures = {**asdict(result), "assumptions": assumptions(prepared, result.processes)}
    figures["times"]["total"] = result.times.total
    return figures


def dry_run_as_text(result: DryRun, prepared: Prepared) -> str:
    """Return a line for each question, and the assumptions under it."""
    memory, times, config, processes = result.memory, result.times, prepared.config, result.processes
    lines = [f"On {result.device} in {result.precision}; nothing is written into {config.out}."]
    lines += [f"{'parameters':<18}{'all':>12}{'trained':>14}"]
    lines += [f"  {part:<16}{count:>12,}{result.trained[part]:>14,}" for part, count in result.parameters.items()]
    lines += [f"  {'total':<16}{sum(result.parameters.values()):>12,}{sum(result.trained.values()):>14,}"]
    peak = "" if memory.gpu_peak is None else f"; the GPU's measured peak is {size(memory.gpu_peak)}"
    batch = f"{config.batch_size:,} pictures" + (f" in {processes} processes" if processes > 1 else "")
    rates = f"{result.pictures / times.step:,.1f} pictures/s, {result.tokens / times.step:,.0f} tokens/s"
    parts = [f"{times.steps:,} steps {duration(times.training)}"]
    parts += [f"{quantity(times.epochs, 'validation')} and the evaluation {duration(times.validation)}"]
    parts += [f"features {duration(times.features)}, once"] * (times.features > 0)
    fits = quantity(result.largest_batch, "picture") if result.largest_batch else "not even one picture fits"
    fits += ", all training pictures" * (result.largest_batch == len(prepared.train.records))
    rows = {
        "memory of a step": f"{size(memory.step)} for {batch}{peak}",
        "  weights": size(memory.weights),
        "  gradients": size(memory.gradients),
        "  optimizer": size(memory.optimizer),
        "  activations": f"{size(memory.activations)}, {size(memory.activations_per_picture)} a picture",
        "largest batch": f"{fits}, in {USABLE_SHARE:.0%} of the {size(memory.available)} available",
        "FLOPs of a step": f"{result.flops:.3g}, {result.flops / times.step / 1e9:,.0f} GFLOP/s",
        "time of a step": f"{duration(times.step)}, mean of {TIMED_STEPS}: {rates}",
        "waiting for data": f"{times.wait_share:.1%} of a step",
        "time of the run": f"{duration(times.total)}: {', '.join(parts)}",
    }
    lines += [f"{name:<18}{text}" for name, text in rows.items()]
    return "\n".join([*lines, *assumptions(prepared, processes)])


def assumptions(prepared: Prepared, processes: int) -> list[str]:
    """Return what the figures rest on."""
    config, sentences = prepared.config, []
    read = min(PICTURES, len(prepared.train.records))
    sentences.append(f"Measured with {quantity(read, 'picture')} of each split, which stand for the others.")
    sentences.append("Captions in validation are taken to be as long as the references.")
    if len(config.stages) > 1:
        sentences.append(f"Steps are those of stage {config.stages[-1]}; earlier stages train less and are faster.")
    if processes > 1:
        sentences.append("Memory and FLOPs are those of one process.")
    if config.vision.frozen:
        sentences.append("Features that are stored already take no time.")
    if config.patience:
        sentences.append("--patience may end the run earlier.")
    return sentences


def size(count: float) -> str:
    """Return bytes as text, like 1.2 GB."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def duration(seconds: float) -> str:
    """Return seconds as text, like 0.21 s, 3 min 5 s or 12 h 30 min."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"
