from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from myllm.config import CaptionsConfig, DecodeConfig, GPTConfig, VisionConfig
from myllm.data.batches import Batch, pad_captions
from myllm.data.tokenizer import decode_tokens
from myllm.metrics.cider import CiderD
from myllm.metrics.ptb import ptb_tokenize
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.training.loss import Objective
from myllm.training.prepare import Prepared, prepare
from myllm.training.self_critical import END_WORD, SEVERAL_MARKS, CaptionSampler, advantages
from myllm.training.trainer import Trainer
from myllm.training_config import SelfCriticalConfig, TrainConfig


@pytest.fixture
def config(tiny_picture_folder: Path, tmp_path: Path) -> TrainConfig:
    plain = TrainConfig(
        data=str(tiny_picture_folder), out=str(tmp_path / "base"), vision=VisionConfig("vit_mini_conv8_64", False),
        text=GPTConfig(n_positions=48, n_layer=1, n_head=4, n_embd=32, dropout=0.0), mode="last", epochs=6, lr=0.01,
        batch_size=4, captions=CaptionsConfig(vocab_size=300), devices="cpu", augment=False, workers=0,
        decode=DecodeConfig(max_new_tokens=12),
    )
    Trainer(plain, prepare(plain), SimpleNamespace(step=id, epoch=lambda *_: None, warn=id)).train()
    options = {"base": f"{plain.out}/captioner.pt", "out": str(tmp_path / "run"), "epochs": 2, "lr": 1e-3}
    return replace(plain, self_critical=SelfCriticalConfig(samples=4), **options)


def sample(config: TrainConfig, step: int = 0) -> tuple[Batch, Prepared]:
    prepared = prepare(config)
    trainer = Trainer(config, prepared, SimpleNamespace(step=id, epoch=id, warn=id))
    batch = next(trainer.batches.epoch(0))
    return CaptionSampler(prepared.model, config, prepared)(batch, step), prepared


def test_samples_are_captions_with_the_likelihood_of_the_model(config: TrainConfig) -> None:
    """Their loss equals the sum of what a plain forward pass gives their tokens."""
    batch, prepared = sample(config)
    assert batch.lengths.shape == (4, 4) and int(batch.lengths.min()) >= 1
    losses = Objective(prepared.model).eval()(batch)
    logprobs = prepared.model(batch.images, batch.tokens[..., :-1]).log_softmax(-1)
    chosen = logprobs.gather(-1, batch.tokens[..., 1:, None])[..., 0]
    is_target = torch.arange(chosen.shape[2]) < batch.lengths[..., None]
    assert float(losses.caption_sum) == pytest.approx(-float(chosen[is_target].sum()), rel=1e-5)
    # REINFORCE: each sample's log-likelihood times its advantage
    expected = -(advantages(batch.rewards)[..., None] * chosen)[is_target].sum() / is_target.sum()
    assert float(losses.total) == pytest.approx(float(expected), rel=1e-4, abs=1e-6)


def test_reward_is_the_cider_of_the_text_with_a_word_for_the_end(config: TrainConfig) -> None:
    batch, prepared = sample(config)
    records, end = prepared.train.records, prepared.train.end
    references = [[[*ptb_tokenize(text), END_WORD] for text in record.captions] for record in records]
    cider = CiderD(references)
    for row, picture in enumerate(batch.index.tolist()):
        for tokens, length, reward in zip(batch.tokens[row], batch.lengths[row], batch.rewards[row], strict=True):
            chosen = tokens[1 : int(length) + 1].tolist()
            words = ptb_tokenize(decode_tokens(prepared.tokenizer, [token for token in chosen if token != end]))
            words += [END_WORD] * (chosen[-1] == end)
            assert float(reward) == pytest.approx(cider.score([words], [references[picture]])[0], abs=1e-5)


def test_samples_depend_on_seed_step_and_picture_but_not_on_the_batch(config: TrainConfig) -> None:
    batch, prepared = sample(config)
    sampler = CaptionSampler(prepared.model, config, prepared)
    one = replace(batch, images=batch.images[2:3], index=batch.index[2:3], captions=batch.captions[2:3])
    again = sampler(one, 0)
    length = int(again.lengths.max()) + 1
    assert torch.equal(again.tokens[0], batch.tokens[2, :, :length]) and torch.equal(again.rewards[0], batch.rewards[2])
    assert not torch.equal(sampler(batch, 1).rewards, batch.rewards)


