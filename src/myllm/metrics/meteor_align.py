"""METEOR's alignment of the words of a candidate with those of a reference (Denkowski and Lavie 2014).

What the paper leaves open, such as ties, is done as in its jar, oddities included. Of words that match but differ, its
search counts half the number, rounded down: 0 for a stem, synonym or paraphrase of a single word. If two such matches
compete, as those of "dogs" with "dog" by stem and by synonym, one is taken only if it continues a chunk.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import NamedTuple

from myllm.metrics.meteor_data import LONGEST_PHRASE, English
from myllm.metrics.ngrams import Words

Paraphrases = Mapping[str, Sequence[str]]

EXACT, STEM, SYNONYM, PARAPHRASE = STAGES = range(4)

_BEAM = 40

# One number ranks partial alignments, lower is better: first by words matched, then by chunks, then by distance.
_CHUNK, _WORD = 1 << 40, 1 << 60


class Match(NamedTuple):
    """Consecutive words of the reference and of the candidate that mean the same."""

    stage: int
    start: int
    length: int
    candidate_start: int
    candidate_length: int
    words: int
    """Bit mask of the words it covers: the reference's from bit 0 on, then the candidate's."""
    gain: int
    """Added to a path's rank: minus the number of words on both sides; if they differ, half of it, rounded down."""


_Chosen = tuple[Match, "_Chosen"] | None  # linked list: the last match, and those before it


class _Path(NamedTuple):
    """A partial alignment, up to some word of the reference."""

    rank: int
    words: int
    """Bit mask of the words that its matches cover, as in Match."""
    resume: int
    """Index in the reference after its last match."""
    chunk_end: int
    """Index in the candidate that would continue the chunk; -1 outside of a chunk."""
    chosen: _Chosen


def align(candidate: Words, reference: Words, english: English, paraphrases: Paraphrases) -> list[Match]:
    """Return the matches in the order of the reference; no word is in two of them."""
    possible = _possible_matches(candidate, reference, english, paraphrases)
    chosen, matches = _search(possible, _uncontested(possible)), []
    while chosen:
        match, chosen = chosen
        matches.append(match)
    return matches[::-1]


def count_chunks(matches: Sequence[Match]) -> int:
    """Return the number of runs of matches that are consecutive in both the candidate and the reference."""
    count, end, candidate_end = 0, -1, -1
    for match in matches:
        count += match.start != end or match.candidate_start != candidate_end
        end, candidate_end = match.start + match.length, match.candidate_start + match.candidate_length
    return count


def phrases(words: Words) -> list[tuple[int, int, str]]:
    """Return start, length and text of each run of words that is short enough for the table of paraphrases."""
    return [
        (start, end - start, " ".join(words[start:end]))
        for start in range(len(words))
        for end in range(start + 1, min(start + LONGEST_PHRASE, len(words)) + 1)
    ]


def _possible_matches(
    candidate: Words, reference: Words, english: English, paraphrases: Paraphrases
) -> list[list[Match]]:
    """Return the possible matches that begin at each word of the reference; of equally good ones the first wins."""
    possible: list[list[Match]] = [[] for _ in reference]

    def add(stage: int, start: int, length: int, candidate_start: int, candidate_length: int) -> None:
        words = ((1 << length) - 1) << start | ((1 << candidate_length) - 1) << (len(reference) + candidate_start)
        matched = length + candidate_length if stage == EXACT else length // 2 + candidate_length // 2
        possible[start].append(Match(stage, start, length, candidate_start, candidate_length, words, -matched * _WORD))

    for start, word in enumerate(reference):
        for index, other in enumerate(candidate):
            if other == word:
                add(EXACT, start, 1, index, 1)
    if candidate == reference:
        return possible
    stems, synsets = [*map(english.stem, candidate)], [*map(english.synsets, candidate)]
    for start, word in enumerate(reference):
        stem, sets = english.stem(word), english.synsets(word)
        others = [index for index, other in enumerate(candidate) if other != word]
        for index in others:
            if stems[index] == stem:
                add(STEM, start, 1, index, 1)
        for index in others if sets else ():
            if not sets.isdisjoint(synsets[index]):
                add(SYNONYM, start, 1, index, 1)
    # The table is used in both directions: a pair that it lists in both makes two matches.
    for start, length, index, other_length in _paraphrased(reference, candidate, paraphrases):
        add(PARAPHRASE, start, length, index, other_length)
    for index, other_length, start, length in _paraphrased(candidate, reference, paraphrases):
        add(PARAPHRASE, start, length, index, other_length)
    return possible


def _paraphrased(words: Words, others: Words, paraphrases: Paraphrases) -> Iterator[tuple[int, int, int, int]]:
    """Yield start and length of each phrase of `words` in the table, and of its paraphrase in `others`."""
    positions = defaultdict[str, list[tuple[int, int]]](list)
    for start, length, phrase in phrases(others):
        positions[phrase].append((start, length))
    for start, length, phrase in phrases(words):
        for paraphrase in paraphrases.get(phrase, ()):
            yield from ((start, length, *other) for other in positions.get(paraphrase, ()))


def _uncontested(possible: list[list[Match]]) -> list[Match | None]:
    """Return, for each word of the reference, a match that shares no word with others, which every path takes."""
    once = twice = 0
    for match in chain.from_iterable(possible):
        twice |= once & match.words
        once |= match.words
    return [matches[0] if len(matches) == 1 and not matches[0].words & twice else None for matches in possible]


def _search(possible: list[list[Match]], uncontested: list[Match | None]) -> _Chosen:
    """Return the best alignment by beam search over the words of the reference."""
    paths = [_Path(0, 0, 0, -1, None)]
    for index, (matches, certain) in enumerate(zip(possible, uncontested, strict=True)):
        extended: list[_Path] = []
        for path in _best(paths):
            if index < path.resume:
                extended.append(path)
            elif certain:
                extended.append(_with_match(certain, path, path.rank + _distance(certain)))
            else:
                rank = path.rank
                for match in matches:
                    if not match.words & path.words:
                        extended.append(_with_match(match, path, rank))
                        # An error of the jar: a match's distance counts for the paths tried after it, not for its own.
                        rank += _distance(match)
                broken = _CHUNK if path.chunk_end != -1 else 0
                extended.append(_Path(rank + broken, path.words, index + 1, -1, path.chosen))
        paths = extended
    return min(_best(paths), key=lambda path: path.rank + (_CHUNK if path.chunk_end != -1 else 0)).chosen


def _best(paths: list[_Path]) -> list[_Path]:
    return sorted(paths, key=itemgetter(0))[:_BEAM]


def _with_match(match: Match, path: _Path, rank: int) -> _Path:
    broken = _CHUNK if path.chunk_end not in (-1, match.candidate_start) else 0
    chunk_end = match.candidate_start + match.candidate_length
    rank += match.gain + broken
    return _Path(rank, path.words | match.words, match.start + match.length, chunk_end, (match, path.chosen))


def _distance(match: Match) -> int:
    return abs(match.start - match.candidate_start)
