"""Constraints on words: whatever tokens a text is cut into, the same texts are allowed."""

import re
from pathlib import Path
from time import process_time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from myllm.caption import token_bytes
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
    return set(np.flatnonzero(constraint.allowed_after(tokens)).tolist())


def is_reachable(constraint: Constraint, tokens: list[int]) -> bool:
    """Whether each token is allowed after those before it."""
    return all(token in allowed(constraint, tokens[:index]) for index, token in enumerate(tokens))


def contains(tokens: list[int], phrase: str) -> bool:
    """Whether the text has the phrase as words, by a regular expression that takes marks and blanks for one blank."""
    text = re.sub(rb"[ .]+", b" ", b" " + WORDS.text(tokens) + b" ").lower()
    return b" " + phrase.encode() + b" " in text


@given(tokens=TEXTS)
def test_bad_words_are_banned_in_every_spelling(tokens: list[int]) -> None:
    starts = [tokens[: index + 1] for index in range(len(tokens))]
    is_clean = not any(contains(start, phrase) for start in starts for phrase in ("cat", "hot dog"))
    assert is_reachable(BANNED, tokens) == is_clean


@pytest.mark.parametrize("text", ["scats", "a hot", "concat", "hotdog", "ca t"])
def test_bad_words_inside_of_longer_words_are_allowed(text: str) -> None:
    letters = Vocabulary([bytes([byte]) for byte in range(32, 127)], lambda text: [], 0)
    constraint = Banned(["cat", "hot dog"], letters)
    assert is_reachable(constraint, [ord(letter) - 32 for letter in text])


def test_bad_words_are_banned_in_capitals_beyond_ascii() -> None:
    letters = Vocabulary([*(bytes([byte]) for byte in range(256)), b""], lambda text: [], 256)
    for form in ("Café", "CAFÉ", "café"):
        text = list(form.encode())
        assert text[-1] not in allowed(Banned(["café"], letters), text[:-1])


@given(tokens=TEXTS)
def test_only_words_allow_captions_of_these_words_to_end(tokens: list[int]) -> None:
    matches = re.fullmatch(rb"[ .]*((a|[cC]ats|dog)([ .]+(a|[cC]ats|dog))*[ .]*)?", WORDS.text(tokens))
    assert (is_reachable(ONLY, tokens) and END in allowed(ONLY, tokens)) == (matches is not None)


@given(tokens=TEXTS)
def test_regex_is_matched_by_every_caption_that_ends(tokens: list[int]) -> None:
    matches = re.fullmatch("a( cat| d(og)?)*(é)?".encode(), WORDS.text(tokens))
    assert (is_reachable(PATTERN, tokens) and END in allowed(PATTERN, tokens)) == (matches is not None)


def test_regex_that_is_invalid_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"decode.regex 'a\(': unclosed group"):
        Pattern("a(", WORDS)


@given(tokens=TEXTS)
def test_force_words_are_missing_until_they_come_as_words(tokens: list[int]) -> None:
    spelled = Vocabulary(PIECES, lambda text: [PIECES.index(b" " + text.strip().encode())], END)
    required = Required(["cat", "d"], spelled)
    assert required.missing(tuple(tokens)) == tuple(word for word in ("cat", "d") if not contains(tokens, word))


def test_force_words_progress_names_the_tokens_that_continue_or_begin_a_phrase() -> None:
    number = PIECES.index
    spelling = {
        " hot dog": [number(b" hot"), number(b" d"), number(b"og")],
        "hot dog": [number(b"h"), number(b"o"), number(b"t"), number(b" d"), number(b"og")],
        " cat": [number(b" cat")], "cat": [number(b"c"), number(b"at")],
    }
    required, hot, d, og, cat = Required(["hot dog", "cat"], Vocabulary(PIECES, spelling.__getitem__, END)), 8, 9, 10, 4
    assert required.progress(()) == (0, {number(b"h"), number(b"c")})  # without a blank at the start
    assert required.progress((number(b"h"),)) == (1, {number(b"o"), hot, cat})
    assert required.progress((0, hot)) == (1, {d, hot, cat})
    assert required.progress((0, hot, d)) == (2, {og, hot, cat})
    assert required.progress((0, hot, d, og)) == (3, {cat})
    assert required.progress((0, cat, hot)) == (2, {d, hot})


def test_force_words_that_the_tokens_cannot_spell_are_refused() -> None:
    with pytest.raises(ConfigError, match="force_words 'kiwi': the model's tokens cannot spell it"):
        Required(["kiwi"], Vocabulary([b"a", b" b", b""], lambda text: [0], 2))


def test_bad_words_remember_states_not_captions() -> None:
    constraint, random = Banned(["cat"], WORDS), np.random.default_rng(0)
    for _ in range(300):
        tokens = random.integers(0, len(DRAWN), 12).tolist()
        constraint.allowed_after([token for token in tokens if token not in (4, 6)])
    assert constraint.mask.cache_info().currsize <= len(" cat") + 1


WORD_LISTS = st.lists(st.text("ab c", min_size=1, max_size=6).filter(str.strip), min_size=1, max_size=6)


@given(phrases=WORD_LISTS, text=st.text("ab c", max_size=12))
def test_bad_words_that_overlap_are_found_as_by_a_plain_search(phrases: list[str], text: str) -> None:
    """Phrases that begin, end or contain each other; letter by letter, so that a word ends where its last letter is."""
    letters = Vocabulary([*(bytes([byte]) for byte in range(97, 100)), b" "], lambda text: [], 0)
    tokens = [3 if letter == " " else ord(letter) - 97 for letter in text]
    starts = [f" {' '.join(text[: length + 1].split())} " for length in range(len(text))]
    banned = [f" {' '.join(phrase.split())} " for phrase in phrases]
    is_clean = not any(phrase in start for start in starts for phrase in banned)
    assert is_reachable(Banned(phrases, letters), tokens) == is_clean


def test_a_thousand_bad_words_with_gpt2s_vocabulary_take_under_half_a_second() -> None:
    folder = Path(__file__).parents[4] / "shared/data/gpt2_tokenizer"
    if not folder.is_dir():
        pytest.skip("GPT-2's tokenizer is not beside this checkout")
    tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokens = token_bytes(tokenizer)
    words = [text for piece in tokens if (text := piece.decode(errors="replace").strip()).isalpha() and len(text) > 3]
    vocabulary = Vocabulary(tokens, lambda text: [], 50256)
    start = process_time()
    banned = Banned(words[:1000], vocabulary)
    for length in range(20):  # a caption of twenty tokens
        banned.allowed_after(range(1000, 1000 + length))
    assert process_time() - start < 0.5
