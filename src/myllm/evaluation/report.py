"""report.html: a captioner's worth on one page, or two captioners side by side.

The page needs nothing beside it, neither the network nor the pictures' own files. What a `Report` lacks is left out.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from myllm.evaluation.calibration import ConfidenceReport, changed_options
from myllm.evaluation.compare import CHANCE, Comparison
from myllm.evaluation.evaluate import Evaluation, describe_search
from myllm.evaluation.gallery import (
    EACH,
    GalleryCaptions,
    GalleryPicture,
    Order,
    WordMapsOf,
    build_gallery,
    comparison_orders,
    gallery_orders,
)
from myllm.evaluation.judge import MAIN, Judgement
from myllm.evaluation.plots import (
    CURVES,
    TRUST,
    WORD_PLOTS,
    Row,
    Words,
    confidence_svg,
    curve_svg,
    frequent_words,
    words_svg,
)
from myllm.evaluation.slices import Slice
from myllm.files import atomic_write

TEMPLATE, STYLE, SCRIPT = "report.html.jinja", "report.css", "report.js"  # beside this file

FIGURES = {
    "BLEU-1": ("BLEU-1", ".3f", "words of the captions that a reference has too"),
    "BLEU-2": ("BLEU-2", ".3f", "the same for runs of up to two words"),
    "BLEU-3": ("BLEU-3", ".3f", "up to three words"),
    "BLEU-4": ("BLEU-4", ".3f", "up to four words"),
    "ROUGE-L": ("ROUGE-L", ".3f", "words shared with a reference in the same order, with others between them or not"),
    "METEOR": ("METEOR", ".3f", "words shared with a reference, in other forms or by synonyms too, in a like order"),
    "CIDEr-D": ("CIDEr-D", ".3f", "phrases shared with the references, rare ones weighing more; 0 to 10"),
    "CIDEr-D_shuffled": ("CIDEr-D, shuffled pictures", ".3f", "a control: the same captions at other pictures"),
    "CIDEr-D_blind": ("CIDEr-D, no picture", ".3f", "a control: what is said where nothing is seen, of every picture"),
    "grounding_gap": ("Grounding gap", ".3f", "CIDEr-D less that of shuffled pictures: what comes from seeing"),
    "CHAIRi": ("CHAIRi", ".1%", "less is better: named things that no reference names, among those named"),
    "CHAIRs": ("CHAIRs", ".1%", "less is better: captions with such a thing"),
    "places_wrong": ("Places wrong", ".1%", "less is better: the same of places alone"),
    "colours_wrong": ("Colours wrong", ".1%", "less is better: of colours"),
    "counts_wrong": ("Counts wrong", ".1%", "less is better: of numbers"),
    "self-CIDEr": ("self-CIDEr", ".3f", "how much a picture’s captions that were weighed differ; 0 to 1"),
    "CLIPScore": ("CLIPScore", ".3f", "how well captions fit the pictures, by a CLIP"),
    "RefCLIPScore": ("RefCLIPScore", ".3f", "how well they fit the references too"),
    "distinct_captions": ("Distinct captions", ".1%", "different captions among all that were written"),
    "mean_length": ("Mean length", ".1f", "words in a caption"),
    "true": ("True", ".1%", "captions of scenes that name only what is there"),
    "invented": ("Invented", ".1%", "less is better: captions that name a kind of thing that is not there"),
    "miscoloured": ("Miscoloured", ".1%", "less is better: captions that give a thing a colour which it has not"),
    "miscounted": ("Miscounted", ".1%", "less is better: captions with a wrong number of things"),
    "complete": ("Complete", ".1%", "captions that name all that is there, and no more"),
    "placed": ("Placed", ".1%", "of those that say left, right, above or below, captions where it is so"),
}
"""Label, format and meaning of each figure; others are shown by their own name."""

PROTOCOL = {
    "intervals": "Intervals",
    "blind": "GalleryCaptions with no picture",
    "model": "Hash of the weights",
    "data": "Hash of the data",
    "clip": "CLIP",
}


@dataclass(frozen=True)
class Plot:
    """A plot."""

    title: str
    svg: str
    """An SVG element by `plots`, put in as it is."""
    told: str
    """What it shows, in words, for those who don't see it."""


@dataclass(frozen=True)
class Section:
    """Plots with what is to be known to read them."""

    told: Sequence[str]
    """Paragraphs of plain text."""
    plots: Sequence[Plot]


@dataclass(frozen=True)
class Cell:
    """A figure, and in small what belongs to it."""

    value: str
    below: str = ""


