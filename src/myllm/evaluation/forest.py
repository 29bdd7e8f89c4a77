"""Forest plots of a report: values as dots with their intervals, in groups, around a line such as zero."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from matplotlib.ticker import MaxNLocator

from myllm.data.records import quantity
from myllm.evaluation.compare import CHANCE, Comparison
from myllm.evaluation.judge import MAIN, Judgement
from myllm.evaluation.metric_table import describe_metrics
from myllm.evaluation.slices import Slice
from myllm.metrics.bootstrap import Difference
from myllm.metrics.hallucination import LOWER_IS_BETTER
from myllm.metrics.wilson import wilson_interval

Interval = tuple[float, float]
Tone = Literal["plain", "better", "worse", "unsure", "control"]
MARGIN = 5
"""Percent of a plot's width to the left of the lowest tick, and to the right of the highest."""
HIGHER, LOWER = "Higher is better", "Lower is better"


@dataclass(frozen=True)
class Dot:
    """A row of a plot."""

    label: str
    value: float
    interval: Interval | None
    text: str
    """The value."""
    detail: str = ""
    """A smaller line below the value, such as the interval."""
    notes: Sequence[str] = ()
    """Smaller lines below the label."""
    tone: Tone = "plain"
    """The look of the dot; `unsure` is hollow."""


@dataclass(frozen=True)
class Scale:
    """A horizontal axis."""

    ticks: Sequence[float]
    """At least two numbers, ascending; all values lie between the first and the last."""
    is_share: bool = False
    """Whether the labels are percentages."""

    def percent(self, value: float) -> str:
        """Return the position of a value as a percentage of the plot's width."""
        return f"{MARGIN + self._part(value - self.ticks[0]):.2f}%"

    def width(self, interval: Interval) -> str:
        """Return the width of an interval as a percentage of the plot's width."""
        return f"{self._part(interval[1] - interval[0]):.2f}%"

    def _part(self, difference: float) -> float:
        return (100 - 2 * MARGIN) * difference / (self.ticks[-1] - self.ticks[0])

    @property
    def labels(self) -> list[tuple[str, str]]:
        """The position and the text of each tick."""
        return [(self.percent(tick), f"{100 * tick:g}%" if self.is_share else f"{tick:g}") for tick in self.ticks]


@dataclass(frozen=True)
class Group:
    """Rows with a common scale."""

    title: str
    dots: Sequence[Dot]
    scale: Scale
    line: float
    """Where a line crosses all rows."""
    band: Interval | None = None
    """Interval of the line's value, drawn as a band."""
    ends: tuple[str, str] = ("", "")
    """What it means to lie to the left and to the right of the line."""


def score_groups(judgement: Judgement) -> list[Group]:
    """Return CIDEr-D of people, of the captioner and of its controls, on one scale from zero."""
    labels = {MAIN: "This captioner", f"{MAIN}_blind": "No picture", f"{MAIN}_shuffled": "Shuffled pictures"}
    return [_score_group(judgement, [
        _metric_dot(label, judgement, name) for name, label in labels.items() if name in judgement.figures
    ])]


def compared_groups(comparison: Comparison) -> list[Group]:
    """Return CIDEr-D of people, of both captioners and of their controls, on one scale from zero."""
    sides = {"A": comparison.a.judgement, "B": comparison.b.judgement}
    labels = {MAIN: "{}", f"{MAIN}_shuffled": "{}, shuffled pictures"}
    return [_score_group(comparison.a.judgement, [
        _metric_dot(label.format(letter), judgement, name)
        for name, label in labels.items() for letter, judgement in sides.items()
    ])]


def truth_group(truth: Mapping[str, float], pictures: int, new_scenes: Mapping[str, Mapping[str, float]]) -> Group:
    """Return the shares of true and of complete captions of drawn scenes, with intervals.

    truth: shares of the judged pictures. new_scenes: as in `Evaluation`; of its parts, `held-out pairs` is shown.
    """
    parts = {"": {**truth, "pictures": pictures}}
    if "held-out pairs" in new_scenes:
        parts[", held out"] = {**new_scenes["held-out pairs"]}
    dots = []
    for name in ("true", "complete"):
        for part, shares in parts.items():
            low, high = wilson_interval(shares[name], int(shares["pictures"]))
            text, detail = f"{shares[name]:.0%}", f"{low:.0%} to {high:.0%}"
            dots.append(Dot(f"{name.capitalize()}{part}", shares[name], (low, high), text, detail))
    return Group("Captions", dots, Scale((0, 0.5, 1), is_share=True), 0)


