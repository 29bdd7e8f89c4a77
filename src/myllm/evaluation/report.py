"""report.html: how good a captioner is, on one page, or two captioners side by side.

The page is complete in itself: it loads nothing from the network or from other files.
"""

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from myllm.caption import Sample
from myllm.data.records import Record, quantity
from myllm.evaluation import forest, gallery, metric_table, plots
from myllm.evaluation.calibration import ConfidenceReport
from myllm.evaluation.compare import Comparison
from myllm.evaluation.evaluate import Evaluation
from myllm.evaluation.forest import Group
from myllm.evaluation.gallery import GalleryCaptions, GalleryPicture, Order, Thumbnail, WordMapsOf, WordSpan
from myllm.evaluation.judge import MAIN, Judgement, judge_captions
from myllm.evaluation.metric_table import Table
from myllm.evaluation.plots import Data, PlotKind, Row, WordsByAuthor
from myllm.evaluation.verdict import describe_quality, describe_truth
from myllm.files import atomic_write
from myllm.metrics.hallucination import invented_spans
from myllm.page.files import FOLDER as PAGE

MAX_PAIRS = 12
PAIR_SIDE, PAIR_BYTES = 160, 10_000
NOT_IN_REFERENCES = "not in any reference"


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

    text: str
    plots: Sequence[Plot]


@dataclass(frozen=True)
class LeakSection:
    """What the judged pictures share with training."""

    sentences: Sequence[str]
    pairs: Sequence[Sequence[tuple[str, Thumbnail | None]]]
    """Name and thumbnail of a judged picture, and of the training picture that it is a copy of."""
    pair_count: int
    """Number of pairs that were found; only `MAX_PAIRS` of them are shown."""


@dataclass(frozen=True)
class Report:
    """Everything that the page shows; sections that are None or empty are omitted."""

    title: str
    subtitle: str
    facts: Mapping[str, str]
    pictures: int
    """Number of judged pictures."""
    protocol: Mapping[str, str]
    gallery: Sequence[GalleryPicture]
    orders: Sequence[Order]
    verdict: Sequence[str] = ()
    """How good it is, in sentences."""
    scores: Sequence[Group] = ()
    """CIDEr-D of people, captioners and controls; for drawn scenes, shares of true and of complete captions."""
    invented: str = NOT_IN_REFERENCES
    """Meaning of the mark on invented words."""
    table: Table | None = None
    """All metrics of one captioner."""
    differences: Sequence[Group] = ()
    """All metrics of two captioners."""
    words: Section | None = None
    absent: Mapping[str, str] = field(default_factory=dict)
    """Metrics that were not computed, with the reason."""
    sides: Sequence[str] = ()
    """Names of the two captioners of a comparison."""
    cautions: Sequence[str] = ()
    """Why some metrics mean less than they seem to."""
    broken: Sequence[str] = ()
    """Pictures that could not be read, with the reason."""
    failed: Sequence[str] = ()
    """Pictures for which the decoding rules left nothing, with the reason."""
    training: Section | None = None
    confidence: Section | None = None
    slices: Sequence[Group] = ()
    """CIDEr-D of groups of pictures."""
    leaks: LeakSection | None = None

    @property
    def has_maps(self) -> bool:
        return any(span.map for span in self._spans())

    @property
    def has_invented(self) -> bool:
        return any(span.is_invented for span in self._spans())

    def _spans(self) -> Iterator[WordSpan]:
        return (span for picture in self.gallery for caption in picture.captions for span in caption.spans)


