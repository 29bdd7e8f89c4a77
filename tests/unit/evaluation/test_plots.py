import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from myllm.caption import Sample
from myllm.evaluation.calibration import Bin, ConfidenceReport
from myllm.evaluation.plots import (
    CONFIDENCE_PLOTS,
    CURVES,
    MAX_LENGTH,
    MAX_WORDS,
    PAGE_COLOURS,
    WORD_PLOTS,
    Row,
    frequent_words,
    length_shares,
    plot_samples,
    plot_svg,
    save_plots,
)
from myllm.metrics.ngrams import Words

MARK, VAL = (213, 94, 0), (0, 114, 178)  # vermilion and blue of Okabe and Ito


def make_history(*val_losses: float) -> list[Row]:
    rows: list[Row] = []
    for epoch, loss in enumerate(val_losses, start=1):
        figures = {f"{side}_loss": value for side, value in (("train", loss - 0.1), ("val", loss))}
        perplexities = {f"{side}_perplexity": 2.718 ** figures[f"{side}_loss"] for side in ("train", "val")}
        rows.append({"epoch": epoch, "stage": "all", **figures, **perplexities})
    return rows


def columns_with(colour: tuple[int, int, int], path: Path) -> NDArray[np.float64]:
    """Return where the colour occurs, from 0 (left) to 1 (right)."""
    pixels = np.asarray(Image.open(path).convert("RGB"), dtype=int)
    return np.nonzero((np.abs(pixels - colour).max(2) < 12).any(0))[0] / pixels.shape[1]


CAPTIONS: dict[str, list[Words]] = {
    "A": [["a", "dog"], ["a", "cat", "."]],
    "B": [["two", "dogs"], []],
    "references": [["the", "dog", "runs", "and", "runs"]] * 3 + [["a", "dog"]],
}


def texts_of(svg: str) -> list[str]:
    return ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_save_plots_writes_loss_and_perplexity(tmp_path: Path) -> None:
    save_plots(CURVES, make_history(3.0, 2.0, 1.5), tmp_path)
    for name in ("loss.png", "perplexity.png"):
        with Image.open(tmp_path / name) as image:
            assert image.width > image.height > 400
        assert len(columns_with(VAL, tmp_path / name))
        svg = (tmp_path / name).with_suffix(".svg").read_text(encoding="utf-8")
        assert {"epoch", "best", "training 1.40" if name == "loss.png" else "training 4.05"} <= set(texts_of(svg))


