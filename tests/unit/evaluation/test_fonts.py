import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image

from myllm.caption import Sample, Word
from myllm.evaluation import fonts
from myllm.evaluation.heatmaps import draw_words
from myllm.evaluation.plots import WORD_PLOTS, plot_samples, plot_svg

LANGUAGES = {"Chinese": "一只狗在跑", "Thai": "สุนัขวิ่ง", "emoji": "🐶🐱", "Arabic": "كلب يجري"}


@pytest.fixture
def only_bundled_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine that has only the fonts of matplotlib, on which no missing character has been reported yet."""
    bundled = [font for font in font_manager.fontManager.ttflist if "mpl-data" in font.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", bundled)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])
    monkeypatch.setattr(fonts, "_reported", set())
    fonts._family_by_character.cache_clear()
    yield
    fonts._family_by_character.cache_clear()


def make_font(path: Path, characters: str) -> None:
    """Write a font in which each character is a rectangle, wider than that of the character before."""
    builder = FontBuilder(1000, isTTF=True)
    names = {ord(character): f"glyph{index}" for index, character in enumerate(characters)}
    glyphs = {}
    for index, name in enumerate([".notdef", *names.values()]):
        pen = TTGlyphPen(None)
        right = 200 + 100 * index
        pen.moveTo((0, 0))
        for corner in ((0, 700), (right, 700), (right, 0)):
            pen.lineTo(corner)
        pen.closePath()
        glyphs[name] = pen.glyph()
    builder.setupGlyphOrder(list(glyphs))
    builder.setupCharacterMap(names)
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (900, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Rectangles", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


def samples_image(folder: Path, caption: str) -> bytes:
    plot_samples([Sample("missing.png", folder / "missing.png", "a dog", (caption,))], folder / "samples.png")
    return Image.open(folder / "samples.png").tobytes()


@pytest.mark.parametrize("is_installed", [False, True])
def test_missing_fonts_are_taken_from_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only_bundled_fonts: None, is_installed: bool
) -> None:
    if is_installed:
        make_font(tmp_path / "rectangles.ttf", "狗猫")
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(tmp_path / "rectangles.ttf")])
    # without a font both are the same box
    assert (samples_image(tmp_path, "狗") != samples_image(tmp_path, "猫")) == is_installed


def test_arabic_is_drawn_with_the_font_that_matplotlib_brings(tmp_path: Path, only_bundled_fonts: None) -> None:
    assert samples_image(tmp_path, "كلب") != samples_image(tmp_path, "قطة")


def test_missing_characters_are_reported_once_in_one_line(
    tmp_path: Path, only_bundled_fonts: None, caplog: pytest.LogCaptureFixture
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for caption in LANGUAGES.values():
            samples_image(tmp_path, caption)
            plot_svg(WORD_PLOTS["words"], {"captions": [caption.split()], "references": [["dog"]]})
        word = Word(caption, slice(0, 1), -0.7, None)
        draw_words(Image.new("RGB", (64, 64)), [word], torch.ones(1, 8, 8), caption)
    (record,) = caplog.records
    assert record.getMessage().startswith("no font on this machine has") and "一" in record.getMessage()


def test_latin_text_reads_no_fonts(tmp_path: Path, only_bundled_fonts: None, caplog: pytest.LogCaptureFixture) -> None:
    samples_image(tmp_path, "un été à la plage")
    assert fonts._family_by_character.cache_info().misses == 0 and not caplog.records
