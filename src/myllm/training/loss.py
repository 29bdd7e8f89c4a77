"""What training lowers: the negative log-likelihood of the captions, and where asked for, of which words occur."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from myllm.data.batches import Batch
from myllm.model.vision_gpt2 import VisionGPT2

# A word in more pictures than this tells little of any one, and in fewer there is too little to learn from.
PRESENCE_SHARE = (0.001, 0.5)
PRESENCE_WORDS = 1000
PARTS, PART_SIZE = 6, 32


@dataclass(frozen=True)
class Losses:
    """Of one batch; `tokens` counts the targets, so that sums can be divided once over many batches."""

    total: Tensor
    """What is differentiated: mean over tokens, the second loss added."""
    caption_sum: Tensor
    """Negative log-likelihood in nats, summed over tokens, without smoothing."""
    tokens: int


class WordPresence(nn.Module):
    """Tells from the image tokens which frequent words occur in any caption of the picture.

    One linear layer on each token, pooled by log-mean-exp, so that one place that shows a thing is enough.
    """

    def __init__(self, n_embd: int, occurrences: Tensor) -> None:
        """occurrences: (pictures, vocab_size) bool, whether a token occurs in any caption of a training picture."""
        super().__init__()
        share = occurrences.float().mean(0)
        is_telling = (share > PRESENCE_SHARE[0]) & (share < PRESENCE_SHARE[1])
        words = torch.where(is_telling, share, 0.0).topk(min(PRESENCE_WORDS, int(is_telling.sum()))).indices
        self.words: Tensor
        self.targets: Tensor
        self.register_buffer("words", words)
        self.register_buffer("targets", occurrences[:, words].float(), persistent=False)
        self.head = nn.Linear(n_embd, len(words))

    def forward(self, image_tokens: Tensor, index: Tensor) -> Tensor:
        """image_tokens (B, S, C), index (B,) of the training pictures -> binary cross-entropy, a mean."""
        logits = self.head(image_tokens).logsumexp(1) - math.log(image_tokens.shape[1])
        return F.binary_cross_entropy_with_logits(logits, self.targets[index])


def word_occurrences(captions: Sequence[Sequence[Sequence[int]]], vocab_size: int, end: int) -> Tensor:
    """Token ids of every caption of every picture -> (pictures, vocab_size) bool, the end token left out."""
    occurrences = torch.zeros(len(captions), vocab_size, dtype=torch.bool)
    for picture, texts in enumerate(captions):
        for ids in texts:
            occurrences[picture, ids] = True
    occurrences[:, end] = False
    return occurrences


def hide_words(tokens: Tensor, share: float, hidden: int, generator: torch.Generator | None = None) -> Tensor:
    """Replace a share of the fed words by the token `hidden`, never the first position: (B, G, T) -> (B, G, T)."""
    if not share:
        return tokens
    chosen = torch.rand(tokens.shape, generator=generator) < share
    chosen[..., 0] = False
    return tokens.masked_fill(chosen.to(tokens.device), hidden)


def by_length(lengths: Tensor) -> Sequence[Tensor]:
    """Row numbers of captions in a few parts, shorter captions first, those without a target left out.

    lengths: (N,) targets of each caption. Padding is half of a batch of natural captions, and is computed like the
    rest; in parts cut to their own longest caption it is an eighth. A part of few captions would be slow for its size.
    """
    order = lengths.argsort()
    return order[lengths[order] > 0].chunk(min(PARTS, max(1, len(order) // PART_SIZE)))


class Objective(nn.Module):
    """The model with its losses: what an optimizer step differentiates."""

    def __init__(
        self,
        model: VisionGPT2,
        end: int,
        label_smoothing: float = 0.0,
        word_dropout: float = 0.0,
        presence: WordPresence | None = None,
        presence_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.presence = presence
        self.end = end
        self.label_smoothing = label_smoothing
        self.word_dropout = word_dropout
        self.presence_weight = presence_weight

    def forward(self, batch: Batch) -> Losses:
        """Smoothing, hidden words and the second loss apply in training mode alone."""
        features = batch.features if batch.features is not None else self.model.encoder(batch.images)
        image_tokens = self.model.image_tokens(features)
        image = self.model.image_kv(image_tokens)
        smoothing = self.label_smoothing if self.training else 0.0
        captions, lengths = batch.tokens.flatten(0, 1), batch.mask.sum(-1).flatten()
        tokens = int(lengths.sum())
        caption_sum, total = torch.zeros(()), torch.zeros(())
        for rows in by_length(lengths):
            longest = int(lengths[rows[-1]])
            fed, targets = captions[rows, :longest], captions[rows, 1 : longest + 1]
            mask = batch.mask.flatten(0, 1)[rows, :longest]
            if self.training:
                fed = hide_words(fed, self.word_dropout, self.end)
            own_image = image.select(rows // batch.tokens.shape[1])
            logits = self.model.decode(fed[:, None], own_image)[:, 0][mask].float()
            loss = F.cross_entropy(logits, targets[mask], reduction="sum", label_smoothing=smoothing)
            plain = F.cross_entropy(logits.detach(), targets[mask], reduction="sum") if smoothing else loss.detach()
            caption_sum, total = caption_sum.to(loss) + plain, total.to(loss) + loss / max(1, tokens)
        if self.training and self.presence is not None:
            total = total + self.presence_weight * self.presence(image_tokens[-1], batch.index)
        return Losses(total, caption_sum, tokens)
