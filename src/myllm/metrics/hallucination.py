"""Things, colours and numbers that a caption names but no reference names, after CHAIR (Rohrbach et al. 2018).

CHAIR (https://aclanthology.org/D18-1437) knows the 80 classes of COCO, and finds those that a picture shows in COCO's
masks and references. Here they are found in the references only, for the English words of `things.txt` and
`colours.txt`.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from myllm.metrics.lexicon import Mention, colour_mentions, colours, things
from myllm.metrics.ngrams import Words
from myllm.metrics.ptb import ptb_tokenize
from myllm.metrics.result import MetricResult, share_of

# "one" is a pronoun more often than a number: "one dog chases another".
_NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_NUMBERS |= {str(number): number for number in range(2, 11)}
# Words of a reference that imply a number without being one.
_NUMBER_HINTS = {"couple": 2, "pair": 2, "both": 2, "twins": 2, "duo": 2, "trio": 3}
_NO_COUNT_AFTER = {"number", "#", "age", "no."}
_NO_COUNT_BEFORE = {"year", "years", "wheel", "wheeler", "story", "piece", "way", "feet", "foot", "point", "mile"}
_NO_COUNT_BEFORE |= {"pairs"}  # "two pairs of shoes" are four

LOWER_IS_BETTER = ("CHAIRi", "CHAIRs", "places_wrong", "colours_wrong", "counts_wrong")
_COUNTED_TOGETHER = frozenset(["animal", "vehicle"])  # "a dog and a cat" are two animals

Range = tuple[int, int]


class Named(NamedTuple):
    """What a caption names of one kind."""

    total: int
    invented: tuple[str, ...]
    """Those that no reference names, in the caption's words."""


def compare_names(words: Words, references: Sequence[Words]) -> dict[str, Named]:
    """Compare the things, places, colours and numbers that a tokenized caption names with those of its references."""
    return {
        kind: Named(total, tuple(" ".join(words[start:stop]) for start, stop in invented))
        for kind, (total, invented) in _compare_ranges(words, references).items()
    }


def invented_spans(caption: str, references: Sequence[str]) -> list[Range]:
    """Return (begin, end) in the caption's characters of everything it names that no reference names, in order."""
    words = ptb_tokenize(caption)
    ranges = chain.from_iterable(
        invented for _, invented in _compare_ranges(words, list(map(ptb_tokenize, references))).values()
    )
    spans = list[Range | None]()
    lowered, end = caption.lower(), 0
    for word in words:
        begin = lowered.find(word, end)  # the tokenizer respells a few words, which are then not found
        spans.append(None if begin < 0 else (begin, begin + len(word)))
        end = end if begin < 0 else begin + len(word)
    ends = ((spans[start], spans[stop - 1]) for start, stop in sorted(ranges))
    return [(first[0], last[1]) for first, last in ends if first is not None and last is not None]


def hallucination(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> dict[str, MetricResult]:
    """Return five shares, {name: result}, 0 to 1, lower is better; NaN if the captions name nothing of the kind.

    CHAIRi:         things named that no reference names, over things named.
    CHAIRs:         captions that name at least one such thing, over captions.
    places_wrong:   as CHAIRi, for places: grounds, waters, plants, rooms and buildings.
    colours_wrong:  colours named that no reference names, over colours named.
    counts_wrong:   numbers named that no reference names or implies ("a man and a boy": two people), over numbers.
    """
    rows = [compare_names(words, captions) for words, captions in zip(candidates, references, strict=True)]
    invented = {
        kind: share_of([(len(row[kind].invented), row[kind].total) for row in rows], kind.removesuffix("s"))
        for kind in ("things", "places", "colours", "numbers")
    }
    # NaN, not 0, for captions in another language: they name no English things
    counts_captions = any(row["things"].total for row in rows)
    captions = share_of([(bool(row["things"].invented), counts_captions) for row in rows], "caption")
    return {
        "CHAIRi": invented["things"], "CHAIRs": captions, "places_wrong": invented["places"],
        "colours_wrong": invented["colours"], "counts_wrong": invented["numbers"],
    }


def _is_place(mention: Mention) -> bool:
    return any("place" in things().broader[name] for name in mention.classes)


def _compare_ranges(words: Words, references: Sequence[Words]) -> dict[str, tuple[int, list[Range]]]:
    """Return, by kind, how many a caption names, and the ranges of its words that no reference supports."""
    mentions = things().mentions(words)
    place_mentions = list(filter(_is_place, mentions))
    numbers, supported = _numbers_in(words, mentions), things().supported(references)
    possible = set(chain.from_iterable(map(_possible_numbers, references))) if numbers else set()
    wrong_numbers = [(index, index + 1) for index, number in numbers.items() if number not in possible]
    return {
        "things": _unsupported([mention for mention in mentions if mention not in place_mentions], supported),
        "places": _unsupported(place_mentions, supported),
        "colours": _unsupported(colour_mentions(words), colours().supported(references)),
        "numbers": (len(numbers), wrong_numbers),
    }


def _unsupported(mentions: Sequence[Mention], supported: set[str]) -> tuple[int, list[Range]]:
    return len(mentions), [(m.start, m.stop) for m in mentions if supported.isdisjoint(m.classes)]


def _numbers_in(words: Words, mentions: Sequence[Mention]) -> dict[int, int]:
    """Return index -> value of each number that counts something; the pair in "a pair of shoes" does not."""
    numbers = {}
    for index, word in enumerate(words):
        after = words[index + 1] if index + 1 < len(words) else ""
        before = words[index - 1] if index else ""
        if word in _NUMBERS and before not in _NO_COUNT_AFTER and after not in _NO_COUNT_BEFORE:
            numbers[index] = _NUMBERS[word]
        elif word in ("couple", "pair") and after == "of":
            classes = next((mention.classes for mention in mentions if mention.start > index), ())
            if any(name == "person" or "animal" in things().broader[name] for name in classes):
                numbers[index] = 2
    return numbers


def _possible_numbers(words: Words) -> set[int]:
    """Return the numbers that a reference names or implies: "a man and two girls" implies three people."""
    mentions = things().mentions(words)
    numbers = _numbers_in(words, mentions)
    totals, uncounted, stop = Counter[str](), set[str](), 0
    for mention in mentions:
        before = [numbers[index] for index in range(stop, mention.start) if index in numbers]
        broader = set(chain.from_iterable(things().broader[name] for name in mention.classes))
        classes = mention.classes | broader & _COUNTED_TOGETHER
        if mention.is_plural and not before:
            uncounted |= classes
        for name in classes:
            totals[name] += before[-1] if before else 1
        stop = mention.stop
    hints = {_NUMBER_HINTS[word] for word in words if word in _NUMBER_HINTS}
    return hints | set(numbers.values()) | {number for name, number in totals.items() if name not in uncounted}
