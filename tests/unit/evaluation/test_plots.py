import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from myllm.caption import Sample
from myllm.evaluation.calibration import Bin, ConfidenceReport
from myllm.evaluation.plots import (
    CURVES,
    LONGEST,
    MAX_WORDS,
    PAGE_COLOURS,
    TRUST,
    WORD_PLOTS,
    Row,
    Words,
    confidence_svg,
    curve_svg,
    frequent_words,
    lengths_of,
    plot_confidence,
    plot_curves,
    plot_samples,
    plot_words,
    words_svg,
)

MARK, VAL = (213, 94, 0), (0, 114, 178)  # vermilion and blue of Okabe and Ito


def history(*val_losses: float) -> list[Row]:
    rows: list[Row] = []
    for epoch, loss in enumerate(val_losses, start=1):
        figures = {f"{side}_loss": value for side, value in (("train", loss - 0.1), ("val", loss))}
        perplexities = {f"{side}_perplexity": 2.718 ** figures[f"{side}_loss"] for side in ("train", "val")}
        rows.append({"epoch": epoch, "stage": "all", **figures, **perplexities})
    return rows


def columns_of(path: Path, colour: tuple[int, int, int]) -> np.ndarray:  # type: ignore[type-arg]
    """Where the colour is, from left (0) to right (1)."""
    pixels = np.asarray(Image.open(path).convert("RGB"), dtype=int)
    return np.nonzero((np.abs(pixels - colour).max(2) < 12).any(0))[0] / pixels.shape[1]


SAID: dict[str, list[Words]] = {
    "A": [["a", "dog"], ["a", "cat", "."]],
    "B": [["two", "dogs"], []],
    "references": [["the", "dog", "runs", "and", "runs"]] * 3 + [["a", "dog"]],
}


