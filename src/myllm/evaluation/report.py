"""report.html: how good a captioner is, on one page, or two captioners side by side.

The page is complete in itself: it loads nothing from the network or from other files.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from myllm.evaluation.calibration import ConfidenceReport
from myllm.evaluation.compare import Comparison
from myllm.evaluation.evaluate import Evaluation
from myllm.evaluation.gallery import (
    PICTURES_PER_ORDER,
    GalleryCaptions,
    GalleryPicture,
    Order,
    Thumbnail,
    WordMapsOf,
    build_gallery,
    comparison_orders,
    gallery_orders,
    make_thumbnail,
)
from myllm.evaluation.judge import MAIN, Judgement
from myllm.evaluation.metric_table import (
    METRICS,
    Cell,
    Table,
    comparison_headline,
    comparison_table,
    count,
    describe_protocol,
    evaluation_table,
    headline,
)
from myllm.evaluation.plots import (
    CONFIDENCE_PLOTS,
    CURVES,
    WORD_PLOTS,
    Data,
    PlotKind,
    Row,
    WordsByAuthor,
    frequent_words,
    plot_svg,
)
from myllm.evaluation.slices import Slice
from myllm.files import atomic_write

TEMPLATE, STYLE, SCRIPT = "report.html.jinja", "report.css", "report.js"  # next to this file
MAX_PAIRS = 12
PAIR_SIDE, PAIR_BYTES = 160, 10_000


@dataclass(frozen=True)
class Plot:
    """A plot on the page."""

    title: str
    svg: str
    """An SVG element, inserted without escaping."""
    description: str
    """What it shows, for readers who can't see it."""


@dataclass(frozen=True)
class Section:
    """Plots, and the text that explains them."""

    paragraphs: Sequence[str]
    plots: Sequence[Plot]


@dataclass(frozen=True)
class LeakSection:
    """What the judged pictures share with training."""

    sentences: Sequence[str]
    pairs: Sequence[Sequence[tuple[str, Thumbnail | None]]] = ()
    """Judged pictures with the training picture that they are copies of: name and thumbnail of both."""
    pair_count: int = 0
    """Number of pairs that were found; only `MAX_PAIRS` of them are shown."""


@dataclass(frozen=True)
class Report:
    """Everything that the page shows; sections that are None or empty are left out."""

    title: str
    subtitle: str
    facts: Mapping[str, str]
    sides: Sequence[str]
    """Names of the two captioners; empty for a report of one."""
    headline: Sequence[tuple[str, Cell]]
    conclusion: str
    """What a comparison shows; empty for a report of one captioner."""
    pictures: int
    """Number of judged pictures."""
    table: Table
    protocol: Mapping[str, str]
    gallery: Sequence[GalleryPicture]
    orders: Sequence[Order]
    words: Section
    absent: Mapping[str, str]
    """Metrics that were not computed, with the reason."""
    cautions: Sequence[str] = ()
    """Why some metrics mean less than they seem to."""
    broken: Sequence[str] = ()
    """Pictures that could not be read, with the reason."""
    training: Section | None = None
    confidence: Section | None = None
    slices: Sequence[Slice] = ()
    """CIDEr-D of groups of pictures, the worst first."""
    leaks: LeakSection | None = None

    @property
    def has_people(self) -> bool:
        return "People" in self.table.columns

    @property
    def has_blind(self) -> bool:
        return any(label == METRICS[f"{MAIN}_blind"][0] for label, _, _ in self.table.rows)

    @property
    def has_maps(self) -> bool:
        return any(span.map for picture in self.gallery for caption in picture.captions for span in caption.spans)


def evaluation_report(
    title: str,
    facts: Mapping[str, str],
    evaluation: Evaluation,
    history: Sequence[Row] = (),
    word_maps: WordMapsOf | None = None,
) -> Report:
    """Return the report of one captioner.

    facts:     where it comes from, by label.
    history:   one row per epoch, if it is the report of a run.
    word_maps: from `heatmaps.make_word_maps`; without it the gallery has no heat maps.
    """
    captions = GalleryCaptions(
        [caption.text for caption in evaluation.captions], evaluation.per_image[MAIN],
        [caption.score for caption in evaluation.captions], [caption.confidence for caption in evaluation.captions],
        word_maps,
    )
    orders = gallery_orders(captions)
    return Report(
        title=title,
        subtitle="An image captioner: how good its captions are, and what they say.",
        facts=facts,
        sides=(),
        headline=headline(evaluation.judgement),
        conclusion="",
        pictures=len(evaluation.records),
        table=evaluation_table(evaluation),
        protocol=describe_protocol(evaluation.protocol),
        absent=_absent(evaluation.judgement),
        cautions=evaluation.judgement.cautions,
        gallery=build_gallery(evaluation.records, [captions], orders),
        orders=orders,
        words=words_section(evaluation.words),
        broken=evaluation.broken,
        training=training_section(history) if history else None,
        slices=evaluation.slices,
        leaks=_leaks_of(evaluation),
        confidence=None if evaluation.trust is None else confidence_section(evaluation.trust),
    )


