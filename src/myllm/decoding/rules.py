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
ALWAYS: Mapping[str, Rule] = {
    "repetition_penalty": repetition_penalty,
    "no_repeat_ngram_size": no_repeat_ngram_size,
    "min_new_tokens": min_new_tokens,
}
SAMPLING: Mapping[str, Rule] = {
    "temperature": temperature,
    "top_k": top_k,
    "top_p": top_p,
    "min_p": min_p,
    "typical_p": typical_p,
}


def apply_rules(scores: Tensor, said: Said, config: DecodeConfig) -> Tensor:
    """(N, vocab_size) scores after every rule whose option is set. Raises ConfigError where nothing may come next."""
    applied = []
    for name, rule in ({**ALWAYS, **SAMPLING} if config.do_sample else ALWAYS).items():
        value = getattr(config, name)
        if value != getattr(DecodeConfig, name):
            scores = rule(scores, said, value)
            applied.append(f"{name} {value}")
    if applied and not (scores > NEVER).any(-1).all():
        raise ConfigError(
            f"decode: {', '.join(applied)} leave no token {said.tokens.shape[1]} that may come next; loosen one"
        )
    return scores
