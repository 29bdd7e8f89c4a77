"""METEOR 1.5 for English (Denkowski and Lavie 2014, https://aclanthology.org/W14-3348), without Java.

Scores equal those of the jar that pycocoevalcap runs; tests/parity/test_meteor.py compares them.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np

from myllm.metrics.meteor_align import STAGES, Match, align, count_chunks, phrases
from myllm.metrics.meteor_data import LONGEST_PHRASE, English, read_paraphrases
from myllm.metrics.meteor_normalize import normalize
from myllm.metrics.ngrams import Words
from myllm.metrics.result import Floats, MetricResult

# The jar's parameters for English, tuned to people's rankings of translations.
_ALPHA = 0.85  # weight of recall relative to precision
_BETA, _GAMMA = 0.2, 0.6  # exponent and maximum of the fragmentation penalty
_DELTA = 0.75  # weight of a content word; a function word has 1 - _DELTA
_WEIGHTS = (1.0, 0.6, 0.8, 0.6)  # of the same word, its stem, a synonym, a paraphrase

# Columns of the sums over pictures: four lengths, four counts of matched words for each stage, the chunks. Each
# four are content words of candidate and reference, then function words of candidate and reference.
_CHUNKS = 4 * (1 + len(STAGES))


def meteor(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> dict[str, MetricResult]:
    """Return METEOR, {name: result}.

    A picture's value is that with its best reference; the value of a corpus comes from the summed counts. Reading the
    paraphrases takes about 3 seconds, for any number of captions. Raises DataError if `missing_data` gives a reason.
    """
    english = English()
    normalized = [normalize(" ".join(words), english.abbreviations) for words in candidates]
    groups = [[normalize(" ".join(words), english.abbreviations) for words in captions] for captions in references]
    n_phrases = LONGEST_PHRASE * sum(map(len, chain(normalized, *groups)))
    all_phrases = (phrase for words in chain(normalized, *groups) for _, _, phrase in phrases(words))
    paraphrases = read_paraphrases(all_phrases, n_phrases)
    sums = np.zeros((len(normalized), _CHUNKS + 1))
    for picture, (words, captions) in enumerate(zip(normalized, groups, strict=True)):
        tallies = [_tally(words, caption, align(words, caption, english, paraphrases), english) for caption in captions]
        sums[picture] = tallies[int(_of_sums(np.array(tallies)).argmax())]  # the first of equally good ones
    return {"METEOR": MetricResult(_of_sums(sums), sums, _of_sums)}


def _tally(candidate: Words, reference: Words, matches: Sequence[Match], english: English) -> list[float]:
    """Return a row of `sums`. A candidate that equals the reference has 0 chunks: it is not fragmented at all."""
    counts = [0.0] * (_CHUNKS + 1)

    def count(words: Words, column: int) -> None:
        for word in words:
            counts[column + 2 * (word in english.function_words)] += 1

    count(candidate, 0)
    count(reference, 1)
    for match in matches:
        column = 4 * (1 + match.stage)
        count(candidate[match.candidate_start : match.candidate_start + match.candidate_length], column)
        count(reference[match.start : match.start + match.length], column + 1)
    matched = [sum(match.candidate_length for match in matches), sum(match.length for match in matches)]
    chunks = count_chunks(matches)
    counts[_CHUNKS] = 0 if chunks == 1 and matched == [len(candidate), len(reference)] else chunks
    return counts


def _of_sums(sums: Floats) -> Floats:
    """Weighted F-measure times (1 - fragmentation penalty): (..., 21) -> (...)."""
    lengths, matches = sums[..., :4], sums[..., 4:_CHUNKS].reshape(*sums.shape[:-1], len(STAGES), 4)
    with np.errstate(divide="ignore", invalid="ignore"):  # no matches, or no words
        precision, recall = (_weighted(matches, side) / _weighted(lengths[..., None, :], side) for side in (0, 1))
        mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
        matched = matches.sum(axis=(-2, -1)) / 2
        penalty = _GAMMA * (sums[..., _CHUNKS] / matched) ** _BETA
        return np.nan_to_num(mean * (1 - penalty))


def _weighted(counts: Floats, side: int) -> Floats:
    """Return the words of the candidate (side 0) or the reference (1), weighted by stage and kind of word.

    counts: (..., stages, 4). They are added in the jar's order, so that references that tie in the jar tie here, too.
    """
    total = np.zeros(counts.shape[:-2])
    for column, weight in ((side, _DELTA), (side + 2, 1 - _DELTA)):
        for stage in range(counts.shape[-2]):
            total = total + counts[..., stage, column] * _WEIGHTS[stage] * weight
    return total
