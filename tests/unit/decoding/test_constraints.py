"""Words over tokens: whatever tokens a text is cut into, the same texts are allowed."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from myllm.decoding.constraints import Banned, Constraint, Pattern, Required, Vocabulary, only_these
from myllm.errors import ConfigError

DRAWN = [b"a", b" ", b"c", b"at", b" cat", b"s", b" Cat", b" hot dog", b" hot", b" d", b"og", b".", b"\xc3", b"\xa9"]
# every byte is a token, as in a real vocabulary: a pattern can always go on
PIECES = [*DRAWN, *(bytes([byte]) for byte in range(256) if bytes([byte]) not in DRAWN), b""]
END = len(PIECES) - 1
WORDS = Vocabulary(PIECES, lambda text: [PIECES.index(text.encode())], END)
BANNED, ONLY = Banned(["cat", "Hot dog"], WORDS), only_these(["a", "cats", "dog"], WORDS)
PATTERN = Pattern("a( cat| d(og)?)*(é)?", WORDS)
TEXTS = st.lists(st.integers(0, len(DRAWN) - 1), max_size=10)


def allowed(constraint: Constraint, tokens: list[int]) -> set[int]:
    found: Tensor = constraint.allowed_after(tokens)
    return set(found.nonzero()[:, 0].tolist())


def is_reachable(constraint: Constraint, tokens: list[int]) -> bool:
    """Whether each token is allowed after those before it."""
    return all(token in allowed(constraint, tokens[:place]) for place, token in enumerate(tokens))


def says(tokens: list[int], phrase: str) -> bool:
    """By a regular expression over the text, where marks and runs of blanks are one blank."""
    text = re.sub(rb"[ .]+", b" ", b" " + WORDS.text(tokens) + b" ").lower()
    return b" " + phrase.encode() + b" " in text


@given(tokens=TEXTS)
def test_banned_words_are_reached_by_no_spelling(tokens: list[int]) -> None:
    heads = [tokens[: place + 1] for place in range(len(tokens))]
    assert is_reachable(BANNED, tokens) == (not any(says(head, one) for head in heads for one in ("cat", "hot dog")))


@pytest.mark.parametrize("text", ["scats", "a hot", "concat", "hotdog", "ca t"])
def test_what_only_holds_a_banned_word_is_allowed(text: str) -> None:
    letters = Vocabulary([bytes([byte]) for byte in range(32, 127)], lambda text: [], 0)
    constraint = Banned(["cat", "hot dog"], letters)
    assert is_reachable(constraint, [ord(letter) - 32 for letter in text])


def test_a_banned_word_is_banned_in_capitals_that_are_no_ascii() -> None:
    letters = Vocabulary([*(bytes([byte]) for byte in range(256)), b""], lambda text: [], 256)
    for form in ("Café", "CAFÉ", "café"):
        text = list(form.encode())
        assert text[-1] not in allowed(Banned(["café"], letters), text[:-1])


@given(tokens=TEXTS)
def test_only_these_words_reach_an_end(tokens: list[int]) -> None:
    matches = re.fullmatch(rb"[ .]*((a|[cC]ats|dog)([ .]+(a|[cC]ats|dog))*[ .]*)?", WORDS.text(tokens))
    assert (is_reachable(ONLY, tokens) and END in allowed(ONLY, tokens)) == (matches is not None)


@given(tokens=TEXTS)
def test_what_ends_matches_the_whole_pattern(tokens: list[int]) -> None:
    matches = re.fullmatch("a( cat| d(og)?)*(é)?".encode(), WORDS.text(tokens))
    assert (is_reachable(PATTERN, tokens) and END in allowed(PATTERN, tokens)) == (matches is not None)


def test_what_is_no_pattern_is_told() -> None:
    with pytest.raises(ConfigError, match=r"decode.regex 'a\(': unclosed group"):
        Pattern("a(", WORDS)


@given(tokens=TEXTS)
def test_a_required_phrase_is_missing_until_it_is_said_as_words(tokens: list[int]) -> None:
    spelled = Vocabulary(PIECES, lambda text: [PIECES.index(b" " + text.strip().encode())], END)
    required = Required(["cat", "d"], spelled)
    assert required.missing(tuple(tokens)) == tuple(one for one in ("cat", "d") if not says(tokens, one))


def test_the_tokens_that_lead_on_are_those_that_continue_a_phrase_or_begin_one() -> None:
    at = PIECES.index
    spelling = {
        " hot dog": [at(b" hot"), at(b" d"), at(b"og")],
        "hot dog": [at(b"h"), at(b"o"), at(b"t"), at(b" d"), at(b"og")],
        " cat": [at(b" cat")], "cat": [at(b"c"), at(b"at")],
    }
    required, hot, d, og, cat = Required(["hot dog", "cat"], Vocabulary(PIECES, spelling.__getitem__, END)), 8, 9, 10, 4
    assert required.lead(()) == (0, {at(b"h"), at(b"c")})  # at the start without a blank
    assert required.lead((at(b"h"),)) == (1, {at(b"o"), hot, cat})
    assert required.lead((0, hot)) == (1, {d, hot, cat})
    assert required.lead((0, hot, d)) == (2, {og, hot, cat})
    assert required.lead((0, hot, d, og)) == (3, {cat})
    assert required.lead((0, cat, hot)) == (2, {d, hot})


def test_a_required_word_that_tokens_cannot_say_is_refused() -> None:
    with pytest.raises(ConfigError, match="force_words 'kiwi': the model's tokens cannot say it"):
        Required(["kiwi"], Vocabulary([b"a", b" b", b""], lambda text: [0], 2))


def test_a_constraint_remembers_states_not_captions() -> None:
    constraint = Banned(["cat"], WORDS)
    for seed in range(300):
        drawn = torch.randint(0, len(DRAWN), (12,), generator=torch.Generator().manual_seed(seed)).tolist()
        constraint.allowed_after([token for token in drawn if token not in (4, 6)])
    assert constraint.allowed.cache_info().currsize <= len(" cat") + 1  # type: ignore[attr-defined]
