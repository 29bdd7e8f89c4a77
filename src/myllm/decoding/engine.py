"""The search loop: from a model's scores of next tokens to captions, one token at a time.

It uses a `Stepper`, and knows neither our model nor its tokenizer nor pictures. Rules (`rules.py`) decide which tokens
are possible, a `SearchStrategy` (`sampling.py`, `beam.py`) which of them are chosen. Finished captions leave the batch.
"""

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from array_api_compat import array_namespace

from myllm.config import DecodeConfig
from myllm.decoding.arrays import IMPOSSIBLE, Array, Bools, Ints, log_softmax, logsumexp, pick, to_device_of, to_numpy
from myllm.decoding.constraints import Vocabulary
from myllm.decoding.history import Choice, History
from myllm.decoding.retrieval import Neighbours
from myllm.decoding.rules import apply_rules
from myllm.errors import MyLLMError

# contrast never chooses a token that has less than this share of the likeliest token's probability (Li et al. 2023)
PLAUSIBLE = 0.1
Ending = Literal["end", "stop", "length", "failed"]


class Stepper(Protocol):
    """A language model that can be searched. The search passes its state on without looking into it."""

    def start(self, images: Any) -> Any:
        """Return the state of one empty caption for each image."""
        ...

    def step(self, tokens: Ints, state: Any) -> tuple[Array, Any]:
        """Return the logits (B, G, vocab_size) after the newest tokens (B, G, T), and the new state.

        T is 1 except in the first step, which takes the begin token and the prefix of one caption for each image.
        Logits may be of numpy or torch, on any device.
        """
        ...

    def reorder(self, state: Any, rows: Ints) -> Any:
        """Return the state in which caption (i, j) is a copy of caption rows[i, j] of `state`.

        rows: (B', G') indices among the B * G captions of `state`; all G' of a row are of one image. Images that are
        left out have finished. `state` itself is not used again.
        """
        ...

    def release(self, state: Any) -> None:
        """Free the memory of a state, once its search has ended or was given up; by default, nothing."""
        return


@dataclass(frozen=True)
class SearchRequest:
    """Images to caption, and the options to caption them with."""

    stepper: Stepper
    images: Any
    """Argument of `stepper.start`."""
    batch: int
    """Number of images."""
    end: int
    """The token that begins and ends a caption."""
    config: DecodeConfig
    prefix: Sequence[int] = ()
    """Tokens that every caption begins with."""
    vocabulary: Vocabulary | None = None
    """The text of each token; needed by options about words."""
    blind: Any = None
    """Argument of `stepper.start` for as many grey pictures; needed by `contrastive_weight`."""
    seeds: Sequence[int] = ()
    """A random seed for each image; needed by `do_sample`."""
    neighbours: Sequence[Neighbours] = ()
    """The training pictures that look most like each image; needed by `rank_by` retrieval."""
    confidence: Callable[[int, "Hypothesis"], float] | None = None
    """Returns the confidence of a caption of the image with this index; needed by `rank_by` confidence."""
    is_given_up: Callable[[int], bool] | None = None
    """Called with each image's index after each step; returns whether to give up its caption. The image then fails."""

    def ended_by(self, history: History, row: int, caption: int, token: int) -> Ending:
        """Return why a caption of `history` ends after `token`; "length" if the token and stop strings do not."""
        if token == self.end:
            return "end"
        if not self.config.stop_strings or self.vocabulary is None:
            return "length"
        before = history.text(row, caption)
        text = before + self.vocabulary.text([token])
        stops = [stop.encode() for stop in self.config.stop_strings]
        return "stop" if any(stop in text[max(0, len(before) - len(stop) + 1) :] for stop in stops) else "length"


@dataclass
class Hypothesis:
    """One caption as tokens, without begin and end token."""

    tokens: list[int]
    """Prefix and chosen tokens."""
    logprobs: list[float] = field(default_factory=list)
    """The model's log-probability of each chosen token, before the rules; the end token, if chosen, is included."""
    ended_by: Ending = "length"
    """The end token, a stop string, max_new_tokens, or rules that allowed no token."""
    rank: float = 0.0
    """Order in beam search: log-probability, after the rules, / length ** length_penalty."""
    missing: tuple[str, ...] = ()
    """The force_words that it does not contain."""
    error: str = ""
    """Why the image has no caption; empty otherwise."""

    @property
    def score(self) -> float:
        """Mean log-probability of a chosen token."""
        return sum(self.logprobs) / max(1, len(self.logprobs))


@dataclass(frozen=True)
class NextTokens:
    """Scores of the next token of each caption, in the array library and on the device of the stepper."""

    logits: Array
    """(B, G, vocab_size): the model's."""
    normalizer: Array
    """(B, G, 1): what to subtract from logits to get log-probabilities."""
    scores: Array
    """(B, G, vocab_size): logits or log-probabilities after the rules."""
    score_offset: Array
    """(B, G, 1): what to subtract from `scores` to get log-probabilities; beam search does that for its candidates."""

    def logprobs(self, tokens: Array) -> Array:
        """Return the model's log-probabilities of tokens (B, G, K)."""
        return pick(self.logits, tokens) - self.normalizer

    def of(self, captions: slice) -> "NextTokens":
        """Return the scores of some of each image's captions."""
        arrays = self.logits, self.normalizer, self.scores, self.score_offset
        return NextTokens(*(array[:, captions] for array in arrays))


