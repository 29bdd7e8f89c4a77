"""Greedy and beam search over an exported decoder, in numpy: what `decoding` does, where there is no torch.

Rules and order are those of `decoding.rules` and `decoding.beam`, in the same terms, for the options in `KNOWN`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from myllm.config import DecodeConfig
from myllm.errors import ConfigError, MyLLMError

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
NEVER = np.float32(-np.inf)


class Decoder(Protocol):
    """Captions of pictures, as far as they are said; each call goes on from the one before."""

    def step(self, tokens: Ints) -> Floats:
        """The newest tokens (N, T) of all captions -> logits of those after them (N, vocab_size)."""
        ...

    def select(self, rows: Ints, pictures: Ints) -> None:
        """Go on with captions `rows`, of the old ones, of the `pictures` of the old ones, as many of each."""
        ...


@dataclass
class Found:
    """One caption as tokens, without begin and end."""

    tokens: list[int]
    logprobs: list[float] = field(default_factory=list)
    """Of the tokens that were chosen, and of the end where it was reached: the model's own, before the rules."""
    ended_by: Literal["end", "length"] = "length"
    rank: float = 0.0
    """What beam search orders by."""

    @property
    def score(self) -> float:
        """Mean log-probability of a token, the end included."""
        return sum(self.logprobs) / max(1, len(self.logprobs))


@dataclass(frozen=True)
class Said:
    """(N, T) tokens of N captions, begin and prefix first; `given` of them were not chosen."""

    tokens: Ints
    end: int
    given: int


def repetition_penalty(scores: Floats, said: Said, value: float) -> None:
    seen = np.take_along_axis(scores, said.tokens, 1)
    np.put_along_axis(scores, said.tokens, np.where(seen < 0, seen * np.float32(value), seen / np.float32(value)), 1)


def no_repeat_ngram_size(scores: Floats, said: Said, value: int) -> None:
    length = said.tokens.shape[1]
    if length >= value:
        ngrams = np.lib.stride_tricks.sliding_window_view(said.tokens, value, axis=1)
        newest = said.tokens[:, length - value + 1 :]
        row, place = (ngrams[..., :-1] == newest[:, None]).all(-1).nonzero()
        scores[row, ngrams[row, place, -1]] = NEVER


def min_new_tokens(scores: Floats, said: Said, value: int) -> None:
    if said.tokens.shape[1] - said.given < value:
        scores[:, said.end] = NEVER


RULES: Mapping[str, Callable[[Floats, Said, Any], None]] = {
    rule.__name__: rule for rule in (repetition_penalty, no_repeat_ngram_size, min_new_tokens)
}
KNOWN = {*RULES, "beams", "max_new_tokens", "length_penalty", "early_stopping", "prefix", "num_return_sequences"}


def check(options: DecodeConfig) -> None:
    """Raises ConfigError for an option that is set and needs torch."""
    for name, value in asdict(options).items():
        if name not in KNOWN and value != getattr(DecodeConfig, name):
            known = ", ".join(sorted(KNOWN))
            raise ConfigError(
                f"decode.{name} {value!r} can't be done without torch; an ONNX export knows {known}. "
                "Take the captioner that was exported, or leave the option out"
            )


def search(decoder: Decoder, pictures: int, given: Sequence[int], options: DecodeConfig) -> list[list[Found]]:
    """Captions of each picture, best first.

    given: the token that begins and ends captions, and those that they are to begin with. Raises ConfigError where the
    rules leave nothing to say, and MyLLMError where the model's scores are no numbers.
    """
    begin = np.tile(np.array(given, np.int64), (pictures, 1))
    found = _beams(decoder, begin, options) if options.beams > 1 else _greedy(decoder, begin, options)
    return [one[: options.num_return_sequences] for one in found]


def _greedy(decoder: Decoder, begin: Ints, options: DecodeConfig) -> list[list[Found]]:
    end, given = int(begin[0, 0]), begin.shape[1]
    found = [Found(row[1:].tolist()) for row in begin]
    said, newest, pictures = begin, begin, np.arange(len(begin))
    for _ in range(options.max_new_tokens):
        logits = decoder.step(newest)
        logprobs = _log_softmax(logits)
        scores = _by_rules(logits, Said(said, end, given), options)
        chosen = scores.argmax(-1)
        if not (scores.max(-1) > NEVER).all():
            raise _nothing_left(options)
        for picture, own, token in zip(pictures.tolist(), logprobs, chosen.tolist(), strict=True):
            found[picture].logprobs.append(float(own[token]))
            if token == end:
                found[picture].ended_by = "end"
            else:
                found[picture].tokens.append(token)
        kept = np.flatnonzero(chosen != end)
        if not len(kept):
            break
        if len(kept) < len(chosen):
            decoder.select(kept, kept)
        newest, pictures = chosen[kept, None], pictures[kept]
        said = np.concatenate([said[kept], newest], 1)
    return [[one] for one in found]


