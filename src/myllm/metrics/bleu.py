"""BLEU (Papineni et al. 2002, https://aclanthology.org/P02-1040), with the constants of COCO's scorer."""

from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np

from myllm.metrics.ngrams import Ngram, Words, ngrams
from myllm.metrics.result import Floats, MetricResult

# pycocoevalcap's constants, so that results are comparable: a precision without a match or an n-gram is nearly 0.
_TINY, _SMALL = 1e-15, 1e-9


def bleu(candidates: Sequence[Words], references: Sequence[Sequence[Words]], max_n: int = 4) -> dict[str, MetricResult]:
    """Return BLEU-1 to BLEU-max_n, {name: result}.

    The value of a corpus is computed from summed counts; it is not the mean over pictures.
    """
    counts = [_counts(words, captions, max_n) for words, captions in zip(candidates, references, strict=True)]
    sums = np.array(counts, dtype=np.float64)
    formulas = [partial(_bleu, n=n, max_n=max_n) for n in range(1, max_n + 1)]
    return {f"BLEU-{n}": MetricResult(formula(sums), sums, formula) for n, formula in enumerate(formulas, 1)}


def _counts(words: Words, captions: Sequence[Words], max_n: int) -> list[int]:
    """Return candidate length, reference length, then matched n-grams and all n-grams of each order."""
    counts = Counter(ngrams(words, max_n))
    # An n-gram counts at most as often as in the one reference that uses it most.
    allowed: dict[Ngram, int] = {}
    for caption in captions:
        for ngram, count in Counter(filter(counts.__contains__, ngrams(caption, max_n))).items():
            if count > allowed.get(ngram, 0):
                allowed[ngram] = count
    matched = [0] * max_n
    for ngram, count in allowed.items():
        matched[len(ngram) - 1] += min(count, counts[ngram])
    produced = [max(0, len(words) - n) for n in range(max_n)]
    # The reference closest in length; of two equally close ones the shorter.
    _, closest = min((abs(len(caption) - len(words)), len(caption)) for caption in captions)
    return [len(words), closest, *matched, *produced]


def _bleu(sums: Floats, n: int, max_n: int) -> Floats:
    """Brevity penalty times the geometric mean of the n-gram precisions up to order n: (..., 2 + 2 max_n) -> (...)."""
    matched, produced = sums[..., 2 : 2 + n], sums[..., 2 + max_n : 2 + max_n + n]
    ratio = (sums[..., 0] + _TINY) / (sums[..., 1] + _SMALL)
    brevity = np.exp(np.minimum(0, 1 - 1 / ratio))
    precision = np.prod((matched + _TINY) / (produced + _SMALL), axis=-1) ** (1 / n)
    return np.asarray(brevity * precision)
