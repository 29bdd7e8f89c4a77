"""Find where a captioner is weak: a metric's value for groups of similar pictures."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray

from myllm.data.images import load_thumbnail
from myllm.data.records import Record
from myllm.data.scenes import Thing
from myllm.errors import DataError
from myllm.metrics.bootstrap import intervals
from myllm.metrics.ngrams import Words
from myllm.metrics.ptb import ptb_tokenize
from myllm.metrics.result import MetricResult

Mask = NDArray[np.bool_]
Slices = dict[str, dict[str, Mask]]

MIN_PICTURES = 30
DRAWS = 2_000
COUNTS = ("none", "one", "two", "three or more")

# Words for people that are common in English captions, without their plurals.
_PERSON_WORDS = """
man woman boy girl child kid baby toddler infant person guy lady gentleman adult teenager teen someone somebody player
skateboarder snowboarder skier surfer biker bicyclist cyclist motorcyclist rider driver racer climber hiker skater
rollerblader runner swimmer wrestler boxer dancer singer musician guitarist performer artist photographer cheerleader
gymnast golfer batter catcher pitcher goalie cowboy clown soldier policeman officer fireman worker waiter waitress chef
vendor spectator onlooker pedestrian tourist student teacher mother father mom dad son daughter brother sister husband
wife bride groom friend girlfriend boyfriend kayaker sailor fisherman male female individual athlete owner trainer
"""
_PERSON = frozenset(_PERSON_WORDS.split())
_PEOPLE = frozenset(
    [f"{word}s" for word in _PERSON]
    + [f"{word[:-3]}men" for word in _PERSON if word.endswith("man")]
    + ["people", "children", "ladies", "babies", "wives"]
)
_MANY = 3
_MANY_WORDS = "three four five six seven eight nine ten several many some 3 4 5 6"
_TOGETHER_WORDS = "group crowd bunch audience family team band"
_COUNT = {"a": 1, "an": 1, "one": 1, "another": 1, "two": 2, "both": 2, "2": 2}
_COUNT |= dict.fromkeys(_MANY_WORDS.split(), _MANY)
_TOGETHER = {"couple": 2, "pair": 2} | dict.fromkeys(_TOGETHER_WORDS.split(), _MANY)
# Words that captions of any picture use.
_FUNCTION_WORDS = """
a an the this that these those one some another other each both all it its he his him she her they their them who which
what there here is are was were be been being am has have had do does doing did not n't 's as at by for from in into of
off on onto out over to up down with and or but while than then so if
"""
_FUNCTION = frozenset(_FUNCTION_WORDS.split())


@dataclass(frozen=True)
class Slice:
    """A metric's value for one group of pictures."""

    kind: str
    label: str
    pictures: int
    value: float
    difference: float
    """The value minus the value of all pictures."""
    interval: tuple[float, float]


def slice_pictures(
    records: Sequence[Record], training_captions: Iterable[str] = (),
    things: Mapping[str, Sequence[Thing]] | None = None
) -> Slices:
    """Group the N pictures of `records`; return masks (N,) by kind and label.

    `caption length`: mean number of words of a picture's references.
    `people`: median number of people that a reference names; see `count_people`. For drawn scenes the kind is `things`:
        how many were drawn. things: by picture name, from `data.scenes.read_things`.
    `brightness`: mean luma as a share of white.
    `rare words`: mean -log frequency, in nats, of the references' content words among all words of
        `training_captions`, or of the references if there are none.

    All but counts are cut into thirds, whose bounds are part of the labels. Pictures that cannot be read, or whose
    references have no words, are in no group of the kinds that need them. A kind with only one group is left out.
    """
    words = [[ptb_tokenize(caption) for caption in record.captions] for record in records]
    known = [ptb_tokenize(caption) for caption in training_captions] or list(chain.from_iterable(words))
    lengths = [fmean(map(len, group)) if group else math.nan for group in words]
    if things is None:
        kind, counts = "people", [median(map(count_people, group)) if group else math.nan for group in words]
    else:
        kind, counts = "things", [len(things[r.name]) if r.name in things else math.nan for r in records]
    # Halves are rounded up; the last label stands for all greater counts.
    capped = np.minimum(np.floor(np.array(counts) + 0.5), len(COUNTS) - 1)
    slices = {
        "caption length": _thirds(lengths, ("short", "medium", "long"), "{:.1f} words"),
        kind: {label: capped == number for number, label in enumerate(COUNTS)},
        "brightness": _thirds(list(map(_brightness, records)), ("dark", "medium", "bright"), "{:.0%} of white"),
        "rare words": _thirds(_rarities(words, known), ("common", "medium", "rare"), "{:.1f} nats"),
    }
    non_empty = {kind: {label: mask for label, mask in masks.items() if mask.any()} for kind, masks in slices.items()}
    return {kind: masks for kind, masks in non_empty.items() if len(masks) > 1}