@dataclass(frozen=True)
class Table:
    """A row a figure: its label, its meaning, and a cell for each of `columns`."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, str, Sequence[Cell]]]


@dataclass(frozen=True)
class Report:
    """What is on the page."""

    title: str
    opening: str
    facts: Mapping[str, str]
    sides: Sequence[str]
    """Names of the two that are compared; one captioner needs none."""
    headline: Sequence[tuple[str, Cell]]
    sentence: str
    """What may be said of a comparison."""
    pictures: int
    """How many are judged."""
    table: Table
    protocol: Mapping[str, str]
    gallery: Sequence[GalleryPicture]
    orders: Sequence[Order]
    words: Section
    absent: Mapping[str, str]
    """Figures that are not there, with the reason."""
    broken: Sequence[str] = ()
    """Pictures that could not be read, with the reason."""
    training: Section | None = None
    calibration: Section | None = None
    slices: Sequence[Slice] = ()
    """Of CIDEr-D, in the order in which they are to stand, as the worst first."""
    leaks: Sequence[str] = ()
    """Sentences on what is judged and in training too."""

    @property
    def has_people(self) -> bool:
        return "People" in self.table.columns

    @property
    def has_blind(self) -> bool:
        return any(label == FIGURES[f"{MAIN}_blind"][0] for label, _, _ in self.table.rows)

    @property
    def has_maps(self) -> bool:
        return any(piece.seen for shown in self.gallery for spoken in shown.spoken for piece in spoken.pieces)


def evaluation_report(
    title: str,
    facts: Mapping[str, str],
    evaluation: Evaluation,
    history: Sequence[Row] = (),
    look: WordMapsOf | None = None,
) -> Report:
    """Of one captioner. facts: where it is from, name by name. history: a row an epoch, of a run. look: heat maps."""
    said = GalleryCaptions(
        [caption.text for caption in evaluation.captions], evaluation.per_image[MAIN],
        [caption.score for caption in evaluation.captions], [caption.confidence for caption in evaluation.captions],
        look,
    )
    judgement, orders = evaluation.judgement, gallery_orders(said)
    return Report(
        title=title,
        opening="An image captioner, and what it says of pictures that it is judged on.",
        facts=facts,
        sides=(),
        headline=_headline(judgement),
        sentence="",
        pictures=len(evaluation.records),
        table=_figures_of_one(evaluation),
        protocol=_told_protocol(evaluation.protocol),
        absent=evaluation.protocol.get("absent", {}),
        gallery=build_gallery(evaluation.records, [said], orders),
        orders=orders,
        words=words_section(evaluation.words),
        broken=evaluation.broken,
        training=training_section(history) if history else None,
        slices=evaluation.slices,
        leaks=evaluation.describe_leaks(),
        calibration=calibration_section(evaluation.trust),
    )


def comparison_report(
    facts: Mapping[str, str], comparison: Comparison, looks: tuple[WordMapsOf | None, WordMapsOf | None] = (None, None)
) -> Report:
    """Of two captioners. looks: heat maps of each."""
    both = comparison.a, comparison.b
    a, b = (
        GalleryCaptions(one.captions, one.judgement.per_image[MAIN], look=look)
        for one, look in zip(both, looks, strict=True)
    )
    orders = comparison_orders(a, b)
    return Report(
        title=" and ".join(one.name for one in both),
        opening="Two captioners side by side on the same pictures.",
        facts=facts,
        sides=[one.name for one in both],
        headline=_headline_of_two(comparison),
        sentence=comparison.sentence(),
        pictures=len(comparison.records),
        table=_figures_of_two(comparison),
        protocol=_told_protocol(comparison.protocol),
        absent=comparison.a.judgement.protocol.get("absent", {}),
        gallery=build_gallery(comparison.records, [a, b], orders),
        orders=orders,
        words=words_section(comparison.words),
    )


def training_section(history: Sequence[Row]) -> Section:
    """The curves of a run."""
    return Section(
        ("The star is the epoch of the lowest validation loss.",),
        [
            Plot(f"{label} by epoch", curve_svg(history, name), _told_curve(history, name))
            for name, (label, _) in CURVES.items()
        ],
    )


def calibration_section(trust: ConfidenceReport | None) -> Section | None:
    """What confidence is worth; None where that was not measured."""
    if trust is None:
        return None
    judged = "by a calibration of other pictures" if trust.is_cross_fitted else "by the captioner’s own calibration"
    off = trust.word_error, trust.caption_error
    told = {
        "reliability": f"confidence is off by {off[0]:.3f} in the mean for a word, by {off[1]:.3f} for a caption",
        "coverage": trust.describe_sorting("CIDEr-D"),
    }
    return Section(
        (f"How far confidence, {judged}, can be trusted. On the dashed line words said with a confidence of 80 % are "
         "in the references of 80 of 100 pictures; below it the captioner is surer than it is right. The other plot "
         "shows what is won by keeping only the captions that it is surest of.",),
        [Plot(title, confidence_svg(trust, name), told[name]) for name, (title, _) in TRUST.items()],
    )


def words_section(words: Mapping[str, Sequence[Words]]) -> Section:
    """How long captions are and what words they use, by who says them; references last."""
    told = {"lengths": _told_lengths(words), "words": _told_words(words)}
    return Section(
        ("Whoever says short, safe things of every picture has a narrow peak on the left, and uses a few words far "
         "more often than people do.",),
        [Plot(title, words_svg(words, name), told[name]) for name, (title, _, _) in WORD_PLOTS.items()],
    )


def write_report(path: Path, report: Report) -> None:
    """Write the page, atomically."""
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )
    script = (folder / SCRIPT).read_text(encoding="utf-8")
    page = environment.get_template(TEMPLATE).render(
        report=report,
        each=EACH,
        style=(folder / STYLE).read_text(encoding="utf-8"),
        script=script,
        # the browser runs what has this hash and nothing else, whatever a caption should smuggle in
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    with atomic_write(path) as file:
        file.write(page.encode())


def _headline(judgement: Judgement) -> list[tuple[str, Cell]]:
    labels = {
        MAIN: MAIN, f"{MAIN}_shuffled": "with shuffled pictures", f"{MAIN}_blind": "with no picture",
        "grounding_gap": "the gap: what is seen",
    }
    return [
        (label, Cell(f"{judgement.figures[name].corpus:.2f}", _range(judgement.intervals[name], ".2f")))
        for name, label in labels.items()
        if name in judgement.figures
    ]


def _headline_of_two(comparison: Comparison) -> list[tuple[str, Cell]]:
    found = comparison.differences[MAIN]
    chance = "more than chance" if found.p is not None and found.p < CHANCE else "may be chance"
    ranges = [one.judgement.intervals[MAIN] for one in (comparison.a, comparison.b)]
    return [
        (f"{MAIN} of A", Cell(f"{found.a:.2f}", _range(ranges[0], ".2f"))),
        (f"{MAIN} of B", Cell(f"{found.b:.2f}", _range(ranges[1], ".2f"))),
        (f"B − A: {chance}", Cell(f"{found.difference:+.2f}", _range(found.interval, "+.2f"))),
    ]


def _figures_of_one(evaluation: Evaluation) -> Table:
    judgement, people = evaluation.judgement, evaluation.judgement.people
    rows = []
    for name, value in evaluation.figures.items():
        if name == "CIDEr":  # CIDEr-D by its other name
            continue
        label, form, meaning = FIGURES.get(name, (name, ".3f", ""))
        below = _range(judgement.intervals[name], form) if name in judgement.intervals else ""
        cells = [Cell(format(value, form), below)]
        if people:
            own, these = (format(one, form) for one in people[name]) if name in people else ("", "")
            cells.append(Cell(own, own and f"captions {these}"))
        rows.append((label, meaning, cells))
    return Table(["Value", *(["People"] if people else [])], rows)


def _figures_of_two(comparison: Comparison) -> Table:
    rows = []
    for name, found in comparison.differences.items():
        if name == "CIDEr":
            continue
        label, form, meaning = FIGURES.get(name, (name, ".3f", ""))
        ranges = [one.judgement.intervals[name] for one in (comparison.a, comparison.b)]
        a, b, neither = found.wins
        cells = [
            Cell(format(found.difference, f"+{form}"), f"{_range(found.interval, f'+{form}')}; p\u00a0{found.p_text}"),
            Cell(format(found.a, form), _range(ranges[0], form)),
            Cell(format(found.b, form), _range(ranges[1], form)),
            Cell(f"{a:,} / {b:,} / {neither:,}"),
        ]
        rows.append((label, meaning, cells))
    return Table(["B − A", "A", "B", "A / B / neither is higher on"], rows)


def _range(ends: tuple[float, float], form: str) -> str:
    return f"{ends[0]:{form}} to {ends[1]:{form}}"


def _told_protocol(protocol: Mapping[str, Any]) -> dict[str, str]:
    told = {
        "Split": str(protocol["split"]),
        "Pictures": f"{protocol['pictures']:,}",
        "References": f"{protocol['references']:,}",
        "Tokenizer": str(protocol["tokenizer"]),
        "CIDEr-D’s word frequencies": str(protocol["CIDEr-D frequencies"]),
    }
    if "decode" in protocol:
        changed = changed_options(protocol["decode"]).items()
        options = [f"{name} {value}" for name, value in changed if name not in ("beams", "do_sample")]
        told["Decoding"] = ", ".join([describe_search(protocol["decode"]), *options])
    return told | {label: str(protocol[key]) for key, label in PROTOCOL.items() if protocol.get(key) is not None}


def _told_curve(history: Sequence[Row], name: str) -> str:
    first, last = history[0], history[-1]
    sides = (("training", f"train_{name}"), ("validation", f"val_{name}"))
    return "; ".join(f"{side} from {float(first[key]):.2f} to {float(last[key]):.2f}" for side, key in sides)


def _told_lengths(words: Mapping[str, Sequence[Words]]) -> str:
    means = {name: fmean(map(len, captions)) for name, captions in words.items()}
    return "; ".join(f"{name}: {mean:.1f} words on average" for name, mean in means.items())


def _told_words(words: Mapping[str, Sequence[Words]]) -> str:
    first = list(frequent_words(words).items())[:5]
    return "; ".join(
        f"“{word}” is in " + ", ".join(f"{share:.0%} of {name}" for name, share in zip(words, shares, strict=True))
        for word, shares in first
    )
