"""Plots of a run in one style: loss, perplexity, confidence, words of captions, and sample captions.

`save_plots` writes plots as files of the run folder; `plot_svg` returns one for the report, in the page's own colours.
"""

import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar
from unicodedata import east_asian_width

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator, MultipleLocator
from PIL import Image

from myllm.caption import Sample
from myllm.data.images import load_image
from myllm.errors import DataError
from myllm.evaluation.calibration import SHARES, ConfidenceReport
from myllm.evaluation.fonts import set_fonts
from myllm.files import atomic_write
from myllm.metrics.ngrams import Words

# Okabe and Ito's blue and vermilion, which people with any colour vision can distinguish
# (https://jfly.uni-koeln.de/color); lines also differ in marker and dash.
VAL, MARK, TRAIN = "#0072b2", "#d55e00", "#767c88"
INK, FAINT, LINE = "#1b1f27", "#667085", "#e4e7ec"
PAGE_COLOURS = {TRAIN: "train", VAL: "val", MARK: "mark", INK: "ink", "#000000": "ink", FAINT: "faint", LINE: "line"}
SERIES_STYLES = ((VAL, "o", "-"), (MARK, "s", "-"), (TRAIN, "D", "--"))
"""Colour, marker and line style of each captioner; the last is for the references."""
MAX_WORDS = 25
MAX_LENGTH = 30
"""Longer captions are counted as captions of this many words."""
CAPTION_COLUMNS = 38

# style of labels next to points
LABEL: dict[str, Any] = {"textcoords": "offset points", "fontsize": 11, "annotation_clip": False}

Row = dict[str, float | str]
WordsByAuthor = Mapping[str, Sequence[Words]]
"""Tokenized captions by the name of who wrote them; the references come last."""
Data = TypeVar("Data")
Corner = Literal["best", "upper left", "upper right", "lower right"]


@dataclass(frozen=True)
class PlotKind(Generic[Data]):
    """How one kind of plot is drawn from its data."""

    title: str
    draw: Callable[[Axes, Data], None]
    page_height: float = 3.2
    """Height in inches on the page, where plots are 4.8 inches wide, so that letters are readable on a phone."""
    file_size: tuple[float, float] = (8, 4.5)
    """Width and height in inches of the plot's files, which show the title too."""


def save_plots(kinds: Mapping[str, PlotKind[Data]], data: Data, folder: Path) -> None:
    """Write each plot of `kinds` (`CURVES`, `CONFIDENCE_PLOTS` or `WORD_PLOTS`) to a folder, as .png and .svg."""
    for name, kind in kinds.items():
        figure = Figure(figsize=kind.file_size, dpi=150, layout="constrained")
        axes = figure.subplots()
        axes.set_title(kind.title, loc="left", fontsize=15, color=INK, pad=12)
        kind.draw(axes, data)
        for suffix in (".png", ".svg"):
            _save(figure, folder / f"{name}{suffix}")
            figure.set_layout_engine("none")  # keeps the layout, which takes a quarter of the time of drawing


def plot_svg(kind: PlotKind[Data], data: Data) -> str:
    """Return a plot as an SVG element that takes its colours from the page's CSS variables (--ink, --line ...)."""
    figure = Figure(figsize=(4.8, kind.page_height), layout="constrained")
    kind.draw(figure.subplots(), data)
    svg = render(figure, ".svg", kind.title, transparent=True).decode()
    for colour, variable in PAGE_COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    # every plot has groups named axes_1 and so on, but an id may occur only once on a page
    return re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", svg[svg.index("<svg") :])


