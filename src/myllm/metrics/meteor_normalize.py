"""METEOR's own tokenizer, the jar's option -norm for English: it cuts again what PTB's has cut, "t-shirt" for one."""

import re
from collections.abc import Mapping
from itertools import zip_longest

from myllm.metrics.ngrams import Words

# What the jar takes for a letter, as the inside of a character class; "ß" is one, Greek and Chinese are punctuation.
_LETTER = "A-Za-zŠŽšžŸÀ-ÖØ-öø-ž\u0400-\u0527\ua640-\ua66e\ua67e-\ua697\u1d00-\u1d7f"
_BLANK = " \t\n\r\f"
_WIDE_BLANK = "\xa0\u2000-\u200a\u202f\u205f\u3000"

# One after the other: a rule sees what those before it have made of the text.
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
        (rf"([^0-9{_LETTER}])'([{_LETTER}])", r"\1 ' \2"),  # PTB's "dog 's" is dog ' s, so "'s" counts for two words
        (rf"([{_LETTER}])'([^{_LETTER}])", r"\1 ' \2"),
        (rf"([{_LETTER}])'([{_LETTER}])", r"\1 '\2"),
        ("([0-9])'(s)", r"\1 '\2"),
    )
]
_WORD = re.compile(f"[^{_BLANK}]+")
_LAST_WORD = re.compile(f"[^{_BLANK}{_WIDE_BLANK}]+")


def normalize(text: str, abbreviations: Mapping[str, bool]) -> Words:
    """The lower-cased words of a caption as METEOR aligns them.

    abbreviations: those that keep their point, such as "Mr"; true where they do so before a number alone, such as "No".
    """
    text = f" {text} "
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    words = _WORD.findall(text)
    pairs = zip_longest(words, words[1:], fillvalue="")
    cut = " ".join(_cut_point(word, following, abbreviations) for word, following in pairs)
    return _LAST_WORD.findall(cut.lower())


def _cut_point(word: str, following: str, abbreviations: Mapping[str, bool]) -> str:
    """A word with its last point cut off, where the point ends a sentence."""
    bare = word[:-1]
    if not word.endswith(".") or not bare.strip("."):
        return word
    if "." in bare and re.search(f"[{_LETTER}]", bare):
        return word.replace(".", "")  # u.s.
    only_before_number = abbreviations.get(bare)
    if only_before_number is False or re.match("[a-z]", following):
        return word
    if only_before_number and re.match("[0-9]", following):
        return word
    return f"{bare} ."