def measure_slices(slices: Slices, figure: MetricResult, min_pictures: int = MIN_PICTURES) -> list[Slice]:
    """Return the metric of each slice of at least `min_pictures` pictures."""
    rows = []
    for kind, label, mask in ((kind, *entry) for kind, masks in slices.items() for entry in masks.items()):
        if (count := int(mask.sum())) >= min_pictures:
            part = MetricResult(figure.per_image[mask], figure.sums[mask], figure.of_sums)
            interval = intervals({label: part}, DRAWS)[label]
            rows.append(Slice(kind, label, count, part.corpus, part.corpus - figure.corpus, interval))
    return rows


def worst_first(slices: Sequence[Slice]) -> list[Slice]:
    """Return the slices by their value, lowest first."""
    return sorted(slices, key=lambda part: part.value)


def count_people(words: Words) -> int:
    """Return how many people a caption names, by its words; 3 stands for three or more.

    A word for a person counts 1; two in a row count 1 together ("a toddler boy"). A plural counts as the number before
    it ("two young men"), or 3 without one. Couples, groups, teams and crowds are people, but numbers before "of" ("a
    couple of men").
    """
    named, number = 0, 0
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word in _TOGETHER and following != "of":
            named += _TOGETHER[word]
        elif word in _COUNT or word in _TOGETHER:
            number = _COUNT.get(word) or _TOGETHER[word]
        elif word in _PERSON:
            named += following not in _PERSON and following not in _PEOPLE
        elif word in _PEOPLE:
            named, number = named + (number if number > 1 else _MANY), 0
    return min(named, _MANY)


def _brightness(record: Record) -> float:
    """Return 0 for black to 1 for white; NaN if the picture cannot be read."""
    try:
        return float(load_thumbnail(record.image, 16, "L").mean()) / 255
    except DataError:
        return math.nan


def _rarities(references: Sequence[Sequence[Words]], known: Sequence[Words]) -> list[float]:
    """Return the mean -log frequency of each picture's content words; unknown words count as if they occurred once."""
    counts = Counter(word for words in known for word in words)
    total = counts.total()
    rarities = []
    for group in references:
        content = [word for words in group for word in words if word not in _FUNCTION]
        rarities.append(fmean(math.log(total / max(1, counts[word])) for word in content) if content else math.nan)
    return rarities


def _thirds(values: Sequence[float], names: tuple[str, str, str], unit: str) -> dict[str, Mask]:
    """Return masks of the lowest, the middle and the highest third; equal values stay together."""
    numbers = np.asarray(values, dtype=np.float64)
    if np.isnan(numbers).all():
        return {}
    low, high = np.nanquantile(numbers, 1 / 3, method="lower"), np.nanquantile(numbers, 2 / 3, method="higher")
    below, above = numbers <= low, (numbers >= high) & (numbers > low)
    return {
        f"{names[0]} (to {unit.format(low)})": below,
        names[1]: ~below & ~above & ~np.isnan(numbers),
        f"{names[2]} (from {unit.format(high)})": above,
    }