def test_a_batch_without_pictures_is_not_sampled(config: TrainConfig) -> None:
    batch, prepared = sample(config)
    empty = replace(batch, rewards=None, importance=None).without_targets()
    assert CaptionSampler(prepared.model, config, prepared)(empty, 0) is empty


def test_kl_weight_penalises_only_what_has_become_likelier(config: TrainConfig) -> None:
    config = replace(config, self_critical=SelfCriticalConfig(samples=4, kl_weight=0.5))
    batch, prepared = sample(config)
    sampler = CaptionSampler(prepared.model, config, prepared)
    plain = CaptionSampler(prepared.model, replace(config, self_critical=SelfCriticalConfig(samples=4)), prepared)
    torch.testing.assert_close(sampler(batch, 0).rewards, plain(batch, 0).rewards, rtol=0, atol=1e-4)
    before = Objective(prepared.model).eval()(batch)
    with torch.no_grad():
        prepared.model.decoder.transformer.ln_f.weight.mul_(1.5)
    sampled = sampler(batch, 0)
    after, start = (Objective(model).eval()(sampled) for model in (prepared.model, sampler.start))
    drift = plain(batch, 0).rewards.sum() - sampled.rewards.sum()
    assert float(drift) == pytest.approx(0.5 * float(start.caption_sum - after.caption_sum), rel=1e-3)
    assert float(before.caption_sum) > 0


def test_kl_weight_compares_with_the_base_on_the_device_of_the_model(tiny_model: Callable[..., VisionGPT2]) -> None:
    model = tiny_model()
    with FakeTensorMode():  # tensors of a GPU, without one
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(torch.empty(parameter.shape, device="cuda")))
        tokens, lengths = pad_captions([[[0, 5, 7, 0], [0, 3, 0]]], 0)
        features = (torch.zeros(1, 7, model.encoder.width, device="cuda"),)
        batch = Batch(None, features, tokens, tokens, lengths, torch.zeros(1, dtype=torch.int64, device="cuda"))
        options = SelfCriticalConfig(samples=2, kl_weight=0.5)
        sampler = SimpleNamespace(start=model, options=options)
        drift = CaptionSampler._drift(sampler, batch, [[SimpleNamespace(logprobs=[-1.0])] * 2])
    assert drift.shape == (1, 2) and drift.device.type == "cpu"


def test_people_weight_adds_the_loss_of_peoples_captions(config: TrainConfig) -> None:
    prepared = prepare(config)
    plain = next(Trainer(config, prepared, SimpleNamespace(step=id, epoch=id, warn=id)).batches.epoch(0))
    sampled = CaptionSampler(prepared.model, config, prepared)(plain, 0)
    mixed_config = replace(config, self_critical=SelfCriticalConfig(samples=4, people_weight=0.3))
    mixed = CaptionSampler(prepared.model, mixed_config, prepared)(plain, 0)
    objective = Objective(prepared.model).eval()
    # each total is a mean over its batch's tokens
    sums = [float(losses.total) * losses.tokens for losses in map(objective, (sampled, plain, mixed))]
    assert sums[2] == pytest.approx(sums[0] + 0.3 * sums[1], rel=1e-4)
    assert torch.equal(mixed.rewards, sampled.rewards)


@pytest.mark.parametrize(
    ("text", "ends"), [("a dog .", True), ("a dog", True), ("a dog . .", False), ("a dog ...", False)]
)
def test_a_caption_that_ends_with_several_marks_earns_nothing_for_its_end(text: str, ends: bool) -> None:
    assert (SEVERAL_MARKS.search(text) is None) is ends


def test_advantages_are_rewards_minus_the_mean_of_the_others() -> None:
    rewards = torch.randn(3, 5, dtype=torch.float64)
    expected = [[row[i] - (sum(row) - row[i]) / 4 for i in range(5)] for row in rewards.tolist()]
    torch.testing.assert_close(advantages(rewards), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.slow
def test_self_critical_training_raises_the_reward(config: TrainConfig) -> None:
    rows: list[dict[str, float | str]] = []
    config = replace(config, epochs=12, lr=3e-3)
    reporter = SimpleNamespace(step=id, epoch=lambda row, samples: rows.append(row), warn=id)
    Trainer(config, prepare(config), reporter).train()
    rewards = [float(row["reward"]) for row in rows]
    assert len(rewards) == 12 and sum(rewards[-3:]) > sum(rewards[:3])
