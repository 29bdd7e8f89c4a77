"""Training losses: the negative log-likelihood of captions, and optionally a prediction of which words occur."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from myllm.data.batches import Batch
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.training.packing import Packed

# A word of most pictures hardly distinguishes pictures, and a word of very few pictures cannot be learned.
PRESENCE_SHARE = (0.001, 0.5)
MAX_PRESENCE_WORDS = 1000
# Rows of logits that are computed at once: on a CPU they stay in its cache.
CPU_ROWS, GPU_ROWS = 256, 4096


@dataclass(frozen=True)
class Losses:
    """Losses of a batch."""

    total: Tensor
    """The loss to differentiate: mean over tokens, plus the weighted word presence loss."""
    caption_sum: Tensor
    """Negative log-likelihood in nats, summed over tokens, without smoothing."""
    tokens: int
    """Number of the batch's targets."""


class WordPresence(nn.Module):
    """Predicts from the image tokens which frequent words occur in any caption of the picture.

    A linear layer on each image token, pooled by log-mean-exp, so that one token that shows a thing is enough.
    """

    def __init__(self, n_embd: int, occurrences: Tensor) -> None:
        """occurrences: (pictures, vocab_size) sparse, 1 if a token occurs in any caption of a training picture."""
        super().__init__()
        share = torch.sparse.sum(occurrences, 0).to_dense() / len(occurrences)
        is_useful = (share > PRESENCE_SHARE[0]) & (share < PRESENCE_SHARE[1])
        words = torch.where(is_useful, share, 0.0).topk(min(MAX_PRESENCE_WORDS, int(is_useful.sum()))).indices
        self.words: Tensor
        self.targets: Tensor
        self.register_buffer("words", words)
        self.register_buffer("targets", occurrences.index_select(1, words).to_dense(), persistent=False)
        self.head = nn.Linear(n_embd, len(words))

    def forward(self, image_tokens: Tensor, index: Tensor) -> Tensor:
        """Return the mean binary cross-entropy of image_tokens (B, S, C); index: (B,) of the training pictures."""
        logits = self.head(image_tokens).logsumexp(1) - math.log(image_tokens.shape[1])
        return F.binary_cross_entropy_with_logits(logits, self.targets[index])


def word_occurrences(captions: Sequence[Sequence[Sequence[int]]], vocab_size: int, end: int) -> Tensor:
    """Return (pictures, vocab_size) sparse: 1 if a token other than `end` occurs in any caption of the picture.

    captions: token ids of each caption of each picture.
    """
    pairs = [
        (picture, token)
        for picture, texts in enumerate(captions) for token in sorted({*chain.from_iterable(texts)} - {end})
    ]
    index = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).T
    return torch.sparse_coo_tensor(
        index, torch.ones(len(pairs)), (len(captions), vocab_size), is_coalesced=True, check_invariants=True
    )


