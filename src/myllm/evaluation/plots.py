"""The pictures of a run: loss, perplexity, and sample captions under their pictures."""

import textwrap
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from myllm.data.images import load_image
from myllm.runtime import atomic_write
from myllm.training.trainer import Sample

TRAIN, VAL, MARK = "#8a94a6", "#1f5fbf", "#c8402f"
INK, FAINT = "#1b1f27", "#667085"
Row = dict[str, float | str]


def plot_curves(history: Sequence[Row], out: Path) -> None:
    """loss.png and perplexity.png of a run folder; `history` has a row an epoch."""
    for name, title, unit in (("loss", "Loss", "nats a token"), ("perplexity", "Perplexity", "exp(loss a token)")):
        figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
        axes = figure.subplots()
        _curve(axes, history, name)
        axes.set_title(f"{title} by epoch", loc="left", fontsize=15, color=INK, pad=12)
        axes.set_ylabel(unit, color=FAINT)
        _save(figure, out / f"{name}.png")


def _curve(axes: Axes, history: Sequence[Row], name: str) -> None:
    epochs = [float(row["epoch"]) for row in history]
    for side, label, colour in (("train", "training", TRAIN), ("val", "validation", VAL)):
        values = [float(row[f"{side}_{name}"]) for row in history]
        axes.plot(epochs, values, color=colour, linewidth=2.2, marker="o", markersize=4)
        axes.annotate(
            f"{label} {values[-1]:.2f}", (epochs[-1], values[-1]), xytext=(8, 0), textcoords="offset points",
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
    axes.set_xlabel("epoch", color=FAINT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.02)
    axes.grid(axis="y", color="#e4e7ec", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=FAINT)


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
        image = load_image(sample.image)
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
