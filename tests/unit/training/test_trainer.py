import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from myllm.caption import Sample
from myllm.checkpoints import native
from myllm.config import CaptionsConfig, GPTConfig, VisionConfig
from myllm.errors import MyLLMError
from myllm.metrics.diversity import repeating_share
from myllm.metrics.ptb import ptb_tokenize
from myllm.training.prepare import prepare
from myllm.training.run_state import RunState
from myllm.training.trainer import Trainer
from myllm.training.watch import StepReport, check_step
from myllm.training_config import TrainConfig


class Recorder:
    """Keeps everything that a trainer reports, and whether its objective was in training mode."""

    def __init__(self) -> None:
        self.steps: list[StepReport] = []
        self.rows: list[dict[str, float | str]] = []
        self.captions: list[list[str]] = []
        self.warnings: list[str] = []
        self.is_training: list[bool] = []
        self.trainer: Trainer

    def step(self, report: StepReport) -> None:
        self.steps.append(report)
        self.is_training.append(self.trainer.objective.training)

    def epoch(self, row: dict[str, float | str], samples: Sequence[Sample]) -> None:
        self.rows.append(row)
        self.captions.append([sample.caption for sample in samples])

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def config(tiny_picture_folder: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        data=str(tiny_picture_folder), out=str(tmp_path / "run"), vision=VisionConfig("vit_mini_conv8_64", False),
        text=GPTConfig(n_positions=48, n_layer=2, n_head=4, n_embd=32, dropout=0.0), mode="last", epochs=2,
        batch_size=12, captions=CaptionsConfig(vocab_size=300), devices="cpu", augment=False, workers=0,
    )


def start(config: TrainConfig) -> Recorder:
    recorder = Recorder()
    recorder.trainer = Trainer(config, prepare(config), recorder)
    return recorder


def test_trainer_is_in_training_mode_in_each_step(config: TrainConfig) -> None:
    recorder = start(config)
    assert recorder.trainer.train() is None
    assert [report.epoch for report in recorder.steps] == [0, 1] and recorder.is_training == [True, True]


def test_step_report_has_the_loss_and_the_gradient_norm_before_clipping(config: TrainConfig) -> None:
    recorder = start(replace(config, grad_clip=1e-3, max_steps=1))
    objective = recorder.trainer.objective.train()
    [batch] = recorder.trainer.batches.epoch(0)
    losses = objective(batch)
    losses.total.backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in objective.parameters() if p.grad is not None))
    objective.zero_grad()
    recorder.trainer.train()
    [report] = recorder.steps
    assert report.gradient_norm == pytest.approx(norm, rel=1e-4) and norm > 1e-3
    assert report.loss == pytest.approx(float(losses.caption_sum) / losses.tokens, rel=1e-5)
    assert recorder.rows[0]["gradient_norm"] == pytest.approx(norm, rel=1e-4)


def test_step_report_has_the_learning_rate_of_the_schedule(config: TrainConfig) -> None:
    recorder = start(replace(config, epochs=4, lr=1e-3, schedule="linear"))
    recorder.trainer.train()
    # linear: from lr/25 to lr over the first 5 % of the run, then straight down to 0 at its end
    expected = [4e-5, *(1e-3 * (1 - progress) / 0.95 for progress in (0.25, 0.5, 0.75))]
    assert [report.learning_rate for report in recorder.steps] == pytest.approx(expected)
    assert [row["learning_rate"] for row in recorder.rows] == pytest.approx(expected)


def test_row_has_the_length_of_captions_and_the_share_that_repeats_words(config: TrainConfig) -> None:
    recorder = start(replace(config, epochs=1))
    recorder.trainer.train()
    [row], [captions] = recorder.rows, recorder.captions
    assert row["mean_length"] == pytest.approx(sum(map(len, map(ptb_tokenize, captions))) / len(captions))
    assert row["repeating_captions"] == repeating_share(captions)


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.objective.state_dict().items()}