def test_equal_figures_are_equal_files(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        save_plots(CURVES, make_history(3.0, 2.0), tmp_path / folder)
    for file in ("loss.svg", "loss.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_curves_mark_the_best_epoch(tmp_path: Path) -> None:
    best_first, best_last = tmp_path / "first", tmp_path / "last"
    save_plots(CURVES, make_history(1.0, 2.0, 3.0), best_first)
    save_plots(CURVES, make_history(3.0, 2.0, 1.0), best_last)
    assert columns_with(MARK, best_first / "loss.png").min() < 0.2
    assert columns_with(MARK, best_last / "loss.png").min() > 0.5


@pytest.mark.parametrize("losses", [(2.0,), (50.0, 0.0), (2.0, 2.0, 2.0)])
def test_save_plots_draws_any_history(tmp_path: Path, losses: tuple[float, ...]) -> None:
    save_plots(CURVES, make_history(*losses), tmp_path)
    assert (tmp_path / "perplexity.png").stat().st_size > 5000


@pytest.mark.parametrize("name", CURVES)
def test_curve_svg_takes_the_colours_of_the_page(name: str) -> None:
    svg = plot_svg(CURVES[name], make_history(60.0, 2.0, 1.5))  # so steep that its axis is logarithmic
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    used = set(re.findall(r"var\(--(\w+)\)", svg))
    assert {"train", "val", "mark", "faint", "line"} <= used <= set(PAGE_COLOURS.values())
    assert {"epoch", "best", "nats per token" if name == "loss" else "exp(loss per token)"} < set(texts_of(svg))


def test_plot_svgs_of_one_page_share_no_id() -> None:
    plots = [plot_svg(kind, make_history(2.0, 1.0)) for kind in CURVES.values()]
    plots += [plot_svg(kind, CAPTIONS) for kind in WORD_PLOTS.values()]
    ids = Counter(re.findall(r'\bid="([^"]+)"', "".join(plots)))
    assert ids and set(ids.values()) == {1}


@pytest.mark.parametrize("losses", [(2.0, 2.0), (2.0, 1.0)])
def test_curve_labels_do_not_overlap(losses: tuple[float, ...]) -> None:
    rows = [row | {"train_loss": row["val_loss"]} for row in make_history(*losses)]
    texts = ElementTree.fromstring(plot_svg(CURVES["loss"], rows)).iter("{http://www.w3.org/2000/svg}text")
    labels = {"".join(text.itertext()).split()[0]: text for text in texts}
    heights = [float(labels[side].attrib["y"]) for side in ("training", "validation")]
    assert abs(heights[0] - heights[1]) > 11  # points, the size of the letters


CONFIDENT = ConfidenceReport(
    (Bin(9, 0.2, 0.2), Bin(9, 0.9, 0.5)), (Bin(9, 0.3, 0.3), Bin(9, 1.0, 0.4)),
    tuple(1 - tenth / 20 for tenth in range(10)), is_cross_fitted=True,
)
EMPTY = ConfidenceReport((Bin(1, 0.5, 0.0),), (), (0.0,) * 10, is_cross_fitted=False)


def test_confidence_plots_draw_reliability_and_coverage(tmp_path: Path) -> None:
    for report in (EMPTY, CONFIDENT):
        save_plots(CONFIDENCE_PLOTS, report, tmp_path)
    for name in CONFIDENCE_PLOTS:
        assert len(columns_with(VAL, tmp_path / f"{name}.png"))
    assert columns_with(MARK, tmp_path / "reliability.png").max() > 0.9  # the most confident bin


@pytest.mark.parametrize("name", CONFIDENCE_PLOTS)
def test_confidence_svg_takes_the_colours_of_the_page_and_shares_no_id(name: str) -> None:
    svg = plot_svg(CONFIDENCE_PLOTS[name], CONFIDENT)
    assert not re.search(r"#[0-9a-f]{6}\b", svg) and "var(--val)" in svg
    expected = {"words", "captions", "confidence"} if name == "reliability" else {"CIDEr-D", "0.80", "0.55"}
    assert set(texts_of(svg)) > expected
    page = "".join(plot_svg(kind, CONFIDENT) for kind in CONFIDENCE_PLOTS.values())
    ids = Counter(re.findall(r'\bid="([^"]+)"', page))
    assert set(ids.values()) <= {1}


def test_length_shares_count_the_longest_together() -> None:
    assert length_shares([[], ["a"], ["a"], ["a", "b"]])[:4] == [0.25, 0.5, 0.25, 0]
    assert length_shares([["a"] * MAX_LENGTH, ["a"] * 5 * MAX_LENGTH])[-1] == 1


def test_frequent_words_are_those_of_any_author_with_shares_of_captions() -> None:
    assert frequent_words(CAPTIONS) == {
        "dog": [0.5, 0.0, 1.0], "and": [0.0, 0.0, 0.75], "runs": [0.0, 0.0, 0.75], "the": [0.0, 0.0, 0.75],
        "a": [1.0, 0.0, 0.25], "cat": [0.5, 0.0, 0.0], "dogs": [0.0, 0.5, 0.0], "two": [0.0, 0.5, 0.0],
    }
    many = {"captions": [[f"word{number}"] for number in range(99)], "references": [["rare"], *[["word7"]] * 3]}
    assert len(frequent_words(many)) == MAX_WORDS and list(frequent_words(many))[:2] == ["word7", "rare"]


@pytest.mark.parametrize("name", WORD_PLOTS)
def test_word_plots_are_drawn_for_the_page_and_for_files(tmp_path: Path, name: str) -> None:
    svg = plot_svg(WORD_PLOTS[name], CAPTIONS)
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert set(CAPTIONS) <= set(texts_of(svg)) and ("dog" in texts_of(svg)) == (name == "words")
    assert {"val", "mark", "train"} <= set(re.findall(r"var\(--(\w+)\)", svg))
    save_plots(WORD_PLOTS, CAPTIONS, tmp_path)
    assert set(CAPTIONS) < set(texts_of((tmp_path / f"{name}.svg").read_text(encoding="utf-8")))
    assert len(columns_with(VAL, tmp_path / f"{name}.png")) and len(columns_with(MARK, tmp_path / f"{name}.png"))


WORDS = ["$x_{", "<script>alert(1)</script>", "&lt;", "w" * 90, "été", "a-->b", "$", "a\x1d", "a\x00"]


@pytest.mark.parametrize("word", WORDS)
def test_words_plot_draws_any_word(word: str) -> None:
    svg = plot_svg(WORD_PLOTS["words"], {"captions": [[word]], "references": [["dog"]]})
    label = word if len(word) <= 18 else f"{word[:17]}…"
    assert (label in texts_of(svg)) == (any(map(str.isalnum, word)) and word.isprintable()) and "<script" not in svg


def test_word_plots_draw_captions_without_words() -> None:
    for kind in WORD_PLOTS.values():
        assert plot_svg(kind, {"captions": [[]], "references": [["!"]]}).startswith("<svg")


def test_plot_samples_draws_the_caption_of_a_missing_picture(tmp_path: Path) -> None:
    sample = Sample("missing.png", tmp_path / "missing.png", "a caption", ("a reference",))
    plot_samples([sample], tmp_path / "samples.png")
    Image.open(tmp_path / "samples.png").verify()


@pytest.mark.parametrize("count", [1, 5, 7])
def test_plot_samples_draws_five_pictures_per_row(tmp_path: Path, count: int) -> None:
    Image.new("RGB", (64, 64), (10, 200, 30)).save(tmp_path / "green.png")
    samples = [Sample("green.png", tmp_path / "green.png", "a caption", ("a reference",))] * count
    plot_samples(samples, tmp_path / "samples.png")
    pixels = np.asarray(Image.open(tmp_path / "samples.png").convert("RGB"), dtype=int)
    is_green = np.abs(pixels - (10, 200, 30)).max(2) < 12
    # the picture covers the same part of the page for each sample
    rows = np.flatnonzero(np.diff(is_green.any(1).astype(int)) == 1)
    columns = np.flatnonzero(np.diff(is_green.any(0).astype(int)) == 1)
    assert (len(rows), len(columns)) == (-(-count // 5), min(count, 5))


@pytest.mark.parametrize("caption", ["", "costs $5 and $x_{", "long " * 100, "日本 <b>", "狗" * 100])
def test_plot_samples_draws_any_caption(tmp_path: Path, caption: str) -> None:
    Image.new("RGB", (300, 8)).save(tmp_path / "wide.png")
    plot_samples([Sample("wide.png", tmp_path / "wide.png", caption, (caption,))], tmp_path / "samples.png")
    Image.open(tmp_path / "samples.png").verify()
