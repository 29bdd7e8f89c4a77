"""Rules that change the scores of the next token, and the tables that list them.

A rule is a function (scores, history, value) -> scores. scores (B, G, vocab_size), float32, are the logits of the
captions in `history`. In beam search they are log-probabilities if repetition_penalty is set, because that rule depends
on the sign. value is the `DecodeConfig` option with the rule's name. A forbidden token gets the score IMPOSSIBLE. Each
rule computes what transformers computes for the option of this name. A new rule needs a function here, an entry in a
table below, and an option in `DecodeConfig`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from myllm.config import DecodeConfig
from myllm.decoding.arrays import IMPOSSIBLE, Array, forbid, largest, log_softmax, pick, replace, softmax, to_device_of
from myllm.decoding.constraints import Banned, Constraint, Pattern, Required, Vocabulary, only_these, prepare
from myllm.decoding.history import History


def repetition_penalty(scores: Array, history: History, value: float) -> Array:
    """For tokens already used, divide positive scores by `value` and multiply negative ones (Keskar et al. 2019)."""
    tokens = to_device_of(history.tokens, scores)
    used = pick(scores, tokens)
    return replace(scores, tokens, array_namespace(scores).where(used < 0, used * value, used / value))


def no_repeat_ngram_size(scores: Array, history: History, value: int) -> Array:
    """Forbid tokens that would repeat a sequence of `value` tokens in a caption (Paulus et al. 2017)."""
    length = history.tokens.shape[-1]
    if length < value:
        return scores
    ngrams = np.lib.stride_tricks.sliding_window_view(history.tokens, value, axis=-1)
    newest = history.tokens[..., None, length - value + 1 :]
    return forbid(scores, ngrams[..., -1], where=(ngrams[..., :-1] == newest).all(-1))


def min_new_tokens(scores: Array, history: History, value: int) -> Array:
    """Forbid the end before `value` tokens."""
    return scores if history.chosen >= value else forbid(scores, _end(history))


def bad_words(scores: Array, history: History, value: tuple[str, ...]) -> Array:
    """Forbid these words and phrases, in any casing and however they are cut into tokens."""
    return _constrain(scores, history, Banned, value)


def only_words(scores: Array, history: History, value: tuple[str, ...]) -> Array:
    """Forbid all words except these."""
    return _constrain(scores, history, only_these, value)


def regex(scores: Array, history: History, value: str) -> Array:
    """Forbid captions that do not match the expression from beginning to end (Willard and Louf 2023)."""
    return _constrain(scores, history, Pattern, value)


def force_words(scores: Array, history: History, value: tuple[str, ...]) -> Array:
    """Forbid the end before the caption contains all of these words; beam search looks for captions that do."""
    assert history.vocabulary is not None
    required = prepare(Required, value, history.vocabulary)
    is_early = [[bool(required.missing(tuple(tokens[1:]))) for tokens in image] for image in history.tokens.tolist()]
    rows = array_namespace(scores).arange(scores.shape[-1], device=device(scores))
    scores = _keep(scores, rows < len(history.vocabulary.tokens))  # an embedding may have more rows than tokens
    return forbid(scores, _end(history), where=np.array(is_early)[..., None])


def temperature(scores: Array, history: History, value: float) -> Array:
    """Divide scores: below 1 sharpens the distribution, above 1 flattens it."""
    return scores / value


def top_k(scores: Array, history: History, value: int) -> Array:
    """Keep the `value` likeliest tokens (Fan et al. 2018)."""
    top, _ = largest(scores, min(value, scores.shape[-1]))
    return _keep(scores, scores >= top[..., -1:])


def top_p(scores: Array, history: History, value: float) -> Array:
    """Keep the fewest tokens whose probabilities reach `value` together (Holtzman et al. 2020)."""
    xp = array_namespace(scores)
    order = xp.argsort(scores, axis=-1, descending=True)
    probabilities = pick(softmax(scores), order)
    # a token stays if the tokens before it do not reach `value`, so the likeliest token always stays
    before = xp.cumulative_sum(probabilities, axis=-1) - probabilities
    return _keep(scores, replace(before < value, order, before < value))


def min_p(scores: Array, history: History, value: float) -> Array:
    """Keep tokens at least `value` times as likely as the likeliest (Nguyen et al. 2024)."""
    probabilities = softmax(scores)
    return _keep(scores, probabilities >= value * array_namespace(scores).max(probabilities, axis=-1, keepdims=True))


def typical_p(scores: Array, history: History, value: float) -> Array:
    """Keep the tokens whose surprise is nearest to the entropy, until their probabilities reach `value` together.

    Surprise is minus log-probability (Meister et al. 2023).
    """
    xp = array_namespace(scores)
    logprobs = log_softmax(scores)
    probabilities = xp.exp(logprobs)
    entropy = -xp.sum(probabilities * xp.where(probabilities > 0, logprobs, 0.0), axis=-1, keepdims=True)
    surprise = xp.abs(-logprobs - entropy)
    order = xp.argsort(surprise, axis=-1)
    reached = xp.cumulative_sum(pick(probabilities, order), axis=-1)
    last = xp.sum(xp.astype(reached < value, xp.int64), axis=-1, keepdims=True)
    limit = pick(pick(surprise, order), xp.clip(last, max=scores.shape[-1] - 1))
    return _keep(scores, surprise <= limit)


Rule = Callable[[Array, History, Any], Array]
# in the order in which transformers applies them, because the result depends on it
_ALWAYS = (repetition_penalty, no_repeat_ngram_size, min_new_tokens, bad_words, only_words, force_words, regex)
ALWAYS: Mapping[str, Rule] = {rule.__name__: rule for rule in _ALWAYS}
SAMPLING: Mapping[str, Rule] = {rule.__name__: rule for rule in (temperature, top_k, top_p, min_p, typical_p)}


def active_rules(config: DecodeConfig) -> Mapping[str, Any]:
    """Return {name: value} of the rules whose option is set, in the order in which they are applied."""
    names = {**ALWAYS, **SAMPLING} if config.do_sample else ALWAYS
    return {name: value for name in names if (value := getattr(config, name)) != getattr(DecodeConfig, name)}


def apply_rules(scores: Array, history: History, config: DecodeConfig) -> Array:
    """Return the scores (B, G, vocab_size) after all rules whose option is set."""
    for name, value in active_rules(config).items():
        scores = (ALWAYS.get(name) or SAMPLING[name])(scores, history, value)
    return scores


def no_token_message(config: DecodeConfig, chosen: int) -> str:
    """Return the error message for a caption of `chosen` tokens that can neither continue nor end."""
    rules = ", ".join(f"{name} {value!r}" for name, value in active_rules(config).items())
    return f"decode: {rules}: no token is allowed at position {chosen + 1}; loosen a rule"


def _end(history: History) -> Any:
    return np.full((*history.tokens.shape[:2], 1), history.end)


def _keep(scores: Array, is_kept: Array) -> Array:
    return array_namespace(scores).where(is_kept, scores, IMPOSSIBLE)


def _constrain(scores: Array, history: History, kind: Callable[[Any, Vocabulary], Constraint], value: Any) -> Array:
    assert history.vocabulary is not None
    constraint = prepare(kind, value, history.vocabulary)
    masks = [constraint.allowed_after(tokens[1:]) for image in history.tokens.tolist() for tokens in image]
    # captions in the same state of an automaton share a mask; each mask is copied to the scores' device once
    distinct = {id(mask): mask for mask in masks}
    rows = {identity: row for row, identity in enumerate(distinct)}
    allowed = np.zeros((len(distinct), scores.shape[-1]), bool)
    allowed[:, : len(history.vocabulary.tokens)] = np.stack(list(distinct.values()))
    row_of = np.array([rows[id(mask)] for mask in masks]).reshape(history.tokens.shape[:2])
    return _keep(scores, to_device_of(allowed, scores)[to_device_of(row_of, scores)])

