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
        image = self.model.image_kv(features)
        fed, targets = batch.tokens[..., :-1], batch.tokens[..., 1:]
        if self.training:
            fed = hide_words(fed, self.word_dropout, self.end)
        logits = self.model.decode(fed, image).float()
        kept, wanted = logits[batch.mask], targets[batch.mask]
        caption_sum = F.cross_entropy(kept, wanted, reduction="sum")
        total = caption_sum / max(1, len(wanted))
        if self.training and self.label_smoothing:
            total = F.cross_entropy(kept, wanted, label_smoothing=self.label_smoothing)
        if self.training and self.presence is not None:
            tokens = self.model.image_tokens(features)[-1]
            total = total + self.presence_weight * self.presence(tokens, batch.index)
        return Losses(total, caption_sum.detach(), len(wanted))
