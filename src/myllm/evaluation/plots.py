"""The pictures of a run, in one style: loss, perplexity, confidence, words, and sample captions."""

import re
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, MultipleLocator
from PIL import Image

from myllm.caption import Sample
from myllm.data.images import load_image
from myllm.errors import DataError
from myllm.evaluation.calibration import SHARES, ConfidenceReport
from myllm.files import atomic_write

# Blue and vermilion as Okabe and Ito chose them, to be told apart without red or green (https://jfly.uni-koeln.de/color);
# what is compared differs in its marks and lines too.
VAL, MARK, TRAIN = "#0072b2", "#d55e00", "#767c88"
INK, FAINT, LINE = "#1b1f27", "#667085", "#e4e7ec"
PAGE_COLOURS = {TRAIN: "train", VAL: "val", MARK: "mark", INK: "ink", "#000000": "ink", FAINT: "faint", LINE: "line"}
LOOKS = ((VAL, "o", "-"), (MARK, "s", "-"), (TRAIN, "D", "--"))
"""Colour, mark and line of what is compared, the last of references."""
CURVES = {"loss": ("Loss", "nats a token"), "perplexity": ("Perplexity", "exp(loss a token)")}
FORMATS = (".png", ".svg")
MAX_WORDS = 25
LONGEST = 30  # words of a caption; those of longer ones are counted with it
Row = dict[str, float | str]
Words = Sequence[str]


def plot_curves(history: Sequence[Row], out: Path) -> None:
    """Loss and perplexity of a run folder, as .png and .svg; `history` has a row an epoch."""
    for name, (title, _) in CURVES.items():
        figure, axes = _titled(f"{title} by epoch")
        _curve(axes, history, name)
        _save_forms(figure, out / name)


def curve_svg(history: Sequence[Row], name: str) -> str:
    """A curve as an SVG element of a page, in the page's own colours: its --ink, --faint, --line and so on."""
    figure = Figure(figsize=(4.8, 3.2), layout="constrained")  # small, so that its words can be read on a phone
    _curve(figure.subplots(), history, name)
    return _svg(figure)


def plot_confidence(trust: ConfidenceReport, out: Path) -> None:
    """The pictures of `TRUST` in a folder, as .png and .svg."""
    for name, (title, draw) in TRUST.items():
        figure, axes = _titled(title, (6, 4.5))
        draw(axes, trust)
        _save_forms(figure, out / name)


def confidence_svg(trust: ConfidenceReport, name: str) -> str:
    """A picture of `TRUST` as an SVG element of a page, as `curve_svg`."""
    figure = Figure(figsize=(4.8, 3.6), layout="constrained")
    TRUST[name][1](figure.subplots(), trust)
    return _svg(figure)


def plot_words(said: Mapping[str, Sequence[Words]], out: Path) -> None:
    """The pictures of `WORD_PLOTS` in a folder, as .png and .svg. said: captions as words, by who says them."""
    for name, (title, draw, size) in WORD_PLOTS.items():
        figure, axes = _titled(title, (8, 4.5 * size / 3.2))
        draw(axes, said)
        _save_forms(figure, out / name)


def words_svg(said: Mapping[str, Sequence[Words]], name: str) -> str:
    """One of `WORD_PLOTS` as an SVG element of a page, as `curve_svg`."""
    _, draw, size = WORD_PLOTS[name]
    figure = Figure(figsize=(4.8, size), layout="constrained")
    draw(figure.subplots(), said)
    return _svg(figure)


def lengths_of(captions: Sequence[Words]) -> list[float]:
    """Shares of captions with no word, one word, and so on to `LONGEST` or more."""
    counts = Counter(min(LONGEST, len(words)) for words in captions)
    return [counts[length] / len(captions) for length in range(LONGEST + 1)]


def frequent_words(said: Mapping[str, Sequence[Words]]) -> dict[str, list[float]]:
    """For each of the words that are most used by anyone, the share of each one's captions that have it.

    The most used by the last, which are the references, come first.
    """
    used = [Counter(word for words in captions for word in set(words)) for captions in said.values()]
    sizes = [len(captions) for captions in said.values()]
    # a control character, as an untrained model may say, has no place in an SVG
    known = {word for counts in used for word in counts if any(map(str.isalnum, word)) and word.isprintable()}
    shares = {word: [counts[word] / size for counts, size in zip(used, sizes, strict=True)] for word in known}
    most = sorted(shares, key=lambda word: (-max(shares[word]), word))[:MAX_WORDS]
    return {word: shares[word] for word in sorted(most, key=lambda word: (-shares[word][-1], word))}


