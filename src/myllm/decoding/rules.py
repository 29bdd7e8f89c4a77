"""What may be said next: rules that turn the scores of next tokens into others, and the table that names them.

A rule is a function (scores, said, value) -> scores: scores (N, vocab_size) float32 are a model's logits, or in beam
search its log-probabilities, of N captions; value is that of the option of its name in `DecodeConfig`. What may not
come next gets -inf. A new rule is a function here, its line in a table below, and its option. Each does what the
processor of the same option in transformers does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from myllm.config import DecodeConfig
from myllm.decoding.constraints import Banned, Constraint, Pattern, Required, Vocabulary, only_these, prepared
from myllm.errors import ConfigError

NEVER = float("-inf")


@dataclass(frozen=True)
class Said:
    """What N captions have said so far."""

    tokens: Tensor
    """(N, T) int64, the token that begins a caption first, then the words that it was to begin with."""
    end: int
    """The token that ends one."""
    given: int = 1
    """How many of `tokens` were given, not chosen."""
    vocabulary: Vocabulary | None = None
    """What the tokens say; needed by the rules that speak of words."""


def repetition_penalty(scores: Tensor, said: Said, value: float) -> Tensor:
    """Scores of tokens said already are divided by `value` above zero, multiplied below (Keskar et al. 2019)."""
    seen = scores.gather(1, said.tokens)
    return scores.scatter(1, said.tokens, torch.where(seen < 0, seen * value, seen / value))


def no_repeat_ngram_size(scores: Tensor, said: Said, value: int) -> Tensor:
    """No `value` tokens come twice in the same order in a caption (Paulus et al. 2017)."""
    length = said.tokens.shape[1]
    if length < value:
        return scores
    ngrams = said.tokens.unfold(1, value, 1)
    newest = said.tokens[:, length - value + 1 :]
    row, place = (ngrams[..., :-1] == newest[:, None]).all(-1).nonzero(as_tuple=True)
    scores = scores.clone()
    scores[row, ngrams[row, place, -1]] = NEVER
    return scores


def min_new_tokens(scores: Tensor, said: Said, value: int) -> Tensor:
    """No end before `value` tokens."""
    if said.tokens.shape[1] - said.given >= value:
        return scores
    return scores.index_fill(1, torch.tensor([said.end], device=scores.device), NEVER)


def bad_words(scores: Tensor, said: Said, value: tuple[str, ...]) -> Tensor:
    """None of these words or phrases, in any casing and any spelling in tokens."""
    return _within(scores, said, Banned, value)


def only_words(scores: Tensor, said: Said, value: tuple[str, ...]) -> Tensor:
    """No other words than these."""
    return _within(scores, said, only_these, value)


def regex(scores: Tensor, said: Said, value: str) -> Tensor:
    """Captions that match as a whole (Willard and Louf 2023)."""
    return _within(scores, said, Pattern, value)


def force_words(scores: Tensor, said: Said, value: tuple[str, ...]) -> Tensor:
    """No end before all are said; beam search leads there."""
    assert said.vocabulary is not None
    required = prepared(Required, value, said.vocabulary)
    is_early = torch.tensor([bool(required.missing(tuple(row[1:]))) for row in said.tokens.tolist()])
    return scores.index_put((is_early, torch.tensor(said.end)), torch.tensor(NEVER))


def _within(scores: Tensor, said: Said, kind: Callable[[Any, Vocabulary], Constraint], value: Any) -> Tensor:
    assert said.vocabulary is not None
    constraint = prepared(kind, value, said.vocabulary)
    allowed = torch.stack([constraint.allowed_after(row[1:]) for row in said.tokens.tolist()])
    return scores.masked_fill(~allowed, NEVER)


def temperature(scores: Tensor, said: Said, value: float) -> Tensor:
    """Below 1 the likely become likelier, above 1 all become more alike."""
    return scores / value


def top_k(scores: Tensor, said: Said, value: int) -> Tensor:
    """The `value` likeliest tokens alone (Fan et al. 2018)."""
    least = scores.topk(min(value, scores.shape[-1])).values[:, -1:]
    return scores.masked_fill(scores < least, NEVER)


def top_p(scores: Tensor, said: Said, value: float) -> Tensor:
    """The fewest tokens that hold `value` of the probability together (Holtzman et al. 2020)."""
    ordered, order = scores.softmax(-1).sort(descending=True)
    # a token stays while those before it hold less, so the likeliest always does
    beyond = ordered.cumsum(-1) - ordered >= value
    return scores.masked_fill(beyond.scatter(1, order, beyond), NEVER)


def min_p(scores: Tensor, said: Said, value: float) -> Tensor:
    """Tokens at least `value` times as likely as the likeliest (Nguyen et al. 2024)."""
    chances = scores.softmax(-1)
    return scores.masked_fill(chances < value * chances.amax(-1, keepdim=True), NEVER)


def typical_p(scores: Tensor, said: Said, value: float) -> Tensor:
    """Tokens about as surprising as the next one is expected to be, holding `value` together (Meister et al. 2023)."""
    logprobs = scores.log_softmax(-1)
    chances = logprobs.exp()
    entropy = -(logprobs * chances).nansum(-1, keepdim=True)
    strange, order = (-logprobs - entropy).abs().sort()
    held = chances.gather(1, order).cumsum(-1)
    last = (held < value).sum(-1, keepdim=True).clamp(max=scores.shape[-1] - 1)
    beyond = strange > strange.gather(1, last)
    return scores.masked_fill(beyond.scatter(1, order, beyond), NEVER)


Rule = Callable[[Tensor, Said, Any], Tensor]
# In the order of transformers, on which results depend.
_ALWAYS = (repetition_penalty, no_repeat_ngram_size, min_new_tokens, bad_words, only_words, force_words, regex)
ALWAYS: Mapping[str, Rule] = {rule.__name__: rule for rule in _ALWAYS}
SAMPLING: Mapping[str, Rule] = {rule.__name__: rule for rule in (temperature, top_k, top_p, min_p, typical_p)}


def active_rules(config: DecodeConfig) -> Mapping[str, Any]:
    """The rules whose option is set, by name, with its value, in the order in which they apply."""
    names = [*ALWAYS, *SAMPLING] if config.do_sample else [*ALWAYS]
    return {name: value for name in names if (value := getattr(config, name)) != getattr(DecodeConfig, name)}


def apply_rules(scores: Tensor, said: Said, config: DecodeConfig) -> Tensor:
    """(N, vocab_size) scores after every rule whose option is set."""
    for name, value in active_rules(config).items():
        scores = {**ALWAYS, **SAMPLING}[name](scores, said, value)
    return scores


def nothing_left(config: DecodeConfig, chosen: int) -> ConfigError:
    """The error for a caption of so many tokens that can neither go on nor end."""
    rules = ", ".join(f"{name} {value!r}" for name, value in active_rules(config).items())
    return ConfigError(f"decode: {rules} leave nothing that may come as token {chosen + 1}; loosen one")
