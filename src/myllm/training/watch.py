"""What a run reports of each step, and how it notices losses that are not finite or spike."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from torch import Tensor

from myllm.caption import Sample
from myllm.data.records import Record, counted
from myllm.training.run_state import RunState

# A loss of more than SPIKE times its moving average is reported.
SPIKE, SPIKE_FROM_STEP, AVERAGE_WEIGHT = 2.0, 20, 0.05


@dataclass(frozen=True)
class StepReport:
    """A finished step. Reading `loss` or `gradient_norm` waits for the device; the other fields cost nothing."""

    epoch: int
    """Counted from 0."""
    step: int
    """Counted from 1."""
    progress: float
    """Share of the run that is done, 0 to 1."""
    learning_rate: float
    """Learning rate of AdamW in this step."""
    seconds: float
    """Duration of the step, with the time that it waited for data."""
    index: tuple[int, ...]
    """Indexes of the step's training pictures; in a run of several processes, of this process's share."""
    pictures: int
    """Number of pictures, in all processes."""
    tokens: int
    """Number of targets, in all processes."""
    loss_tensor: Tensor
    """() on the device."""
    norm_tensor: Tensor
    """() on the device."""
    reward: float | None = None
    """Mean reward of the step's samples, in self-critical training."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)

    @cached_property
    def loss(self) -> float:
        """Nats per token."""
        return float(self.loss_tensor)

    @cached_property
    def gradient_norm(self) -> float:
        """Norm of the gradient of all parameters, before clipping."""
        return float(self.norm_tensor)


class Reporter(Protocol):
    """Receives the progress of a run."""

    def step(self, report: StepReport) -> None: ...

    def epoch(self, row: dict[str, float | str], samples: Sequence[Sample]) -> None: ...

    def warn(self, message: str) -> None: ...


def check_step(
    report: StepReport, state: RunState, records: Sequence[Record], precision: str, reporter: Reporter
) -> bool:
    """Return whether a step was taken, which its loss and gradient decide; warn if not, and of a spike.

    Counts steps that were not taken, and updates the moving average of the loss, in `state`.
    """
    # fp16 begins with too large a scale: gradients that overflow are normal, a loss that does is not
    if math.isfinite(report.loss) and (precision == "fp16" or math.isfinite(report.gradient_norm)):
        if report.step > SPIKE_FROM_STEP and report.loss > SPIKE * state.mean_loss:
            reporter.warn(
                f"the loss of step {report.step} is {report.loss:.3g}; its mean over the steps before is "
                f"{state.mean_loss:.3g}"
            )
        state.skipped = 0
        state.mean_loss += (AVERAGE_WEIGHT if state.mean_loss else 1.0) * (report.loss - state.mean_loss)
        return True
    state.skipped += 1
    pictures = counted([records[index].name for index in report.index], "picture", "pictures")
    reporter.warn(
        f"step {report.step} was not taken, because its loss is {report.loss:.3g} and its gradient norm "
        f"{report.gradient_norm:.3g}; it had {pictures}"
    )
    return False
