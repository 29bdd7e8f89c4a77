"""The report: a page that is complete, sound for every reader, and made of nothing that could run."""

import base64
import io
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from html.parser import HTMLParser
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from myllm.caption import Caption
from myllm.config import DecodeConfig
from myllm.data.records import Record
from myllm.evaluation.evaluate import Evaluation
from myllm.evaluation.judge import Judgement
from myllm.evaluation.plots import Row
from myllm.evaluation.report import write_report
from myllm.metrics.diversity import measure_diversity
from myllm.metrics.figure import mean_of
from myllm.training.trainer import SAMPLES

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onclick='x", "{{ 7 * 7 }}", "&lt;b&gt;"]
HISTORY: list[Row] = [
    {"epoch": 1, "train_loss": 3.0, "val_loss": 2.5, "train_perplexity": 20.1, "val_perplexity": 12.2},
    {"epoch": 2, "train_loss": 2.0, "val_loss": 1.5, "train_perplexity": 7.4, "val_perplexity": 4.5},
]
FIGURES = {"BLEU-4": 0.25, "CIDEr-D": 1.5, "CIDEr-D_shuffled": 0.25}
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """What a browser would find: elements in order, and the text of each kind of them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag and text]


def evaluation(
    pictures: Sequence[Path],
    captions: Sequence[str],
    references: Sequence[str] = ("a reference",),
    broken: Sequence[str] = (),
) -> Evaluation:
    protocol = {
        "tokenizer": "PTB 3.4.1", "pictures": 1234, "references": 6000, "split": "val",
        "decode": asdict(DecodeConfig(beams=5, length_penalty=0.5)), "CIDEr-D frequencies": "these references",
    }  # fmt: skip
    said = [Caption(text, -0.125, [], [], True) for text in captions]
    records = [Record(picture, tuple(references)) for picture in pictures]
    figures = {name: mean_of([value] * len(records)) for name, value in FIGURES.items()}
    judgement = Judgement(figures, measure_diversity(captions), {}, protocol)
    return Evaluation(judgement, records, said, broken)


def report(folder: Path, judged: Evaluation, title: str = "a run", facts: dict[str, str] | None = None) -> Page:
    write_report(folder / "report.html", title, facts or {"Seed": "7"}, judged, HISTORY)
    return Page(folder / "report.html")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.mark.parametrize("text", HOSTILE)
def test_whatever_a_text_says_it_stays_text(tmp_path: Path, picture: Path, text: str) -> None:
    name = text.replace("/", "")
    there, gone = picture.rename(tmp_path / name), tmp_path / "gone" / name
    pictures = [there, gone]
    plain = report(tmp_path, evaluation(pictures, ["x", "x"], broken=["x"]))
    page = report(tmp_path, evaluation(pictures, [text, text], [text], [text]), title=text, facts={text: text})
    assert Counter(tag for tag, _ in page.elements) == Counter(tag for tag, _ in plain.elements)
    assert not [name for _, found in page.elements for name in found if name.startswith("on")]
    assert page.all("img")[0]["alt"] == text and page.all("img")[0]["title"] == name
    assert page.text("h1") == [text] and text in page.text("dt") and text in page.text("dd")
    assert page.text("li") == [text, text, text]  # the broken picture, and a reference under each caption
    assert f"{name} cannot be read any more" in page.text("p") and page.text("p").count(text) == 2


def test_nothing_comes_from_elsewhere_and_nothing_runs(tmp_path: Path, picture: Path) -> None:
    page = report(tmp_path, evaluation([picture], ["a caption"]))
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.elements}
    places = {found.get("src") or found.get("href") or found.get("xlink:href") or "#" for _, found in page.elements}
    assert len(places) > 1 and all(place.startswith(("data:image/", "#")) for place in places)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(place.startswith("#") for place in re.findall(r"url\(([^)]*)", source)) and "@import" not in source
    (policy,) = (one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "script-src" not in policy


def test_the_page_is_sound_for_those_who_hear_it(tmp_path: Path, picture: Path) -> None:
    page = report(tmp_path, evaluation([picture, picture], ["a caption", ""]))
    assert page.all("html") == [{"lang": "en"}] and page.text("title") == ["a run: a captioner by MyLLM"]
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 == levels.count(1) and all(after - before <= 1 for before, after in pairwise(levels))
    assert {one.get("scope") for one in page.all("th")} == {"row", "col"}
    assert [one["alt"] for one in page.all("img")] == ["a caption", "(nothing)"]
    ids = [found["id"] for _, found in page.elements if "id" in found]
    named = {found["aria-labelledby"] for _, found in page.elements if "aria-labelledby" in found}
    assert len(ids) == len(set(ids)) and named <= set(ids)


def test_curves_are_told_in_words(tmp_path: Path, picture: Path) -> None:
    page = report(tmp_path, evaluation([picture], ["a caption"]))
    assert len(page.all("svg")) == 2
    assert [one["aria-label"] for one in page.all("div") if one.get("role") == "img"] == [
        "Loss by epoch: training from 3.00 to 2.00; validation from 2.50 to 1.50",
        "Perplexity by epoch: training from 20.10 to 7.40; validation from 12.20 to 4.50",
    ]


def test_the_control_stands_beside_the_figure_with_the_gap_and_the_protocol(tmp_path: Path, picture: Path) -> None:
    page = report(tmp_path, evaluation([picture], ["a caption"]))
    told = page.text("dd")
    at = told.index("1.50")
    assert told[at : at + 3] == ["1.50", "0.25", "1.25"]
    assert {"1,234", "6,000", "PTB 3.4.1", "val", "beam 5, length_penalty 0.5", "these references"} <= set(told)


def test_every_figure_has_its_row_an_unknown_one_too(tmp_path: Path, picture: Path) -> None:
    judged = evaluation([picture], ["a caption"])
    judged.truth["NEW-1"] = 0.1239
    cells = report(tmp_path, judged).text("td")
    assert [cell for cell in cells if re.fullmatch(r"[\d.]+%?", cell)] == [
        "0.250", "1.500", "0.250", "100.0%", "2.0", "0.124"
    ]  # fmt: skip


def embedded(attributes: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(attributes["src"].partition(",")[2], validate=True)))


@pytest.mark.parametrize("size", [(64, 64), (900, 300), (1, 700), (320, 320)])
def test_a_thumbnail_is_the_picture_in_small(tmp_path: Path, size: tuple[int, int]) -> None:
    original = Image.linear_gradient("L").resize(size).convert("RGB")
    original.save(tmp_path / "one.png")
    (found,) = report(tmp_path, evaluation([tmp_path / "one.png"], ["a caption"])).all("img")
    thumbnail = embedded(found)
    assert thumbnail.size == (int(found["width"]), int(found["height"])) and max(thumbnail.size) == min(320, max(size))
    middle = tuple(side // 2 for side in thumbnail.size)
    before = original.resize(thumbnail.size).getpixel(middle)
    after = thumbnail.convert("RGB").getpixel(middle)
    assert isinstance(before, tuple) and isinstance(after, tuple)
    assert max(abs(a - b) for a, b in zip(after, before, strict=True)) < 6
    if max(size) < 128:
        assert thumbnail.tobytes() == original.tobytes() and found["class"] == "small"


def test_the_page_stays_under_five_megabytes(tmp_path: Path) -> None:
    Image.frombytes("RGB", (1200, 1200), os.urandom(3 * 1200 * 1200)).save(tmp_path / "noise.png")
    page = report(tmp_path, evaluation([tmp_path / "noise.png"] * 3 * SAMPLES, ["a caption"] * 3 * SAMPLES))
    assert len(page.all("img")) == SAMPLES
    assert (tmp_path / "report.html").stat().st_size < 5_000_000


@pytest.mark.parametrize("content", [None, b"", b"no picture"], ids=["gone", "empty", "no picture"])
def test_a_picture_that_cannot_be_read_any_more_leaves_its_words(
    tmp_path: Path, picture: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "bad.png").write_bytes(content)
    page = report(tmp_path, evaluation([tmp_path / "bad.png", picture], ["of the bad one", "of the good one"]))
    assert [one["alt"] for one in page.all("img")] == ["of the good one"]
    assert {"bad.png cannot be read any more", "of the bad one", "score -0.12 · CIDEr-D 1.50"} <= set(page.text("p"))


def contrast(one: str, other: str) -> float:
    """WCAG 2.2: https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio"""
    lights = []
    for colour in (one, other):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)
    return max(lights) / min(lights)


def test_words_can_be_read_on_every_ground_in_both_themes(tmp_path: Path, picture: Path) -> None:
    report(tmp_path, evaluation([picture], ["a caption"]))
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", source, re.DOTALL)
    themes = [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in blocks]
    assert len(themes) == 2 and themes[0].keys() == themes[1].keys() == set(re.findall(r"var\(--(\w+)\)", source))
    for theme, ground, ink in product(themes, ("page", "card"), ("ink", "faint", "train", "val", "mark")):
        assert contrast(theme[ground], theme[ink]) >= 4.5, (ground, ink, theme)