class SearchStrategy(Protocol):
    """Decides which captions of an image are kept, and with which tokens they continue."""

    captions: int
    """Number of captions of each image that are searched at the same time."""
    ranks_logprobs: ClassVar[bool]
    """Whether captions are ranked by log-probabilities; rules then change these, not logits, as in transformers."""

    def choose(self, history: History, following: NextTokens) -> Choice:
        """Return how the captions of `history` continue, and keep those that have ended."""
        ...

    def results(self) -> list[list[Hypothesis]]:
        """Return the captions of each image so far, best first; a single one with `error` if the image has failed."""
        ...


def run_search(request: SearchRequest, strategy: SearchStrategy) -> Generator[None]:
    """Choose tokens until every caption has ended or has max_new_tokens; yield after each choice.

    Close the iterator if the search is given up. Raises MyLLMError if the model's scores are NaN.
    """
    stepper, config = request.stepper, request.config
    history = History.begin(request.batch, strategy.captions, request.end, request.prefix, request.vocabulary)
    # the captions of an image are the same at the beginning, so the first step computes one of them
    newest, rows = history.tokens[:, :1], history.images[:, None]
    states = [stepper.start(request.images)]
    try:
        if config.contrastive_weight:
            states.append(stepper.start(request.blind))
        for _ in range(config.max_new_tokens):
            logits = []
            for index, state in enumerate(states):
                states[index] = stepper.reorder(state, rows)
                scores, states[index] = stepper.step(newest, states[index])
                assert scores.shape[:2] == newest.shape[:2]  # `next_tokens` would broadcast one caption's scores
                logits.append(scores)
            following = next_tokens(logits, history, config, strategy.ranks_logprobs)
            if request.is_given_up is not None:
                following = without_images(following, np.array([*map(request.is_given_up, history.images.tolist())]))
            choice = strategy.choose(history, following)
            # read after the choice, so that the program waits for a GPU only once
            if not np.isfinite(to_numpy(following.normalizer)).all():
                raise MyLLMError(
                    f"the model's logits for token {history.chosen + 1} are NaN or all minus infinity; its weights are "
                    "damaged, or its numbers overflow"
                )
            yield
            if not len(choice.rows):
                return
            rows = newest.shape[1] * choice.rows[:, None] + np.minimum(choice.origin, newest.shape[1] - 1)
            newest = choice.tokens[..., None]
            history = history.extend(choice)
    finally:
        for state in states:
            stepper.release(state)


def next_tokens(logits: Sequence[Array], history: History, config: DecodeConfig, ranks_logprobs: bool) -> NextTokens:
    """Return the scores of the captions' next tokens.

    logits: (B, G, vocab_size) of the captions; in the first step (B, 1, vocab_size), as all of an image are alike.
    With `contrastive_weight`, those of the captions of grey pictures follow.
    """
    xp = array_namespace(logits[0])
    shape = (*history.tokens.shape[:2], logits[0].shape[-1])
    raw, *blind = (xp.broadcast_to(xp.astype(values, xp.float32, copy=False), shape) for values in logits)
    normalizer = logsumexp(raw)
    scores, offset = raw, normalizer
    if blind:
        scores = contrast(raw - normalizer, log_softmax(blind[0]), config.contrastive_weight)
        offset = xp.zeros_like(normalizer)
    elif ranks_logprobs and config.repetition_penalty != 1:  # the only rule for which the sign of scores matters
        scores, offset = raw - normalizer, xp.zeros_like(normalizer)
    return NextTokens(raw, normalizer, apply_rules(scores, history, config), offset)


def without_images(following: NextTokens, is_left_out: Bools) -> NextTokens:
    """Return the scores with every token impossible for some images (B,), so that their search ends."""
    if not is_left_out.any():
        return following
    scores = following.scores
    left_out = to_device_of(is_left_out[:, None, None], scores)
    return replace(following, scores=array_namespace(scores).where(left_out, IMPOSSIBLE, scores))


def contrast(logprobs: Array, blind: Array, weight: float) -> Array:
    """Return log-probabilities that favour what only the picture explains, by contrastive decoding.

    They are (1 + weight) * logprobs - weight * blind, normalized.

    logprobs, blind: (..., vocab_size) log-probabilities with the picture and with a grey one. This is the form of Leng
    et al. 2024 of contrastive decoding (Li et al. 2023); implausible tokens become IMPOSSIBLE.
    """
    xp = array_namespace(logprobs)
    scores = log_softmax((1 + weight) * logprobs - weight * blind)
    least = xp.max(logprobs, axis=-1, keepdims=True) + math.log(PLAUSIBLE)
    return xp.where(logprobs < least, IMPOSSIBLE, scores)