def evaluation_report(
    title: str, facts: Mapping[str, str], evaluation: Evaluation, history: Sequence[Row] = (),
    word_maps: WordMapsOf | None = None,
) -> Report:
    """Return the report of one captioner.

    facts:     where it comes from, by label.
    history:   one row per epoch, if it is the report of a run.
    word_maps: from `heatmaps.make_word_maps`; without it the gallery has no heat maps.
    """
    judgement, captions, leaks = evaluation.judgement, evaluation.captions, evaluation.leaks
    gallery_captions = GalleryCaptions(
        [caption.text for caption in captions], judgement.per_image[MAIN], [caption.score for caption in captions],
        [caption.confidence for caption in captions], word_maps, evaluation.invented,
    )
    orders = gallery.gallery_orders(gallery_captions)
    verdict, scores = [describe_quality(judgement)], forest.score_groups(judgement)
    if evaluation.truth:
        verdict.append(describe_truth(evaluation.truth, evaluation.new_scenes))
        scores.append(forest.truth_group(evaluation.truth, len(evaluation.records), evaluation.new_scenes))
    return Report(
        title=title,
        subtitle=f"An image captioner, judged on {_describe_data(len(evaluation.records), evaluation.protocol)}.",
        facts=facts,
        pictures=len(evaluation.records),
        verdict=verdict,
        scores=scores,
        invented="does not fit the drawing" if evaluation.truth else NOT_IN_REFERENCES,
        table=metric_table.judgement_table(judgement, evaluation.figures),
        protocol=metric_table.describe_protocol(evaluation.protocol),
        absent=_absent(judgement),
        cautions=judgement.cautions,
        gallery=gallery.build_gallery(evaluation.records, [gallery_captions], orders),
        orders=orders,
        words=words_section(evaluation.words),
        broken=evaluation.broken,
        failed=evaluation.failed,
        training=training_section(history) if history else None,
        slices=forest.slice_groups(evaluation.slices, judgement.figures[MAIN].corpus, judgement.intervals[MAIN]),
        leaks=None if leaks is None else leak_section(
            evaluation.describe_leaks(), [(pair.judged, pair.training) for pair in leaks.pairs]
        ),
        confidence=None if evaluation.trust is None else confidence_section(evaluation.trust),
    )


def progress_report(
    title: str, facts: Mapping[str, str], samples: Sequence[Sample], history: Sequence[Row]
) -> Report:
    """Return the report of a run that is not finished: its curves, and its captions of some validation pictures."""
    captions = [sample.caption for sample in samples]
    judgement = judge_captions(captions, [sample.references for sample in samples], metrics=[MAIN])
    gallery_captions = GalleryCaptions(captions, judgement.per_image[MAIN])
    orders = gallery.gallery_orders(gallery_captions)
    records = [Record(sample.name, sample.image, tuple(sample.references)) for sample in samples]
    return Report(
        title=title,
        subtitle="A training that is not finished: the metrics are those of a few validation pictures.",
        facts=facts,
        scores=forest.score_groups(judgement),
        pictures=len(samples),
        table=metric_table.judgement_table(judgement, {}),
        protocol={},
        cautions=judgement.cautions,
        gallery=gallery.build_gallery(records, [gallery_captions], orders),
        orders=orders,
        training=training_section(history),
    )


def comparison_report(
    facts: Mapping[str, str], comparison: Comparison, word_maps: Sequence[WordMapsOf | None] = (None, None)
) -> Report:
    """Return the report of two captioners on the same pictures; facts and word_maps as in `evaluation_report`."""
    sides = comparison.a, comparison.b
    a, b = (
        GalleryCaptions(
            side.captions, side.judgement.per_image[MAIN], word_maps=side_maps,
            invented=partial(_invented, side.captions, comparison.records),
        )
        for side, side_maps in zip(sides, word_maps, strict=True)
    )
    orders = gallery.comparison_orders(a, b)
    return Report(
        title=" and ".join(side.name for side in sides),
        subtitle=f"Two captioners, compared on {_describe_data(len(comparison.records), comparison.protocol)}.",
        facts=facts,
        sides=[side.name for side in sides],
        verdict=[comparison.sentence()],
        scores=forest.compared_groups(comparison),
        differences=forest.difference_groups(comparison),
        pictures=len(comparison.records),
        protocol=metric_table.describe_protocol(comparison.protocol),
        absent=_absent(comparison.a.judgement),
        cautions=list(dict.fromkeys(caution for side in sides for caution in side.judgement.cautions)),
        gallery=gallery.build_gallery(comparison.records, [a, b], orders),
        orders=orders,
        words=words_section(comparison.words),
    )


