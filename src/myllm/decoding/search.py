"""From next-token logits to token sequences: greedy, sampling and beam search.

Sees a `Stepper` alone: nothing of our model, its tokenizer or pictures. Captions that have ended leave the batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from myllm.config import DecodeConfig
from myllm.decoding.rules import NEVER, Said, apply_rules
from myllm.errors import MyLLMError


class Stepper(Protocol):
    """What a language model must offer to be searched. State is whatever it likes, handed through unopened."""

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The newest tokens (B, G, T) int64 -> logits of those after them (B, G, vocab_size), and the state after.

        T is 1 but in the first step, which takes all words that a caption is to begin with.
        """
        ...

    def reorder(self, state: Any, rows: Tensor) -> Any:
        """The state in which caption i goes on from what was caption rows[i].

        rows: (B * G,) int64, all G captions of an image together; images that are left out have ended.
        """
        ...


@dataclass
class Hypothesis:
    """One caption as tokens: without begin and end, with the end's log-probability where it was reached."""

    tokens: list[int]
    """The words it was to begin with among them."""
    logprobs: list[float]
    """Of the tokens that were chosen: the model's own, whatever the rules made of them."""
    is_finished: bool
    rank: float = 0.0
    """What beam search orders by: log-probability, after the rules, / length ** length_penalty."""

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
    prefix: Sequence[int] = (),
    generator: torch.Generator | None = None,
) -> list[list[Hypothesis]]:
    """Captions of `batch` images, best first: one for greedy and sampling, `config.beams` for beam search.

    state: of batch * config.beams captions, with nothing said yet. end: the token that begins and ends a caption.
    prefix: tokens that every caption begins with.
    Raises MyLLMError where the model's scores are no numbers, and ConfigError where the rules leave nothing to say.
    """
    if config.beams > 1:
        return beam_search(stepper, state, batch, end, config, prefix)
    rows = [Hypothesis(list(prefix), [], False) for _ in range(batch)]
    for step in one_by_one(stepper, state, batch, end, config, prefix, generator):
        for row, token, logprob in step:
            rows[row].logprobs.append(logprob)
            rows[row].is_finished = token == end
            if token != end:
                rows[row].tokens.append(token)
    return [[one] for one in rows]


def one_by_one(
    stepper: Stepper,
    state: Any,
    batch: int,
    end: int,
    config: DecodeConfig,
    prefix: Sequence[int] = (),
    generator: torch.Generator | None = None,
) -> Iterator[list[tuple[int, int, float]]]:
    """Take the likeliest token, or draw one, until each caption has ended or has max_new_tokens.

    Yields what each step says: (which caption, token, the model's log-probability of it).
    """
    rows = torch.arange(batch)
    said = torch.tensor([[end, *prefix]]).repeat(batch, 1)
    newest = said
    # all at once, a row a caption: what a caption draws does not depend on the others
    device = None if generator is None else generator.device
    luck = (
        torch.rand(batch, config.max_new_tokens, generator=generator, device=device) if config.do_sample else None
    )
    for length in range(config.max_new_tokens):
        logits, state = stepper.step(newest[:, None], state)
        logprobs = _logprobs(logits[:, 0], length)
        scores = apply_rules(logits[:, 0].float(), Said(said.to(logits.device), end, 1 + len(prefix)), config)
        chosen = scores.argmax(-1) if luck is None else draw(scores, luck[rows, length])
        of_chosen = logprobs.gather(1, chosen[:, None])[:, 0]
        chosen = chosen.cpu()
        yield list(zip(rows.tolist(), chosen.tolist(), of_chosen.tolist(), strict=True))
        goes_on = (chosen != end).nonzero()[:, 0]
        if not len(goes_on):
            return
        if len(goes_on) < len(rows):
            state = stepper.reorder(state, goes_on)
        newest = chosen[goes_on, None]
        rows, said = rows[goes_on], torch.cat([said[goes_on], newest], dim=1)


def draw(scores: Tensor, luck: Tensor) -> Tensor:
    """(N, vocab_size) scores and (N,) numbers drawn evenly from 0..1 -> (N,) tokens, each as often as it is likely."""
    held = scores.double().softmax(-1).cumsum(-1)
    place = torch.searchsorted(held, luck.to(held)[:, None] * held[:, -1:], right=True)
    return place[:, 0].clamp(max=scores.shape[-1] - 1)