def _looks(said: Mapping[str, Sequence[Words]]) -> list[tuple[str, str, str, str]]:
    """Name, colour, mark and line of each."""
    looks = [*LOOKS[: len(said) - 1], LOOKS[-1]]
    return [(name, *look) for name, look in zip(said, looks, strict=True)]


def _lengths(axes: Axes, said: Mapping[str, Sequence[Words]]) -> None:
    """How many of each one's captions have how many words."""
    shares = [lengths_of(captions) for captions in said.values()]
    shown = [length for length in range(LONGEST + 1) if any(own[length] for own in shares)]
    places = range(max(0, shown[0] - 1), min(LONGEST, shown[-1] + 1) + 1)
    for (name, colour, mark, line), own in zip(_looks(said), shares, strict=True):
        heights = [100 * own[place] for place in places]
        axes.plot(places, heights, color=colour, marker=mark, linestyle=line, linewidth=1.8, markersize=4.5, label=name)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MultipleLocator(5))
    if LONGEST in shown:
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}+" if value >= LONGEST else f"{value:.0f}")
    axes.legend(frameon=False, labelcolor=FAINT)
    _finish(axes, "words", "captions, %")


def _words(axes: Axes, said: Mapping[str, Sequence[Words]]) -> None:
    """A line a word, with a mark for each one's share of captions that have it."""
    words = frequent_words(said)
    rows = range(len(words))
    for at, (name, colour, mark, _) in enumerate(_looks(said)):
        # what lies under another mark is still seen by its rim
        fill = "none" if mark == LOOKS[-1][1] else colour
        axes.plot(
            [100 * shares[at] for shares in words.values()], rows, color=colour, marker=mark, linestyle="none",
            markersize=5.5, markerfacecolor=fill, markeredgewidth=1.4, label=name, clip_on=False,
        )
    labels = [word if len(word) <= 18 else f"{word[:17]}…" for word in words]
    axes.set_yticks(rows, labels, parse_math=False)  # '$' would begin a formula
    axes.set(ylim=(len(words) - 0.4, -0.6), xlim=(0, None))
    axes.legend(frameon=False, labelcolor=FAINT, loc="lower right")
    _finish(axes, "captions that have the word, %", "")
    axes.grid(axis="x", color=LINE, linewidth=0.8)


WORD_PLOTS: dict[str, tuple[str, Callable[[Axes, Mapping[str, Sequence[Words]]], None], float]] = {
    "lengths": ("How long the captions are", _lengths, 3.2),
    "words": ("The most used words", _words, 5.6),
}
"""Title, what draws it, and its height in inches where it is 4.8 wide, by the file's name."""


def _curve(axes: Axes, history: Sequence[Row], name: str) -> None:
    epochs = [float(row["epoch"]) for row in history]
    train_last, val_last = (float(history[-1][f"{side}_{name}"]) for side in ("train", "val"))
    up = 7 if train_last > val_last else -7  # points; two ends at one height would write over each other
    sides = (("train", "training", TRAIN, "s", "--", up), ("val", "validation", VAL, "o", "-", -up))
    for side, label, colour, mark, line, shift in sides:
        values = [float(row[f"{side}_{name}"]) for row in history]
        axes.plot(epochs, values, color=colour, linewidth=2.2, linestyle=line, marker=mark, markersize=4)
        axes.annotate(
            f"{label} {values[-1]:.2f}", (epochs[-1], values[-1]), xytext=(8, shift), textcoords="offset points",
            va="center", color=colour, fontsize=11, annotation_clip=False,
        )
    losses = [float(row["val_loss"]) for row in history]
    best = min(range(len(losses)), key=losses.__getitem__)
    lowest = float(history[best][f"val_{name}"])
    axes.plot(epochs[best], lowest, color=MARK, marker="*", linestyle="none", markersize=13, zorder=3, label="best")
    axes.legend(frameon=False, loc="upper right", labelcolor=FAINT)
    shown = [float(row[f"{side}_{name}"]) for row in history for side in ("train", "val")]
    if max(shown) > 10 * lowest and min(shown) > 0:  # perplexity begins in the hundreds
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.02)
    _finish(axes, "epoch", CURVES[name][1])


def _titled(title: str, size: tuple[float, float] = (8, 4.5)) -> tuple[Figure, Axes]:
    """An empty plot for a file."""
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=15, color=INK, pad=12)
    return figure, axes


def _finish(axes: Axes, x: str, y: str) -> None:
    """The style of all plots."""
    axes.set_xlabel(x, color=FAINT)
    axes.set_ylabel(y, color=FAINT)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(FAINT)
    axes.tick_params(which="both", colors=FAINT)


