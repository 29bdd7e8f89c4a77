"""Judge captions of drawn scenes, for which the truth is known."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from myllm.data.scenes import COLOURS, COUNT_WORDS, KINDS, PLURALS, SIZE_WORDS, Thing

_NAMED = re.compile(
    rf"\b(a|an|{'|'.join(COUNT_WORDS.values())}) (?:(?:{'|'.join(sum(SIZE_WORDS.values(), ()))}) )?"
    rf"({'|'.join(COLOURS)}) ({'|'.join([*PLURALS.values(), *KINDS])})\b"
)
_COUNT = {"a": 1, "an": 1} | {word: count for count, word in COUNT_WORDS.items()}
_KIND = {plural: kind for kind, plural in PLURALS.items()} | {kind: kind for kind in KINDS}
# Each relation: the axis, and whether the thing named first comes first on it.
_RELATIONS = {"left of": (0, True), "right of": (0, False), "above": (1, True), "over": (1, True),
              "below": (1, False), "under": (1, False)}
_RELATED = re.compile(rf"(.+) ({'|'.join(_RELATIONS)}) (.+)")

JUDGEMENT = (
    "true: every thing and colour named is in the picture; complete: all things are named with the right numbers, and "
    "no others; placed: share of the captions with left, right, above or below that say it correctly."
)


def named_groups(caption: str) -> list[tuple[int, str, str]]:
    """Return (count, colour, kind) of everything that a caption names, in order."""
    return [(_COUNT[count], colour, _KIND[kind]) for count, colour, kind in _NAMED.findall(caption.lower())]


def find_named(caption: str, things: Sequence[Thing]) -> list[tuple[tuple[int, int], list[Thing]]]:
    """Return (begin, end) of each noun with the things that it can mean; nouns without such a thing are left out."""
    nouns = [
        (match.span(3), [thing for thing in things if (thing.colour, thing.kind) == (match[2], _KIND[match[3]])])
        for match in _NAMED.finditer(caption.lower())
    ]
    return [(span, meant) for span, meant in nouns if meant]


def wrong_spans(caption: str, things: Sequence[Thing]) -> list[tuple[int, int]]:
    """Return (begin, end) of each noun, colour or number that does not fit the drawn things, in order.

    Only the first fault of a thing is returned: a kind that was not drawn, else a wrong colour, else a wrong number.
    """
    pairs = [(thing.colour, thing.kind) for thing in things]
    spans = []
    for match in _NAMED.finditer(caption.lower()):
        count, colour, kind = _COUNT[match[1]], match[2], _KIND[match[3]]
        if kind not in {thing.kind for thing in things}:
            spans.append(match.span(3))
        elif (colour, kind) not in pairs:
            spans.append(match.span(2))
        elif pairs.count((colour, kind)) != count:
            spans.append(match.span(1))
    return spans


@dataclass(frozen=True)
class Verdict:
    """A caption compared with the drawn things."""

    true: bool
    """Everything that is named was drawn, in that colour."""
    complete: bool
    """All things are named, no others, with right counts."""
    placed: bool | None
    """The relation that is named is right; None if none is named."""
    invented: bool
    """A kind of thing is named that was not drawn."""
    miscoloured: bool
    """A kind that was drawn is named in a colour that none of it has."""
    miscounted: bool
    """Something that was drawn is named with a wrong number."""


def judge_scene_caption(caption: str, things: Sequence[Thing]) -> Verdict:
    """Compare a caption with the drawn things. A caption that names nothing is not true."""
    named = named_groups(caption)
    pairs = [(thing.colour, thing.kind) for thing in things]
    counts = {pair: pairs.count(pair) for pair in pairs}
    is_true = bool(named) and all((colour, kind) in counts for _, colour, kind in named)
    claims = sorted((colour, kind, count) for count, colour, kind in named)
    is_complete = is_true and claims == sorted((*pair, count) for pair, count in counts.items())
    kinds = {thing.kind for thing in things}
    return Verdict(
        is_true, is_complete, _is_relation_right(caption, things),
        invented=any(kind not in kinds for _, _, kind in named),
        miscoloured=any(kind in kinds and (colour, kind) not in counts for _, colour, kind in named),
        miscounted=any(counts.get((colour, kind), count) != count for count, colour, kind in named),
    )


def _is_relation_right(caption: str, things: Sequence[Thing]) -> bool | None:
    match = _RELATED.search(caption.lower())
    if match is None:
        return None
    axis, is_first = _RELATIONS[match[2]]
    middles = []
    for side in (match[1], match[3]):
        pairs = {(colour, kind) for _, colour, kind in named_groups(side)}
        sums = [thing.box[axis] + thing.box[axis + 2] for thing in things if (thing.colour, thing.kind) in pairs]
        if not sums:
            return False
        middles.append(sum(sums) / len(sums))
    return (middles[0] < middles[1]) == is_first


def score_scene_captions(texts: Sequence[str], things: Sequence[Sequence[Thing]]) -> dict[str, float]:
    """Return the share of captions for which each field of `Verdict` holds.

    things: the drawn things, for each caption. `placed` is a share of the captions that name a relation; it is left out
    if none does.
    """
    verdicts = [judge_scene_caption(text, scene) for text, scene in zip(texts, things, strict=True)]
    placed = [verdict.placed for verdict in verdicts if verdict.placed is not None]
    claims = ("true", "complete", "invented", "miscoloured", "miscounted")
    figures = {claim: sum(getattr(verdict, claim) for verdict in verdicts) / len(verdicts) for claim in claims}
    return figures | ({"placed": sum(placed) / len(placed)} if placed else {})


def describe_scene_figures(figures: Mapping[str, float]) -> str:
    """Return the main results of `score_scene_captions` on one line."""
    return "   ".join(f"{name} {figures[name]:6.1%}" for name in ("true", "complete", "placed") if name in figures)
