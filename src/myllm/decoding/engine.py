"""The engine: from a model's scores of next tokens to captions, a step at a time.

Sees a `Stepper` alone: nothing of our model, its tokenizer or pictures. What may be said is up to the rules, which of
it is said to a chooser (`search.py`, `beam.py`). Captions that have ended leave the batch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from myllm.config import DecodeConfig
from myllm.decoding.constraints import Vocabulary
from myllm.decoding.rules import NEVER, Said, apply_rules
from myllm.errors import MyLLMError

# Li et al. 2023: what the model itself finds this much less likely than the likeliest is never said for its contrast
PLAUSIBLE = 0.1
Ending = Literal["end", "stop", "length"]


class Stepper(Protocol):
    """What a language model must offer to be searched. State is whatever it likes, handed through unopened."""

    def start(self, images: Any) -> Any:
        """The state of one caption for each image, with nothing said yet."""
        ...

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The newest tokens (B, G, T) int64 -> logits of those after them (B, G, vocab_size), and the state after.

        T is 1 but in the first step, which takes all words that a caption is to begin with.
        """
        ...

    def reorder(self, state: Any, rows: Tensor) -> Any:
        """The state in which caption (i, j) goes on from what was caption rows[i, j].

        rows: (B', G') int64, counting the B * G captions in a row; all G' of a row are of one image. Images that are
        left out have ended.
        """
        ...


@dataclass(frozen=True)
class SearchRequest:
    """What is to be searched, and how."""

    stepper: Stepper
    images: Any
    """What the stepper starts from."""
    batch: int
    """How many images these are."""
    end: int
    """The token that begins and ends a caption."""
    config: DecodeConfig
    prefix: tuple[int, ...] = ()
    """Tokens that every caption begins with."""
    vocabulary: Vocabulary | None = None
    """What the tokens say; needed by options that speak of words."""
    blind: Any = None
    """What the stepper starts from where it is to see no picture; needed by `contrastive_weight`."""
    seeds: Sequence[int] = ()
    """Of what is drawn, one for each image; needed by `do_sample`."""

    def ended_by(self, said: Tensor, token: int) -> Ending:
        """What ends a caption that said (T,) and now says `token`; length where nothing does, but for that."""
        if token == self.end:
            return "end"
        if not self.config.stop_strings or self.vocabulary is None:
            return "length"
        before = self.vocabulary.text(said[1 + len(self.prefix) :].tolist())
        text = before + self.vocabulary.text([token])
        stops = [stop.encode() for stop in self.config.stop_strings]
        return "stop" if any(stop in text[max(0, len(before) - len(stop) + 1) :] for stop in stops) else "length"


@dataclass
class Hypothesis:
    """One caption as tokens: without begin and end."""

    tokens: list[int]
    """The words it was to begin with among them."""
    logprobs: list[float] = field(default_factory=list)
    """Of the tokens that were chosen, the end included where it was reached: the model's own, before the rules."""
    ended_by: Ending = "length"
    """Its end token, a stop string, or max_new_tokens."""
    rank: float = 0.0
    """What beam search orders by: log-probability, after the rules, / length ** length_penalty."""
    missing: tuple[str, ...] = ()
    """Of force_words, those that did not find their place."""

    @property
    def score(self) -> float:
        """Mean log-probability of a token, the end included."""
        return sum(self.logprobs) / max(1, len(self.logprobs))


@dataclass(frozen=True)
class OpenCaptions:
    """Captions that are being said: G of each of B images."""

    images: Tensor
    """(B,) int64, which of the search's images."""
    said: Tensor
    """(B, G, T) int64: begin, prefix, and what was chosen."""
    logprobs: Tensor
    """(B, G, chosen): the model's own, of what was chosen."""
    own: Tensor
    """(B, G, vocab_size): the model's log-probabilities of what comes next."""
    scores: Tensor
    """(B, G, vocab_size): what the rules make of them."""


@dataclass(frozen=True)
class Choice:
    """What is gone on with. No rows: all is said."""

    rows: Tensor
    """(B',) int64, the images of `OpenCaptions` that stay."""
    origin: Tensor
    """(B', G') int64, which of its image's captions each goes on from."""
    tokens: Tensor
    """(B', G') int64."""


class SearchStrategy(Protocol):
    """A search: how many captions of an image are kept, and which token each goes on with."""

    captions: int
    sums_logprobs: ClassVar[bool]
    """Whether the rules are to change log-probabilities, as transformers' do in beam search, or logits."""

    def choose(self, now: OpenCaptions) -> Choice: ...

    def found(self) -> list[list[Hypothesis]]: ...


def run_search(search: SearchRequest, chooser: SearchStrategy) -> Iterator[None]:
    """Choose until every caption has ended or has max_new_tokens; yields after each choice.

    Raises MyLLMError where the model's scores are no numbers, and ConfigError where the rules leave nothing to say.
    """
    config, given = search.config, 1 + len(search.prefix)
    images = torch.arange(search.batch)
    said = torch.tensor([search.end, *search.prefix]).expand(search.batch, chooser.captions, given)
    logprobs = torch.empty(search.batch, chooser.captions, 0)
    newest, rows = said, images[:, None].expand(said.shape[:2])
    starts = [search.images, search.blind] if config.contrastive_weight else [search.images]
    states = [search.stepper.start(start) for start in starts]
    for chosen in range(config.max_new_tokens):
        seen = []
        for number, state in enumerate(states):
            logits, states[number] = search.stepper.step(newest, search.stepper.reorder(state, rows))
            seen.append(logits.float())
        own = _log_softmax(seen[0], chosen).cpu()
        scores = own if chooser.sums_logprobs else seen[0]
        if config.contrastive_weight:
            scores = contrasted(own, _log_softmax(seen[1], chosen).cpu(), config.contrastive_weight)
        told = Said(said.flatten(0, 1), search.end, given, search.vocabulary)
        scores = apply_rules(scores.flatten(0, 1).cpu(), told, config).view_as(own)
        choice = chooser.choose(OpenCaptions(images, said, logprobs, own, scores))
        yield
        if not len(choice.rows):
            return
        images, origin, newest = images[choice.rows], choice.origin, choice.tokens[..., None]
        rows = origin + said.shape[1] * choice.rows[:, None]
        current_time = own[choice.rows[:, None], origin, choice.tokens]
        said = torch.cat([said[choice.rows[:, None], origin], newest], dim=-1)
        logprobs = torch.cat([logprobs[choice.rows[:, None], origin], current_time[..., None]], dim=-1)


def contrasted(own: Tensor, blind: Tensor, weight: float) -> Tensor:
    """Log-probabilities of "what only the picture explains": (1 + weight) * own - weight * blind, normalised again.

    own, blind: (..., vocab_size) log-probabilities with and without the picture. Contrastive decoding (Li et al. 2023),
    in the form of Leng et al. 2024; implausible tokens never come.
    """
    scores = ((1 + weight) * own - weight * blind).log_softmax(-1)
    return scores.masked_fill(own < own.amax(-1, keepdim=True) + math.log(PLAUSIBLE), NEVER)


def _log_softmax(logits: Tensor, chosen: int) -> Tensor:
    logprobs = logits.log_softmax(-1)
    if logprobs[..., 0].isnan().any():  # one score that is no number makes the whole row so
        told = f"the model's scores of token {chosen + 1} are no numbers, or all of them minus infinity"
        raise MyLLMError(f"{told}; its weights are damaged, or overflow")
    return logprobs
