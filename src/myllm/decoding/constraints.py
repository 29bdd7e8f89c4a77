"""Constraints on words, as automata over the bytes of tokens, so that they hold however a text is cut into tokens."""

import re
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from myllm.decoding.arrays import Bools
from myllm.errors import ConfigError

if TYPE_CHECKING:
    from llguidance import LLTokenizer

T = TypeVar("T")
BLANK = ord(" ")
# characters that may stand between the words of `only_words`
SEPARATORS = "[ ,.-]"
# captions whose required words are remembered: those of a batch
MAX_CACHED_CAPTIONS = 4096
# masks over the vocabulary that are remembered: 50 KB each with GPT-2's
MAX_CACHED_MASKS = 512
Tokens = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The text of each token. Equal only to itself, so that `prepare` can keep constraints for it."""

    tokens: Sequence[bytes]
    """Bytes of each token; empty for the end token."""
    encode: Callable[[str], list[int]]
    """From a text to its usual tokens."""
    end: int

    @cached_property
    def guided(self) -> "LLTokenizer":
        """The tokens in llguidance's form; takes seconds to build for 50,000."""
        from llguidance import LLTokenizer, TokenizerWrapper

        facts = {"tokens": self.tokens, "eos_token_id": self.end, "bos_token_id": None, "special_token_ids": [self.end]}
        return LLTokenizer(TokenizerWrapper(SimpleNamespace(**facts)), slices=[])

    def text(self, tokens: Iterable[int]) -> bytes:
        """Bytes of a sequence of tokens; a row of the embedding that has no token adds none."""
        return b"".join(self.tokens[token] for token in tokens if token < len(self.tokens))


class Constraint(Protocol):
    """A rule about words that decides which tokens may come next."""

    def allowed_after(self, tokens: Sequence[int]) -> Bools:
        """Return whether each token of the vocabulary may follow a caption that consists of `tokens`: (N,) bool."""
        ...


class Banned:
    """Forbids phrases as whole words, in any casing; a token that completes one is forbidden even inside a longer word.

    An automaton of Aho and Corasick (1975) over normalized bytes: a state stands for the longest end of the text that
    is the beginning of a phrase. It reads all tokens of the vocabulary at once, byte by byte.
    """

    def __init__(self, phrases: Sequence[str], vocabulary: Vocabulary) -> None:
        # casings are listed, because the bytes of characters beyond ASCII cannot be converted to lower case
        forms = {form for phrase in phrases for form in _casings(phrase)}
        self._next, self._is_match = _automaton({_words(form.encode()) for form in forms})
        self._dead = len(self._next) - 1
        self._start = int(self._next[0, BLANK])
        self._tokens = [token.translate(NORMALIZED) for token in vocabulary.tokens]
        lengths = np.array([len(token) for token in self._tokens])
        self._longest_first = np.argsort(-lengths, kind="stable")
        joined = np.frombuffer(b"".join(self._tokens), np.uint8)
        starts = (np.cumsum(lengths) - lengths)[self._longest_first]
        # for each position, its byte in the tokens that are long enough: they come first
        counts = [np.count_nonzero(lengths > position) for position in range(lengths.max(initial=0))]
        self._columns = [joined[starts[:count] + position] for position, count in enumerate(counts)]
        self.mask = lru_cache(maxsize=MAX_CACHED_MASKS)(self._mask)
        self.state_after = lru_cache(maxsize=MAX_CACHED_CAPTIONS)(self._state_after)

    def allowed_after(self, tokens: Sequence[int]) -> Bools:
        """See `Constraint`."""
        state = self._start
        for token in tokens:
            state = self.state_after(state, token)
        return self.mask(state)

    def _mask(self, state: int) -> Bools:
        states = np.full(len(self._tokens), state)
        for column in self._columns:
            states[: len(column)] = self._next[states[: len(column)], column]
        allowed = np.empty(len(self._tokens), bool)
        allowed[self._longest_first] = ~self._is_match[states]
        return allowed

    def _state_after(self, state: int, token: int) -> int:
        for byte in self._tokens[token] if token < len(self._tokens) else b"":
            state = int(self._next[state, byte])
        return self._dead if self._is_match[state] else state


class Pattern:
    """Allows captions that match a regular expression as a whole (by llguidance)."""

    def __init__(self, pattern: str, vocabulary: Vocabulary) -> None:
        """Raises ConfigError for an invalid regular expression."""
        from llguidance import LLMatcher, regex_to_lark

        # no_forcing: the text may be cut into tokens in any way
        grammar = f'%llguidance {{"no_forcing": true}}\nstart: /{regex_to_lark(pattern)}/'
        self.size = len(vocabulary.tokens)
        self.matcher = LLMatcher(vocabulary.guided, grammar, log_level=0)
        if self.matcher.is_error():
            message = re.search("^error: (.+)", self.matcher.get_error(), re.MULTILINE)
            raise ConfigError(f"decode.regex {pattern!r}: {message[1] if message else self.matcher.get_error()}")

    def allowed_after(self, tokens: Sequence[int]) -> Bools:
        """See `Constraint`."""
        matcher = self.matcher.deep_copy()
        if not matcher.consume_tokens(list(tokens)):
            return np.zeros(self.size, bool)
        return np.frombuffer(matcher.compute_logit_bias(), np.uint8)[: self.size] > 0


