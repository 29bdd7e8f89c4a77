"""BLEU (Papineni et al. 2002, https://aclanthology.org/P02-1040), with the constants of COCO's scorer."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from myllm.metrics.ngrams import Ngram, Words, ngrams

# pycocoevalcap's, so that figures compare: an order without a match or without an n-gram is nearly, not quite, 0.
_TINY, _SMALL = 1e-15, 1e-9


class _Tally(NamedTuple):
    """What BLEU counts in one picture or, summed, in a corpus; the lists hold one entry an n-gram order."""

    length: int
    reference_length: int
    matched: list[int]
    produced: list[int]


def bleu(
    candidates: Sequence[Words], references: Sequence[Sequence[Words]], max_n: int = 4
) -> dict[str, tuple[float, list[float]]]:
    """BLEU-1 to BLEU-max_n by name: of the corpus (sums before ratios, not a mean) and of each picture."""
    tallies = [_tally(words, captions, max_n) for words, captions in zip(candidates, references, strict=True)]
    lengths, reference_lengths, matched, produced = zip(*tallies, strict=True)
    corpus = _Tally(sum(lengths), sum(reference_lengths), _sum_columns(matched), _sum_columns(produced))
    per_image = zip(*map(_bleu_by_order, tallies), strict=True)
    return {
        f"BLEU-{n}": (whole, list(each))
        for n, (whole, each) in enumerate(zip(_bleu_by_order(corpus), per_image, strict=True), 1)
    }


def _tally(words: Words, captions: Sequence[Words], max_n: int) -> _Tally:
    counts = Counter(ngrams(words, max_n))
    allowed: Counter[Ngram] = Counter()
    for caption in captions:
        # |= is the larger count: an n-gram is credited as often as the one reference that uses it most.
        allowed |= Counter(filter(counts.__contains__, ngrams(caption, max_n)))
    matched = [0] * max_n
    for ngram, count in (counts & allowed).items():
        matched[len(ngram) - 1] += count
    produced = [max(0, len(words) - n) for n in range(max_n)]
    # The reference closest in length; of two equally close ones the shorter.
    _, closest = min((abs(len(caption) - len(words)), len(caption)) for caption in captions)
    return _Tally(len(words), closest, matched, produced)


def _bleu_by_order(tally: _Tally) -> list[float]:
    """Brevity penalty times the geometric mean of the n-gram precisions, for each highest order."""
    ratio = (tally.length + _TINY) / (tally.reference_length + _SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, []
    for n, (matched, produced) in enumerate(zip(tally.matched, tally.produced, strict=True), 1):
        product *= (matched + _TINY) / (produced + _SMALL)
        scores.append(brevity * product ** (1 / n))
    return scores


def _sum_columns(rows: Sequence[list[int]]) -> list[int]:
    return [sum(column) for column in zip(*rows, strict=True)]
