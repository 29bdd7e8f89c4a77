"""METEOR's own tokenizer, the jar's option -norm for English; it splits PTB's words further, such as "t-shirt"."""

import re
from collections.abc import Mapping
from itertools import zip_longest
from sys import intern

from myllm.metrics.ngrams import Words

# The jar's letters, as the inside of a character class: "ß" is one, Greek and Chinese characters are punctuation.
_LETTER = "A-Za-zŠŽšžŸÀ-ÖØ-öø-ž\u0400-\u0527\ua640-\ua66e\ua67e-\ua697\u1d00-\u1d7f"
_BLANK = " \t\n\r\f"
_WIDE_BLANK = "\xa0\u2000-\u200a\u202f\u205f\u3000"

# Applied in order, each to the result of the one before.
_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (rf"[^0-9{_LETTER}{_BLANK}\v.'`,‘’-]", r" \g<0> "),
        (r"\.{2,}", r" \g<0> "),
        (r"([^0-9]),([^0-9])", r"\1 , \2"),  # "1,000" stays whole
        (r"([0-9]),([^0-9])", r"\1 , \2"),
        (r"([^0-9]),([0-9])", r"\1 , \2"),
        ("[`‘’]", "'"),
        ("[“”]|''", ' " '),
        ("–|--", "-"),
        (rf"([0-9{_LETTER}.])-([0-9{_LETTER}])", r"\1 \2"),
        (rf"([^{_LETTER}])'([^{_LETTER}])", r"\1 ' \2"),
        (rf"([^0-9{_LETTER}])'([{_LETTER}])", r"\1 ' \2"),  # PTB's "dog 's" becomes dog ' s
        (rf"([{_LETTER}])'([^{_LETTER}])", r"\1 ' \2"),
        (rf"([{_LETTER}])'([{_LETTER}])", r"\1 '\2"),
        ("([0-9])'(s)", r"\1 '\2"),
    )
]
_WORD = re.compile(f"[^{_BLANK}]+")
_LAST_WORD = re.compile(f"[^{_BLANK}{_WIDE_BLANK}]+")


def normalize(text: str, abbreviations: Mapping[str, bool]) -> Words:
    """Return the lower-cased words of a caption, as METEOR aligns them.

    abbreviations: those that keep their full stop, such as "Mr"; true for those that do so only before a number, such
        as "No".
    """
    text = f" {text} "
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    words = _WORD.findall(text)
    pairs = zip_longest(words, words[1:], fillvalue="")
    split = " ".join(_split_full_stop(word, following, abbreviations) for word, following in pairs)
    return list(map(intern, _LAST_WORD.findall(split.lower())))


def _split_full_stop(word: str, following: str, abbreviations: Mapping[str, bool]) -> str:
    """Separate the full stop from a word if it ends a sentence."""
    bare = word[:-1]
    if not word.endswith(".") or not bare.strip("."):
        return word
    if "." in bare and re.search(f"[{_LETTER}]", bare):
        return word.replace(".", "")  # u.s.
    only_before_number = abbreviations.get(bare)
    stays = only_before_number is False or re.match("[0-9a-z]" if only_before_number else "[a-z]", following)
    return word if stays else f"{bare} ."