def only_these(words: Sequence[str], vocabulary: Vocabulary) -> Pattern:
    """Allow only these words, in any order, with blanks, commas, full stops and hyphens between them."""
    word = f"({'|'.join(sorted(re.escape(form) for word in words for form in _casings(word)))})"
    return Pattern(f"{SEPARATORS}*({word}({SEPARATORS}+{word})*{SEPARATORS}*)?", vocabulary)


class Required:
    """Phrases that a caption must contain as whole words, and the tokens that lead to them."""

    def __init__(self, phrases: Sequence[str], vocabulary: Vocabulary) -> None:
        """Raises ConfigError for a phrase that the tokens cannot spell."""
        self.vocabulary, self.phrases = vocabulary, phrases
        self.normalized = [_words(phrase.encode()) + b" " for phrase in phrases]
        self.spellings = [tuple(vocabulary.encode(f" {phrase}")) for phrase in phrases]
        self.initial_spellings = [tuple(vocabulary.encode(phrase)) for phrase in phrases]
        for phrase, *spellings in zip(phrases, self.spellings, self.initial_spellings, strict=True):
            if any(_words(vocabulary.text(tokens)) != _words(phrase.encode()) for tokens in spellings):
                raise ConfigError(f"decode.force_words {phrase!r}: the model's tokens cannot spell it; leave it out")
        self.missing = lru_cache(maxsize=MAX_CACHED_CAPTIONS)(self._missing)
        self.progress = lru_cache(maxsize=MAX_CACHED_CAPTIONS)(self._progress)

    def _missing(self, tokens: Tokens) -> tuple[str, ...]:
        """Return the phrases that a caption of these tokens does not contain."""
        text = _words(self.vocabulary.text(tokens)) + b" "
        pairs = zip(self.phrases, self.normalized, strict=True)
        return tuple(phrase for phrase, normalized in pairs if normalized not in text)

    def _progress(self, tokens: Tokens) -> tuple[int, frozenset[int]]:
        """Return how many tokens of phrases, finished or not, a caption contains, and the tokens that add one."""
        missing, finished, begun, leading = self.missing(tokens), 0, 0, set[int]()
        for phrase, later, initial in zip(self.phrases, self.spellings, self.initial_spellings, strict=True):
            if phrase not in missing:
                finished += len(later)
                continue
            # the end of the caption may begin the phrase, or, by another spelling, the whole caption
            parts = [(later, length) for length in range(min(len(later), len(tokens)))]
            if len(tokens) < len(initial):
                parts.append((initial, len(tokens)))
            for spelling, length in parts:
                if tokens[len(tokens) - length :] == spelling[:length]:
                    begun = max(begun, length)
                    leading.add(spelling[length])
        return finished + begun, frozenset(leading)


@lru_cache(maxsize=32)
def prepare(kind: Callable[[Any, Vocabulary], T], value: Hashable, vocabulary: Vocabulary) -> T:
    """Return `kind(value, vocabulary)`, built once for each value of its option and kept with its caches."""
    return kind(value, vocabulary)


def _automaton(phrases: set[bytes]) -> tuple[NDArray[np.int32], Bools]:
    """Return the next state for each (state, normalized byte), and whether the text of each state ends with a phrase.

    The last state is a dead end: a phrase was followed by a blank inside a token. Runs of blanks count as one.
    """
    children: list[dict[int, int]] = [{}]
    is_match = [False]
    for phrase in phrases:
        state = 0
        for byte in phrase:
            if byte not in children[state]:
                children[state][byte] = len(children)
                children.append({})
                is_match.append(False)
            state = children[state][byte]
        is_match[state] = True
    dead = len(children)
    is_match.append(True)
    following = np.zeros((dead + 1, 256), np.int32)
    following[dead] = dead
    queue = deque([(0, 0, 0)])
    while queue:  # breadth first, so that the shorter end of a text, `fallback`, is complete
        state, fallback, last_byte = queue.popleft()
        is_match[state] |= state > 0 and is_match[fallback]
        fallbacks = following[fallback].copy()
        following[state] = fallbacks
        for byte, child in children[state].items():
            queue.append((child, int(fallbacks[byte]) if state else 0, byte))
            following[state, byte] = child
        if last_byte == BLANK:
            following[state, BLANK] = state
        elif is_match[state]:
            following[state, BLANK] = dead
    return following, np.array(is_match)


def _normalized(byte: int) -> int:
    """Letters and digits in lower case, bytes of longer characters unchanged, all else a blank."""
    is_word = byte >= 0x80 or chr(byte).isalnum() or byte == ord("'")
    return ord(chr(byte).lower()) if is_word and byte < 0x80 else byte if is_word else BLANK


NORMALIZED = bytes(map(_normalized, range(256)))


def _words(text: bytes) -> bytes:
    """' hot dog' of 'Hot-Dog'."""
    return b" " + b" ".join(text.translate(NORMALIZED).split())


def _casings(phrase: str) -> set[str]:
    return {phrase, phrase.lower(), phrase.upper(), phrase.title()}
