"""Greedy search and sampling: the likeliest token each time, or one drawn as often as it is likely."""

from typing import ClassVar

import torch
from torch import Tensor

from myllm.decoding.engine import Choice, Hypothesis, OpenCaptions, SearchRequest
from myllm.decoding.rules import NEVER, nothing_left

ENDED = -1


class GreedyOrSampling:
    """A token at a time for each caption; several captions of an image share its picture, and are drawn apart."""

    sums_logprobs: ClassVar[bool] = False

    def __init__(self, search: SearchRequest) -> None:
        self.search, config = search, search.config
        self.captions = config.num_return_sequences or 1
        self.slots = torch.arange(self.captions).repeat(search.batch, 1)
        self._found = [[Hypothesis(list(search.prefix)) for _ in range(self.captions)] for _ in range(search.batch)]
        # image by image: what one draws does not depend on those beside it
        shape, generator = (self.captions, config.max_new_tokens), torch.Generator()
        drawn = [torch.rand(shape, generator=generator.manual_seed(seed)) for seed in search.seeds]
        self.luck = torch.stack(drawn) if config.do_sample else None

    def choose(self, now: OpenCaptions) -> Choice:
        """Captions that have ended leave; where another of the same image goes on, they keep a place beside it."""
        is_open = self.slots != ENDED
        chosen = now.scores.argmax(-1)
        if not (now.scores.gather(-1, chosen[..., None])[..., 0] > NEVER)[is_open].all():
            raise nothing_left(self.search.config, now.logprobs.shape[-1])
        if self.luck is not None:
            luck = self.luck[now.images[:, None], self.slots, now.logprobs.shape[-1]]
            chosen = draw(now.scores.flatten(0, 1), luck.flatten()).view_as(chosen)
        for row, place in is_open.nonzero().tolist():
            one = self._found[int(now.images[row])][int(self.slots[row, place])]
            token = int(chosen[row, place])
            one.logprobs.append(float(now.own[row, place, token]))
            one.ended_by = self.search.ended_by(now.said[row, place], token)
            if one.ended_by != "end":
                one.tokens.append(token)
            is_open[row, place] = one.ended_by == "length"
        rows = is_open.any(1).nonzero()[:, 0]
        width = int(is_open.sum(1).max())
        origin = is_open[rows].int().sort(dim=1, descending=True, stable=True).indices[:, :width]
        self.slots = torch.where(is_open[rows], self.slots[rows], ENDED).gather(1, origin)
        return Choice(rows, origin, chosen[rows].gather(1, origin))

    def found(self) -> list[list[Hypothesis]]:
        """Of each image, the likeliest a token first."""
        return [sorted(one, key=lambda hypothesis: -hypothesis.score) for one in self._found]


def draw(scores: Tensor, luck: Tensor) -> Tensor:
    """(N, vocab_size) scores and (N,) numbers drawn evenly from 0..1 -> (N,) tokens, each as often as it is likely."""
    held = scores.double().softmax(-1).cumsum(-1)
    place = torch.searchsorted(held, luck.to(held)[:, None] * held[:, -1:], right=True)
    return place[:, 0].clamp(max=scores.shape[-1] - 1)
