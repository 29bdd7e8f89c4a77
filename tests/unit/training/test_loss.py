import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from myllm.data.batches import Batch
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.training.loss import Objective, WordPresence, length_groups, word_occurrences

END, VOCAB, LENGTH = 60, 61, 6
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(4, 3, 64, 64, generator=GENERATOR)
TOKENS = torch.randint(VOCAB - 1, (4, 2, LENGTH), generator=GENERATOR)


def batch_of(sizes: list[list[int]], tokens: Tensor = TOKENS) -> Batch:
    """Captions of so many tokens, both end tokens included, padded with end tokens as `Batches` does."""
    tokens, size = tokens[: len(sizes)].clone(), torch.tensor(sizes)
    tokens[..., 0] = END
    tokens[torch.arange(LENGTH) >= size[..., None] - 1] = END
    return Batch(IMAGES[: len(sizes)], None, tokens, tokens, size - 1, torch.arange(len(sizes)))


def rows(batch: Batch, chosen: slice) -> Batch:
    assert batch.images is not None
    tokens, inputs = batch.tokens[chosen], batch.inputs[chosen]
    return Batch(batch.images[chosen], None, tokens, inputs, batch.lengths[chosen], batch.index[chosen])


BATCH = batch_of([[6, 3], [2, 5], [4, 4], [6, 2]])


@torch.inference_mode()
def loss_of_each_target(model: VisionGPT2, batch: Batch) -> list[float]:
    """Compute the losses one caption at a time; a caption ends with its first end token."""
    losses = []
    for image, captions in zip(IMAGES, batch.tokens.tolist(), strict=False):
        for caption in captions:
            tokens = caption[: caption.index(END, 1) + 1]
            logits = model(image[None], torch.tensor([[tokens[:-1]]]))[0, 0].double()
            losses += [-float(row.log_softmax(-1)[token]) for row, token in zip(logits, tokens[1:], strict=True)]
    return losses


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., VisionGPT2]) -> VisionGPT2:
    return tiny_model(dropout=0.0)


def test_objective_is_the_sum_over_tokens_divided_by_their_number(model: VisionGPT2) -> None:
    losses, expected = Objective(model).eval()(BATCH), loss_of_each_target(model, BATCH)
    assert losses.tokens == len(expected) == 24  # the last end token of a caption is a target, the first is not
    assert float(losses.caption_sum) == pytest.approx(sum(expected), rel=1e-5)
    assert float(losses.total) == pytest.approx(sum(expected) / len(expected), rel=1e-5)


@torch.inference_mode()
@given(token=st.integers(0, VOCAB - 1))
def test_objective_ignores_the_content_of_padding(model: VisionGPT2, token: int) -> None:
    tokens = BATCH.tokens.clone()
    tokens[..., 1:][torch.arange(LENGTH - 1) >= BATCH.lengths[..., None]] = token
    objective = Objective(model).eval()
    changed = objective(replace(BATCH, tokens=tokens, inputs=tokens))
    assert float(changed.caption_sum) == pytest.approx(float(objective(BATCH).caption_sum), rel=1e-5)


@given(lengths=st.lists(st.integers(0, 30), min_size=1, max_size=300).filter(any))
def test_length_groups_hold_every_caption_once_from_short_to_long(lengths: list[int]) -> None:
    grouped = [row for rows in length_groups(torch.tensor(lengths)) for row in rows.tolist()]
    assert sorted(grouped) == [row for row, length in enumerate(lengths) if length]
    assert [lengths[row] for row in grouped] == sorted(filter(None, lengths))


def test_objective_of_several_length_groups_is_the_sum_over_captions(model: VisionGPT2) -> None:
    many = batch_of([[2 + (row + group) % (LENGTH - 1) for group in range(30)] for row in range(4)],
                    torch.randint(VOCAB - 1, (4, 30, LENGTH), generator=GENERATOR))
    assert len(length_groups(many.lengths.flatten())) > 2
    losses = Objective(model).eval()(many)
    assert float(losses.caption_sum) == pytest.approx(sum(loss_of_each_target(model, many)), rel=1e-5)


def test_objective_learns_the_end_token(model: VisionGPT2) -> None:
    batch = batch_of([[3, 3]])
    shorter = replace(batch, lengths=batch.lengths - 1)
    objective = Objective(model).eval()
    assert objective(batch).tokens == 4 and objective(shorter).tokens == 2
    assert float(objective(batch).caption_sum) > float(objective(shorter).caption_sum)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_objective_of_the_parts_of_a_step_has_the_gradient_of_one_batch(model: VisionGPT2, cut: int) -> None:
    presence = WordPresence(32, torch.tensor([[True, False], [False, False], [False, True], [False, False]]))
    objective = Objective(model, presence=presence, presence_weight=2.0).train()
    model.encoder.eval()  # batch statistics would differ
    gradients = []
    for parts in ([BATCH], [rows(BATCH, slice(cut)), rows(BATCH, slice(cut, None)), BATCH.without_targets()]):
        objective.zero_grad()
        for part in parts:
            objective(part, tokens=24, pictures=4).total.backward()
        gradients.append([parameter.grad.clone() for parameter in objective.parameters()])
    for whole, summed in zip(*gradients, strict=True):
        torch.testing.assert_close(summed, whole, rtol=1e-3, atol=1e-5)


