"""Captions to words. `TOKENIZERS` is the table that the command line reads."""

import re
import unicodedata
from collections.abc import Callable, Iterable

from myllm.errors import ConfigError
from myllm.metrics.ngrams import Words
from myllm.metrics.ptb import ptb_tokenize


class _PunctuationToBlank(dict[int, int | str]):
    """A table for str.translate that asks Unicode about each character once, the first time it is seen."""

    def __missing__(self, code: int) -> int | str:
        category = unicodedata.category(chr(code))
        self[code] = " " if category[0] in "PS" or category == "Cc" else code
        return self[code]


# These four may join parts of one word; _WORD decides where they do.
_TRANSLATION = _PunctuationToBlank({ord(mark): mark for mark in "-'.,"} | {ord("‐"): "-", ord("’"): "'"})
_CLITIC = r"(?:n't|'(?:s|re|ve|ll|d|m))\b"
_ATTACHED_CLITIC = re.compile(rf"(?<=\w)(?={_CLITIC})")
_PART = r"\w[^\s\-'.,]*"  # not \w+: in many scripts a word holds combining marks
_WORD = re.compile(rf"{_CLITIC}|{_PART}(?:[-']{_PART}|(?<=\d)[.,]\d+)*")


def simple_tokenize(caption: str) -> Words:
    """Lower-cased words without punctuation, for languages that put blanks between words.

    1. NFKC, so that full-width letters, ligatures and decomposed accents become one form, then lower case.
    2. Clitics leave their word, as in the Penn Treebank and in Flickr8k's own text ("a man 's hat"):
       "dog's" -> dog 's, "don't" -> do n't.
    3. Hyphens and apostrophes inside a word stay: "t-shirt", "o'clock" and "y'all" are one word each.
       So do points and commas inside a number: "2.5", "1,000".
    4. All other punctuation and symbols (Unicode's P and S, emoji among them) part words and are dropped.
    """
    text = unicodedata.normalize("NFKC", caption).lower().translate(_TRANSLATION)
    return _WORD.findall(_ATTACHED_CLITIC.sub(" ", text))


TOKENIZERS: dict[str, Callable[[str], Words]] = {"simple": simple_tokenize, "ptb": ptb_tokenize}


def tokenize(captions: Iterable[str], tokenizer: str = "simple") -> list[Words]:
    """Each caption's words, by a tokenizer named in TOKENIZERS."""
    if tokenizer not in TOKENIZERS:
        raise ConfigError(f"unknown tokenizer {tokenizer!r}; choose from {', '.join(TOKENIZERS)}")
    return [TOKENIZERS[tokenizer](caption) for caption in captions]
