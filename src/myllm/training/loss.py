"""Training losses: the negative log-likelihood of captions, and optionally a prediction of which words occur."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from myllm.data.batches import Batch
from myllm.model.vision_gpt2 import VisionGPT2

# A word of most pictures hardly distinguishes pictures, and a word of very few pictures cannot be learned.
PRESENCE_SHARE = (0.001, 0.5)
MAX_PRESENCE_WORDS = 1000
MAX_LENGTH_GROUPS, MIN_LENGTH_GROUP = 6, 32


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
        """occurrences: (pictures, vocab_size) bool, whether a token occurs in any caption of a training picture."""
        super().__init__()
        share = occurrences.float().mean(0)
        is_useful = (share > PRESENCE_SHARE[0]) & (share < PRESENCE_SHARE[1])
        words = torch.where(is_useful, share, 0.0).topk(min(MAX_PRESENCE_WORDS, int(is_useful.sum()))).indices
        self.words: Tensor
        self.targets: Tensor
        self.register_buffer("words", words)
        self.register_buffer("targets", occurrences[:, words].float(), persistent=False)
        self.head = nn.Linear(n_embd, len(words))

    def forward(self, image_tokens: Tensor, index: Tensor) -> Tensor:
        """Return the mean binary cross-entropy of image_tokens (B, S, C); index: (B,) of the training pictures."""
        logits = self.head(image_tokens).logsumexp(1) - math.log(image_tokens.shape[1])
        return F.binary_cross_entropy_with_logits(logits, self.targets[index])


def word_occurrences(captions: Sequence[Sequence[Sequence[int]]], vocab_size: int, end: int) -> Tensor:
    """Return (pictures, vocab_size) bool: whether a token other than `end` occurs in any caption of the picture.

    captions: token ids of each caption of each picture.
    """
    occurrences = torch.zeros(len(captions), vocab_size, dtype=torch.bool)
    for picture, texts in enumerate(captions):
        for ids in texts:
            occurrences[picture, ids] = True
    occurrences[:, end] = False
    return occurrences


def length_groups(lengths: Tensor) -> Sequence[Tensor]:
    """Return the rows of captions in a few groups of similar length, shortest first, without captions of length 0.

    lengths: (N,), the number of targets of each caption. Padding costs as much as words: it is half of a batch of
    natural captions, and an eighth of groups that are cut to their longest caption. Small groups would be slow.
    """
    order = lengths.argsort()
    order = order[lengths[order] > 0]
    return order.chunk(min(MAX_LENGTH_GROUPS, max(1, len(order) // MIN_LENGTH_GROUP))) if len(order) else ()


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
        """Return the losses. Smoothing and word presence apply only in training mode.

        tokens, pictures: if the batch is a part of a step, their numbers in the whole step: means are over these.
        Nothing here waits for the device: lengths, and the rows and positions that follow from them, are on the CPU.
        """
        features = batch.features if batch.features is not None else self.model.encoder(batch.images)
        image_tokens = self.model.image_tokens(features)
        image = self.model.image_kv(image_tokens)
        smoothing = self.label_smoothing if self.training else 0.0
        captions, words = batch.tokens.flatten(0, 1), batch.inputs.flatten(0, 1)
        lengths, device = batch.lengths.flatten(), batch.tokens.device
        batch_tokens = int(lengths.sum())
        caption_sum = torch.zeros((), device=device)
        total = 0.0 * image_tokens[-1].sum()  # a batch without targets has a gradient too, of zeros
        for rows in length_groups(lengths):
            longest = int(lengths[rows[-1]])
            is_target = torch.arange(longest) < lengths[rows, None]
            positions = is_target.flatten().nonzero()[:, 0].to(device, non_blocking=True)
            rows = rows.to(device, non_blocking=True)
            inputs, targets = words[rows, :longest], captions[rows, 1 : longest + 1].flatten()[positions]
            images = image.select(rows // batch.tokens.shape[1])
            logits = self.model.decode(inputs[:, None], images).flatten(0, 2)[positions].float()
            loss = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
            caption_sum += F.cross_entropy(logits.detach(), targets, reduction="sum") if smoothing else loss.detach()
            total = total + loss / (tokens or max(1, batch_tokens))
        if self.training and self.presence is not None and len(batch.index):
            share = len(batch.index) / (pictures or len(batch.index))
            total = total + self.presence_weight * share * self.presence(image_tokens[-1], batch.index)
        return Losses(total, caption_sum, batch_tokens)
