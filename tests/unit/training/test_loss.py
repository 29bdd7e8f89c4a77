import math
import resource
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from myllm.data.batches import Batch
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.training.loss import CPU_ROWS, HeadLoss, Objective, WordPresence, word_occurrences

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


def test_objective_of_many_captions_is_the_sum_over_captions(model: VisionGPT2) -> None:
    many = batch_of([[2 + (row + group) % (LENGTH - 1) for group in range(30)] for row in range(4)],
                    torch.randint(VOCAB - 1, (4, 30, LENGTH), generator=GENERATOR))
    assert int(many.lengths.sum()) > CPU_ROWS
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
    presence = WordPresence(32, torch.tensor([[1.0, 0], [0, 0], [0, 1], [0, 0]]).to_sparse())
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
    presence = WordPresence(32, torch.tensor([[1.0, 0], [0, 0], [0, 1], [0, 0]]).to_sparse())
    objective = Objective(tiny_model(dropout=0.1), share, presence, 1.0).to("meta").train()
    losses = objective(BATCH.to("meta"))
    losses.total.backward()
    assert losses.total.device.type == "meta" and losses.tokens == 24


@pytest.mark.parametrize("rows", [1, CPU_ROWS, 2 * CPU_ROWS + 7])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_head_loss_has_the_values_and_gradients_of_cross_entropy(rows: int, smoothing: float) -> None:
    hidden, weight = (nn.Parameter(torch.randn(count, 8, dtype=torch.float64)) for count in (rows, 50))
    targets = torch.randint(50, (rows,))
    importance = torch.randn(rows, dtype=torch.float64)
    loss, plain = HeadLoss.apply(hidden, weight, targets, smoothing, importance)
    gradients = torch.autograd.grad(3 * loss, (hidden, weight))
    logits = hidden @ weight.mT
    slow = importance @ F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    assert float(loss) == pytest.approx(float(slow)) and not plain.requires_grad
    assert float(plain) == pytest.approx(float(F.cross_entropy(logits, targets, reduction="sum")))
    for gradient, expected in zip(gradients, torch.autograd.grad(3 * slow, (hidden, weight)), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


def test_head_loss_in_bf16_is_near_that_in_fp32() -> None:
    hidden, weight = (nn.Parameter(torch.randn(count, 8)) for count in (600, 50))
    arguments = hidden, weight, torch.randint(50, (600,)), 0.1, torch.ones(600)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss, _ = HeadLoss.apply(*arguments)
        results.append((loss.detach(), *torch.autograd.grad(loss, (hidden, weight))))
    for exact, rounded in zip(*results, strict=True):
        assert rounded.dtype == exact.dtype == torch.float32
        assert (rounded - exact).norm() < 0.02 * exact.norm()


def test_head_loss_gives_a_frozen_head_no_gradient() -> None:
    hidden, weight = nn.Parameter(torch.randn(5, 8)), torch.randn(50, 8)
    loss, _ = HeadLoss.apply(hidden, weight, torch.randint(50, (5,)), 0.0, torch.ones(5))
    loss.backward()
    assert hidden.grad is not None and weight.grad is None


def test_objective_in_training_makes_no_logits_of_padding(tiny_model: Callable[..., VisionGPT2]) -> None:
    """One caption of 20 tokens among short ones: every tensor has the rows of the real tokens."""
    model = tiny_model()
    lengths = torch.tensor([[20, 1, 1], [1, 1, 1]])
    tokens = torch.randint(VOCAB, (2, 3, 21), generator=GENERATOR)
    seen = []
    model.decoder.transformer.h[0].mlp.register_forward_hook(lambda _, inputs, output: seen.append(len(output)))
    Objective(model).train()(Batch(IMAGES[:2], None, tokens, tokens, lengths, torch.arange(2)))
    assert seen == [25]


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
    occurrences = word_occurrences([[[4, 1, 4], [4, 2, 1, 4]], [[4, 4]]], vocab_size=5, end=4)
    assert occurrences.to_dense().int().tolist() == [[0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]


def test_word_presence_leaves_out_words_of_nearly_all_and_nearly_no_pictures() -> None:
    occurrences = torch.zeros(2000, 4)
    for word, count in enumerate((1, 400, 1900, 3)):
        occurrences[:count, word] = 1.0
    assert sorted(WordPresence(8, occurrences.to_sparse()).words.tolist()) == [1, 3]


def test_word_presence_of_a_large_vocabulary_takes_memory_only_for_its_words() -> None:
    captions = [[[picture % 50_000, (picture + 1) % 50_000]] for picture in range(40_000)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    WordPresence(8, word_occurrences(captions, vocab_size=50_257, end=50_256))
    # one byte for each picture and token would be 2 GB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


def test_word_presence_is_the_cross_entropy_of_the_log_mean_exp_over_image_tokens() -> None:
    torch.manual_seed(0)
    occurrences = (torch.rand(10, 6) < 0.3).float()
    presence, image, index = WordPresence(8, occurrences.to_sparse()), torch.randn(2, 5, 8), torch.tensor([7, 3])
    losses = []
    for tokens, picture in zip(image, index, strict=True):
        for column, word in enumerate(presence.words):
            scores = [presence.head(token)[column].exp() for token in tokens]
            logit = float((sum(scores) / len(scores)).log())
            sign = 1 if occurrences[picture, word] else -1
            losses.append(math.log1p(math.exp(-sign * logit)))
    assert float(presence(image, index)) == pytest.approx(sum(losses) / len(losses), rel=1e-4)


