import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from myllm.config import CaptionsConfig, GPTConfig, TrainConfig, VisionConfig
from myllm.data.batches import Batch
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.training.loss import Objective, WordPresence, by_length, hide_words, word_occurrences
from myllm.training.prepare import prepare
from myllm.training.trainer import Trainer

END, VOCAB, LENGTH = 60, 61, 6
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(4, 3, 64, 64, generator=GENERATOR)
TOKENS = torch.randint(VOCAB - 1, (4, 2, LENGTH), generator=GENERATOR)


def batch_of(lengths: list[list[int]], tokens: Tensor = TOKENS) -> Batch:
    """Captions of so many tokens, begin and end among them, padded with ends as our batches are."""
    tokens, held = tokens[: len(lengths)].clone(), torch.tensor(lengths)[..., None]
    place = torch.arange(LENGTH)
    tokens[..., 0] = END
    tokens[place >= held - 1] = END
    return Batch(IMAGES[: len(lengths)], None, tokens, place[1:] < held, torch.arange(len(lengths)))


def rows(batch: Batch, chosen: slice) -> Batch:
    parts = (batch.images, batch.tokens, batch.mask, batch.index)
    images, tokens, mask, index = (part[chosen] for part in parts if part is not None)
    return Batch(images, None, tokens, mask, index)


BATCH = batch_of([[6, 3], [2, 5], [4, 4], [6, 2]])


@torch.inference_mode()
def by_hand(model: VisionGPT2, batch: Batch) -> list[float]:
    """The loss of each target, one caption and one position after another; a caption ends with its first end token."""
    losses = []
    for image, captions in zip(IMAGES, batch.tokens.tolist(), strict=False):
        for caption in captions:
            kept = caption[: caption.index(END, 1) + 1]
            logits = model(image[None], torch.tensor([[kept[:-1]]]))[0, 0].double()
            losses += [-float(row.log_softmax(-1)[token]) for row, token in zip(logits, kept[1:], strict=True)]
    return losses


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., VisionGPT2]) -> VisionGPT2:
    return tiny_model(dropout=0.0)


def test_the_loss_is_the_sum_over_tokens_divided_by_their_number(model: VisionGPT2) -> None:
    losses, expected = Objective(model, END).eval()(BATCH), by_hand(model, BATCH)
    assert losses.tokens == len(expected) == 24  # ends are counted, begins are not
    assert float(losses.caption_sum) == pytest.approx(sum(expected), rel=1e-5)
    assert float(losses.total) == pytest.approx(sum(expected) / len(expected), rel=1e-5)


@torch.inference_mode()
@given(token=st.integers(0, VOCAB - 1))
def test_what_stands_in_the_padding_is_ignored(model: VisionGPT2, token: int) -> None:
    tokens = BATCH.tokens.clone()
    tokens[..., 1:][~BATCH.mask] = token
    objective = Objective(model, END).eval()
    changed = objective(replace(BATCH, tokens=tokens))
    assert float(changed.caption_sum) == pytest.approx(float(objective(BATCH).caption_sum), rel=1e-5)


@given(lengths=st.lists(st.integers(0, 30), min_size=1, max_size=300).filter(any))
def test_parts_hold_every_caption_once_from_short_to_long(lengths: list[int]) -> None:
    found = [rows.tolist() for rows in by_length(torch.tensor(lengths))]
    assert sorted(itertools.chain(*found)) == [row for row, length in enumerate(lengths) if length]
    assert [lengths[row] for row in itertools.chain(*found)] == sorted(filter(None, lengths))


def test_captions_in_parts_lose_what_they_lose_together(model: VisionGPT2) -> None:
    many = batch_of([[2 + (at + group) % (LENGTH - 1) for group in range(30)] for at in range(4)],
                    torch.randint(VOCAB - 1, (4, 30, LENGTH), generator=GENERATOR))
    assert len(by_length(many.mask.sum(-1).flatten())) > 2
    losses = Objective(model, END).eval()(many)
    assert float(losses.caption_sum) == pytest.approx(sum(by_hand(model, many)), rel=1e-5)


def test_an_end_token_that_is_no_padding_is_learned(model: VisionGPT2) -> None:
    batch = batch_of([[3, 3]])
    shorter = replace(batch, mask=batch.mask & (batch.tokens[..., 1:] != END))
    objective = Objective(model, END).eval()
    assert objective(batch).tokens == 4 and objective(shorter).tokens == 2
    assert float(objective(batch).caption_sum) > float(objective(shorter).caption_sum)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_batches_weighted_by_their_tokens_have_the_gradient_of_one_large_batch(model: VisionGPT2, cut: int) -> None:
    objective = Objective(model, END).eval()  # batch statistics would differ
    gradients = []
    for parts in ([BATCH], [rows(BATCH, slice(cut)), rows(BATCH, slice(cut, None))]):
        objective.zero_grad()
        for part in parts:
            losses = objective(part)
            (losses.total * (losses.tokens / 24)).backward()
        gradients.append([parameter.grad.clone() for parameter in objective.parameters()])
    for whole, summed in zip(*gradients, strict=True):
        torch.testing.assert_close(summed, whole, rtol=1e-3, atol=1e-5)


