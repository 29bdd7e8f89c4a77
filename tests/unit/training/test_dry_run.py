import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from myllm.caption import Sample
from myllm.config import CaptionsConfig, GPTConfig, LoraConfig, VisionConfig
from myllm.data.batches import Batch
from myllm.progress import no_progress
from myllm.training.dry_run import (
    CPU_ATTENTION,
    TIMED_STEPS,
    UNTIMED_STEPS,
    DryRun,
    Steps,
    dry_run,
    expected_times,
    first_pictures,
    measure_steps,
    seconds_per_view,
)
from myllm.training.prepare import Prepared, prepare
from myllm.training.ranks import Ranks
from myllm.training.trainer import Trainer
from myllm.training.watch import StepReport
from myllm.training_config import SelfCriticalConfig, TrainConfig

WIDTH, VOCABULARY, SEQUENCE = 32, 300, 11


@pytest.fixture
def config(tiny_picture_folder: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        data=str(tiny_picture_folder), out=str(tmp_path / "run"), vision=VisionConfig("vit_mini_conv8_64", False),
        text=GPTConfig(n_positions=48, n_layer=1, n_head=4, n_embd=WIDTH, dropout=0.0), mode="last", epochs=3,
        batch_size=4, captions=CaptionsConfig(vocab_size=VOCABULARY), devices="cpu", augment=False, workers=0,
    )


class Silent:
    """A reporter; a warning fails the test."""

    def step(self, report: StepReport) -> None: ...

    def epoch(self, row: dict[str, float | str], samples: Sequence[Sample]) -> None: ...

    def warn(self, message: str) -> None:
        pytest.fail(message)


def result_of(prepared: Prepared) -> DryRun:
    return dry_run(prepared.config, prepared, no_progress, Silent(), Ranks())


def counted_model(config: TrainConfig) -> tuple[DryRun, nn.Module]:
    prepared = prepare(config, pictures=4)
    return result_of(prepared), prepared.model


def test_dry_run_counts_all_parameters_and_changes_none(config: TrainConfig) -> None:
    prepared = prepare(config, pictures=4)
    before = {name: value.clone() for name, value in prepared.model.named_parameters()}
    result = result_of(prepared)
    assert sum(result.parameters.values()) == sum(value.numel() for value in before.values())
    assert result.parameters == result.trained and result.parameters.keys() == {"encoder", "decoder", "cross-attention"}
    assert all(torch.equal(value, before[name]) for name, value in prepared.model.named_parameters())
    assert not Path(config.out).exists()


def test_dry_run_of_accumulated_steps_with_muon_and_word_presence(config: TrainConfig) -> None:
    result, model = counted_model(replace(config, accumulate=2, optimizer="muon", word_presence_weight=1.0))
    presence = result.parameters["word presence"]
    assert presence > 0 and sum(result.parameters.values()) - presence == sum(p.numel() for p in model.parameters())
    assert result.times.steps == 3 * 2  # 11 pictures, 4 a batch: two steps in each of three epochs
    assert result.memory.weights > result.memory.gradients == 4 * sum(result.trained.values())
    assert result.memory.optimizer < 2 * result.memory.gradients  # Muon has one moment, AdamW two