def comparison_report(
    facts: Mapping[str, str],
    comparison: Comparison,
    word_maps: tuple[WordMapsOf | None, WordMapsOf | None] = (None, None),
) -> Report:
    """Return the report of two captioners on the same pictures; facts and word_maps as in `evaluation_report`."""
    sides = comparison.a, comparison.b
    a, b = (
        GalleryCaptions(side.captions, side.judgement.per_image[MAIN], word_maps=side_maps)
        for side, side_maps in zip(sides, word_maps, strict=True)
    )
    orders = comparison_orders(a, b)
    return Report(
        title=" and ".join(side.name for side in sides),
        subtitle="Two captioners side by side on the same pictures.",
        facts=facts,
        sides=[side.name for side in sides],
        headline=comparison_headline(comparison),
        conclusion=comparison.sentence(),
        pictures=len(comparison.records),
        table=comparison_table(comparison),
        protocol=describe_protocol(comparison.protocol),
        absent=_absent(comparison.a.judgement),
        cautions=list(dict.fromkeys([*comparison.a.judgement.cautions, *comparison.b.judgement.cautions])),
        gallery=build_gallery(comparison.records, [a, b], orders),
        orders=orders,
        words=words_section(comparison.words),
    )


def training_section(history: Sequence[Row]) -> Section:
    """Return the curves of a run. history: one row per epoch."""
    descriptions = {
        name: "; ".join(
            f"{side} from {float(history[0][key]):.2f} to {float(history[-1][key]):.2f}"
            for side, key in (("training", f"train_{name}"), ("validation", f"val_{name}"))
        )
        for name in CURVES
    }
    text = "The star marks the epoch with the lowest validation loss, whose weights are the captioner."
    return Section([text], _plots(CURVES, history, descriptions))


def confidence_section(report: ConfidenceReport) -> Section:
    """Return what the captions' confidence is worth."""
    calibration = (
        "a calibration learned on the other pictures" if report.is_cross_fitted else "the captioner’s own calibration"
    )
    text = (
        "Confidence is the captioner’s estimate of how likely it is that the references use its words; it was computed "
        f"by {calibration}. In the first plot, on the dashed line, the words with a confidence of 80 % are in the "
        "references of 80 of 100 pictures; below the line the captioner is overconfident. The second plot shows how "
        "good the captions are if only the most confident ones are kept."
    )
    return Section([text], _plots(CONFIDENCE_PLOTS, report, {
        "reliability": f"confidence is off by {report.word_error:.3f} on average for a word, by "
                       f"{report.caption_error:.3f} for a caption",
        "coverage": report.describe_sorting(MAIN),
    }))


def words_section(words: WordsByAuthor) -> Section:
    """Return how long the captions are and which words they use. words: captions by author, the references last."""
    lengths = [f"{name}: {fmean(map(len, captions)):.1f} words on average" for name, captions in words.items()]
    frequent = [
        f"“{word}” is in " + ", ".join(f"{share:.0%} of {name}" for name, share in zip(words, shares, strict=True))
        for word, shares in list(frequent_words(words).items())[:5]
    ]
    text = (
        "A captioner that plays safe writes captions of nearly one length, a narrow peak in the first plot, and uses "
        "a few words far more often than people do."
    )
    return Section([text], _plots(WORD_PLOTS, words, {"lengths": "; ".join(lengths), "words": "; ".join(frequent)}))


def leak_section(sentences: Sequence[str], pairs: Sequence[tuple[Path, Path]] = ()) -> LeakSection:
    """Return what the judged pictures share with training. pairs: a judged picture, and its copy in training."""
    thumbnails = [
        [(path.name, make_thumbnail(path, PAIR_BYTES, PAIR_SIDE)) for path in pair] for pair in pairs[:MAX_PAIRS]
    ]
    return LeakSection(sentences, thumbnails, len(pairs))


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
        count=count,
        pictures_per_order=PICTURES_PER_ORDER,
        style=(folder / STYLE).read_text(encoding="utf-8"),
        script=script,
        # the browser runs only the script with this hash, whatever a caption contains
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    with atomic_write(path) as file:
        file.write(page.encode())


def _plots(kinds: Mapping[str, PlotKind[Data]], data: Data, descriptions: Mapping[str, str]) -> list[Plot]:
    return [Plot(kind.title, plot_svg(kind, data), descriptions[name]) for name, kind in kinds.items()]


def _absent(judgement: Judgement) -> dict[str, str]:
    """Return the metrics that were not computed; those without a value are in the table, as "-"."""
    absent = judgement.protocol.get("absent", {})
    return {name: reason for name, reason in absent.items() if name not in judgement.figures}


def _leaks_of(evaluation: Evaluation) -> LeakSection | None:
    if evaluation.leaks is None:
        return None
    pairs = [(pair.judged.image, pair.training.image) for pair in evaluation.leaks.pairs]
    return leak_section(evaluation.describe_leaks(), pairs)
