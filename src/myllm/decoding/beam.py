"""Beam search: the likeliest beginnings are kept, those that have ended wait aside until the search is over.

In the order of transformers, which also decides when it is over. Groups of beams may be told to differ (Vijayakumar et
al. 2018), and beams be divided by how many required words they have said (Post and Vilar 2018).
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from myllm.data.words import Required, prepared
from myllm.decoding.engine import Choice, Hypothesis, Open, Search
from myllm.decoding.rules import NEVER, nothing_left


@dataclass
class _Part:
    """The beams of one image in one group: what has ended, and whether the search goes on."""

    ended: list[Hypothesis] = field(default_factory=list)
    is_over: bool = False

    def add(self, hypothesis: Hypothesis, beams: int) -> None:
        ranked = sorted([*self.ended, hypothesis], key=lambda one: (len(one.missing), -one.rank))
        self.ended = ranked[:beams]


@dataclass(frozen=True)
class _Candidates:
    """What beams may go on to, best first: (B, K) each."""

    totals: Tensor
    origin: Tensor
    """Which beam of the image, all groups counted."""
    tokens: Tensor


class Beams:
    """Beam search for `generate`."""

    sums_logprobs: ClassVar[bool] = True

    def __init__(self, search: Search) -> None:
        self.search, self.config = search, search.config
        self.captions, self.groups = self.config.beams, self.config.num_beam_groups
        self.width = self.captions // self.groups
        # all beams of a group begin alike, so only its first may be gone on from
        self.totals = torch.full((search.batch, self.captions), NEVER)
        self.totals[:, :: self.width] = 0.0
        self.parts = [[_Part() for _ in range(self.groups)] for _ in range(search.batch)]
        words = self.config.force_words
        self.required = prepared(Required, words, search.vocabulary) if words and search.vocabulary else None

    def choose(self, now: Open) -> Choice:
        """Each group in turn; an image leaves once the search is over in all of its groups."""
        kept: list[_Candidates] = []
        taken = torch.zeros_like(now.scores[:, 0])
        for group in range(self.groups):
            of_group = slice(group * self.width, (group + 1) * self.width)
            scores = now.scores[:, of_group] - self.config.diversity_penalty * taken[:, None]
            found = self._candidates(self.totals[:, of_group, None] + scores, group, now)
            kept.append(self._advance(found, group, now))
            taken.scatter_add_(1, kept[-1].tokens, torch.ones_like(kept[-1].totals))
        goes_on = [not all(part.is_over for part in self.parts[image]) for image in now.images.tolist()]
        rows = torch.tensor(goes_on).nonzero()[:, 0]
        totals, origin, tokens = (
            torch.cat([getattr(one, name) for one in kept], dim=1)[rows] for name in ("totals", "origin", "tokens")
        )
        self.totals, choice = totals, Choice(rows, origin, tokens)
        if now.logprobs.shape[-1] + 1 == self.config.max_new_tokens:
            self._cut(now, choice)
        return choice

    def found(self) -> list[list[Hypothesis]]:
        """Of each image, what has ended in any group, best first."""
        everything = [[one for part in parts for one in part.ended] for parts in self.parts]
        return [sorted(ended, key=lambda one: (len(one.missing), -one.rank)) for ended in everything]

    def _candidates(self, sums: Tensor, group: int, now: Open) -> _Candidates:
        """sums: (B, width, vocab_size). Twice as many as beams: if every beam ends now, as many open ones remain."""
        vocab_size, first = sums.shape[-1], group * self.width
        count = min(2 * self.width, sums[0].numel())
        if self.required is None:
            totals, places = sums.flatten(1).topk(count)
        else:
            places = torch.stack([self._by_banks(own, said, count) for own, said in zip(sums, now.said, strict=True)])
            totals = sums.flatten(1).gather(1, places)
        return _Candidates(totals, first + places // vocab_size, places % vocab_size)

    def _by_banks(self, sums: Tensor, said: Tensor, count: int) -> Tensor:
        """(width, vocab_size) sums of an image, (width, T) said -> (count,) places, those of all banks taking turns.

        A bank holds candidates that have said as many tokens of required words: they compete with their like.
        """
        assert self.required is not None
        vocab_size, told = sums.shape[-1], [tuple(row[1:]) for row in said.tolist()]
        places = set(sums.flatten().topk(count).indices.tolist())
        for beam, tokens in enumerate(told):
            # the best that each beam can do, and what leads it on
            coming = (int(sums[beam].argmax()), *self.required.lead(tokens)[1])
            places |= {beam * vocab_size + token for token in coming}
        banks: dict[int, list[int]] = defaultdict(list)
        for place in sorted(places, key=lambda place: -float(sums.flatten()[place])):
            beam, token = divmod(place, vocab_size)
            words = told[beam] if token == self.search.end else (*told[beam], token)
            banks[self.required.lead(words)[0]].append(place)
        turns = [(turn, -bank, place) for bank, own in banks.items() for turn, place in enumerate(own)]
        return torch.tensor([place for _, _, place in sorted(turns)[:count]])

    def _advance(self, found: _Candidates, group: int, now: Open) -> _Candidates:
        """Put aside what ends among the best, and keep as many as beams of what goes on."""
        length = now.logprobs.shape[-1] + 1
        kept = torch.zeros(len(now.images), self.width, dtype=torch.int64)
        totals = torch.full(kept.shape, NEVER)
        listed = zip(found.totals.tolist(), found.origin.tolist(), found.tokens.tolist(), strict=True)
        for row, (image, candidates) in enumerate(zip(now.images.tolist(), listed, strict=True)):
            part, goes_on = self.parts[image][group], list[int]()
            for place, (total, origin, token) in enumerate(zip(*candidates, strict=True)):
                if total == NEVER or part.is_over or len(goes_on) == self.width:
                    continue
                one = self._hypothesis(now, (row, origin), token, total)
                if one.ended_by == "length":
                    goes_on.append(place)
                elif place < self.width:
                    part.add(one, self.width)
            kept[row, : len(goes_on)] = torch.tensor(goes_on, dtype=torch.int64)
            totals[row, : len(goes_on)] = found.totals[row, goes_on]
            part.is_over = part.is_over or self._is_over(part, float(totals[row].max()), length)
            if part.is_over and not part.ended:
                raise nothing_left(self.config, length - 1)
        return _Candidates(totals, found.origin.gather(1, kept), found.tokens.gather(1, kept))

    def _cut(self, now: Open, choice: Choice) -> None:
        """The limit came first: what is still open counts as it is."""
        for place, row in enumerate(choice.rows.tolist()):
            for beam in range(self.captions):
                part = self.parts[int(now.images[row])][beam // self.width]
                total = float(self.totals[place, beam])
                if not part.is_over and total > NEVER:
                    origin, token = int(choice.origin[place, beam]), int(choice.tokens[place, beam])
                    part.add(self._hypothesis(now, (row, origin), token, total), self.width)

    def _hypothesis(self, now: Open, beam: tuple[int, int], token: int, total: float) -> Hypothesis:
        """The caption of (row, beam) with one more token."""
        tokens, length = now.said[beam].tolist()[1:], now.logprobs.shape[-1] + 1
        one = Hypothesis(tokens, rank=total / length**self.config.length_penalty)
        if token == self.search.end:
            one.ended_by = "end"
        else:
            tokens.append(token)
            if self.search.is_stopped(tokens[len(self.search.prefix) :]):
                one.ended_by = "stop"
        one.logprobs = [*now.logprobs[beam].tolist(), float(now.own[*beam, token])]
        one.missing = self.required.missing(tuple(tokens)) if self.required is not None else ()
        return one

    def _is_over(self, part: _Part, best_open: float, length: int) -> bool:
        """Whether a search ends: `best_open` is the sum of log-probabilities of its best open beam.

        Where as many captions as beams have ended: at once if early_stopping is true; if it is false, when the best
        open beam at its present length falls behind them all; if it is never, when it would even at the longest,
        which a positive length penalty favours. As in transformers.
        """
        if best_open == NEVER:
            return True
        if len(part.ended) < self.width:
            return False
        if self.config.early_stopping is True:
            return True
        if self.config.early_stopping == "never" and self.config.length_penalty > 0:
            length = self.config.max_new_tokens
        return part.ended[-1].rank >= best_open / length**self.config.length_penalty
