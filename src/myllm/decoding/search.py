"""From next-token logits to token sequences: greedy, sampling and beam search.

Sees a `Stepper` alone: nothing of our model, its tokenizer or pictures.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from myllm.config import DecodeConfig


class Stepper(Protocol):
    """What a language model must offer to be searched. State is whatever it likes, handed through unopened."""

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The newest tokens (B, G, 1) int64 -> logits of the next ones (B, G, vocab_size), and the state after."""
        ...

    def reorder(self, state: Any, rows: Tensor) -> Any:
        """The state in which caption i goes on from what was caption rows[i]; rows is (B * G,) int64."""
        ...


@dataclass
class Hypothesis:
    """One caption as tokens: without begin and end, with the end's log-probability where it was reached."""

    tokens: list[int]
    logprobs: list[float]
    is_finished: bool
    rank: float = 0.0
    """What beam search orders by: log-probability / length ** length_penalty."""

    @property
    def score(self) -> float:
        """Mean log-probability of a token, the end included."""
        return sum(self.logprobs) / max(1, len(self.logprobs))


@dataclass
class _Finished:
    best: list[Hypothesis] = field(default_factory=list)

    def add(self, hypothesis: Hypothesis, beams: int) -> None:
        self.best = sorted([*self.best, hypothesis], key=lambda one: -one.rank)[:beams]


def generate(
    stepper: Stepper,
    state: Any,
    batch: int,
    end: int,
    config: DecodeConfig,
    generator: torch.Generator | None = None,
) -> list[list[Hypothesis]]:
    """Captions of `batch` images, best first: one for greedy and sampling, `config.beams` for beam search.

    state: of batch * config.beams captions, with nothing said yet. end: the token that begins and ends a caption.
    """
    if config.beams > 1:
        return beam_search(stepper, state, batch, end, config)
    return [[one] for one in one_by_one(stepper, state, batch, end, config, generator)]


def one_by_one(
    stepper: Stepper, state: Any, batch: int, end: int, config: DecodeConfig, generator: torch.Generator | None = None
) -> list[Hypothesis]:
    """Take the likeliest token, or draw one, until each caption has ended or is max_new_tokens long."""
    newest = torch.full((batch, 1, 1), end)
    rows = [Hypothesis([], [], False) for _ in range(batch)]
    for _ in range(config.max_new_tokens):
        logits, state = stepper.step(newest, state)
        logprobs = logits[:, 0].float().log_softmax(-1)
        chosen = draw(logprobs, config, generator) if config.do_sample else logprobs.argmax(-1)
        said = logprobs.gather(1, chosen[:, None])[:, 0]
        for row, token, logprob in zip(rows, chosen.tolist(), said.tolist(), strict=True):
            if not row.is_finished:
                row.logprobs.append(logprob)
                row.is_finished = token == end
                if not row.is_finished:
                    row.tokens.append(token)
        if all(row.is_finished for row in rows):
            break
        newest = chosen[:, None, None].cpu()
    return rows


def draw(logprobs: Tensor, config: DecodeConfig, generator: torch.Generator | None) -> Tensor:
    """(N, vocab_size) log-probabilities -> (N,) tokens, after temperature, top-k and top-p (Holtzman et al. 2020)."""
    logits = logprobs / config.temperature
    if config.top_k:
        least = logits.topk(min(config.top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if config.top_p < 1:
        ordered, order = logits.softmax(-1).sort(descending=True)
        # a token stays while those before it hold less than top_p, so the likeliest always does
        beyond = ordered.cumsum(-1) - ordered >= config.top_p
        logits = logits.masked_fill(beyond.scatter(1, order, beyond), float("-inf"))
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def beam_search(stepper: Stepper, state: Any, batch: int, end: int, config: DecodeConfig) -> list[list[Hypothesis]]:
    """Keep the likeliest beginnings; finished ones wait aside until none that is open can overtake them.

    The order of search and the moment to stop are those of transformers with `early_stopping=False`.
    """
    beams = config.beams
    newest = torch.full((batch, beams, 1), end)
    # all beams begin alike, so only the first may be gone on from
    scores = torch.full((batch, beams), float("-inf"))
    scores[:, 0] = 0.0
    tokens = torch.empty(batch, beams, 0, dtype=torch.int64)
    logprobs = torch.empty(batch, beams, 0)
    finished = [_Finished() for _ in range(batch)]
    is_open = [True] * batch
    for length in range(1, config.max_new_tokens + 1):
        logits, state = stepper.step(newest, state)
        step_logprobs = logits.float().log_softmax(-1).cpu()
        vocab_size = step_logprobs.shape[-1]
        totals = (scores[..., None] + step_logprobs).flatten(1)
        # twice as many as beams: even if every beam ends now, as many open ones remain
        top, places = totals.topk(min(2 * beams, totals.shape[1]))
        origin, token = places // vocab_size, places % vocab_size
        kept = torch.zeros(batch, beams, dtype=torch.int64)
        for image in range(batch):
            goes_on = [place for place in range(top.shape[1]) if token[image, place] != end][:beams]
            goes_on += [goes_on[-1]] * (beams - len(goes_on))
            kept[image] = torch.tensor(goes_on)
            if not is_open[image]:
                continue
            for place in range(beams):
                if token[image, place] == end and top[image, place] > float("-inf"):
                    beam, total = int(origin[image, place]), float(top[image, place])
                    said = [*logprobs[image, beam].tolist(), float(step_logprobs[image, beam, end])]
                    rank = total / length**config.length_penalty
                    finished[image].add(Hypothesis(tokens[image, beam].tolist(), said, True, rank), beams)
            attainable = float(top[image, goes_on[0]]) / length**config.length_penalty
            is_full = len(finished[image].best) == beams
            is_open[image] = not (is_full and finished[image].best[-1].rank >= attainable)
        if not any(is_open):
            break
        scores, origin, token = (values.gather(1, kept) for values in (top, origin, token))
        said_now = step_logprobs.flatten(1).gather(1, origin * vocab_size + token)
        tokens = torch.cat([tokens.gather(1, origin[..., None].expand_as(tokens)), token[..., None]], dim=-1)
        logprobs = torch.cat([logprobs.gather(1, origin[..., None].expand_as(logprobs)), said_now[..., None]], dim=-1)
        state = stepper.reorder(state, (origin + beams * torch.arange(batch)[:, None]).flatten())
        newest = token[..., None]
    for image in range(batch):
        if is_open[image]:  # the limit came first
            for beam in range(beams):
                if scores[image, beam] > float("-inf"):
                    rank = float(scores[image, beam]) / config.max_new_tokens**config.length_penalty
                    cut = Hypothesis(tokens[image, beam].tolist(), logprobs[image, beam].tolist(), False, rank)
                    finished[image].add(cut, beams)
    return [one.best for one in finished]