def _beams(decoder: Decoder, begin: Ints, options: DecodeConfig) -> list[list[Found]]:
    end, given = int(begin[0, 0]), begin.shape[1]
    searches = [_Beams(row[1:].tolist(), end, options) for row in begin]
    going_on = searches
    said = newest = begin
    while going_on:
        logprobs = _log_softmax(decoder.step(newest))
        scores = _by_rules(logprobs.copy(), Said(said, end, given), options)
        beams = len(scores) // len(going_on)  # one at first, as all begin alike
        rows, tokens, kept = list[int](), list[int](), list[int]()
        for at, one in enumerate(going_on):
            own = slice(at * beams, (at + 1) * beams)
            origin, chosen = one.advance(scores[own], logprobs[own])
            if not one.is_over:
                kept.append(at)
                rows += [at * beams + beam for beam in origin]
                tokens += chosen
        going_on = [going_on[at] for at in kept]
        if going_on:
            decoder.select(np.array(rows), np.array(kept))
            newest = np.array(tokens, np.int64)[:, None]
            said = np.concatenate([said[rows], newest], 1)
    return [one.ended for one in searches]


class _Beams:
    """The beams of one picture: `decoding.beam` without groups and required words."""

    def __init__(self, prefix: Sequence[int], end: int, options: DecodeConfig) -> None:
        self.end, self.options, self.width = end, options, options.beams
        self.totals: Floats = np.zeros(1, np.float32)
        # of each open beam
        self.said, self.logprobs = [list(prefix)], [list[float]()]
        self.ended: list[Found] = []
        self.is_over = False

    def advance(self, scores: Floats, own: Floats) -> tuple[list[int], list[int]]:
        """scores, own: (beams, vocab_size) log-probabilities after and before the rules.

        Puts aside what ends among the best; returns the beam and the token of each that goes on.
        """
        length = len(self.logprobs[0]) + 1
        sums = (self.totals[:, None] + scores).ravel()
        # if every beam ends now, as many open ones remain
        count = min(2 * self.width, sums.size)
        best = np.argpartition(-sums, count - 1)[:count]
        best = best[np.argsort(-sums[best], kind="stable")]
        origin, tokens, totals = list[int](), list[int](), list[np.float32]()
        for place, at in enumerate(best.tolist()):
            beam, token = divmod(at, scores.shape[1])
            if sums[at] == NEVER or len(tokens) == self.width:
                continue
            if token != self.end:
                origin.append(beam)
                tokens.append(token)
                totals.append(sums[at])
            elif place < self.width:
                self._put_aside(beam, self.end, float(sums[at]), own)
        best_open = float(totals[0]) if totals else float(NEVER)
        self.is_over = self._ends(best_open, length)
        if self.is_over and not self.ended:
            raise _nothing_left(self.options)
        if length == self.options.max_new_tokens and not self.is_over:  # what is still open counts as it is
            for beam, token, total in zip(origin, tokens, totals, strict=True):
                self._put_aside(beam, token, float(total), own)
            self.is_over = True
        # places without a candidate are idle, as are all but the first at the beginning
        idle = self.width - len(tokens)
        self.totals = np.array([*totals, *[NEVER] * idle], np.float32)
        origin, tokens = [*origin, *[0] * idle], [*tokens, *[0] * idle]
        pairs = list(zip(origin, tokens, strict=True))
        self.said = [[*self.said[beam], token] for beam, token in pairs]
        self.logprobs = [[*self.logprobs[beam], float(own[beam, token])] for beam, token in pairs]
        return origin, tokens

    def _put_aside(self, beam: int, token: int, total: float, own: Floats) -> None:
        """Caption `beam` with a last token, which may be its end."""
        logprobs = [*self.logprobs[beam], float(own[beam, token])]
        is_end = token == self.end
        told = self.said[beam] if is_end else [*self.said[beam], token]
        rank = total / len(logprobs) ** self.options.length_penalty
        ended = [*self.ended, Found(told, logprobs, "end" if is_end else "length", rank)]
        self.ended = sorted(ended, key=lambda one: -one.rank)[: self.width]

    def _ends(self, best_open: float, length: int) -> bool:
        """As in `decoding.beam`."""
        if best_open == NEVER:
            return True
        if len(self.ended) < self.width:
            return False
        if self.options.early_stopping is True:
            return True
        if self.options.early_stopping == "never" and self.options.length_penalty > 0:
            length = self.options.max_new_tokens
        return self.ended[-1].rank >= best_open / length**self.options.length_penalty


def _by_rules(scores: Floats, said: Said, options: DecodeConfig) -> Floats:
    for name, rule in RULES.items():
        value = getattr(options, name)
        if value != getattr(DecodeConfig, name):
            rule(scores, said, value)
    return scores


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(-1, keepdims=True)
    if np.isnan(shifted).any():
        raise MyLLMError("the model's scores are no numbers; its weights are damaged, or overflow")
    logprobs: Floats = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return logprobs


def _nothing_left(options: DecodeConfig) -> ConfigError:
    rules = ", ".join(f"{name} {getattr(options, name)!r}" for name in RULES)
    return ConfigError(f"decode: {rules} leave nothing that may come next; loosen one")
