"""Things, colours and numbers that a caption names and no reference does, after CHAIR (Rohrbach et al. 2018).

CHAIR (https://aclanthology.org/D18-1437) knows the 80 kinds of things of COCO, and where they are from its masks. Here
references alone say what is there, for the classes of `things.txt` and `colours.txt`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from myllm.metrics.lexicon import Mention, colours, things
from myllm.metrics.ngrams import Words
from myllm.metrics.result import Floats, MetricResult

# "one" is a pronoun more often than a number: "one dog chases another".
_NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_NUMBERS |= {str(number): number for number in range(2, 11)}
# What says a number in a reference, beside number words.
_HINTS = {"couple": 2, "pair": 2, "both": 2, "twins": 2, "duo": 2, "trio": 3}
_NO_COUNT_AFTER = frozenset(["number", "#", "age", "no."])
_NO_COUNT_BEFORE = frozenset(["year", "years", "wheeler", "story", "piece", "way", "feet", "foot", "point", "mile"])

LESS_IS_BETTER = ("CHAIRi", "CHAIRs", "places_wrong", "colours_wrong", "counts_wrong")
_COUNTED_TOGETHER = frozenset(["animal", "vehicle"])  # "a dog and a cat" are two animals


@dataclass(frozen=True)
class Named:
    """What one caption names, and how much of it no reference does."""

    things: int
    places: int
    colours: int
    numbers: int
    invented_things: tuple[str, ...]
    """In the caption's words; so are the others."""
    invented_places: tuple[str, ...]
    invented_colours: tuple[str, ...]
    invented_numbers: tuple[str, ...]


def compare_names(words: Words, references: Sequence[Words]) -> Named:
    """What a tokenized caption names beside what its references name."""
    named = things().mentions(words)
    named_places = list(filter(_is_place, named))
    named_things = [mention for mention in named if mention not in named_places]
    named_colours = _colours_in(words)
    said = _numbers_in(words, named)
    possible_things = things().supported(references)
    possible_colours = colours().supported(references)
    possible_numbers = set(chain.from_iterable(map(_possible_numbers, references))) if said else set()
    return Named(
        things=len(named_things),
        places=len(named_places),
        colours=len(named_colours),
        numbers=len(said),
        invented_things=_outside(words, named_things, possible_things),
        invented_places=_outside(words, named_places, possible_things),
        invented_colours=_outside(words, named_colours, possible_colours),
        invented_numbers=tuple(words[place] for place, number in said.items() if number not in possible_numbers),
    )


def hallucination(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> dict[str, MetricResult]:
    """Five figures by name, from 0 to 1, lower is better; a caption that names nothing invents nothing.

    CHAIRi:         things named that no reference names, over things named.
    CHAIRs:         captions that name at least one such thing, over captions.
    places_wrong:   the same share as CHAIRi, of grounds, waters, plants, rooms and buildings.
    colours_wrong:  colours named that no reference names, over colours named.
    counts_wrong:   numbers named that no reference names or shows ("a man and a boy" are two people), over numbers.
    """
    rows = [compare_names(words, captions) for words, captions in zip(candidates, references, strict=True)]
    return {
        "CHAIRi": _share([(len(row.invented_things), row.things) for row in rows]),
        "CHAIRs": _share([(bool(row.invented_things), 1) for row in rows]),
        "places_wrong": _share([(len(row.invented_places), row.places) for row in rows]),
        "colours_wrong": _share([(len(row.invented_colours), row.colours) for row in rows]),
        "counts_wrong": _share([(len(row.invented_numbers), row.numbers) for row in rows]),
    }


def _share(pairs: Sequence[tuple[int, int]]) -> MetricResult:
    sums = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return MetricResult(_ratio(sums), sums, _ratio)


def _ratio(sums: Floats) -> Floats:
    return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1))


def _is_place(mention: Mention) -> bool:
    return any("place" in things().broader[name] for name in mention.classes)


def _outside(words: Words, mentions: Sequence[Mention], possible: set[str]) -> tuple[str, ...]:
    return tuple(" ".join(words[m.start : m.stop]) for m in mentions if possible.isdisjoint(m.classes))


def _colours_in(words: Words) -> list[Mention]:
    return [Mention(form.classes, start, stop, False) for form, start, stop in colours().find(words)]


def _numbers_in(words: Words, named: Sequence[Mention]) -> dict[int, int]:
    """Place and value of each number that counts something; a pair of shoes does not."""
    found = {}
    for place, word in enumerate(words):
        after = words[place + 1] if place + 1 < len(words) else ""
        before = words[place - 1] if place else ""
        if word in _NUMBERS and before not in _NO_COUNT_AFTER and after not in _NO_COUNT_BEFORE:
            found[place] = _NUMBERS[word]
        elif word in ("couple", "pair") and after == "of":
            counted = next((mention for mention in named if mention.start > place), None)
            if counted is not None and any(
                name == "person" or "animal" in things().broader[name] for name in counted.classes
            ):
                found[place] = 2
    return found


def _possible_numbers(words: Words) -> set[int]:
    """Numbers that a reference says, and those its things come to: "a man and two girls" are three people."""
    named = things().mentions(words)
    said = _numbers_in(words, named)
    totals = Counter[str]()
    uncounted: set[str] = set()
    stop = 0
    for mention in named:
        numbers = [said[place] for place in range(stop, mention.start) if place in said]
        broader = set(chain.from_iterable(things().broader[name] for name in mention.classes))
        classes = mention.classes | broader & _COUNTED_TOGETHER
        if mention.is_plural and not numbers:
            uncounted |= classes
        for name in classes:
            totals[name] += numbers[-1] if numbers else 1
        stop = mention.stop
    hints = {_HINTS[word] for word in words if word in _HINTS}
    return hints | set(said.values()) | {number for name, number in totals.items() if name not in uncounted}
