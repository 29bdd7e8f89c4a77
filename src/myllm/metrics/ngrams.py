"""Word n-grams, as counted by BLEU, CIDEr and distinct-n."""

from collections.abc import Iterator
from itertools import chain

Words = list[str]  # one tokenized caption; not Sequence[str], because a plain string is one
Ngram = tuple[str, ...]


def ngrams(words: Words, max_n: int = 4) -> Iterator[Ngram]:
    """Yield every n-gram of 1 to max_n words, shorter n-grams first."""
    return chain.from_iterable(zip(*(words[start:] for start in range(n)), strict=False) for n in range(1, max_n + 1))
