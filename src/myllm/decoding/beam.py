"""Beam search: keep the likeliest unfinished captions, and set finished ones aside until the search is over.

Order and stopping are those of transformers. Groups of beams can be made to differ (Vijayakumar et al. 2018), and
beams can be divided by how many required words they contain (Post and Vilar 2018).
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
from array_api_compat import array_namespace

from myllm.decoding.arrays import IMPOSSIBLE, Array, Floats, Ints, largest, pick, to_device_of, to_numpy
from myllm.decoding.constraints import Required, prepare
from myllm.decoding.engine import Ending, Hypothesis, NextTokens, SearchRequest
from myllm.decoding.history import Choice, History
from myllm.decoding.rules import no_token_message


def best_first(hypotheses: Sequence[Hypothesis]) -> list[Hypothesis]:
    """Sort by the number of required words that are missing, then by rank."""
    return sorted(hypotheses, key=lambda hypothesis: (len(hypothesis.missing), -hypothesis.rank))


class _Candidate(NamedTuple):
    """One token that may continue a beam."""

    total: float
    """Sum of the scores of the beam and the token."""
    origin: int
    """The beam, counted over all groups of the image."""
    token: int
    logprob: float


@dataclass
class _GroupSearch:
    """Beam search of one group of one image."""

    ended: list[Hypothesis] = field(default_factory=list)
    """Finished captions, best first."""
    is_over: bool = False

    def add(self, hypothesis: Hypothesis) -> None:
        self.ended = best_first([*self.ended, hypothesis])


class Beams:
    """Beam search, as a `SearchStrategy`."""

    ranks_logprobs: ClassVar[bool] = True

    def __init__(self, request: SearchRequest) -> None:
        self.request, self.config = request, request.config
        self.captions, self.groups = self.config.beams, self.config.num_beam_groups
        self.width = self.captions // self.groups
        # (B, beams) scores of the open beams. The beams of a group are equal at first, so only one of them may continue
        self.totals = np.full((request.batch, self.captions), IMPOSSIBLE, np.float32)
        self.totals[:, :: self.width] = 0.0
        self.searches = [[_GroupSearch() for _ in range(self.groups)] for _ in range(request.batch)]
        self.spare = [[_Candidate(IMPOSSIBLE, group * self.width, 0, 0.0)] * self.width for group in range(self.groups)]
        self.errors = [""] * request.batch
        words = self.config.force_words
        self.required = prepare(Required, words, request.vocabulary) if words and request.vocabulary else None

    def choose(self, history: History, following: NextTokens) -> Choice:
        """Advance one group after the other; an image leaves when the search is over in all its groups."""
        continuing = [[list[_Candidate]() for _ in range(self.groups)] for _ in history.images]
        for group in range(self.groups):
            first, earlier = group * self.width, [groups[:group] for groups in continuing]
            candidates = self._candidates(history, following.of(slice(first, first + self.width)), earlier, first)
            for row, image in enumerate(history.images.tolist()):
                continuing[row][group] = self._advance(self.searches[image][group], candidates[row], history, row)
        rows = [
            row for row, image in enumerate(history.images.tolist())
            if not all(search.is_over for search in self.searches[image])
        ]
        # a group with fewer open beams than its width is filled up with impossible ones
        pairs = [pair for row in rows for pair in zip(continuing[row], self.spare, strict=True)]
        beams = [beam for group, spare in pairs for beam in (group + spare)[: self.width]]
        fields = np.array(beams, np.float64).reshape(len(rows), self.captions, 4)  # those of `_Candidate`
        self.totals, logprobs = (fields[..., index].astype(np.float32) for index in (0, 3))
        origin, tokens = (fields[..., index].astype(np.int64) for index in (1, 2))
        return Choice(np.array(rows, np.int64), origin, tokens, logprobs)

    def results(self) -> list[list[Hypothesis]]:
        """Return the finished captions of all groups of each image, best first: one for each beam.

        If they are ranked by agreement or confidence, return all that were found.
        """
        count = None if self.config.rank_by in ("retrieval", "confidence") else self.width
        return [
            best_first([hypothesis for search in groups for hypothesis in search.ended[:count]])
            or [Hypothesis([], ended_by="failed", error=error)]
            for groups, error in zip(self.searches, self.errors, strict=True)
        ]

    def _penalize(self, scores: Array, earlier: Sequence[Sequence[list[_Candidate]]]) -> Array:
        """Lower the scores (B, width, vocab_size) of tokens with which earlier groups of the same image continue."""
        counts = Counter((row, beam.token) for row, groups in enumerate(earlier) for beams in groups for beam in beams)
        if not counts:
            return scores
        rows, tokens = (to_device_of(index, scores) for index in np.array(list(counts)).T)
        penalties = self.config.diversity_penalty * np.array(list(counts.values()), np.float32)
        scores = array_namespace(scores).asarray(scores, copy=True)
        scores[rows, :, tokens] -= to_device_of(penalties[:, None], scores)
        return scores

    def _candidates(
        self, history: History, following: NextTokens, earlier: Sequence[Sequence[list[_Candidate]]], first: int
    ) -> list[list[_Candidate]]:
        """Return the best continuations of a group's beams for each image, best first: two for each beam.

        following: scores of the group's beams; earlier: how earlier groups of each image continue; first: index of the
        group's first beam. Twice as many are returned as there are beams, so that enough remain if all beams end now.
        """
        scores = self._penalize(following.scores, earlier)
        vocab_size = scores.shape[-1]
        count = min(2 * self.width, self.width * vocab_size)
        # the best of the group are among the best of each beam, so the totals of the whole vocabulary are not needed
        best, tokens = largest(scores, min(count, vocab_size))
        width = tokens.shape[-1]
        if self.required is not None:
            leading = to_device_of(self._leading_tokens(history), scores)
            tokens = array_namespace(tokens).concat([tokens, leading], axis=-1)
            best = pick(scores, tokens)
        arrays = best - following.score_offset, following.logprobs(tokens), tokens
        best, logprobs, tokens = map(to_numpy, arrays)
        totals = self.totals[:, first : first + self.width, None] + best
        order = np.argsort(-totals[..., :width].reshape(len(totals), -1), axis=-1, kind="stable")[:, :count]
        results = []
        for row, indices in enumerate(order):
            beams, columns = np.divmod(indices, width)
            if self.required is not None:
                beams, columns = self._by_banks(history.tokens[row], beams, columns, totals[row], tokens[row])
            index = row, beams, columns
            fields = [array.tolist() for array in (totals[index], first + beams, tokens[index], logprobs[index])]
            results.append(list(map(_Candidate, *fields)))
        return results

    def _leading_tokens(self, history: History) -> Ints:
        """Return the tokens that lead to required words, filled up with the end token: (B, beams, K)."""
        assert self.required is not None
        rows = [[self.required.progress(tuple(tokens[1:]))[1] for tokens in image] for image in history.tokens.tolist()]
        longest = max(len(leading) for image in rows for leading in image)
        end = [self.request.end] * longest
        filled = [[[*leading, *end][:longest] for leading in image] for image in rows]
        return np.array(filled, np.int64).reshape(*history.tokens.shape[:2], longest)

    def _by_banks(self, history: Ints, beams: Ints, columns: Ints, totals: Floats, tokens: Ints) -> tuple[Ints, Ints]:
        """Return the beams and columns of an image's best candidates, taking one of each bank in turn.

        The candidates of a bank contain the same number of tokens of required words, and compete only with each other.

        history: (width, T); beams, columns: indices of the best of `totals` (width, K); tokens: (width, K).
        """
        assert self.required is not None
        captions = [tuple(row[1:]) for row in history.tolist()]
        best = zip(beams.tolist(), columns.tolist(), strict=True)
        pool = {(beam, int(tokens[beam, column])): column for beam, column in best}
        for beam, caption in enumerate(captions):
            leading = self.required.progress(caption)[1]
            for column, token in enumerate(tokens[beam].tolist()):
                if column == 0 or token in leading:  # the best of each beam, and what leads to a required word
                    pool[beam, token] = column
        banks: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for beam, token in sorted(pool, key=lambda candidate: (-totals[candidate[0], pool[candidate]], candidate)):
            caption = captions[beam] if token == self.request.end else (*captions[beam], token)
            banks[self.required.progress(caption)[0]].append((beam, token))
        turns = [(turn, -bank, candidate) for bank in banks for turn, candidate in enumerate(banks[bank])]
        chosen = [(candidate[0], pool[candidate]) for _, _, candidate in sorted(turns)[: len(beams)]]
        beams, columns = np.array(chosen).T
        return beams, columns

    def _advance(
        self, search: _GroupSearch, candidates: Sequence[_Candidate], history: History, row: int
    ) -> list[_Candidate]:
        """Set aside the best candidates that end, and return those that continue, at most as many as beams."""
        if search.is_over:
            return []
        length, continuing = history.chosen + 1, list[_Candidate]()
        for position, candidate in enumerate(candidates):
            if candidate.total == IMPOSSIBLE or len(continuing) == self.width:
                continue
            ended_by = self.request.ended_by(history, row, candidate.origin, candidate.token)
            if ended_by == "length":
                continuing.append(candidate)
            elif position < self.width:
                search.add(self._hypothesis(history, row, candidate, ended_by))
        search.is_over = self._is_over(search, max((beam.total for beam in continuing), default=IMPOSSIBLE), length)
        if search.is_over:
            if not search.ended:
                self.errors[history.images[row]] = no_token_message(self.config, history.chosen)
            return []
        if length == self.config.max_new_tokens:  # unfinished captions count as they are
            for candidate in continuing:
                search.add(self._hypothesis(history, row, candidate, "length"))
        return continuing

    def _hypothesis(self, history: History, row: int, candidate: _Candidate, ended_by: Ending) -> Hypothesis:
        tokens = history.tokens[row, candidate.origin, 1:].tolist()
        if ended_by != "end":
            tokens.append(candidate.token)
        logprobs = [*history.logprobs[row, candidate.origin].tolist(), candidate.logprob]
        missing = self.required.missing(tuple(tokens)) if self.required is not None else ()
        rank = candidate.total / len(logprobs) ** self.config.length_penalty
        return Hypothesis(tokens, logprobs, ended_by, rank, missing)

    def _is_over(self, search: _GroupSearch, best_open: float, length: int) -> bool:
        """Return whether a search ends, as in transformers.

        A search needs as many finished captions as beams. Then it ends as in transformers. If early_stopping is true,
        it ends at once. If it is false, it ends when the best open beam, at its present length, ranks behind all of
        them; if it is "never", when it would also do so at the longest length, which a positive length_penalty favours.
        """
        if best_open == IMPOSSIBLE:
            return True
        if len(search.ended) < self.width:
            return False
        if self.config.early_stopping is True:
            return True
        if self.config.early_stopping == "never" and self.config.length_penalty > 0:
            length = self.config.max_new_tokens
        return search.ended[self.width - 1].rank >= best_open / length**self.config.length_penalty
