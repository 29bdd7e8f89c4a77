"""The report: a page that is complete, sound for every reader, and that runs nothing but its own script."""

import base64
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from html.parser import HTMLParser
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from myllm.caption import Caption
from myllm.config import DecodeConfig
from myllm.data.records import Record
from myllm.evaluation.calibration import Bin, ConfidenceReport
from myllm.evaluation.compare import compare
from myllm.evaluation.evaluate import Evaluation
from myllm.evaluation.gallery import EACH, WordMap, WordMapsOf
from myllm.evaluation.judge import Judgement, judge_captions
from myllm.evaluation.plots import MARK, TRAIN, VAL, Row
from myllm.evaluation.report import FIGURES as FIGURES_OF_PAGE
from myllm.evaluation.report import (
    Plot,
    Section,
    calibration_section,
    comparison_report,
    evaluation_report,
    write_report,
)
from myllm.evaluation.scenes import score_scene_captions
from myllm.evaluation.slices import Slice
from myllm.metrics.diversity import measure_diversity
from myllm.metrics.result import mean_of

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onclick='x", "{{ 7 * 7 }}", "&lt;b&gt;"]
HISTORY: list[Row] = [
    {"epoch": 1, "train_loss": 3.0, "val_loss": 2.5, "train_perplexity": 20.1, "val_perplexity": 12.2},
    {"epoch": 2, "train_loss": 2.0, "val_loss": 1.5, "train_perplexity": 7.4, "val_perplexity": 4.5},
]
FIGURES = {"BLEU-4": 0.25, "CIDEr-D": 1.5, "CIDEr-D_shuffled": 0.25, "grounding_gap": 1.25}
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """What a browser would find: elements in order, those of plots aside, and the text of each kind of them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.drawn: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        (self.drawn if "svg" in self.open else self.elements).append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        (self.drawn if "svg" in self.open else self.elements).append((tag, dict(attrs)))

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
    }
    said = [Caption(text, -0.125, [], [], True) for text in captions]
    records = [Record(picture, tuple(references)) for picture in pictures]
    figures = {name: mean_of([value] * len(records)) for name, value in FIGURES.items()}
    judgement = Judgement(figures, measure_diversity(captions), {}, protocol)
    return Evaluation(judgement, records, said, broken)


def report(
    folder: Path,
    judged: Evaluation,
    title: str = "a run",
    facts: dict[str, str] | None = None,
    look: WordMapsOf | None = None,
    **sections: Any,
) -> Page:
    made = evaluation_report(title, facts or {"Seed": "7"}, judged, HISTORY, look)
    write_report(folder / "report.html", replace(made, **sections))
    return Page(folder / "report.html")


def part(kind: str, label: str) -> Slice:
    return Slice(kind, label, 31, 0.4, -0.1, (0.3, 0.5))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.mark.parametrize("text", HOSTILE)
def test_whatever_a_text_says_it_stays_text(tmp_path: Path, picture: Path, text: str) -> None:
    name = text.replace("/", "")
    there, gone = picture.rename(tmp_path / name), tmp_path / "gone" / name
    pictures = [there, gone]

    def page_of(text: str) -> Page:
        return report(
            tmp_path, evaluation(pictures, [text, text], [text], [text]), text, {text: text},
            lambda place: [WordMap(text, np.eye(3))] * (place == 0), slices=[part(text, text)], leaks=[text],
            calibration=Section([text], [Plot(text, "<svg></svg>", text)]),
        )

    plain, page = page_of("x"), page_of(text)
    assert Counter(tag for tag, _ in page.elements) == Counter(tag for tag, _ in plain.elements)
    assert {tag for tag, _ in page.drawn} <= {"g", "path", "text", "defs", "use", "style", "rect", "clippath"}
    assert not [name for _, found in page.elements + page.drawn for name in found if name.startswith("on")]
    assert page.all("img")[0]["alt"] == text and page.all("img")[0]["title"] == name
    assert page.text("h1") == [text] and text in page.text("dt") and text in page.text("dd")
    # the broken picture, what is in training too, and a reference under each caption
    assert page.text("li") == [text, text, text, text]
    (word,) = (one for one in page.all("span") if one.get("class") == "word")
    assert word["data-told"].startswith(f"“{text}”: looked ") and text in page.text("span")
    assert f"{text}; 31 pictures" in page.text("small") and f"{text}: {text}" in [
        one["aria-label"] for one in page.all("div") if one.get("role") == "img"
    ]
    # the second caption, and what is told of calibration
    assert f"{name} cannot be read any more" in page.text("p") and page.text("p").count(text) == 2


def test_nothing_comes_from_elsewhere_and_nothing_runs_but_its_own_script(tmp_path: Path, picture: Path) -> None:
    page = report(tmp_path, evaluation([picture], ["a caption"]))
    everything = page.elements + page.drawn
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in everything}
    places = {found.get("src") or found.get("href") or found.get("xlink:href") or "#" for _, found in everything}
    assert len(places) > 1 and all(place.startswith(("data:image/", "#")) for place in places)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(place.startswith("#") for place in re.findall(r"url\(([^)]*)", source)) and "@import" not in source
    (policy,) = (one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert page.all("script") == [{}]
    (script,) = re.findall("<script>(.*?)</script>", source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}';" in policy
    assert not re.search(r"\beval\b|new Function|innerHTML|insertAdjacentHTML|document\.write|fetch\(|import\(", script)


def test_the_page_is_sound_for_those_who_hear_it(tmp_path: Path, picture: Path) -> None:
    page = report(tmp_path, evaluation([picture, picture], ["a caption", ""]))
    assert page.all("html") == [{"lang": "en"}] and page.text("title") == ["a run: a report by MyLLM"]
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 == levels.count(1) and all(after - before <= 1 for before, after in pairwise(levels))
    assert {one.get("scope") for one in page.all("th")} == {"row", "col"}
    assert [one["alt"] for one in page.all("img")] == ["a caption", "(nothing)"]
    ids = [found["id"] for _, found in page.elements if "id" in found]
    named = {found["aria-labelledby"] for _, found in page.elements if "aria-labelledby" in found}
    assert len(ids) == len(set(ids)) and named <= set(ids)


def test_curves_are_told_in_words(tmp_path: Path, picture: Path) -> None:
    page = report(tmp_path, evaluation([picture], ["a caption"]))
    assert len(page.all("svg")) == 4
    assert [one["aria-label"] for one in page.all("div") if one.get("role") == "img"] == [
        "Loss by epoch: training from 3.00 to 2.00; validation from 2.50 to 1.50",
        "Perplexity by epoch: training from 20.10 to 7.40; validation from 12.20 to 4.50",
        "How long the captions are: captions: 2.0 words on average; references: 2.0 words on average",
        "The most used words: “a” is in 100% of captions, 100% of references; “reference” is in 0% of captions, "
        "100% of references; “caption” is in 100% of captions, 0% of references",
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
        "0.250", "1.500", "0.250", "1.250", "100.0%", "2.0", "0.124"
    ]


def test_every_figure_there_is_has_a_label_and_a_meaning() -> None:
    judged = judge_captions(["a dog", "a cat"], [["a dog"], ["a cat"]], blind="a dog")
    scenes = score_scene_captions(["a red ball left of a blue cube"], [[]])
    there = {*judged.figures, *judged.as_json(), *scenes} - {"CIDEr"}
    told = {name for name in there if isinstance((judged.as_json() | scenes)[name], int | float)}
    assert len(told) > 15 and told <= FIGURES_OF_PAGE.keys()


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
    rng = np.random.default_rng(0)
    captions = [" ".join(["word"] * 30)] * 300
    judged = evaluation([tmp_path / "noise.png"] * 300, captions, ["a reference of some length"] * 30)
    values = rng.random(300)
    judged.judgement.figures["CIDEr-D"] = mean_of(values)
    for caption, confidence in zip(judged.captions, rng.random(300), strict=True):
        caption.score = float(np.log(confidence))
    page = report(tmp_path, judged, look=lambda _: [WordMap("word", rng.random((600, 600)))] * 30)
    assert len(page.all("img")) > 4 * EACH
    assert len([one for one in page.all("span") if "data-map" in one]) == 30 * len(page.all("img"))
    assert (tmp_path / "report.html").stat().st_size < 5_000_000


@pytest.mark.parametrize("content", [None, b"", b"no picture"], ids=["gone", "empty", "no picture"])
def test_a_picture_that_cannot_be_read_any_more_leaves_its_words(
    tmp_path: Path, picture: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "bad.png").write_bytes(content)
    page = report(tmp_path, evaluation([tmp_path / "bad.png", picture], ["of the bad one", "of the good one"]))
    assert [one["alt"] for one in page.all("img")] == ["of the good one"]
    own = "CIDEr-D 1.50 · confidence 88% · score\N{NO-BREAK SPACE}-0.12"
    assert {"bad.png cannot be read any more", "of the bad one", own} <= set(page.text("p"))


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
    assert all(contrast(theme["press"], theme["val"]) >= 4.5 for theme in themes)


def test_what_is_compared_differs_for_those_who_see_no_red_or_no_green(tmp_path: Path, picture: Path) -> None:
    report(tmp_path, evaluation([picture], ["a caption"]))
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", source, re.DOTALL)
    themes = [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in blocks]
    for theme in [*themes, {"train": TRAIN, "val": VAL, "mark": MARK}]:
        for kind, (one, other) in product(BLIND, combinations(("train", "val", "mark"), 2)):
            assert apart(theme[one], theme[other], kind) > 20, (kind, one, other, theme)
    assert apart("#00a000", "#b08000", "no green") < 20  # what they do confuse is found


BLIND = {
    "no red": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "no green": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
}
"""Machado, Oliveira and Fernandes 2009, table 1, severity 1.0; on linear RGB."""


def apart(one: str, other: str, kind: str) -> float:
    """How far two colours are from each other for who is blind in a way: CIE 1976, 2.3 is just noticeable."""
    to_xyz = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    places = []
    for colour in (one, other):
        parts = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        x, y, z = np.cbrt(np.array(to_xyz) @ (np.array(BLIND[kind]) @ linear).clip(0, 1) / (0.9505, 1, 1.089))
        places.append((116 * y - 16, 500 * (x - y), 200 * (y - z)))
    return float(np.linalg.norm(np.subtract(*places)))


def test_figures_have_their_interval_and_what_people_reach_below_them(tmp_path: Path, picture: Path) -> None:
    judged = evaluation([picture] * 3, ["a caption"] * 3)
    judged.judgement.figures["CIDEr-D"] = mean_of([1.0, 1.0, 2.5])
    judged.judgement.people["CIDEr-D"] = (0.875, 1.25)
    page = report(tmp_path, judged)
    assert page.text("small")[:3] == ["1.00 to 2.50", "0.25 to 0.25", "1.25 to 1.25"]
    assert "1.000 to 2.500" in page.text("small") and "captions 1.250" in page.text("small")
    assert "0.875" in page.text("td") and {"Value", "People"} <= set(page.text("th"))
    assert {"Intervals.", "Shuffled pictures.", "People."} <= set(page.text("strong"))


def test_what_a_report_lacks_is_left_out(tmp_path: Path, picture: Path) -> None:
    judged = evaluation([picture], ["a caption"])
    write_report(tmp_path / "report.html", evaluation_report("one", {}, judged))
    page = Page(tmp_path / "report.html")
    assert page.text("h2") == ["Figures", "Words", "Pictures"] == page.text("a")
    assert {"People.", "No picture.", "p"}.isdisjoint(page.text("strong"))
    everything = report(
        tmp_path, judged, slices=[part("people", "none")], leaks=["none"], calibration=Section(["told"], [])
    )
    sections = ["Figures", "Training", "Confidence", "Where it is weak", "Seen in training", "Words", "Pictures"]
    assert everything.text("h2") == sections == everything.text("a")
    assert {"0.300 to 0.500", "none; 31 pictures"} <= set(everything.text("small"))
    assert "-0.100" in everything.text("td")


def test_what_confidence_is_worth_is_drawn_and_told(tmp_path: Path, picture: Path) -> None:
    coverage = (2.5, 2.25, 2.0, 1.75, 1.5, 1.5, 1.5, 1.5, 1.5, 1.25)
    trust = ConfidenceReport(
        (Bin(3, 0.75, 0.5), Bin(1, 0.25, 0.25)), (Bin(4, 0.5, 0.5),), coverage, is_cross_fitted=True
    )
    section = calibration_section(trust)
    assert section is not None and calibration_section(None) is None
    report(tmp_path, evaluation([picture], ["a caption"]), calibration=section)
    assert [one.told for one in section.plots] == [
        "confidence is off by 0.188 in the mean for a word, by 0.000 for a caption",
        "the more confident half of the captions has CIDEr-D 1.500, all have 1.250",
    ]
    assert "a calibration of other pictures" in section.told[0]


def test_two_captioners_stand_side_by_side(tmp_path: Path, picture: Path) -> None:
    records = [Record(picture, ("a dog runs on grass",)), Record(picture, ("two cats on a red sofa",))]
    a, b = ["a dog runs on grass", "a dog runs on grass"], ["a cat", "two cats on a red sofa"]
    found = compare(("one", a), ("two <b>", b), records, "val")
    write_report(tmp_path / "report.html", comparison_report({"Data": "mine"}, found))
    page = Page(tmp_path / "report.html")
    assert page.text("h1") == ["one and two <b>"] and {"one", "two <b>", "mine"} <= set(page.text("dd"))
    assert found.sentence() in page.text("p")
    cells, told = page.text("td"), found.differences["CIDEr-D"]
    at = cells.index(f"{told.a:.3f}")
    assert cells[at - 1 : at + 3] == [f"{told.difference:+.3f}", f"{told.a:.3f}", f"{told.b:.3f}", "1 / 1 / 0"]
    assert {*a, *b} <= set(page.text("p")) and page.text("b") == ["A", "B"] * 2
    assert page.text("button") == ["Random", "B ahead", "A ahead", "Both good", "Both poor"]
