"""ROUGE-L (Lin 2004, https://aclanthology.org/W04-1013, section 3), as COCO's scorer combines it."""

from collections.abc import Sequence

from myllm.metrics.ngrams import Words
from myllm.metrics.result import MetricResult, mean_of

_BETA = 1.2  # weight of recall relative to precision, as in the COCO evaluation


def rouge_l(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> dict[str, MetricResult]:
    """Return ROUGE-L, {name: result}; the value of a corpus is the mean over pictures."""
    pairs = zip(candidates, references, strict=True)
    return {"ROUGE-L": mean_of([_rouge_l(words, captions) for words, captions in pairs])}


def _rouge_l(words: Words, captions: Sequence[Words]) -> float:
    """F-measure of the best precision and the best recall, which may come from two different references."""
    # Like in COCO's scorer, a caption without words (of emoji, for example) is one empty word.
    words, captions = words or [""], [caption or [""] for caption in captions]
    common = _common_lengths(words, captions)
    if not any(common):
        return 0.0
    precision = max(common) / len(words)
    recall = max(length / len(caption) for length, caption in zip(common, captions, strict=True))
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common_lengths(words: Words, captions: Sequence[Words]) -> list[int]:
    """Return the length of the longest common subsequence of `words` and each caption.

    Bit-parallel (Hyyrö 2004, "Bit-parallel LCS-length computation revisited"): bit i stands for `words[i]`, and a zero
    in `unmatched` marks a position where a row of the dynamic programme increases by one.
    """
    positions: dict[str, int] = {}
    for index, word in enumerate(words):
        positions[word] = positions.get(word, 0) | 1 << index
    all_bits, lengths = (1 << len(words)) - 1, []
    for caption in captions:
        unmatched = all_bits
        for word in caption:
            matches = unmatched & positions.get(word, 0)
            unmatched = (unmatched + matches | unmatched - matches) & all_bits
        lengths.append(len(words) - unmatched.bit_count())
    return lengths
