from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from myllm.errors import CheckpointError
from myllm.training import run_state
from myllm.training.optim import Muon
from myllm.training.run_state import RunState

FINGERPRINT = "0123456789abcdef"
STATE = RunState(3, 7, 401, 12.5, 2, 33.5, 20, 1.5, [{"epoch": 1, "stage": "new", "val_loss": 2.5}])


class Run:
    """A model of one matrix, a norm and dropout, with the two optimizers of a run."""

    def __init__(self, seed: int, width: int = 6) -> None:
        torch.manual_seed(seed)
        self.objective = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.5), nn.LayerNorm(width))
        matrix, *rest = self.objective.parameters()
        self.optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, lr=0.1), Muon([matrix])]
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)
        self.width = width

    def steps(self, count: int) -> list[float]:
        """Take steps on random inputs; the losses depend on weights, momenta and the random generator."""
        losses = []
        for _ in range(count):
            loss = (self.objective(torch.randn(4, self.width)) - torch.randn(4, self.width)).square().mean()
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    def save(self, path: Path) -> Path:
        run_state.save(path, STATE, self.objective, self.optimizers, self.scaler, FINGERPRINT)
        return path

    def load(self, path: Path, fingerprint: str = FINGERPRINT) -> RunState:
        return run_state.load(path, self.objective, self.optimizers, self.scaler, fingerprint)


@pytest.fixture
def last(tmp_path: Path) -> Path:
    run = Run(seed=0)
    run.steps(3)
    return run.save(tmp_path / run_state.FILE_NAME)


def test_run_state_restores_weights_momenta_and_random_generator(tmp_path: Path) -> None:
    run, other = Run(seed=0), Run(seed=1)
    run.steps(3)
    path = run.save(tmp_path / "last.pt")
    expected = run.steps(5)
    other.steps(2)
    other.load(path)
    assert other.steps(5) == expected


def test_run_state_restores_counters(last: Path) -> None:
    assert Run(seed=1).load(last) == STATE


def test_run_state_ignores_counters_of_other_versions(last: Path) -> None:
    content = torch.load(last, weights_only=True)
    content["state"]["best"] = -1.25
    torch.save(content, last)
    assert Run(seed=1).load(last) == STATE


def test_run_state_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"last.pt: no such file, .*leave out --resume"):
        Run(seed=0).load(tmp_path / "last.pt")


def test_run_state_refuses_other_data(last: Path) -> None:
    with pytest.raises(CheckpointError, match=r"other training data \(fingerprint 0123456789abcdef, now fedcba\)"):
        Run(seed=0).load(last, fingerprint="fedcba")


def test_run_state_refuses_another_model(last: Path) -> None:
    with pytest.raises(CheckpointError, match=r"last.pt: does not fit this run .*config.yaml"):
        Run(seed=0, width=7).load(last)


def test_run_state_refuses_other_optimizers(last: Path) -> None:
    run = Run(seed=0)
    run.optimizers.pop()
    with pytest.raises(CheckpointError, match="does not fit this run"):
        run.load(last)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_run_state_refuses_a_truncated_file(last: Path, share: float) -> None:
    content = last.read_bytes()
    last.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"last.pt"):
        Run(seed=0).load(last)


def test_run_state_refuses_a_hostile_pickle_without_running_it(last: Path, hostile: Callable[[Path], object]) -> None:
    torch.save({"state": hostile(last.parent / "was-run")}, last)
    with pytest.raises(CheckpointError, match=r"last.pt"):
        Run(seed=0).load(last)
    assert not (last.parent / "was-run").exists()


def test_run_state_leaves_the_model_unchanged_if_it_refuses_a_file(last: Path) -> None:
    run = Run(seed=1)
    before = {name: value.clone() for name, value in run.objective.state_dict().items()}
    with pytest.raises(CheckpointError):
        run.load(last, fingerprint="other")
    assert all(torch.equal(value, before[name]) for name, value in run.objective.state_dict().items())