def training_section(history: Sequence[Row]) -> Section:
    """Return the curves of a run. history: one row per epoch."""

    def ends(key: str) -> str:
        return f"from {float(history[0][key]):.2f} to {float(history[-1][key]):.2f}"

    text = "The star marks the epoch with the lowest validation loss, whose weights are the captioner."
    return _section(text, plots.CURVES, history, {
        name: f"training {ends(f'train_{name}')}; validation {ends(f'val_{name}')}" for name in plots.CURVES
    })


def confidence_section(report: ConfidenceReport) -> Section:
    """Return how reliable the captions' confidence is."""
    learned = "a calibration learned on the other pictures"
    calibration = learned if report.is_cross_fitted else "the captioner’s own calibration"
    text = (
        "Confidence is the captioner’s estimate of how likely it is that the references use its words; it was computed "
        f"by {calibration}. In the first plot, on the dashed line, the words with a confidence of 80 % are in the "
        "references of 80 of 100 pictures; below the line the captioner is overconfident. The second plot shows how "
        "good the captions are if only the most confident ones are kept. Vertical lines and the shaded area are 95 % "
        "intervals."
    )
    errors = f"{report.word_error:.3f} on average for a word, by {report.caption_error:.3f} for a caption"
    return _section(text, plots.CONFIDENCE_PLOTS, report, {
        "reliability": f"confidence is off by {errors}", "coverage": report.describe_sorting(MAIN)
    })


def words_section(words: WordsByAuthor) -> Section:
    """Return how long the captions are and which words they use. words: captions by author, the references last."""
    lengths = [f"{name}: {fmean(map(len, captions)):.1f} words on average" for name, captions in words.items()]
    frequent = [
        f"“{word}” is in " + ", ".join(f"{share:.0%} of {name}" for name, share in zip(words, shares, strict=True))
        for word, shares in list(plots.frequent_words(words).items())[:5]
    ]
    text = (
        "A captioner that plays safe writes captions of nearly one length, a narrow peak in the first plot, and uses "
        "a few words far more often than people do."
    )
    descriptions = {"lengths": "; ".join(lengths), "words": "; ".join(frequent)}
    return _section(text, plots.WORD_PLOTS, words, descriptions)


def leak_section(sentences: Sequence[str], pairs: Sequence[tuple[Record, Record]] = ()) -> LeakSection:
    """Return the report's part on pictures shared with training. pairs: a judged picture, and its copy in training."""
    return LeakSection(sentences, [
        [(record.name, gallery.make_thumbnail(record.image, PAIR_BYTES, PAIR_SIDE)) for record in pair]
        for pair in pairs[:MAX_PAIRS]
    ], len(pairs))


def write_report(path: Path, report: Report) -> None:
    """Write the page, atomically."""
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )
    style = _read(PAGE / "style.css", folder / "report.css")
    script = _read(PAGE / "heatmap.js", PAGE / "word_buttons.js", folder / "report.js")
    # the browser runs only the script with this hash, whatever a caption contains
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("report.html.jinja").render(
        report=report, quantity=quantity, pictures_per_order=gallery.PICTURES_PER_ORDER, style=style,
        script=script, script_hash=script_hash, max_ratio=gallery.MAX_RATIO,
    )
    with atomic_write(path) as file:
        file.write(page.encode())


def _section(text: str, kinds: Mapping[str, PlotKind[Data]], data: Data, descriptions: Mapping[str, str]) -> Section:
    section_plots = [Plot(kind.title, plots.plot_svg(kind, data), descriptions[name]) for name, kind in kinds.items()]
    return Section(text, section_plots)


def _read(*paths: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def _describe_data(pictures: int, protocol: Mapping[str, Any]) -> str:
    """Return the number of pictures, and their split if it is known."""
    return quantity(pictures, "picture") + (f" of split {protocol['split']}" if "split" in protocol else "")


def _invented(captions: Sequence[str], records: Sequence[Record], index: int) -> list[tuple[int, int]]:
    """Return (begin, end) of the words of a caption that no reference supports."""
    return invented_spans(captions[index], records[index].captions)


def _absent(judgement: Judgement) -> dict[str, str]:
    """Return the metrics that were not computed; those without a value are in the table, as "-"."""
    absent = judgement.protocol.get("absent", {})
    return {name: reason for name, reason in absent.items() if name not in judgement.figures}
