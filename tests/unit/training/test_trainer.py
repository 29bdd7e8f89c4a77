import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from myllm.caption import Sample
from myllm.checkpoints import native
from myllm.config import CaptionsConfig, GPTConfig, TrainConfig, VisionConfig
from myllm.errors import MyLLMError
from myllm.training.prepare import prepare
from myllm.training.trainer import StepReport, Trainer


class Recorder:
    """Keeps everything that a trainer reports, and whether its objective was in training mode."""

    def __init__(self) -> None:
        self.steps: list[StepReport] = []
        self.rows: list[dict[str, float | str]] = []
        self.warnings: list[str] = []
        self.is_training: list[bool] = []
        self.trainer: Trainer

    def step(self, report: StepReport) -> None:
        self.steps.append(report)
        self.is_training.append(self.trainer.objective.training)

    def epoch(self, row: dict[str, float | str], samples: Sequence[Sample]) -> None:
        self.rows.append(row)

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
    assert recorder.trainer.train()
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
    # linear: from 0 to lr over the first 5 % of the run, then straight down to 0 at its end
    expected = [0.0, *(1e-3 * (1 - progress) / 0.95 for progress in (0.25, 0.5, 0.75))]
    assert [report.learning_rate for report in recorder.steps] == pytest.approx(expected)
    assert [row["learning_rate"] for row in recorder.rows] == pytest.approx(expected)


def test_trainer_saves_no_state_with_a_loss_that_is_not_finite(config: TrainConfig) -> None:
    recorder = start(replace(config, epochs=3))
    trainer = recorder.trainer
    assert trainer.train() and trainer.state.step == 3
    last = (trainer.out / "last.pt").read_bytes()
    with torch.no_grad():
        trainer.model.decoder.transformer.wte.weight[0] = math.nan
    trainer.config = replace(trainer.config, epochs=4)
    with pytest.raises(MyLLMError, match=r"the loss is nan at step 4: .*lower --lr.*; the best epoch is still in"):
        trainer.train()
    assert (trainer.out / "last.pt").read_bytes() == last


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
    assert {block.attn.dropout for block in decoder.blocks} == {0.4}
    assert all(torch.equal(weights[name], value) for name, value in tiny_checkpoint.model.state_dict().items())
    recorder.trainer.train()
    saved = native.load(tmp_path / "run").model.config.text
    assert saved == replace(tiny_checkpoint.model.config.text, dropout=0.4)