def beam_search(
    stepper: Stepper, state: Any, batch: int, end: int, config: DecodeConfig, prefix: Sequence[int] = ()
) -> list[list[Hypothesis]]:
    """Keep the likeliest beginnings; finished ones wait aside until the search of their image is over.

    The order of search is that of transformers, and so is the moment to stop: see `_is_over`.
    """
    beams = config.beams
    images = torch.arange(batch)
    said = torch.tensor([[[end, *prefix]]]).repeat(batch, beams, 1)
    newest = said
    # all beams begin alike, so only the first may be gone on from
    totals = torch.full((batch, beams), NEVER)
    totals[:, 0] = 0.0
    logprobs = torch.empty(batch, beams, 0)
    finished = [_Finished() for _ in range(batch)]
    for length in range(1, config.max_new_tokens + 1):
        logits, state = stepper.step(newest, state)
        own = _logprobs(logits, length - 1).cpu()
        scores = apply_rules(own.flatten(0, 1), Said(said.flatten(0, 1), end, 1 + len(prefix)), config).view_as(own)
        vocab_size = own.shape[-1]
        sums = (totals[..., None] + scores).flatten(1)
        # twice as many as beams: even if every beam ends now, as many open ones remain
        top, places = sums.topk(min(2 * beams, sums.shape[1]))
        origin, token = places // vocab_size, places % vocab_size
        kept = torch.zeros_like(said[..., 0])
        open_images = []
        for row, image in enumerate(images.tolist()):
            goes_on = [place for place in range(top.shape[1]) if token[row, place] != end][:beams]
            kept[row] = torch.tensor(goes_on + [goes_on[-1]] * (beams - len(goes_on)))
            for place in range(beams):
                if token[row, place] == end and top[row, place] > NEVER:
                    beam, rank = int(origin[row, place]), float(top[row, place]) / length**config.length_penalty
                    told = [*logprobs[row, beam].tolist(), float(own[row, beam, end])]
                    finished[image].add(Hypothesis(said[row, beam, 1:].tolist(), told, True, rank), beams)
            if not _is_over(finished[image].best, float(top[row, goes_on[0]]), length, config):
                open_images.append(row)
        if not open_images:
            return [one.best for one in finished]
        rows = torch.tensor(open_images)
        images, kept, own = images[rows], kept[rows], own[rows]
        totals, origin, token = (values[rows].gather(1, kept) for values in (top, origin, token))
        told_now = own.flatten(1).gather(1, origin * vocab_size + token)
        newest = token[..., None]
        said = torch.cat([_of_beams(said[rows], origin), newest], dim=-1)
        logprobs = torch.cat([_of_beams(logprobs[rows], origin), told_now[..., None]], dim=-1)
        state = stepper.reorder(state, (origin + beams * rows[:, None]).flatten())
    for row, image in enumerate(images.tolist()):  # the limit came first
        for beam in range(beams):
            if totals[row, beam] > NEVER:
                rank = float(totals[row, beam]) / config.max_new_tokens**config.length_penalty
                cut = Hypothesis(said[row, beam, 1:].tolist(), logprobs[row, beam].tolist(), False, rank)
                finished[image].add(cut, beams)
    return [one.best for one in finished]


def _is_over(finished: list[Hypothesis], best_open: float, length: int, config: DecodeConfig) -> bool:
    """Whether the search of an image ends: `best_open` is the sum of log-probabilities of its best open beam.

    Only once as many captions as beams have ended: then at once where early_stopping is true; where it is false, when
    the best open beam at its present length falls behind them all; and where it is never, when it would even at the
    longest, which a positive length penalty favours. As in transformers.
    """
    if len(finished) < config.beams:
        return False
    if config.early_stopping is True:
        return True
    is_longest_best = config.early_stopping == "never" and config.length_penalty > 0
    attainable = best_open / (config.max_new_tokens if is_longest_best else length) ** config.length_penalty
    return finished[-1].rank >= attainable


def _of_beams(values: Tensor, origin: Tensor) -> Tensor:
    """(B, G, T) values of the beams that those of `origin` (B, G) go on from."""
    return values.gather(1, origin[..., None].expand(-1, -1, values.shape[2]))


def _logprobs(logits: Tensor, said: int) -> Tensor:
    """(..., vocab_size) float32."""
    logprobs = logits.float().log_softmax(-1)
    if logprobs.isnan().any():
        raise MyLLMError(f"the model's scores of token {said + 1} are no numbers; its weights are damaged, or overflow")
    return logprobs