def plot_samples(
    samples: Sequence[Sample], path: Path, columns: int = 5,
    title: str = "Captions (dark) and a reference of each picture (grey)",
) -> None:
    """Write an image of pictures, each with its caption and, in grey, its first reference."""
    rows = -(-len(samples) // columns)
    height = 4.19 * rows + 0.56
    figure = Figure(figsize=(3.1 * columns, height), dpi=110)
    # fixed margins: with an automatic layout the longest caption of a column would decide its width
    figure.subplots_adjust(0.01, 1.3 / height, 0.99, 1 - 0.5 / height, wspace=0.06, hspace=0.42)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels:
        axes.axis("off")
    for axes, sample in zip(panels, samples, strict=False):
        try:
            image = load_image(sample.image)
        except DataError:  # deleted since it was captioned: show a grey square
            image = Image.new("RGB", (8, 8), LINE)
        axes.imshow(image, interpolation="nearest" if image.width < 128 else "antialiased")
        axes.set_anchor("N")
        caption, reference = _wrap(sample.caption or "(nothing)"), _wrap(sample.references[0])
        below = -0.06 - 0.075 * (caption.count("\n") + 1)
        # parse_math: "$" would begin a formula
        style: dict[str, Any] = {"transform": axes.transAxes, "va": "top", "parse_math": False}
        axes.text(0, -0.04, caption, fontsize=10.5, color=INK, **style)
        axes.text(0, below, reference, fontsize=9, color=FAINT, style="italic", **style)
    figure.suptitle(title, x=0.01, y=1 - 0.1 / height, ha="left", fontsize=13, color=INK)
    _save(figure, path)


def length_shares(captions: Sequence[Words]) -> list[float]:
    """Return the shares of captions with 0, 1, 2 ... words; the last counts those of `MAX_LENGTH` words or more."""
    counts = Counter(min(MAX_LENGTH, len(words)) for words in captions)
    return [counts[length] / len(captions) for length in range(MAX_LENGTH + 1)]


def frequent_words(words: WordsByAuthor) -> dict[str, list[float]]:
    """Return the most frequent words, each with the share of every author's captions that contain it.

    A word is frequent if any author uses it often. The references, the last author, decide the order.
    """
    counts = [Counter(word for caption in captions for word in set(caption)) for captions in words.values()]
    sizes = [len(captions) for captions in words.values()]
    # an untrained model may write control characters, which SVG forbids
    vocabulary = {word for used in counts for word in used if any(map(str.isalnum, word)) and word.isprintable()}
    shares = {word: [used[word] / size for used, size in zip(counts, sizes, strict=True)] for word in vocabulary}
    most_frequent = sorted(shares, key=lambda word: (-max(shares[word]), word))[:MAX_WORDS]
    return {word: shares[word] for word in sorted(most_frequent, key=lambda word: (-shares[word][-1], word))}


def render(figure: Figure, suffix: str, salt: str = "myllm", **options: Any) -> bytes:
    """Return a figure as the content of a .png or .svg file, drawn with fonts that have its characters.

    Text in an SVG stays text. The file names neither a date nor a program, so that equal figures are equal files.
    salt: goes into the ids of an SVG; SVGs on one page need different ones.
    """
    buffer = BytesIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type")) if suffix == ".svg" else None
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # set_fonts reports them, once
        set_fonts(figure)
        figure.savefig(buffer, format=suffix[1:], metadata=metadata, **options)
    return buffer.getvalue()


def _draw_curve(axes: Axes, history: Sequence[Row], name: str, unit: str) -> None:
    """Draw a quantity by epoch for training and validation, with a star at the epoch of the lowest validation loss."""
    epochs, losses, train, val = (
        [float(row[column]) for row in history] for column in ("epoch", "val_loss", f"train_{name}", f"val_{name}")
    )
    offset = 7 if train[-1] > val[-1] else -7  # points; labels at the same height would overlap
    lines = ((train, "training", TRAIN, "s", "--", offset), (val, "validation", VAL, "o", "-", -offset))
    for values, label, colour, marker, line, shift in lines:
        axes.plot(epochs, values, color=colour, linewidth=2.2, linestyle=line, marker=marker, markersize=4)
        end = epochs[-1], values[-1]
        axes.annotate(f"{label} {end[1]:.2f}", end, xytext=(8, shift), va="center", color=colour, **LABEL)
    best = losses.index(min(losses))
    axes.plot(epochs[best], val[best], color=MARK, marker="*", linestyle="none", markersize=13, zorder=3, label="best")
    if max(train + val) > 10 * val[best] and min(train + val) > 0:  # perplexity begins in the hundreds
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())  # 20 rather than 2 × 10¹
        axes.yaxis.set_minor_formatter(LogFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.02)
    _finish(axes, "epoch", unit, "upper right")


def _draw_reliability(axes: Axes, report: ConfidenceReport) -> None:
    """Draw the share of words and captions that are right against their confidence, with 95 % intervals.

    The diagonal is the ideal.
    """
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)), label="ideal")
    for label, bins, colour, marker in (("words", report.words, VAL, "o"), ("captions", report.captions, MARK, "s")):
        confidence, right = [part.confidence for part in bins], [part.right for part in bins]
        known = [(part.confidence, *part.interval) for part in bins if part.interval is not None]
        for sure, low, high in known:
            axes.plot([sure, sure], [low, high], color=colour, linewidth=1.2)
        axes.plot(
            confidence, right, color=colour, linewidth=1.6, marker=marker, markersize=5, label=label, clip_on=False
        )
    axes.set(xlim=(0, 1), ylim=(0, 1))
    _finish(axes, "confidence", "share found in the references", "upper left")


