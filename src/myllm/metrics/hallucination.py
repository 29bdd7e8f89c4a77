"""Things, colours and numbers that a caption names and no reference does, after CHAIR (Rohrbach et al. 2018).

CHAIR (https://aclanthology.org/D18-1437) knows the 80 classes of COCO and reads from its masks which of them a picture
shows. Here only the references say so, for the English words of `things.txt` and `colours.txt`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from myllm.metrics.lexicon import Mention, colour_mentions, colours, things
from myllm.metrics.ngrams import Words
from myllm.metrics.result import MetricResult, share_of

# "one" is a pronoun more often than a number: "one dog chases another".
_NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_NUMBERS |= {str(number): number for number in range(2, 11)}
# Words of a reference that give a number, in addition to number words.
_NUMBER_HINTS = {"couple": 2, "pair": 2, "both": 2, "twins": 2, "duo": 2, "trio": 3}
_NO_COUNT_AFTER = {"number", "#", "age", "no."}
_NO_COUNT_BEFORE = {"year", "years", "wheel", "wheeler", "story", "piece", "way", "feet", "foot", "point", "mile"}
_NO_COUNT_BEFORE |= {"pairs"}  # "two pairs of shoes" are four

LOWER_IS_BETTER = ("CHAIRi", "CHAIRs", "places_wrong", "colours_wrong", "counts_wrong")
_COUNTED_TOGETHER = frozenset(["animal", "vehicle"])  # "a dog and a cat" are two animals


@dataclass(frozen=True)
class NamedThings:
    """How many things, places, colours and numbers a caption names, and those that no reference names."""

    things: int
    places: int
    colours: int
    numbers: int
    invented_things: tuple[str, ...]
    """In the caption's words, as are the next three."""
    invented_places: tuple[str, ...]
    invented_colours: tuple[str, ...]
    invented_numbers: tuple[str, ...]


def compare_names(words: Words, references: Sequence[Words]) -> NamedThings:
    """Compare what a tokenized caption names with what its references name."""
    mentions = things().mentions(words)
    place_mentions = list(filter(_is_place, mentions))
    thing_mentions = [mention for mention in mentions if mention not in place_mentions]
    mentioned_colours, numbers = colour_mentions(words), _numbers_in(words, mentions)
    possible_things, possible_colours = things().supported(references), colours().supported(references)
    possible_numbers = set(chain.from_iterable(map(_possible_numbers, references))) if numbers else set()
    return NamedThings(
        things=len(thing_mentions), places=len(place_mentions), colours=len(mentioned_colours), numbers=len(numbers),
        invented_things=_unsupported(words, thing_mentions, possible_things),
        invented_places=_unsupported(words, place_mentions, possible_things),
        invented_colours=_unsupported(words, mentioned_colours, possible_colours),
        invented_numbers=tuple(words[index] for index, number in numbers.items() if number not in possible_numbers),
    )


def hallucination(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> dict[str, MetricResult]:
    """Return five shares by name, 0 to 1, lower is better; NaN if the captions name nothing of the kind.

    CHAIRi:         things named that no reference names, over things named.
    CHAIRs:         captions that name at least one such thing, over captions.
    places_wrong:   the share of CHAIRi, for grounds, waters, plants, rooms and buildings.
    colours_wrong:  colours named that no reference names, over colours named.
    counts_wrong:   numbers named that no reference names or shows ("a man and a boy" are two people), over numbers.
    """
    rows = [compare_names(words, captions) for words, captions in zip(candidates, references, strict=True)]
    counts_captions = any(row.things for row in rows)  # captions in another language name no English things
    return {
        "CHAIRi": share_of([(len(row.invented_things), row.things) for row in rows], "thing"),
        "CHAIRs": share_of([(bool(row.invented_things), counts_captions) for row in rows], "caption"),
        "places_wrong": share_of([(len(row.invented_places), row.places) for row in rows], "place"),
        "colours_wrong": share_of([(len(row.invented_colours), row.colours) for row in rows], "colour"),
        "counts_wrong": share_of([(len(row.invented_numbers), row.numbers) for row in rows], "number"),
    }


def _is_place(mention: Mention) -> bool:
    return any("place" in things().broader[name] for name in mention.classes)


def _unsupported(words: Words, mentions: Sequence[Mention], possible: set[str]) -> tuple[str, ...]:
    return tuple(" ".join(words[m.start : m.stop]) for m in mentions if possible.isdisjoint(m.classes))


def _numbers_in(words: Words, mentions: Sequence[Mention]) -> dict[int, int]:
    """Return index and value of each number that counts something; "a pair of shoes" does not."""
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
    """Return the numbers that a reference names or that its things add up to: "a man and two girls" are 3 people."""
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