def test_objective_of_stored_features_is_that_of_the_pictures(model: VisionGPT2) -> None:
    objective = Objective(model).eval()
    stored = replace(BATCH, images=None, features=model.encoder(BATCH.images))
    assert float(objective(stored).total) == pytest.approx(float(objective(BATCH).total), rel=1e-5)


@torch.inference_mode()
def test_label_smoothing_spreads_a_share_of_each_target_over_all_tokens(model: VisionGPT2) -> None:
    objective = Objective(model, label_smoothing=0.2).train()
    model.encoder.eval()
    losses = objective(BATCH)
    logprobs = model(BATCH.images, BATCH.tokens[..., :-1]).log_softmax(-1)
    is_target = torch.arange(LENGTH - 1) < BATCH.lengths[..., None]
    smoothed = 0.8 * float(losses.caption_sum) / 24 - 0.2 * float(logprobs[is_target].mean())
    assert float(losses.total) == pytest.approx(smoothed, rel=1e-4)
    assert float(losses.caption_sum) == pytest.approx(sum(loss_of_each_target(model, BATCH)), rel=1e-4)


@torch.inference_mode()
def test_objective_in_eval_mode_has_no_smoothing(model: VisionGPT2) -> None:
    plain, other = Objective(model).eval(), Objective(model, label_smoothing=0.3).eval()
    assert float(other(BATCH).total) == float(plain(BATCH).total)


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_objective_reads_no_value_from_the_device(tiny_model: Callable[..., VisionGPT2], share: float) -> None:
    """Tensors on the meta device have no values, so that `item()` and boolean masks raise an error."""
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.zeros(3, device="meta")[torch.ones(3, dtype=torch.bool, device="meta")]
    occurrences = torch.tensor([[True, False], [False, False], [False, True], [False, False]])
    presence = WordPresence(32, occurrences)
    objective = Objective(tiny_model(dropout=0.1), share, presence, 1.0).to("meta").train()
    losses = objective(BATCH.to("meta"))
    losses.total.backward()
    assert losses.total.device.type == "meta" and losses.tokens == 24


def test_objective_reads_inputs_and_learns_tokens(model: VisionGPT2) -> None:
    objective = Objective(model).eval()
    hidden = BATCH.tokens.clone()
    hidden[..., 2] = END
    losses = objective(replace(BATCH, inputs=hidden))
    logits = model(BATCH.images, hidden[..., :-1])
    is_target = torch.arange(LENGTH - 1) < BATCH.lengths[..., None]
    expected = -logits.log_softmax(-1).gather(-1, BATCH.tokens[..., 1:, None])[..., 0][is_target].sum()
    assert float(losses.caption_sum) == pytest.approx(float(expected), rel=1e-5)


def test_word_occurrences_join_the_captions_of_a_picture_without_the_end_token() -> None:
    occurrences = word_occurrences([[[4, 1, 4], [4, 2, 4]], [[4, 4]]], vocab_size=5, end=4)
    assert occurrences.int().tolist() == [[0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]


def test_word_presence_leaves_out_words_of_nearly_all_and_nearly_no_pictures() -> None:
    occurrences = torch.zeros(2000, 4, dtype=torch.bool)
    for word, count in enumerate((1, 400, 1900, 3)):
        occurrences[:count, word] = True
    assert sorted(WordPresence(8, occurrences).words.tolist()) == [1, 3]


def test_word_presence_is_the_cross_entropy_of_the_log_mean_exp_over_image_tokens() -> None:
    torch.manual_seed(0)
    occurrences = torch.rand(10, 6) < 0.3
    presence, image, index = WordPresence(8, occurrences), torch.randn(2, 5, 8), torch.tensor([7, 3])
    losses = []
    for tokens, picture in zip(image, index, strict=True):
        for column, word in enumerate(presence.words):
            scores = [presence.head(token)[column].exp() for token in tokens]
            logit = float((sum(scores) / len(scores)).log())
            sign = 1 if occurrences[picture, word] else -1
            losses.append(math.log1p(math.exp(-sign * logit)))
    assert float(presence(image, index)) == pytest.approx(sum(losses) / len(losses), rel=1e-4)