class HeadLoss(torch.autograd.Function):
    """Cross-entropies over the vocabulary, and their gradients, from a few rows of logits at a time.

    So the logits of a batch never exist at once: 50,257 of them for each token would be most of a step's memory.
    """

    @staticmethod
    def forward(
        context: Any, hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float, importance: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the summed loss, and the sum without smoothing and importance, which has no gradient: (), ().

        hidden: (N, C). weight: (vocab_size, C), of the head. targets: (N,) int64.
        smoothing: share of the target probability that is spread evenly over the vocabulary.
        importance: (N,) factors of the losses.
        """
        dtype = (hidden[:0] @ weight[:1].mT).dtype  # autocast decides
        head, rows = weight.to(dtype), CPU_ROWS if hidden.device.type == "cpu" else GPU_ROWS
        wants_hidden, wants_weight = context.needs_input_grad[:2]
        weight_gradient, hidden_gradients = torch.zeros_like(weight) if wants_weight else None, []
        total, caption_sum = hidden.new_zeros(()), hidden.new_zeros(())
        parts = zip(
            hidden.to(dtype).split(rows), targets[:, None].split(rows), importance[:, None].split(rows), strict=True
        )
        for x, target, factor in parts:
            logits = (x @ head.mT).to(hidden.dtype)
            normaliser = logits.logsumexp(-1, keepdim=True)
            loss = normaliser - logits.gather(1, target)
            caption_sum += loss.sum()
            if smoothing:
                loss = (1 - smoothing) * loss + smoothing * (normaliser - logits.mean(-1, keepdim=True))
            total += (factor * loss).sum()
            # the gradient of the logits: their probabilities minus the wanted ones
            slope = logits.sub_(normaliser).exp_().sub_(smoothing / len(weight))
            slope.scatter_add_(1, target, torch.full_like(slope[:, :1], smoothing - 1)).mul_(factor)
            slope = slope.to(dtype)
            if wants_hidden:
                hidden_gradients.append(slope @ head)
            if weight_gradient is not None and weight_gradient.dtype == dtype:
                weight_gradient.addmm_(slope.mT, x)
            elif weight_gradient is not None:
                weight_gradient += slope.mT @ x
        context.save_for_backward(
            torch.cat(hidden_gradients).to(hidden.dtype) if hidden_gradients else None, weight_gradient
        )
        context.mark_non_differentiable(caption_sum)
        return total, caption_sum

    @staticmethod
    @once_differentiable
    def backward(context: Any, slope: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # in place: the gradient of GPT-2's embedding is 154 MB
        hidden, weight = (None if gradient is None else gradient.mul_(slope) for gradient in context.saved_tensors)
        return hidden, weight, None, None, None


class Objective(nn.Module):
    """The model with its losses."""

    def __init__(
        self, model: VisionGPT2, label_smoothing: float = 0.0, presence: WordPresence | None = None,
        presence_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.model, self.presence = model, presence
        self.label_smoothing, self.presence_weight = label_smoothing, presence_weight

    def forward(self, batch: Batch, tokens: int | None = None, pictures: int | None = None) -> Losses:
        """Return the losses. Smoothing and word presence apply only in training mode, and not to sampled captions.

        The loss of each caption is multiplied by `batch.importance`.
        tokens, pictures: if the batch is a part of a step, their numbers in the whole step: means are over these.
        Nothing here waits for the device: lengths, and the rows and positions that follow from them, are on the CPU.
        """
        features = batch.features if batch.features is not None else self.model.encoder(batch.images)
        image_tokens = self.model.image_tokens(features)
        image = self.model.image_kv(image_tokens)
        is_plain = self.training and batch.importance is None
        smoothing = self.label_smoothing if is_plain else 0.0
        lengths, device, batch_tokens = batch.lengths, batch.tokens.device, int(batch.lengths.sum())
        caption_sum = torch.zeros((), device=device)
        total = 0.0 * image_tokens[-1].sum()  # a batch without targets has a gradient too, of zeros
        if batch_tokens:
            is_input = torch.arange(batch.tokens.shape[2]) < lengths[..., None]
            rows = is_input.flatten().nonzero()[:, 0].to(device, non_blocking=True)
            inputs, targets = batch.inputs.flatten()[rows], batch.tokens.flatten()[rows + 1]
            hidden = self.model.decoder.hidden(inputs, Packed(lengths, device), image)
            importance = torch.ones(is_input.shape, device=device)
            if batch.importance is not None:
                importance = importance * batch.importance[..., None]
            loss, caption_sum = HeadLoss.apply(
                hidden, self.model.decoder.lm_head.weight, targets, smoothing, importance.flatten()[rows]
            )
            total = total + loss / (tokens or batch_tokens)
        if is_plain and self.presence is not None and len(batch.index):
            share = len(batch.index) / (pictures or len(batch.index))
            total = total + self.presence_weight * share * self.presence(image_tokens[-1], batch.index)
        return Losses(total, caption_sum, batch_tokens)