def test_stored_features_give_the_loss_of_their_pictures(model: VisionGPT2) -> None:
    objective = Objective(model, END).eval()
    stored = replace(BATCH, images=None, features=model.encoder(BATCH.images))
    assert float(objective(stored).total) == pytest.approx(float(objective(BATCH).total), rel=1e-5)


@torch.inference_mode()
def test_smoothing_spreads_a_share_of_each_target_over_all_tokens(model: VisionGPT2) -> None:
    objective = Objective(model, END, label_smoothing=0.2).train()
    model.encoder.eval()
    losses = objective(BATCH)
    logprobs = model(BATCH.images, BATCH.tokens[..., :-1]).log_softmax(-1)[BATCH.mask]
    spread = 0.8 * float(losses.caption_sum) / 24 - 0.2 * float(logprobs.mean())
    assert float(losses.total) == pytest.approx(spread, rel=1e-4)
    assert float(losses.caption_sum) == pytest.approx(sum(by_hand(model, BATCH)), rel=1e-4)


@torch.inference_mode()
def test_smoothing_and_hidden_words_are_for_training_alone(model: VisionGPT2) -> None:
    plain, other = Objective(model, END).eval(), Objective(model, END, label_smoothing=0.3, word_dropout=0.9).eval()
    assert float(other(BATCH).total) == float(plain(BATCH).total)


@given(share=st.floats(0, 0.99), seed=st.integers(0, 2**32))
def test_hidden_words_are_never_the_first_and_nothing_else_changes(share: float, seed: int) -> None:
    hidden = hide_words(TOKENS, share, END, torch.Generator().manual_seed(seed))
    assert torch.equal(hidden[..., 0], TOKENS[..., 0])
    assert ((hidden == TOKENS) | (hidden == END)).all()


def test_as_many_words_are_hidden_as_asked_for() -> None:
    tokens = torch.zeros(100, 10, 11, dtype=torch.int64)
    hidden = hide_words(tokens, 0.3, END, torch.Generator().manual_seed(0))
    assert float((hidden[..., 1:] == END).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert hide_words(tokens, 0.0, END) is tokens


def test_occurrences_are_of_any_caption_and_the_end_is_no_word() -> None:
    occurrences = word_occurrences([[[4, 1, 4], [4, 2, 4]], [[4, 4]]], vocab_size=5, end=4)
    assert occurrences.int().tolist() == [[0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]


def test_words_in_nearly_every_or_nearly_no_picture_are_not_asked_for() -> None:
    occurrences = torch.zeros(2000, 4, dtype=torch.bool)
    for word, count in enumerate((1, 400, 1900, 3)):
        occurrences[:count, word] = True
    assert sorted(WordPresence(8, occurrences).words.tolist()) == [1, 3]


def test_presence_is_the_cross_entropy_of_the_log_mean_exp_over_places() -> None:
    torch.manual_seed(0)
    occurrences = torch.rand(10, 6) < 0.3
    presence, image, index = WordPresence(8, occurrences), torch.randn(2, 5, 8), torch.tensor([7, 3])
    losses = []
    for tokens, picture in zip(image, index, strict=True):
        for at, word in enumerate(presence.words):
            places = [presence.head(token)[at].exp() for token in tokens]
            logit = float((sum(places) / len(places)).log())
            sign = 1 if occurrences[picture, word] else -1
            losses.append(math.log1p(math.exp(-sign * logit)))
    assert float(presence(image, index)) == pytest.approx(sum(losses) / len(losses), rel=1e-4)


class Watcher:
    """Notes at each step whether the losses for training alone are on."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, bool]] = []
        self.trainer: Trainer

    def step(self, report: Any) -> None:
        self.seen.append((report.epoch, self.trainer.objective.training))

    def epoch(self, row: Any, samples: Any) -> None: ...

    def warn(self, message: str) -> None: ...


def test_smoothing_and_hidden_words_go_on_after_the_first_validation(tiny_picture_folder: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        data=str(tiny_picture_folder), out=str(tmp_path / "run"), vision=VisionConfig("vit_mini_conv8_64", False),
        text=GPTConfig(n_positions=48, n_layer=2, n_head=4, n_embd=32), mode="last", epochs=2, batch_size=12,
        captions=CaptionsConfig(vocab_size=300), devices="cpu", augment=False, workers=0, label_smoothing=0.1,
    )
    watcher = Watcher()
    watcher.trainer = Trainer(config, prepare(config), watcher)
    watcher.trainer.train()
    assert watcher.seen == [(0, True), (1, True)]
