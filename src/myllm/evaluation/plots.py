"""The pictures of a run: loss, perplexity, what confidence is worth, and sample captions under their pictures."""

import re
import textwrap
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from myllm.data.images import load_image
from myllm.errors import DataError
from myllm.evaluation.calibration import SHARES, Trust
from myllm.runtime import atomic_write
from myllm.training.trainer import Sample

TRAIN, VAL, MARK = "#8a94a6", "#1f5fbf", "#c8402f"
INK, FAINT, LINE = "#1b1f27", "#667085", "#e4e7ec"
PAGE_COLOURS = {TRAIN: "train", VAL: "val", MARK: "mark", INK: "ink", "#000000": "ink", FAINT: "faint", LINE: "line"}
CURVES = {"loss": ("Loss", "nats a token"), "perplexity": ("Perplexity", "exp(loss a token)")}
Row = dict[str, float | str]


def plot_curves(history: Sequence[Row], out: Path) -> None:
    """loss.png and perplexity.png of a run folder; `history` has a row an epoch."""
    for name, (title, _) in CURVES.items():
        figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
        axes = figure.subplots()
        _curve(axes, history, name)
        axes.set_title(f"{title} by epoch", loc="left", fontsize=15, color=INK, pad=12)
        _save(figure, out / f"{name}.png")


def curve_svg(history: Sequence[Row], name: str) -> str:
    """A curve as an SVG element of a page, in the page's own colours: its --ink, --faint, --line and so on."""
    figure = Figure(figsize=(4.8, 3.2), layout="constrained")  # small, so that its words can be read on a phone
    _curve(figure.subplots(), history, name)
    return _svg(figure)


def plot_trust(trust: Trust, out: Path) -> None:
    """reliability.png and coverage.png in a folder."""
    for name, (title, draw) in TRUST.items():
        figure = Figure(figsize=(6, 4.5), dpi=150, layout="constrained")
        axes = figure.subplots()
        draw(axes, trust)
        axes.set_title(title, loc="left", fontsize=15, color=INK, pad=12)
        _save(figure, out / f"{name}.png")


def trust_svg(trust: Trust, name: str) -> str:
    """A picture of `TRUST` as an SVG element of a page, as `curve_svg`."""
    figure = Figure(figsize=(4.8, 3.6), layout="constrained")
    TRUST[name][1](figure.subplots(), trust)
    return _svg(figure)


def _svg(figure: Figure) -> str:
    """An SVG element in the page's own colours."""
    buffer = BytesIO()
    with rc_context({"svg.fonttype": "none"}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue().decode()
    for colour, variable in PAGE_COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    # the names of groups, axes_1 and the like, would be there twice on a page of two curves
    return re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", svg[svg.index("<svg") :])


def _curve(axes: Axes, history: Sequence[Row], name: str) -> None:
    epochs = [float(row["epoch"]) for row in history]
    train_last, val_last = (float(history[-1][f"{side}_{name}"]) for side in ("train", "val"))
    up = 7 if train_last > val_last else -7  # points; two ends at one height would write over each other
    for side, label, colour, shift in (("train", "training", TRAIN, up), ("val", "validation", VAL, -up)):
        values = [float(row[f"{side}_{name}"]) for row in history]
        axes.plot(epochs, values, color=colour, linewidth=2.2, marker="o", markersize=4)
        axes.annotate(
            f"{label} {values[-1]:.2f}", (epochs[-1], values[-1]), xytext=(8, shift), textcoords="offset points",
            va="center", color=colour, fontsize=11, annotation_clip=False,
        )  # fmt: skip
    losses = [float(row["val_loss"]) for row in history]
    best = min(range(len(losses)), key=losses.__getitem__)
    lowest = float(history[best][f"val_{name}"])
    axes.plot(epochs[best], lowest, "o", color=MARK, markersize=8, zorder=3, label="best")
    axes.legend(frameon=False, loc="upper right", labelcolor=FAINT)
    shown = [float(row[f"{side}_{name}"]) for row in history for side in ("train", "val")]
    if max(shown) > 10 * lowest and min(shown) > 0:  # perplexity begins in the hundreds
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.02)
    _finish(axes, "epoch", CURVES[name][1])


def _finish(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, color=FAINT)
    axes.set_ylabel(y, color=FAINT)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", colors=FAINT)


def _reliability(axes: Axes, trust: Trust) -> None:
    """Bins of words and of captions about the line on which a captioner is as often right as it is sure."""
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)), label="as sure as right")
    # marks of two forms: colour alone does not tell them apart for everyone
    for label, bins, colour, marker in (("words", trust.words, VAL, "o"), ("captions", trust.captions, MARK, "s")):
        sure, right = [one.confidence for one in bins], [one.right for one in bins]
        axes.plot(sure, right, color=colour, linewidth=1.6, marker=marker, markersize=5, label=label, clip_on=False)
    axes.legend(frameon=False, loc="upper left", labelcolor=FAINT)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    _finish(axes, "confidence", "share that references use")


def _coverage(axes: Axes, trust: Trust) -> None:
    """CIDEr-D of the most confident captions, beside that of all."""
    shares, whole = [100 * share for share in SHARES], trust.coverage[-1]
    axes.axhline(whole, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    axes.plot(shares, trust.coverage, color=VAL, linewidth=2.2, marker="o", markersize=4)
    for at in (4, 9):
        axes.annotate(
            f"{trust.coverage[at]:.2f}", (shares[at], trust.coverage[at]), xytext=(0, 7), textcoords="offset points",
            ha="center", color=VAL, fontsize=11, annotation_clip=False,
        )  # fmt: skip
    axes.set_ylim(0, 1.15 * max(*trust.coverage, 1e-9))
    _finish(axes, "most confident captions, %", "CIDEr-D")


TRUST: dict[str, tuple[str, Callable[[Axes, Trust], None]]] = {
    "reliability": ("Is it right as often as it is sure?", _reliability),
    "coverage": ("How good are the captions it is most sure of?", _coverage),
}
"""What confidence is worth: title and what draws it, by the file's name."""


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
    buffer = BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    with atomic_write(path) as file:
        file.write(buffer.getvalue())