def words_in(svg: str) -> list[str]:
    return ["".join(one.itertext()) for one in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_both_curves_are_drawn(tmp_path: Path) -> None:
    plot_curves(history(3.0, 2.0, 1.5), tmp_path)
    for name in ("loss.png", "perplexity.png"):
        with Image.open(tmp_path / name) as image:
            assert image.width > image.height > 400
        assert len(columns_of(tmp_path / name, VAL))
        svg = (tmp_path / name).with_suffix(".svg").read_text(encoding="utf-8")
        assert {"epoch", "best", "training 1.40" if name == "loss.png" else "training 4.05"} <= set(words_in(svg))


def test_the_mark_is_on_the_best_epoch(tmp_path: Path) -> None:
    best_first, best_last = tmp_path / "first", tmp_path / "last"
    plot_curves(history(1.0, 2.0, 3.0), best_first)
    plot_curves(history(3.0, 2.0, 1.0), best_last)
    assert columns_of(best_first / "loss.png", MARK).min() < 0.2
    assert columns_of(best_last / "loss.png", MARK).min() > 0.5


@pytest.mark.parametrize("losses", [(2.0,), (50.0, 0.0), (2.0, 2.0, 2.0)])
def test_any_history_can_be_drawn(tmp_path: Path, losses: tuple[float, ...]) -> None:
    plot_curves(history(*losses), tmp_path)
    assert (tmp_path / "perplexity.png").stat().st_size > 5000


@pytest.mark.parametrize("name", CURVES)
def test_a_curve_for_a_page_has_the_pages_colours_and_words(name: str) -> None:
    svg = curve_svg(history(60.0, 2.0, 1.5), name)  # so steep that its axis is a logarithm's
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    used = set(re.findall(r"var\(--(\w+)\)", svg))
    assert {"train", "val", "mark", "faint", "line"} <= used <= set(PAGE_COLOURS.values())
    assert {"epoch", "best", CURVES[name][1]} < set(words_in(svg))


def test_plots_on_one_page_share_no_id() -> None:
    plots = [curve_svg(history(2.0, 1.0), name) for name in CURVES] + [words_svg(SAID, name) for name in WORD_PLOTS]
    ids = Counter(re.findall(r'\bid="([^"]+)"', "".join(plots)))
    assert ids and set(ids.values()) == {1}


@pytest.mark.parametrize("losses", [(2.0, 2.0), (2.0, 1.0)])
def test_the_ends_of_the_curves_do_not_write_over_each_other(losses: tuple[float, ...]) -> None:
    rows = [row | {"train_loss": row["val_loss"]} for row in history(*losses)]
    texts = ElementTree.fromstring(curve_svg(rows, "loss")).iter("{http://www.w3.org/2000/svg}text")
    places = {"".join(one.itertext()).split()[0]: one for one in texts}
    heights = [float(places[side].attrib["y"]) for side in ("training", "validation")]
    assert abs(heights[0] - heights[1]) > 11  # points, the size of the letters


SURE = ConfidenceReport(
    (Bin(9, 0.2, 0.2), Bin(9, 0.9, 0.5)), (Bin(9, 0.3, 0.3), Bin(9, 1.0, 0.4)),
    tuple(1 - tenth / 20 for tenth in range(10)), is_cross_fitted=True,
)
NOTHING = ConfidenceReport((Bin(1, 0.5, 0.0),), (), (0.0,) * 10, is_cross_fitted=False)


def test_what_confidence_is_worth_is_drawn(tmp_path: Path) -> None:
    for trust in (NOTHING, SURE):
        plot_confidence(trust, tmp_path)
    for name in TRUST:
        assert len(columns_of(tmp_path / f"{name}.png", VAL))
    assert columns_of(tmp_path / "reliability.png", MARK).max() > 0.9  # the surest bin stands at the right end


@pytest.mark.parametrize("name", TRUST)
def test_it_is_drawn_for_a_page_in_the_pages_colours_and_with_no_id_twice(name: str) -> None:
    svg = confidence_svg(SURE, name)
    assert not re.search(r"#[0-9a-f]{6}\b", svg) and "var(--val)" in svg
    words = {"".join(one.itertext()) for one in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}
    assert words > ({"words", "captions", "confidence"} if name == "reliability" else {"CIDEr-D", "0.80", "0.55"})
    ids = Counter(re.findall(r'\bid="([^"]+)"', "".join(confidence_svg(SURE, one) for one in TRUST)))
    assert set(ids.values()) <= {1}


def test_lengths_are_shares_and_the_longest_are_counted_together() -> None:
    assert lengths_of([[], ["a"], ["a"], ["a", "b"]])[:4] == [0.25, 0.5, 0.25, 0]
    assert lengths_of([["a"] * LONGEST, ["a"] * 5 * LONGEST])[-1] == 1


def test_frequent_words_are_those_of_anyone_by_the_captions_that_have_them() -> None:
    assert frequent_words(SAID) == {
        "dog": [0.5, 0.0, 1.0], "and": [0.0, 0.0, 0.75], "runs": [0.0, 0.0, 0.75], "the": [0.0, 0.0, 0.75],
        "a": [1.0, 0.0, 0.25], "cat": [0.5, 0.0, 0.0], "dogs": [0.0, 0.5, 0.0], "two": [0.0, 0.5, 0.0],
    }
    many = {"captions": [[f"word{number}"] for number in range(99)], "references": [["rare"], *[["word7"]] * 3]}
    assert len(frequent_words(many)) == MAX_WORDS and list(frequent_words(many))[:2] == ["word7", "rare"]


@pytest.mark.parametrize("name", WORD_PLOTS)
def test_words_are_drawn_for_a_page_and_for_files(tmp_path: Path, name: str) -> None:
    svg = words_svg(SAID, name)
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert set(SAID) <= set(words_in(svg)) and ("dog" in words_in(svg)) == (name == "words")
    assert {"val", "mark", "train"} <= set(re.findall(r"var\(--(\w+)\)", svg))
    plot_words(SAID, tmp_path)
    assert set(SAID) < set(words_in((tmp_path / f"{name}.svg").read_text(encoding="utf-8")))
    assert len(columns_of(tmp_path / f"{name}.png", VAL)) and len(columns_of(tmp_path / f"{name}.png", MARK))


WORDS = ["$x_{", "<script>alert(1)</script>", "&lt;", "w" * 90, "été", "a-->b", "$", "a\x1d", "a\x00"]


@pytest.mark.parametrize("word", WORDS)
def test_any_word_can_be_drawn(word: str) -> None:
    svg = words_svg({"captions": [[word]], "references": [["dog"]]}, "words")
    shown = word if len(word) <= 18 else f"{word[:17]}…"
    assert (shown in words_in(svg)) == (any(map(str.isalnum, word)) and word.isprintable()) and "<script" not in svg


def test_captions_without_a_word_can_be_drawn() -> None:
    for name in WORD_PLOTS:
        assert words_svg({"captions": [[]], "references": [["!"]]}, name).startswith("<svg")


def test_a_picture_that_is_gone_leaves_its_caption(tmp_path: Path) -> None:
    plot_samples([Sample(tmp_path / "gone.png", "a caption", ("a reference",))], tmp_path / "samples.png")
    Image.open(tmp_path / "samples.png").verify()


@pytest.mark.parametrize("count", [1, 5, 7])
def test_samples_take_a_row_for_five_pictures(tmp_path: Path, count: int) -> None:
    Image.new("RGB", (64, 64), (10, 200, 30)).save(tmp_path / "green.png")
    samples = [Sample(tmp_path / "green.png", "a caption", ("a reference",))] * count
    plot_samples(samples, tmp_path / "samples.png")
    pixels = np.asarray(Image.open(tmp_path / "samples.png").convert("RGB"), dtype=int)
    is_green = np.abs(pixels - (10, 200, 30)).max(2) < 12
    # the picture covers the same part of the page for each sample
    rows = np.flatnonzero(np.diff(is_green.any(1).astype(int)) == 1)
    columns = np.flatnonzero(np.diff(is_green.any(0).astype(int)) == 1)
    assert (len(rows), len(columns)) == (-(-count // 5), min(count, 5))


@pytest.mark.parametrize("caption", ["", "costs $5 and $x_{", "long " * 100, "日本 <b>"])
def test_any_caption_can_be_written_under_a_picture(tmp_path: Path, caption: str) -> None:
    Image.new("RGB", (300, 8)).save(tmp_path / "wide.png")
    plot_samples([Sample(tmp_path / "wide.png", caption, (caption,))], tmp_path / "samples.png")
    Image.open(tmp_path / "samples.png").verify()