def _reliability(axes: Axes, trust: ConfidenceReport) -> None:
    """Bins of words and of captions about the line on which a captioner is as often right as it is sure."""
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)), label="as sure as right")
    # marks of two forms: colour alone does not tell them apart for everyone
    for label, bins, colour, marker in (("words", trust.words, VAL, "o"), ("captions", trust.captions, MARK, "s")):
        sure, right = [one.confidence for one in bins], [one.right for one in bins]
        axes.plot(sure, right, color=colour, linewidth=1.6, marker=marker, markersize=5, label=label, clip_on=False)
    axes.legend(frameon=False, loc="upper left", labelcolor=FAINT)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    _finish(axes, "confidence", "share that references use")


def _coverage(axes: Axes, trust: ConfidenceReport) -> None:
    """CIDEr-D of the most confident captions, beside that of all."""
    shares, whole = [100 * share for share in SHARES], trust.coverage[-1]
    axes.axhline(whole, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    axes.plot(shares, trust.coverage, color=VAL, linewidth=2.2, marker="o", markersize=4)
    for at in (4, 9):
        axes.annotate(
            f"{trust.coverage[at]:.2f}", (shares[at], trust.coverage[at]), xytext=(0, 7), textcoords="offset points",
            ha="center", color=VAL, fontsize=11, annotation_clip=False,
        )
    axes.set_ylim(0, 1.15 * max(*trust.coverage, 1e-9))
    _finish(axes, "most confident captions, %", "CIDEr-D")


TRUST: dict[str, tuple[str, Callable[[Axes, ConfidenceReport], None]]] = {
    "reliability": ("Is it right as often as it is sure?", _reliability),
    "coverage": ("How good are the captions it is most sure of?", _coverage),
}
"""What confidence is worth: title and what draws it, by the file's name."""


def _svg(figure: Figure) -> str:
    """An SVG element in the page's own colours."""
    svg = _drawn(figure, ".svg", transparent=True).decode()
    for colour, variable in PAGE_COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    # the names of groups, axes_1 and the like, would be there twice on a page of two curves
    return re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", svg[svg.index("<svg") :])


def plot_samples(samples: Sequence[Sample], path: Path, columns: int = 5) -> None:
    """Pictures with their caption, and the nearest thing to a right answer, their first reference, in grey below."""
    rows = -(-len(samples) // columns)
    height = 4.19 * rows + 0.56
    figure = Figure(figsize=(3.1 * columns, height), dpi=110)
    # fixed places: a layout that fits itself to the text would set each column apart by its longest caption
    figure.subplots_adjust(0.01, 1.3 / height, 0.99, 1 - 0.5 / height, wspace=0.06, hspace=0.42)
    places = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in places:
        axes.axis("off")
    for axes, sample in zip(places, samples, strict=False):
        try:
            image = load_image(sample.image)
        except DataError:  # gone since it was captioned: a grey square
            image = Image.new("RGB", (8, 8), LINE)
        axes.imshow(image, interpolation="nearest" if image.width < 128 else "antialiased")
        axes.set_anchor("N")
        said = _wrapped(sample.caption or "(nothing)")
        axes.text(0, -0.04, said, transform=axes.transAxes, va="top", fontsize=10.5, color=INK)
        below = -0.06 - 0.075 * (said.count("\n") + 1)
        reference = _wrapped(sample.references[0])
        axes.text(0, below, reference, transform=axes.transAxes, va="top", fontsize=9, color=FAINT, style="italic")
    title = "Captions (dark) and a reference of each picture (grey)"
    figure.suptitle(title, x=0.01, y=1 - 0.1 / height, ha="left", fontsize=13, color=INK)
    _save(figure, path)


def _wrapped(text: str) -> str:
    # '$' would begin a formula
    return textwrap.fill(text.replace("$", r"\$"), 38, max_lines=3, placeholder=" ...")


def _save(figure: Figure, path: Path) -> None:
    content = _drawn(figure, path.suffix, facecolor="white")
    with atomic_write(path) as file:
        file.write(content)


def _save_forms(figure: Figure, path: Path) -> None:
    """`path` with each suffix of `FORMATS`."""
    for suffix in FORMATS:
        _save(figure, path.with_suffix(suffix))


def _drawn(figure: Figure, suffix: str, **options: Any) -> bytes:
    """The file's content; an SVG's words stay text, and it names neither a date nor a program."""
    buffer = BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type")) if suffix == ".svg" else None
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format=suffix[1:], metadata=nothing, **options)
    return buffer.getvalue()