def test_dry_run_of_a_frozen_backbone_computes_the_features_of_few_pictures(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MYLLM_CACHE", str(tmp_path / "cache"))
    result, _ = counted_model(replace(config, vision=replace(config.vision, frozen=True), views=5))
    [index] = (tmp_path / "cache/features").glob("*/index.json")
    validation = len(prepare(config).val.records)
    assert len(json.loads(index.read_text())["rows"]) == 4 + validation < 12
    assert result.trained["encoder"] == 0 < result.parameters["encoder"] and result.times.features > 0


def test_dry_run_expects_the_features_of_all_views_and_of_mirrored_validation_pictures(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MYLLM_CACHE", str(tmp_path / "cache"))
    config = replace(config, vision=replace(config.vision, frozen=True, mirrored=True), views=5)
    prepared = prepare(config, pictures=4)
    trainer = Trainer(config, prepared, Silent(), Ranks())
    assert seconds_per_view(trainer) > 0
    step, train, validation = Steps(1.0, 0.0, 4.0, 40.0, 0), len(prepared.train.records), len(prepared.val.records)
    times, instant = (expected_times(trainer, step, view_seconds=seconds) for seconds in (1000.0, 0.0))
    assert times.features == 1000 * (5 * train + 2 * validation)
    # captioning takes seconds, the evaluation's features 1,000 for each
    assert times.validation - instant.validation == pytest.approx(1000 * 2 * validation, abs=500)


def test_dry_run_of_adapters_trains_only_these(config: TrainConfig, tmp_path: Path) -> None:
    from myllm.checkpoints import native

    prepared = prepare(config)
    base = tmp_path / "base.pt"
    native.save(native.Checkpoint(
        prepared.model, prepared.tokenizer, prepared.preprocess, config.captions, config.decode, {}
    ), base)
    result, model = counted_model(TrainConfig(
        data=config.data, out=config.out, base=str(base), lora=LoraConfig(rank=2), batch_size=4, devices="cpu",
        augment=False, workers=0,
    ))
    adapters = sum(p.numel() for name, p in model.named_parameters() if ".lora_" in name)
    assert sum(result.trained.values()) == result.trained["adapters"] == adapters > 0
    assert result.memory.gradients == 4 * adapters and result.memory.optimizer == pytest.approx(8 * adapters, rel=0.1)


@pytest.mark.slow
def test_dry_run_of_self_critical_training_samples_captions(config: TrainConfig, tmp_path: Path) -> None:
    from myllm.checkpoints import native

    prepared = prepare(config)
    native.save(native.Checkpoint(
        prepared.model, prepared.tokenizer, prepared.preprocess, config.captions, config.decode, {}
    ), tmp_path / "base.pt")
    config = replace(config, base=str(tmp_path / "base.pt"), self_critical=SelfCriticalConfig(samples=2))
    assert result_of(prepare(config, pictures=4)).memory.activations > 0


def test_dry_run_measures_the_last_stage_of_the_epochs_that_there_are(config: TrainConfig) -> None:
    result, _ = counted_model(replace(config, base=None, stages=("new", "text", "all"), epochs=2))
    assert result.times.epochs == 2 and result.times.steps == 6


@pytest.mark.parametrize(("limit", "steps"), [({"max_steps": 2}, 2), ({"epochs": 5}, 15)])
def test_dry_run_expects_the_time_of_all_steps(config: TrainConfig, limit: dict[str, int], steps: int) -> None:
    result = result_of(prepare(replace(config, **limit), pictures=4))  # type: ignore[arg-type]
    times = result.times
    assert times.steps == steps and times.training == pytest.approx(steps * result.step.seconds)
    assert times.total == times.training + times.validation > times.training


def test_dry_run_of_a_run_with_a_time_limit_ends_with_it(config: TrainConfig) -> None:
    result = result_of(prepare(replace(config, epochs=10**6, max_minutes=1.0), pictures=4))
    assert result.times.training == pytest.approx(60, abs=result.step.seconds)


def features_batch(pictures: int, captions: int, width: int) -> Batch:
    """Return captions of SEQUENCE tokens, all of the same length, and features of 7 image tokens."""
    tokens = torch.randint(0, VOCABULARY, (pictures, captions, SEQUENCE))
    lengths = torch.full((pictures, captions), SEQUENCE - 1)
    return Batch(None, (torch.randn(pictures, 7, width),), tokens, tokens, lengths, torch.arange(pictures))


def test_flops_of_a_step_are_two_for_each_multiplication_and_thrice_that_with_the_backward_pass(
    config: TrainConfig,
) -> None:
    trainer = Trainer(config, prepare(config, pictures=4), Silent(), Ranks())
    trainer._start_epoch()
    width, pictures, captions = trainer.model.encoder.width, 3, 2
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        trainer._step([features_batch(pictures, captions, width)], 60, pictures)
    rows = pictures * captions * (SEQUENCE - 1)
    vocabulary = trainer.model.config.text.vocab_size
    # self-attention 3 + 1 matrices of WIDTH^2, queries and output of cross-attention 2, feed-forward 8, and the head
    decoder = rows * ((3 + 1 + 2 + 8) * WIDTH**2 + vocabulary * WIDTH)
    keys_and_values = pictures * 7 * 2 * WIDTH**2
    projection = pictures * 7 * width * WIDTH if width != WIDTH else 0
    attention = rows * WIDTH * 2 * ((SEQUENCE - 1) + 7)
    # the features have no gradient; the backward of attention computes the weights again
    expected = 2 * (3 * (decoder + keys_and_values) + 2 * projection + 3.5 * attention)
    # self-attention computes the padding of packed captions, too
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.1)


def test_dry_run_times_the_steps_after_the_first_ones(config: TrainConfig) -> None:
    calls: list[tuple[str, int, int]] = []
    prepared = prepare(config, pictures=4)
    trainer = Trainer(config, prepared, Silent(), Ranks())
    step = measure_steps(trainer, lambda *call: calls.append(call))
    count = UNTIMED_STEPS + TIMED_STEPS
    assert calls == [("timing steps", number + 1, count) for number in range(count)]
    assert 0 < step.pictures <= 4 and step.tokens > step.pictures and 0 <= step.wait_seconds < step.seconds


def test_first_pictures_repeat_if_the_batch_has_fewer() -> None:
    batch = features_batch(2, 1, 5)
    longer = first_pictures(batch, 5)
    assert longer.index.tolist() == [0, 1, 0, 1, 0] and longer.features is not None and batch.features is not None
    assert torch.equal(longer.features[0][4], batch.features[0][0]) and torch.equal(longer.tokens[3], batch.tokens[1])


def test_dry_run_activations_grow_with_the_batch(config: TrainConfig) -> None:
    small, _ = counted_model(config)
    large, _ = counted_model(replace(config, batch_size=8))
    assert large.memory.activations == pytest.approx(2 * small.memory.activations, rel=0.15)
    assert large.memory.step > small.memory.step