def slice_groups(slices: Sequence[Slice], whole: float, band: Interval) -> list[Group]:
    """Return a metric of groups of pictures, by kind, around its value of all pictures.

    slices: those of one kind follow each other and keep their order; the kind with the lowest value comes first.
    band:   95 % interval of the value of all pictures.
    """
    kinds = [list(rows) for _, rows in groupby(slices, key=lambda row: row.kind)]
    kinds.sort(key=lambda rows: min(row.value for row in rows))
    dots = [[_slice_dot(row, whole) for row in rows] for rows in kinds]
    scale = _scale([dot for group in dots for dot in group], *band)
    return [
        Group(rows[0].kind.capitalize(), group, scale, whole, band) for rows, group in zip(kinds, dots, strict=True)
    ]


def difference_groups(comparison: Comparison) -> list[Group]:
    """Return B's metrics minus A's around zero, in groups of metrics with the same scale and direction."""
    groups: dict[str, list[Dot]] = {title: [] for title in (MAIN, HIGHER, LOWER)}
    for name, label, form, meaning in describe_metrics(comparison.differences):
        difference = comparison.differences[name]
        low, high = difference.interval
        p = "" if difference.p is None else f"; p\u00a0{difference.p:.4f}"
        a, b, neither = difference.wins
        values = f"A {difference.a:{form}}, B {difference.b:{form}}"
        wins = f"A is higher on {a:,}, B on {b:,}, neither on {neither:,}"
        title = LOWER if name in LOWER_IS_BETTER else MAIN if name.startswith((MAIN, "grounding")) else HIGHER
        groups[title].append(Dot(
            label, difference.difference, difference.interval, format(difference.difference, f"+{form}"),
            f"{low:+{form}} to {high:+{form}}{p}", [meaning.removeprefix("lower is better: "), values, wins],
            _tone(name, difference),
        ))
    ends = "A is higher", "B is higher"
    return [
        Group(title, dots, _scale(dots, *_mirrored(dots), is_share=title == LOWER), 0, ends=ends)
        for title, dots in groups.items() if dots
    ]


def _scale(dots: Sequence[Dot], *others: float, is_share: bool = False) -> Scale:
    """Return a scale for the values and intervals of the dots, and for other numbers."""
    numbers = [*others, *(number for dot in dots for number in (dot.value, *(dot.interval or ())))]
    low, high = min(numbers), max(numbers)
    locator = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10])
    return Scale([float(tick) for tick in locator.tick_values(low, high if high > low else low + 1)], is_share)


def _mirrored(dots: Sequence[Dot]) -> list[float]:
    """Return the ends of the dots' intervals with the opposite sign: a scale that includes them has 0 in the middle."""
    return [-end for dot in dots for end in (dot.interval or ())]


def _metric_dot(label: str, judgement: Judgement, name: str) -> Dot:
    value, (low, high) = judgement.figures[name].corpus, judgement.intervals[name]
    tone: Tone = "plain" if name == MAIN else "control"
    return Dot(label, value, (low, high), f"{value:.2f}", f"{low:.2f} to {high:.2f}", tone=tone)


def _score_group(judgement: Judgement, dots: Sequence[Dot]) -> Group:
    """Return the dots with those of people, if they are known."""
    people = [judgement.people[MAIN][0]] if MAIN in judgement.people else []
    all_dots = [*(Dot("People", value, None, f"{value:.2f}", tone="control") for value in people), *dots]
    return Group(MAIN, all_dots, _scale(all_dots, 0), 0)


def _slice_dot(part: Slice, whole: float) -> Dot:
    low, high = part.interval
    tone: Tone = "worse" if high < whole else "better" if low > whole else "unsure"
    notes = [quantity(part.pictures, "picture")]
    return Dot(part.label, part.value, part.interval, f"{part.value:.3f}", f"{low:.3f} to {high:.3f}", notes, tone)


def _tone(name: str, difference: Difference) -> Tone:
    if difference.p is None or difference.p >= CHANCE:
        return "unsure"
    if name == f"{MAIN}_shuffled":
        return "control"
    return "better" if (difference.difference > 0) != (name in LOWER_IS_BETTER) else "worse"
