"""What a person sees while something runs: progress bars, figures after each epoch, warnings in words."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:  # captioning an export brings no torch
    from myllm.caption import Sample
    from myllm.training.trainer import StepReport

SHOWN_SAMPLES = 3
LOG_SECONDS = 30.0


class Display:
    """Writes to standard error where `json` asks for a clean standard output; `quiet` leaves warnings alone."""

    def __init__(self, quiet: bool = False, json: bool = False) -> None:
        self.console = Console(file=sys.stderr if json else sys.stdout, highlight=False, markup=False, soft_wrap=True)
        self.quiet = quiet
        self.told = time.monotonic()

    def say(self, text: str, style: str = "") -> None:
        """A line, unless quiet."""
        if not self.quiet:
            self.console.print(Text(text, style))

    def warn(self, message: str) -> None:
        """A line, even if quiet."""
        self.console.print(Text(f"! {message}", "yellow"))

    @contextmanager
    def counting(self) -> Iterator[Callable[[str, int, int], None]]:
        """A function (what, done, of how many) that moves a progress bar a job; a log file gets a line at times."""
        if not self.console.is_terminal:
            yield self._logged
            return
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
                   TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True, disable=self.quiet) as bars:
            tasks: dict[str, TaskID] = {}

            def move(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = bars.add_task(what, total=total)
                bars.update(tasks[what], completed=done, total=total)

            yield move

    def is_due(self) -> bool:
        """Whether a log file, which shows no moving bar, has waited long enough for its next line."""
        is_late = time.monotonic() - self.told > LOG_SECONDS
        if is_late:
            self.told = time.monotonic()
        return is_late

    def _logged(self, what: str, done: int, total: int) -> None:
        if self.is_due():
            self.say(f"{what} {done:,}/{total:,}")


class TrainingDisplay:
    """A bar with loss, rate and time left; after each epoch its figures and sample captions beside a reference."""

    def __init__(self, display: Display) -> None:
        self.display = display
        columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"),
                   TextColumn("{task.fields[figures]}"),
                   TimeRemainingColumn(elapsed_when_finished=True))
        self.moves = display.console.is_terminal and not display.quiet
        self.bars = Progress(*columns, console=display.console, transient=True, disable=not self.moves)
        self.task = self.bars.add_task("training", total=1.0, epoch=1, figures="")
        self.latest: StepReport | None = None
        self.loss: float | None = None
        self.rate: float | None = None

    def __enter__(self) -> "TrainingDisplay":
        self.bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bars.stop()

    def step(self, report: "StepReport") -> None:
        """Show the figures; loss and speed are smoothed, because they vary from batch to batch."""
        # the loss of the step before, because reading the newest one would make a GPU wait
        finished, self.latest = self.latest or report, report
        self.loss = finished.loss if self.loss is None else 0.95 * self.loss + 0.05 * finished.loss
        rate = report.pictures_per_second
        self.rate = rate if self.rate is None else 0.9 * self.rate + 0.1 * rate
        figures = (
            f"loss {self.loss:.3f}  lr {finished.learning_rate:.2g}  gradient {finished.gradient_norm:.2g}  "
            f"{self.rate:.0f} pictures/s"
        )
        self.bars.update(self.task, completed=report.progress, epoch=report.epoch + 1, figures=figures)
        if not self.moves and self.display.is_due():
            self.display.say(f"{report.progress:4.0%}  {figures}")

    def epoch(self, row: dict[str, float | str], samples: "Sequence[Sample]") -> None:
        figures = {key: value for key, value in row.items() if not isinstance(value, str)}
        self.display.say(
            "epoch {epoch:.0f}  {minutes:.1f} min  loss {train_loss:.3f} training, {val_loss:.3f} validation  "
            "perplexity {val_perplexity:.2f}  CIDEr-D {CIDEr-D:.3f} (shuffled pictures {CIDEr-D_shuffled:.3f})".format(
                **figures
            ),
            "bold",
        )
        for sample in samples[:SHOWN_SAMPLES]:
            self.display.say(f"   {sample.image.name}: {sample.caption}")
            self.display.say(f"      reference: {sample.references[0]}", "dim")

    def warn(self, message: str) -> None:
        self.display.warn(message)
