"""What options that speak of words make of tokens: automata over bytes, so that no spelling in tokens slips through."""

import re
from collections.abc import Callable, Hashable, Sequence
from functools import cache, cached_property, lru_cache
from types import SimpleNamespace
from typing import Any, Protocol, TypeVar

import torch
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper, regex_to_lark
from torch import Tensor

from myllm.errors import ConfigError

T = TypeVar("T")
BLANK = ord(" ")
# What may stand between the words of `only_words`
MARK = "[ ,.-]"
# So many beginnings of captions are remembered: those of a batch, while a process that captions for days stays small
KEPT = 4096
Tokens = tuple[int, ...]


class Vocabulary:
    """What tokens say. Equal only to itself, so that automata are kept with it."""

    def __init__(self, tokens: Sequence[bytes], encode: Callable[[str], list[int]], end: int) -> None:
        """tokens: the bytes of each token, none for the end; encode: text to the tokens it is usually written in."""
        self.tokens, self.encode, self.end = tokens, encode, end

    @cached_property
    def guided(self) -> LLTokenizer:
        """The tokens as llguidance takes them; seconds to make for 50,000."""
        facts = {"tokens": self.tokens, "eos_token_id": self.end, "bos_token_id": None, "special_token_ids": [self.end]}
        return LLTokenizer(TokenizerWrapper(SimpleNamespace(**facts)), slices=[])

    def text(self, tokens: Sequence[int]) -> bytes:
        """What these tokens say."""
        return b"".join(self.tokens[token] for token in tokens)


class Constraint(Protocol):
    """Which tokens may follow."""

    def allowed_after(self, tokens: Sequence[int]) -> Tensor:
        """(vocab_size,) bool: what may follow a caption of these tokens."""
        ...


class Banned:
    """No phrase as whole words, in no casing. A token that completes one never comes, even if the word might go on.

    An automaton whose state is the longest end of the text, in plain bytes, that one of the phrases begins with.
    """

    def __init__(self, phrases: Sequence[str], vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        # characters beyond ASCII have no case as bytes, so they are given one here
        self.phrases = {_words(form.encode()) for phrase in phrases for form in _casings(phrase)}
        self.allowed, self.after = cache(self._allowed), cache(self._after)

    def allowed_after(self, tokens: Sequence[int]) -> Tensor:
        """As `Constraint`."""
        state: bytes | None = b" "
        for token in tokens:
            state = None if state is None else self.after(state, token)
        return self.allowed(state)

    def _allowed(self, state: bytes | None) -> Tensor:
        tokens = range(len(self.vocabulary.tokens))
        return torch.tensor([state is not None and self._after(state, token) is not None for token in tokens])

    def _after(self, state: bytes, token: int) -> bytes | None:
        for byte in map(_plain, self.vocabulary.tokens[token]):
            if byte == BLANK and state in self.phrases:
                return None
            if not (byte == BLANK and state.endswith(b" ")):
                state += bytes([byte])
            while not any(phrase.startswith(state) for phrase in self.phrases):
                state = state[1:]
        return None if state in self.phrases else state


class Pattern:
    """Captions that a regular expression describes as a whole; by llguidance."""

    def __init__(self, pattern: str, vocabulary: Vocabulary) -> None:
        """Raises ConfigError for what is no regular expression."""
        grammar = f'%llguidance {{"no_forcing": true}}\nstart: /{regex_to_lark(pattern)}/'  # tokens in any spelling
        self.matcher = LLMatcher(vocabulary.guided, grammar, log_level=0)
        if self.matcher.is_error():
            told = re.search("^error: (.+)", self.matcher.get_error(), re.MULTILINE)
            raise ConfigError(f"decode.regex {pattern!r}: {told[1] if told else self.matcher.get_error()}")

    def allowed_after(self, tokens: Sequence[int]) -> Tensor:
        """As `Constraint`."""
        matcher = self.matcher.deep_copy()
        is_alive = matcher.consume_tokens(list(tokens))
        allowed = torch.frombuffer(bytearray(matcher.compute_logit_bias()), dtype=torch.uint8).bool()
        return allowed if is_alive else torch.zeros_like(allowed)


def only_these(words: Sequence[str], vocabulary: Vocabulary) -> Pattern:
    """These words alone, in any order, with blanks, commas, full stops and hyphens between them."""
    word = f"({'|'.join(sorted(re.escape(form) for one in words for form in _casings(one)))})"
    return Pattern(f"{MARK}*({word}({MARK}+{word})*{MARK}*)?", vocabulary)


class Required:
    """Phrases that a caption must say as whole words, and the tokens that lead there."""

    def __init__(self, phrases: Sequence[str], vocabulary: Vocabulary) -> None:
        """Raises ConfigError for a phrase that has no spelling in these tokens."""
        self.vocabulary, self.phrases = vocabulary, phrases
        self.spelled = [tuple(vocabulary.encode(f" {phrase}")) for phrase in phrases]
        self.spelled_first = [tuple(vocabulary.encode(phrase)) for phrase in phrases]
        for phrase, *spelled in zip(phrases, self.spelled, self.spelled_first, strict=True):
            if any(_words(vocabulary.text(tokens)) != _words(phrase.encode()) for tokens in spelled):
                raise ConfigError(f"decode.force_words {phrase!r}: the model's tokens cannot say it; leave it out")
        self.missing = lru_cache(maxsize=KEPT)(self._missing)
        self.lead = lru_cache(maxsize=KEPT)(self._lead)

    def _missing(self, tokens: Tokens) -> tuple[str, ...]:
        """The phrases that a caption of these tokens does not say."""
        said = _words(self.vocabulary.text(tokens)) + b" "
        return tuple(phrase for phrase in self.phrases if _words(phrase.encode()) + b" " not in said)

    def _lead(self, tokens: Tokens) -> tuple[int, frozenset[int]]:
        """How many tokens of phrases a caption has said, a begun one included, and those that would be one more."""
        missing, said, begun, coming = self.missing(tokens), 0, 0, set[int]()
        for phrase, later, first in zip(self.phrases, self.spelled, self.spelled_first, strict=True):
            if phrase not in missing:
                said += len(later)
                continue
            for spelled in (later, first):
                for length in range(len(spelled)):
                    at_start = length == len(tokens)
                    if tokens[len(tokens) - length :] == spelled[:length] and at_start == (spelled is first):
                        begun = max(begun, length)
                        coming.add(spelled[length])
        return said + begun, frozenset(coming)


@lru_cache(maxsize=32)
def prepared(kind: Callable[[Any, Vocabulary], T], value: Hashable, vocabulary: Vocabulary) -> T:
    """`kind` made once for a value of its option, and kept with all that it has worked out."""
    return kind(value, vocabulary)


def _plain(byte: int) -> int:
    """Letters and digits in lower case, bytes of longer characters as they are, all else a blank."""
    is_word = byte >= 0x80 or chr(byte).isalnum() or byte == ord("'")
    return ord(chr(byte).lower()) if is_word and byte < 0x80 else byte if is_word else BLANK


def _words(text: bytes) -> bytes:
    """' hot dog' of 'Hot-Dog'."""
    return b" " + b" ".join(bytes(map(_plain, text)).split())


def _casings(phrase: str) -> set[str]:
    return {phrase, phrase.lower(), phrase.upper(), phrase.title()}
