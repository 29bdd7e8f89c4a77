"""ROUGE-L (Lin 2004, https://aclanthology.org/W04-1013, section 3), as COCO's scorer combines it."""

from collections.abc import Sequence

from myllm.metrics.ngrams import Words
from myllm.metrics.result import MetricResult, mean_of

_BETA = 1.2  # how much recall outweighs precision; the value of the COCO evaluation


def rouge_l(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> dict[str, MetricResult]:
    """ROUGE-L by name, the mean over pictures."""
    pairs = zip(candidates, references, strict=True)
    return {"ROUGE-L": mean_of([_rouge_l(words, captions) for words, captions in pairs])}


def _rouge_l(words: Words, captions: Sequence[Words]) -> float:
    """F-measure of the best precision and the best recall, which may come from two different references."""
    common = _common_lengths(words, captions)
    if not any(common):
        return 0.0
    precision = max(common) / len(words)
    recall = max(length / max(1, len(caption)) for length, caption in zip(common, captions, strict=True))
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common_lengths(words: Words, captions: Sequence[Words]) -> list[int]:
    """Length of the longest common subsequence of words and each caption.

    Bit-parallel (Hyyrö 2004, "Bit-parallel LCS-length computation revisited"): a bit stands for a position
    in `words`, and the zeros of `open_` are where the dynamic programme's row goes up by one.
    """
    positions: dict[str, int] = {}
    for index, word in enumerate(words):
        positions[word] = positions.get(word, 0) | 1 << index
    every = (1 << len(words)) - 1

    lengths = []
    for caption in captions:
        open_ = every
        for word in caption:
            matches = open_ & positions.get(word, 0)
            open_ = (open_ + matches | open_ - matches) & every
        lengths.append(len(words) - open_.bit_count())
    return lengths
