"""Judge captions of drawn scenes: what is named, whether it is in the picture, and whether it is complete."""

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


def named_groups(caption: str) -> list[tuple[int, str, str]]:
    """What a caption names: (count, colour, kind), in its order."""
    return [(_COUNT[count], colour, _KIND[kind]) for count, colour, kind in _NAMED.findall(caption.lower())]


def find_named(caption: str, things: Sequence[Thing]) -> list[tuple[tuple[int, int], list[Thing]]]:
    """(begin, end) of each word that names a kind, with the things that it can mean; where there are none, left out."""
    found = []
    for match in _NAMED.finditer(caption.lower()):
        meant = [thing for thing in things if (thing.colour, thing.kind) == (match[2], _KIND[match[3]])]
        found += [(match.span(3), meant)] if meant else []
    return found


# Along which axis, and whether what is named first comes first on it.
_PLACES = {"left of": (0, True), "right of": (0, False), "above": (1, True), "over": (1, True),
           "below": (1, False), "under": (1, False)}
_PLACED = re.compile(rf"(.+) ({'|'.join(_PLACES)}) (.+)")


@dataclass(frozen=True)
class Verdict:
    """A caption held against what was drawn."""

    true: bool
    """Every thing-and-colour named is there."""
    complete: bool
    """All are named, no other, with right counts."""
    placed: bool | None
    """Things lie to each other as said; None where the caption doesn't say."""
    invented: bool
    """A kind of thing is named that isn't there; where neither this nor `miscoloured`, what is named is true."""
    miscoloured: bool
    """A kind that is there is named in a colour that it isn't there in."""
    miscounted: bool
    """What is there is named with a wrong number."""


def judge_scene_caption(caption: str, things: Sequence[Thing]) -> Verdict:
    """Hold a caption against what was drawn. A caption that names nothing is not true of anything."""
    named = named_groups(caption)
    pairs = [(thing.colour, thing.kind) for thing in things]
    counts = {pair: pairs.count(pair) for pair in pairs}
    is_true = bool(named) and all((colour, kind) in counts for _, colour, kind in named)
    said = sorted((colour, kind, count) for count, colour, kind in named)
    is_complete = is_true and said == sorted((*pair, count) for pair, count in counts.items())
    kinds = {thing.kind for thing in things}
    return Verdict(
        is_true,
        is_complete,
        _is_placed(caption, things),
        invented=any(kind not in kinds for _, _, kind in named),
        miscoloured=any(kind in kinds and (colour, kind) not in counts for _, colour, kind in named),
        miscounted=any(counts.get((colour, kind), count) != count for count, colour, kind in named),
    )


def _is_placed(caption: str, things: Sequence[Thing]) -> bool | None:
    found = _PLACED.search(caption.lower())
    if found is None:
        return None
    axis, is_first = _PLACES[found[2]]
    middles = []
    for side in (found[1], found[3]):
        pairs = {(colour, kind) for _, colour, kind in named_groups(side)}
        places = [thing.box[axis] + thing.box[axis + 2] for thing in things if (thing.colour, thing.kind) in pairs]
        if not places:
            return False
        middles.append(sum(places) / len(places))
    return (middles[0] < middles[1]) == is_first


def score_scene_captions(texts: Sequence[str], things: Sequence[Sequence[Thing]]) -> dict[str, float]:
    """Shares of captions of scenes that are true, complete, rightly placed, or wrong; see `judge_scene_caption`.

    `placed` is a share of the captions that say how things lie to each other, and absent where none does.
    """
    verdicts = [judge_scene_caption(text, own) for text, own in zip(texts, things, strict=True)]
    placed = [verdict.placed for verdict in verdicts if verdict.placed is not None]
    claims = ("true", "complete", "invented", "miscoloured", "miscounted")
    figures = {claim: sum(getattr(verdict, claim) for verdict in verdicts) / len(verdicts) for claim in claims}
    return figures | ({"placed": sum(placed) / len(placed)} if placed else {})


def describe_scene_figures(figures: Mapping[str, float]) -> str:
    """What `score_scene_captions` found, on one line."""
    return "   ".join(f"{name} {figures[name]:6.1%}" for name in ("true", "complete", "placed") if name in figures)


JUDGEMENT = (
    "true: every thing and colour named is in the picture; complete: all are named, no other, rightly counted; "
    "placed: of captions that say left, right, above or below, those where it is so."
)
