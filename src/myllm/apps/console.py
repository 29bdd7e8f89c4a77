"""Warnings, progress bars and the figures of each epoch on the terminal, by rich."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from myllm.apps.printing import printable

if TYPE_CHECKING:  # the trainer imports torch, which captioning with an export does not need
    from myllm.caption import Sample
    from myllm.training.watch import StepReport

SHOWN_SAMPLES = 3
LOG_SECONDS = 30.0


class Display:
    """Prints lines to standard output, or to standard error if standard output is reserved for results (`json`)."""

    def __init__(self, quiet: bool = False, json: bool = False) -> None:
        self.console = Console(file=sys.stderr if json else sys.stdout, highlight=False, markup=False, soft_wrap=True)
        self.quiet = quiet
        self.last_log = time.monotonic()

    def print(self, text: str, style: str = "") -> None:
        """Print a line, even if quiet."""
        self.console.print(Text(printable(text, keep="\n"), style))

    def say(self, text: str, style: str = "") -> None:
        """Print a line, unless quiet."""
        if not self.quiet:
            self.print(text, style)

    def warn(self, message: str) -> None:
        """Print a warning, even if quiet."""
        self.print(f"! {message}", "yellow")

    @contextmanager
    def progress(self) -> Iterator[Callable[[str, int, int], None]]:
        """Yield a function (job, done, total) that moves a bar for each job, or without a terminal logs lines."""
        if not self.console.is_terminal:
            yield self._log
            return
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
                   TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True, disable=self.quiet) as bars:
            tasks: dict[str, TaskID] = {}

            def move(job: str, done: int, total: int) -> None:
                if job not in tasks:
                    tasks[job] = bars.add_task(printable(job), total=total)
                bars.update(tasks[job], completed=done, total=total)

            yield move

    def is_log_due(self) -> bool:
        """Return whether LOG_SECONDS have passed since it last returned True; without a bar, a line is logged then."""
        is_due = time.monotonic() - self.last_log > LOG_SECONDS
        if is_due:
            self.last_log = time.monotonic()
        return is_due

    def _log(self, job: str, done: int, total: int) -> None:
        if self.is_log_due():
            self.say(f"{job} {done:,}/{total:,}")


class CountsDisplay:
    """Shows a bar with counts next to it and the time left; without a terminal, a line every LOG_SECONDS."""

    def __init__(self, display: Display, job: str, total: int | None = None) -> None:
        """total: number of items; None if it is not known yet."""
        self.display, self.job, self.total = display, job, total
        # a narrow terminal cuts the last columns
        columns = (TextColumn("{task.description}"), BarColumn(10), TextColumn("{task.fields[done]}"),
                   TimeRemainingColumn(), TextColumn("{task.fields[counts]}"))
        has_bar = display.console.is_terminal and not display.quiet
        self.bar = Progress(*columns, console=display.console, transient=True, disable=not has_bar)
        self.task = self.bar.add_task(job, total=total, done="", counts="")
        self.start = time.monotonic()

    def __enter__(self) -> "CountsDisplay":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def set_total(self, total: int | None) -> None:
        """Set the number of items, now that it is known."""
        self.total = total

    def rate(self, count: int) -> float:
        """Return how many of `count` were done in a second, on average."""
        return count / max(time.monotonic() - self.start, 1e-9)

    def show(self, done: int, counts: str) -> None:
        """Move the bar to `done`, with these counts."""
        progress = f"{done:,}" if self.total is None else f"{done:,}/{self.total:,}"
        self.bar.update(self.task, completed=done, total=self.total, done=progress, counts=counts)
        if self.bar.disable and self.display.is_log_due():
            left = ""
            if self.total is not None and done:
                left = f"  {(self.total - done) / self.rate(done) / 60:,.0f} min left"
            self.display.say(f"{self.job} {progress}  {counts}{left}")


class TrainingDisplay:
    """Shows a bar with loss, learning rate, gradient norm and speed, and after each epoch its figures and samples."""

    def __init__(self, display: Display) -> None:
        self.display = display
        columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"),
                   TextColumn("{task.fields[figures]}"), TimeRemainingColumn(elapsed_when_finished=True))
        has_bar = display.console.is_terminal and not display.quiet
        self.bar = Progress(*columns, console=display.console, transient=True, disable=not has_bar)
        self.task = self.bar.add_task("training", total=1.0, epoch=1, figures="")
        self.latest: StepReport | None = None
        self.loss: float | None = None
        self.rate: float | None = None

    def step(self, report: "StepReport") -> None:
        """Move the bar; loss and speed are smoothed, because they vary from batch to batch."""
        # shows the figures of the previous step, because reading the newest ones would make a GPU wait
        finished, self.latest = self.latest or report, report
        if math.isfinite(finished.loss):
            self.loss = finished.loss if self.loss is None else 0.95 * self.loss + 0.05 * finished.loss
        rate = report.pictures / max(report.seconds, 1e-9)
        self.rate = rate if self.rate is None else 0.9 * self.rate + 0.1 * rate
        reward = "" if finished.reward is None else f"reward {finished.reward:.3f}  "
        figures = f"{reward}loss {self.loss or math.nan:.3f}  lr {finished.learning_rate:.2g}  "
        figures += f"gradient {finished.gradient_norm:.2g}  {self.rate:.0f} pictures/s  "
        figures += f"{report.tokens_per_second:,.0f} tokens/s"
        self.bar.update(self.task, completed=report.progress, epoch=report.epoch + 1, figures=figures)
        if self.bar.disable and self.display.is_log_due():
            self.display.say(f"{report.progress:4.0%}  {figures}")

    def epoch(self, row: dict[str, float | str], samples: "Sequence[Sample]") -> None:
        """Print the figures of an epoch, and its first sample captions."""
        template = (
            "epoch {epoch:.0f}  {minutes:.1f} min  loss {train_loss:.3f} training, {val_loss:.3f} validation  "
            "perplexity {val_perplexity:.2f}  CIDEr-D {CIDEr-D:.3f} (shuffled pictures {CIDEr-D_shuffled:.3f})"
        )
        reward = f"  reward {row['reward']:.3f}" if "reward" in row else ""
        self.display.say(template.format(**row) + reward, "bold")
        for sample in samples[:SHOWN_SAMPLES]:
            self.display.say(f"   {sample.name}: {sample.caption}")
            self.display.say(f"      reference: {sample.references[0]}", "dim")
