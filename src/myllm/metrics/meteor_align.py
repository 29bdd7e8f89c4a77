"""Which words of a candidate METEOR takes for which of a reference's (Denkowski and Lavie 2014).

What the paper leaves open, such as the order of equals, is as in its jar. So are the jar's oddities: its search counts
half of the words that are not the same, rounded down, thus no stem, synonym or paraphrase of a single word. Where one
has a rival, as "dogs" has in "dog" by stem and in "dog" by synonym, it is taken only if it continues a chunk.
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

# One number ranks the beginning of an alignment, the least first: more words matched, fewer chunks, less far apart.
_CHUNK, _WORD = 1 << 40, 1 << 60


class Match(NamedTuple):
    """Words in a row of the reference, and those in a row of the candidate that say the same."""

    stage: int
    start: int
    length: int
    candidate_start: int
    candidate_length: int
    places: int
    """Which places it takes, a bit each: the reference's from bit 0 on, the candidate's behind them."""
    gain: int
    """What it adds to a path's rank: the words of both, or half of them, rounded down, where they differ."""


_Chosen = tuple[Match, "_Chosen"] | None  # the last match, and those before it


class _Path(NamedTuple):
    """The beginning of an alignment, up to some place in the reference."""

    rank: int
    places: int
    """Taken by its matches, as in Match."""
    resume: int
    """The reference's place behind its last match."""
    chunk_end: int
    """The candidate's place that would continue the chunk; -1 outside of one."""
    chosen: _Chosen


def align(candidate: Words, reference: Words, english: English, paraphrases: Paraphrases) -> list[Match]:
    """The matches, in the reference's order; no word is in two."""
    possible = _possible_matches(candidate, reference, english, paraphrases)
    chosen = _search(possible, _uncontested(possible))
    matches = []
    while chosen:
        match, chosen = chosen
        matches.append(match)
    return matches[::-1]


def count_chunks(matches: Sequence[Match]) -> int:
    """Of how many runs the matches are, whose words follow each other in candidate and reference alike."""
    count, end, candidate_end = 0, -1, -1
    for match in matches:
        count += match.start != end or match.candidate_start != candidate_end
        end, candidate_end = match.start + match.length, match.candidate_start + match.candidate_length
    return count


def phrases(words: Words) -> list[tuple[int, int, str]]:
    """Start, length and text of every run of words that is short enough for the table of paraphrases."""
    return [
        (start, end - start, " ".join(words[start:end]))
        for start in range(len(words))
        for end in range(start + 1, min(start + LONGEST_PHRASE, len(words)) + 1)
    ]


def _possible_matches(
    candidate: Words, reference: Words, english: English, paraphrases: Paraphrases
) -> list[list[Match]]:
    """What could match from each place of the reference on, in the order that decides between equals."""
    possible: list[list[Match]] = [[] for _ in reference]

    def add(stage: int, start: int, length: int, candidate_start: int, candidate_length: int) -> None:
        places = ((1 << length) - 1) << start | ((1 << candidate_length) - 1) << (len(reference) + candidate_start)
        words = length + candidate_length if stage == EXACT else length // 2 + candidate_length // 2
        gain = -words * _WORD
        possible[start].append(Match(stage, start, length, candidate_start, candidate_length, places, gain))

    for start, word in enumerate(reference):
        for place, other in enumerate(candidate):
            if other == word:
                add(EXACT, start, 1, place, 1)
    if candidate == reference:
        return possible
    stems, synsets = [*map(english.stem, candidate)], [*map(english.synsets, candidate)]
    for start, word in enumerate(reference):
        stem, sets = english.stem(word), english.synsets(word)
        others = [place for place, other in enumerate(candidate) if other != word]
        for place in others:
            if stems[place] == stem:
                add(STEM, start, 1, place, 1)
        for place in others if sets else ():
            if not sets.isdisjoint(synsets[place]):
                add(SYNONYM, start, 1, place, 1)
    # The table counts in both directions: a pair that it holds in both makes two matches.
    for start, length, place, other_length in _paraphrased(reference, candidate, paraphrases):
        add(PARAPHRASE, start, length, place, other_length)
    for place, other_length, start, length in _paraphrased(candidate, reference, paraphrases):
        add(PARAPHRASE, start, length, place, other_length)
    return possible


def _paraphrased(words: Words, others: Words, paraphrases: Paraphrases) -> Iterator[tuple[int, int, int, int]]:
    """Start and length of each phrase that the table finds among `words`, and of its paraphrase among `others`."""
    places = defaultdict[str, list[tuple[int, int]]](list)
    for start, length, phrase in phrases(others):
        places[phrase].append((start, length))
    for start, length, phrase in phrases(words):
        for paraphrase in paraphrases.get(phrase, ()):
            for place, other_length in places.get(paraphrase, ()):
                yield start, length, place, other_length


def _uncontested(possible: list[list[Match]]) -> list[Match | None]:
    """At each place of the reference the match that shares no word with another possible one: every path takes it."""
    once = twice = 0
    for match in chain.from_iterable(possible):
        twice |= once & match.places
        once |= match.places
    return [matches[0] if len(matches) == 1 and not matches[0].places & twice else None for matches in possible]


def _search(possible: list[list[Match]], uncontested: list[Match | None]) -> _Chosen:
    """The best path through the reference's places, where only the best 40 up to each are gone on with."""
    paths = [_Path(0, 0, 0, -1, None)]
    for place, (matches, certain) in enumerate(zip(possible, uncontested, strict=True)):
        reached: list[_Path] = []
        for path in _best(paths):
            if place < path.resume:
                reached.append(path)
            elif certain:
                reached.append(_taking(certain, path, path.rank + _distance(certain)))
            else:
                rank = path.rank
                for match in matches:
                    if not match.places & path.places:
                        reached.append(_taking(match, path, rank))
                        # A slip of the jar's: how far a match is counts for the paths tried after it, not for its own.
                        rank += _distance(match)
                broken = _CHUNK if path.chunk_end != -1 else 0
                reached.append(_Path(rank + broken, path.places, place + 1, -1, path.chosen))
        paths = reached
    return min(_best(paths), key=lambda path: path.rank + (_CHUNK if path.chunk_end != -1 else 0)).chosen


def _best(paths: list[_Path]) -> list[_Path]:
    return sorted(paths, key=itemgetter(0))[:_BEAM]


def _taking(match: Match, path: _Path, rank: int) -> _Path:
    _, start, length, candidate_start, candidate_length, places, gain = match
    broken = _CHUNK if path.chunk_end not in (-1, candidate_start) else 0
    chunk_end = candidate_start + candidate_length
    return _Path(rank + gain + broken, path.places | places, start + length, chunk_end, (match, path.chosen))


def _distance(match: Match) -> int:
    return abs(match.start - match.candidate_start)