def _draw_coverage(axes: Axes, report: ConfidenceReport) -> None:
    """Draw the CIDEr-D of the most confident 10, 20 ... 100 % of the captions, with 95 % intervals.

    The dashed line is the CIDEr-D of all captions.
    """
    percents = [100 * share for share in SHARES]
    axes.axhline(report.coverage[-1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    if report.coverage_intervals:
        low, high = zip(*report.coverage_intervals, strict=True)
        axes.fill_between(percents, low, high, color=VAL, alpha=0.2, linewidth=0)
    axes.plot(percents, report.coverage, color=VAL, linewidth=2.2, marker="o", markersize=4)
    for percent, value in list(zip(percents, report.coverage, strict=True))[4::5]:
        axes.annotate(f"{value:.2f}", (percent, value), xytext=(0, 7), ha="center", color=VAL, **LABEL)
    highest = max(*report.coverage, *(high for _, high in report.coverage_intervals), 1e-9)
    axes.set_ylim(0, 1.1 * highest)
    _finish(axes, "most confident captions, %", "CIDEr-D")


def _draw_lengths(axes: Axes, words: WordsByAuthor) -> None:
    """Draw the share of each author's captions by their number of words."""
    shares = [length_shares(captions) for captions in words.values()]
    used = [length for length in range(MAX_LENGTH + 1) if any(author[length] for author in shares)]
    lengths = range(max(0, used[0] - 1), min(MAX_LENGTH, used[-1] + 1) + 1)
    for (name, colour, marker, line), author in zip(_series_styles(words), shares, strict=True):
        percents = [100 * author[length] for length in lengths]
        axes.plot(
            lengths, percents, color=colour, marker=marker, linestyle=line, linewidth=1.8, markersize=4.5, label=name
        )
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MultipleLocator(5))
    if MAX_LENGTH in used:
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}+" if value >= MAX_LENGTH else f"{value:.0f}")
    _finish(axes, "words", "captions, %")


def _draw_words(axes: Axes, words: WordsByAuthor) -> None:
    """Draw one line per frequent word, with a marker for the share of each author's captions that contain it."""
    shares = frequent_words(words)
    rows = range(len(shares))
    for author, (name, colour, marker, _) in enumerate(_series_styles(words)):
        # hollow, so that a marker under it is still visible
        fill = "none" if marker == SERIES_STYLES[-1][1] else colour
        axes.plot(
            [100 * share[author] for share in shares.values()], rows, color=colour, marker=marker, linestyle="none",
            markersize=5.5, markerfacecolor=fill, markeredgewidth=1.4, label=name, clip_on=False,
        )
    labels = [word if len(word) <= 18 else f"{word[:17]}…" for word in shares]
    axes.set_yticks(rows, labels, parse_math=False)  # "$" would begin a formula
    axes.set(ylim=(len(shares) - 0.4, -0.6), xlim=(0, None))
    _finish(axes, "captions that contain the word, %", "", "lower right")
    axes.grid(axis="x", color=LINE, linewidth=0.8)


# by file name
CURVES: dict[str, PlotKind[Sequence[Row]]] = {
    "loss": PlotKind("Loss by epoch", partial(_draw_curve, name="loss", unit="nats per token")),
    "perplexity": PlotKind("Perplexity by epoch", partial(_draw_curve, name="perplexity", unit="exp(loss per token)")),
}
CONFIDENCE_PLOTS: dict[str, PlotKind[ConfidenceReport]] = {
    "reliability": PlotKind("Is it right as often as it is confident?", _draw_reliability, 3.6, (6, 4.5)),
    "coverage": PlotKind("How good are the captions it is most confident of?", _draw_coverage, 3.6, (6, 4.5)),
}
WORD_PLOTS: dict[str, PlotKind[WordsByAuthor]] = {
    "lengths": PlotKind("How long the captions are", _draw_lengths),
    "words": PlotKind("The most frequent words", _draw_words, 5.6, (8, 7.875)),
}


def _series_styles(words: WordsByAuthor) -> list[tuple[str, str, str, str]]:
    """Return name, colour, marker and line style of each author."""
    styles = [*SERIES_STYLES[: len(words) - 1], SERIES_STYLES[-1]]
    return [(name, *style) for name, style in zip(words, styles, strict=True)]


def _finish(axes: Axes, x: str, y: str, legend: Corner = "best") -> None:
    """Label the axes, explain lines that have labels, and give the plot the style of all plots."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc=legend, labelcolor=FAINT)
    axes.set_xlabel(x, color=FAINT)
    axes.set_ylabel(y, color=FAINT)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(FAINT)
    axes.tick_params(which="both", colors=FAINT)


def _wrap(text: str) -> str:
    """Break a caption into at most three lines; a Chinese character takes two columns."""
    columns = sum(2 if east_asian_width(character) in "WF" else 1 for character in text)
    width = CAPTION_COLUMNS * len(text) // max(1, columns)
    return textwrap.fill(text, max(4, width), max_lines=3, placeholder=" ...")


def _save(figure: Figure, path: Path) -> None:
    content = render(figure, path.suffix, facecolor="white")
    with atomic_write(path) as file:
        file.write(content)