def assert_equal_weights(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_whose_loss_is_not_finite_changes_nothing_and_names_its_pictures(
    config: TrainConfig, optimizer: str
) -> None:
    recorder = start(replace(config, batch_size=6, optimizer=optimizer))
    trainer = recorder.trainer
    trainer.validator = lambda *_: None  # type: ignore[assignment]
    group = list(trainer._start_epoch())
    loss = trainer._step(group[:1], 10, 6)
    assert loss.isfinite()
    before, momenta = weights_of(trainer), [copy.deepcopy(part.state_dict()) for part in trainer.optimizers]
    bad = replace(group[1], images=group[1].images * math.nan)
    assert not trainer._step([bad], 10, 6).isfinite()
    assert_equal_weights(weights_of(trainer), before)
    for part, saved in zip(trainer.optimizers, momenta, strict=True):
        for parameter, state in part.state_dict()["state"].items():
            assert all(torch.equal(torch.as_tensor(value), torch.as_tensor(saved["state"][parameter][name]))
                       for name, value in state.items())


def test_trainer_stops_after_three_steps_without_a_finite_loss_and_saves_the_state_before_them(
    config: TrainConfig
) -> None:
    recorder = start(replace(config, batch_size=3))
    trainer = recorder.trainer
    with torch.no_grad():
        trainer.model.decoder.transformer.wte.weight[0] = math.nan
    before = weights_of(trainer)
    with pytest.raises(MyLLMError, match=r"the loss of 3 steps in a row is not finite, up to step 3: .*lower --lr"):
        trainer.train()
    assert [warning.partition(" because")[0] for warning in recorder.warnings[-3:]] == [
        f"step {step} was not taken," for step in (1, 2, 3)
    ]
    saved = torch.load(trainer.out / "last.pt", weights_only=True)["objective"]
    assert_equal_weights({name: value.nan_to_num() for name, value in saved.items()},
                         {name: value.nan_to_num() for name, value in before.items()})


def test_trainer_reports_a_spike_of_the_loss(config: TrainConfig) -> None:
    report = StepReport(0, 30, 0.5, 1e-3, 1.0, (0, 1), 2, 10, torch.tensor(9.0), torch.tensor(1.0))
    recorder, state = Recorder(), RunState(mean_loss=2.0)
    assert check_step(report, state, [], "fp32", recorder)
    assert recorder.warnings == ["the loss of step 30 is 9; its mean over the steps before is 2"]
    assert state.mean_loss == pytest.approx(2.35)


def test_trainer_saves_the_run_when_a_picture_vanishes(config: TrainConfig) -> None:
    recorder = start(replace(config, batch_size=4))
    trainer = recorder.trainer
    trainer.batches.plan = replace(trainer.batches.plan, source=replace(trainer.prepared.train, pixels=None))
    path = trainer.prepared.train.records[3].image
    hidden = path.rename(path.with_suffix(".away"))
    try:
        with pytest.raises(MyLLMError, match=rf"{path.name}.*The run is saved; mend this"):
            trainer.train()
    finally:
        hidden.rename(path)
    assert (trainer.out / "last.pt").exists()


def test_best_by_cider_with_few_pictures_keeps_the_epoch_with_the_lowest_loss(config: TrainConfig) -> None:
    recorder = start(replace(config, epochs=3, lr=3e-3, best_by="CIDEr-D"))
    recorder.trainer.train()
    losses = [float(row["val_loss"]) for row in recorder.rows]
    assert losses.index(min(losses)) > 0 and {row["CIDEr-D"] for row in recorder.rows} == {0.0}
    assert recorder.trainer.state.best_epoch == 1 + losses.index(min(losses))
    assert recorder.warnings[0] == (
        "the best epoch is the one with the lowest validation loss: CIDEr-D needs at least 50 captioned validation "
        "pictures, and there are 2"
    )


def test_a_base_is_trained_with_the_given_dropout_and_the_captioner_remembers_it(
    config: TrainConfig, tiny_checkpoint: native.Checkpoint, tmp_path: Path
) -> None:
    native.save(tiny_checkpoint, tmp_path / "base.pt")
    text = GPTConfig(dropout=0.4)
    recorder = start(replace(config, base=str(tmp_path / "base.pt"), text=text, max_steps=1))
    decoder, weights = recorder.trainer.model.decoder, recorder.trainer.model.state_dict()
    assert {layer.p for layer in decoder.modules() if isinstance(layer, nn.Dropout)} == {0.4}
    assert all(torch.equal(weights[name], value) for name, value in tiny_checkpoint.model.state_dict().items())
    recorder.trainer.train()
    saved = native.load(tmp_path / "run").model.config.text
    assert saved == replace(tiny_checkpoint.model.config.text, dropout=0.4)
