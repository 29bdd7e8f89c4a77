"""Beam search: the likeliest beginnings are kept, those that have ended wait aside until the search is over.

In the order of transformers, which also decides when it is over. Groups of beams may be told to differ (Vijayakumar et
al. 2018), and beams be divided by how many required words they have said (Post and Vilar 2018).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from myllm.decoding.constraints import Required, prepared
from myllm.decoding.engine import Choice, Ending, Hypothesis, OpenCaptions, SearchRequest
from myllm.decoding.rules import NEVER, nothing_left


def best_first(hypotheses: Sequence[Hypothesis]) -> list[Hypothesis]:
    """By rank; before that, by how few required words are missing."""
    return sorted(hypotheses, key=lambda one: (len(one.missing), -one.rank))


@dataclass
class _Part:
    """The beams of one image in one group: what has ended, and whether the search goes on."""

    ended: list[Hypothesis] = field(default_factory=list)
    is_over: bool = False

    def add(self, hypothesis: Hypothesis, beams: int) -> None:
        self.ended = best_first([*self.ended, hypothesis])[:beams]


class _Candidates(NamedTuple):
    """What beams may go on to, best first: (B, K) each; `origin` is a beam of the image, all groups counted."""

    totals: Tensor
    origin: Tensor
    tokens: Tensor


class Beams:
    """Beam search for `generate`."""

    sums_logprobs: ClassVar[bool] = True

    def __init__(self, search: SearchRequest) -> None:
        self.search, self.config = search, search.config
        self.captions, self.groups = self.config.beams, self.config.num_beam_groups
        self.width = self.captions // self.groups
        # all beams of a group begin alike, so only its first may be gone on from
        self.totals = torch.full((search.batch, self.captions), NEVER)
        self.totals[:, :: self.width] = 0.0
        self.parts = [[_Part() for _ in range(self.groups)] for _ in range(search.batch)]
        words = self.config.force_words
        self.required = prepared(Required, words, search.vocabulary) if words and search.vocabulary else None

    def choose(self, now: OpenCaptions) -> Choice:
        """Each group in turn; an image leaves once the search is over in all of its groups."""
        kept: list[_Candidates] = []
        for group in range(self.groups):
            scores = now.scores[:, group * self.width : (group + 1) * self.width]
            for before in kept:
                for tokens in before.tokens.T:  # a beam of an earlier group, of each image
                    index = tokens[:, None, None].expand(-1, self.width, 1)
                    scores = scores.scatter_add(2, index, torch.full(index.shape, -self.config.diversity_penalty))
            kept.append(self._advance(self._candidates(scores, group, now), group, now))
        goes_on = [not all(part.is_over for part in self.parts[image]) for image in now.images.tolist()]
        rows = torch.tensor(goes_on).nonzero()[:, 0]
        self.totals, origin, tokens = (torch.cat(parts, dim=1)[rows] for parts in zip(*kept, strict=True))
        return Choice(rows, origin, tokens)

    def found(self) -> list[list[Hypothesis]]:
        """Of each image, what has ended in any group, best first."""
        return [best_first([one for part in parts for one in part.ended]) for parts in self.parts]

    def _candidates(self, scores: Tensor, group: int, now: OpenCaptions) -> _Candidates:
        """scores: (B, width, vocab_size). Twice as many as beams: if every beam ends now, as many open ones remain."""
        vocab_size, first = scores.shape[-1], group * self.width
        totals = self.totals[:, first : first + self.width, None]
        count = min(2 * self.width, self.width * vocab_size)
        if self.required is None:
            # the best of all beams are among the best of each, which are found without adding up the whole vocabulary
            best, tokens = scores.topk(min(count, vocab_size))
            totals, places = (totals + best).flatten(1).topk(count)
            return _Candidates(totals, first + places // best.shape[-1], tokens.flatten(1).gather(1, places))
        sums = totals + scores
        places = torch.stack([self._by_banks(own, said, count) for own, said in zip(sums, now.said, strict=True)])
        return _Candidates(sums.flatten(1).gather(1, places), first + places // vocab_size, places % vocab_size)

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

    def _advance(self, found: _Candidates, group: int, now: OpenCaptions) -> _Candidates:
        """Put aside what ends among the best, and keep as many as beams of what goes on."""
        length = now.logprobs.shape[-1] + 1
        kept = torch.zeros(len(now.images), self.width, dtype=torch.int64)
        totals = torch.full(kept.shape, NEVER)
        listed = zip(found.totals.tolist(), found.origin.tolist(), found.tokens.tolist(), strict=True)
        for row, (image, columns) in enumerate(zip(now.images.tolist(), listed, strict=True)):
            part, goes_on = self.parts[image][group], list[int]()
            candidates = list(zip(*columns, strict=True))
            for place, (total, origin, token) in enumerate(candidates):
                if total == NEVER or part.is_over or len(goes_on) == self.width:
                    continue
                ended_by = self.search.ended_by(now.said[row, origin], token)
                if ended_by == "length":
                    goes_on.append(place)
                elif place < self.width:
                    part.add(self._hypothesis(now, row, candidates[place], ended_by), self.width)
            kept[row, : len(goes_on)] = torch.tensor(goes_on, dtype=torch.int64)
            totals[row, : len(goes_on)] = found.totals[row, goes_on]
            part.is_over = part.is_over or self._is_over(part, float(totals[row].max()), length)
            if part.is_over and not part.ended:
                raise nothing_left(self.config, length - 1)
            if length == self.config.max_new_tokens and not part.is_over:  # what is still open counts as it is
                for place in goes_on:
                    part.add(self._hypothesis(now, row, candidates[place], "length"), self.width)
        return _Candidates(totals, found.origin.gather(1, kept), found.tokens.gather(1, kept))

    def _hypothesis(
        self, now: OpenCaptions, row: int, candidate: tuple[float, int, int], ended_by: Ending
    ) -> Hypothesis:
        """A candidate (total, origin, token) as a caption."""
        total, origin, token = candidate
        told = [*now.said[row, origin, 1:].tolist(), *([] if ended_by == "end" else [token])]
        logprobs = [*now.logprobs[row, origin].tolist(), float(now.own[row, origin, token])]
        missing = self.required.missing(tuple(told)) if self.required is not None else ()
        return Hypothesis(told, logprobs, ended_by, total / len(logprobs) ** self.config.length_penalty, missing)

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
