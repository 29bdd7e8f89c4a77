"""Word n-grams, which BLEU, CIDEr and distinct-n all count."""

from collections.abc import Iterator
from itertools import chain

Words = list[str]  # one tokenized caption; not Sequence[str], which a plain string would satisfy
Ngram = tuple[str, ...]


def ngrams(words: Words, max_n: int = 4) -> Iterator[Ngram]:
    """Every n-gram of 1 to max_n words, the short ones first."""
    return chain.from_iterable(zip(*(words[start:] for start in range(n)), strict=False) for n in range(1, max_n + 1))
