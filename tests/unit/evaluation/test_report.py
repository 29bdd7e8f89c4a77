"""The report page: complete in itself, accessible, and safe against whatever captions contain."""

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
from numpy.typing import NDArray
from PIL import Image

from myllm.caption import Caption, Sample
from myllm.config import DecodeConfig
from myllm.data.records import Record
from myllm.evaluation.calibration import Bin, ConfidenceReport
from myllm.evaluation.compare import compare
from myllm.evaluation.evaluate import Evaluation
from myllm.evaluation.forest import Group, slice_groups
from myllm.evaluation.gallery import PICTURES_PER_ORDER, WordMap, WordMapsOf
from myllm.evaluation.judge import Judgement, judge_captions
from myllm.evaluation.leaks import find_leaks
from myllm.evaluation.metric_table import METRICS
from myllm.evaluation.plots import MARK, TRAIN, VAL, Row
from myllm.evaluation.report import (
    MAX_PAIRS,
    Plot,
    Section,
    comparison_report,
    confidence_section,
    evaluation_report,
    leak_section,
    progress_report,
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
VALUES = {"BLEU-4": 0.25, "CIDEr-D": 1.5, "CIDEr-D_shuffled": 0.25, "grounding_gap": 1.25}
VOID_ELEMENTS = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """The page as a browser reads it: its elements in order, those inside plots separately, and their texts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.plot_elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        (self.plot_elements if "svg" in self.open else self.elements).append((tag, dict(attrs)))
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        (self.plot_elements if "svg" in self.open else self.elements).append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag and text]


def make_evaluation(
    pictures: Sequence[Path],
    captions: Sequence[str],
    references: Sequence[str] = ("a reference",),
    broken: Sequence[str] = (),
) -> Evaluation:
    protocol = {
        "tokenizer": "PTB 3.4.1", "pictures": 1234, "references": 6000, "split": "val",
        "decode": asdict(DecodeConfig(beams=5, length_penalty=0.5)), "CIDEr-D frequencies": "these references",
    }
    records = [Record(picture.name, picture, tuple(references)) for picture in pictures]
    figures = {name: mean_of([value] * len(records)) for name, value in VALUES.items()}
    judgement = Judgement(figures, measure_diversity(captions), {}, protocol)
    return Evaluation(judgement, records, [Caption(text, -0.125, [], [], True) for text in captions], broken)


def make_page(
    folder: Path,
    evaluation: Evaluation,
    title: str = "a run",
    facts: dict[str, str] | None = None,
    word_maps: WordMapsOf | None = None,
    **sections: Any,
) -> Page:
    report = evaluation_report(title, facts or {"Seed": "7"}, evaluation, HISTORY, word_maps)
    write_report(folder / "report.html", replace(report, **sections))
    return Page(folder / "report.html")


def make_slices(kind: str, label: str, pictures: int = 31) -> list[Group]:
    return slice_groups([Slice(kind, label, pictures, 0.4, -0.1, (0.3, 0.5))], 0.5, (0.45, 0.55))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.mark.parametrize("text", HOSTILE)
def test_report_escapes_every_text(tmp_path: Path, picture: Path, text: str) -> None:
    name = text.replace("/", "")
    existing, missing = picture.rename(tmp_path / name), tmp_path / "missing" / name
    pictures = [existing, missing]
    pair = Record(name, existing, ()), Record(name, missing, ())

    def page_of(text: str) -> Page:
        return make_page(
            tmp_path, make_evaluation(pictures, [text, text], [text], [text]), text, {text: text},
            lambda index: [WordMap(text, np.eye(3))] * (index == 0), slices=make_slices(text, text),
            leaks=leak_section([text], [pair]),
            confidence=Section(text, [Plot(text, "<svg></svg>", text)]),
        )

    plain, page = page_of("x"), page_of(text)
    assert Counter(tag for tag, _ in page.elements) == Counter(tag for tag, _ in plain.elements)
    matplotlib, forest = {"g", "path", "text", "defs", "use", "style", "rect", "clippath"}, {"line", "circle"}
    assert {tag for tag, _ in page.plot_elements} <= matplotlib | forest
    all_elements = page.elements + page.plot_elements
    assert not [key for _, attributes in all_elements for key in attributes if key.startswith("on")]
    image, pair = page.all("img")
    assert pair["alt"] == f"judged picture {name}" and page.text("figcaption") == [name, name]
    assert image["alt"] == text and {text, name} <= set(page.text("p"))
    assert page.text("h1") == [text] and text in page.text("dt") and text in page.text("dd")
    # a reference under each caption, the sentence about training, and the broken picture
    assert page.text("li") == [text, text, text, text]
    (word,) = (span for span in page.all("span") if span.get("class") == "word")
    assert word["data-description"].startswith(f"“{text}”: looked ") and text in page.text("span")
    assert "31 pictures" in page.text("small") and text in page.text("th") and f"{text}: {text}" in [
        plot["aria-label"] for plot in page.all("div") if plot.get("role") == "img"
    ]
    # the caption of the missing picture, and the paragraph about confidence
    assert "can no longer be read" in page.text("p") and page.text("p").count(text) == (4 if text == name else 2)


def test_report_loads_nothing_and_runs_only_its_own_script(tmp_path: Path, picture: Path) -> None:
    page = make_page(tmp_path, make_evaluation([picture], ["a caption"]))
    elements = page.elements + page.plot_elements
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in elements}
    urls = {
        attributes.get("src") or attributes.get("href") or attributes.get("xlink:href") or "#"
        for _, attributes in elements
    }
    assert len(urls) > 1 and all(url.startswith(("data:image/", "#")) for url in urls)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)", source)) and "@import" not in source
    (policy,) = (meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert page.all("script") == [{}]
    (script,) = re.findall("<script>(.*?)</script>", source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}';" in policy
    assert not re.search(r"\beval\b|new Function|innerHTML|insertAdjacentHTML|document\.write|fetch\(|import\(", script)


def test_report_has_headings_alternatives_and_labels_for_screen_readers(tmp_path: Path, picture: Path) -> None:
    page = make_page(tmp_path, make_evaluation([picture, picture], ["a caption", ""]))
    assert page.all("html") == [{"lang": "en"}] and page.text("title") == ["a run: a report by MyLLM"]
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 == levels.count(1) and all(after - before <= 1 for before, after in pairwise(levels))
    assert {heading.get("scope") for heading in page.all("th")} == {"row", "col", "rowgroup"}
    assert [image["alt"] for image in page.all("img")] == ["a caption", "(nothing)"]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    labels = {attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes}
    assert len(ids) == len(set(ids)) and labels <= set(ids)


def test_plots_are_described_in_words(tmp_path: Path, picture: Path) -> None:
    page = make_page(tmp_path, make_evaluation([picture], ["a caption"]))
    assert [plot["aria-label"] for plot in page.all("div") if plot.get("role") == "img"] == [
        "How long the captions are: captions: 2.0 words on average; references: 2.0 words on average",
        "The most frequent words: “a” is in 100% of captions, 100% of references; “reference” is in 0% of captions, "
        "100% of references; “caption” is in 100% of captions, 0% of references",
        "Loss by epoch: training from 3.00 to 2.00; validation from 2.50 to 1.50",
        "Perplexity by epoch: training from 20.10 to 7.40; validation from 12.20 to 4.50",
    ]


def test_report_shows_controls_gap_and_protocol(tmp_path: Path, picture: Path) -> None:
    page = make_page(tmp_path, make_evaluation([picture], ["a caption"]))
    facts, labels = page.text("dd"), page.text("th")
    assert labels[:3] == ["CIDEr-D", "This captioner", "Shuffled pictures"] and page.text("td")[:2] == ["1.50", "0.25"]
    assert {"1,234", "6,000", "PTB 3.4.1", "val", "beam 5, length_penalty 0.5", "these references"} <= set(facts)


def test_every_metric_has_a_row_even_an_unknown_one(tmp_path: Path, picture: Path) -> None:
    evaluation = make_evaluation([picture], ["a caption"])
    evaluation.truth.update({"true": 0.75, "complete": 0.5, "NEW-1": 0.1239})
    cells = make_page(tmp_path, evaluation, scores=()).text("td")
    assert [cell for cell in cells if re.fullmatch(r"[\d.]+%?", cell)] == [
        "0.250", "1.500", "0.250", "1.250", "100.0%", "2.0", "75.0%", "50.0%", "0.124"
    ]


def test_every_metric_of_the_project_has_a_label_and_a_meaning() -> None:
    judgement = judge_captions(["a red dog", "two cats"], [["a red dog"], ["two cats"]], blind="a dog")
    values = judgement.as_json() | score_scene_captions(["a red ball left of a blue cube"], [[]])
    names = {name for name, value in values.items() if isinstance(value, int | float)} | judgement.figures.keys()
    assert len(names) > 15 and names - {"CIDEr"} <= METRICS.keys()


def decode_image(attributes: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(attributes["src"].partition(",")[2], validate=True)))


@pytest.mark.parametrize("size", [(64, 64), (900, 300), (1, 700), (320, 320)])
def test_thumbnail_is_the_picture_reduced(tmp_path: Path, size: tuple[int, int]) -> None:
    original = Image.linear_gradient("L").resize(size).convert("RGB")
    original.save(tmp_path / "picture.png")
    (image,) = make_page(tmp_path, make_evaluation([tmp_path / "picture.png"], ["a caption"])).all("img")
    thumbnail = decode_image(image)
    assert thumbnail.size == (int(image["width"]), int(image["height"])) and max(thumbnail.size) == min(320, max(size))
    middle = tuple(side // 2 for side in thumbnail.size)
    before = original.resize(thumbnail.size).getpixel(middle)
    after = thumbnail.convert("RGB").getpixel(middle)
    assert isinstance(before, tuple) and isinstance(after, tuple)
    assert max(abs(a - b) for a, b in zip(after, before, strict=True)) < 6
    if max(size) < 128:
        assert thumbnail.tobytes() == original.tobytes() and image["class"] == "small"


@pytest.mark.slow
def test_report_of_many_large_pictures_stays_under_five_megabytes(tmp_path: Path) -> None:
    Image.frombytes("RGB", (1200, 1200), os.urandom(3 * 1200 * 1200)).save(tmp_path / "noise.png")
    rng = np.random.default_rng(0)
    captions = [" ".join(["word"] * 30)] * 300
    evaluation = make_evaluation([tmp_path / "noise.png"] * 300, captions, ["a reference of some length"] * 30)
    evaluation.judgement.figures["CIDEr-D"] = mean_of(rng.random(300))
    for caption, confidence in zip(evaluation.captions, rng.random(300), strict=True):
        caption.score = float(np.log(confidence))
    noise = Record("noise.png", tmp_path / "noise.png", ())
    pairs = [(noise, noise)] * 100
    page = make_page(
        tmp_path, evaluation, word_maps=lambda _: [WordMap("word", rng.random((600, 600)))] * 30,
        leaks=leak_section(["100 pictures are in training"], pairs),
    )
    pictures = len(page.all("img")) - 2 * MAX_PAIRS
    assert pictures > 4 * PICTURES_PER_ORDER
    assert len([span for span in page.all("span") if "data-map" in span]) == 30 * pictures
    assert (tmp_path / "report.html").stat().st_size < 5_000_000


@pytest.mark.parametrize("content", [None, b"", b"no picture"], ids=["missing", "empty", "no picture"])
def test_report_keeps_the_captions_of_a_picture_that_can_no_longer_be_read(
    tmp_path: Path, picture: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "bad.png").write_bytes(content)
    page = make_page(tmp_path, make_evaluation([tmp_path / "bad.png", picture], ["of the bad", "of the good"]))
    assert [image["alt"] for image in page.all("img")] == ["of the good"]
    assert {"can no longer be read", "bad.png", "of the bad"} <= set(page.text("p"))
    assert {"CIDEr-D 1.50", "confidence 88%", "score -0.12"} <= set(page.text("span"))


def themes_of(page: str) -> list[dict[str, str]]:
    """The page's colours by name: light, then dark."""
    blocks = re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    return [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in blocks]


def linear_rgb(colour: str) -> NDArray[np.float64]:
    values = np.array([int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(*colours: str) -> float:
    """Contrast ratio of WCAG 2.2: https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio"""
    luminances = [float(np.dot(linear_rgb(colour), (0.2126, 0.7152, 0.0722))) + 0.05 for colour in colours]
    return max(luminances) / min(luminances)


def test_report_text_has_enough_contrast_in_both_themes(tmp_path: Path, picture: Path) -> None:
    make_page(tmp_path, make_evaluation([picture], ["a caption"]))
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    themes = themes_of(source)
    assert len(themes) == 2 and themes[0].keys() == themes[1].keys() == set(re.findall(r"var\(--(\w+)\)", source))
    for theme, ground, ink in product(themes, ("page", "card"), ("ink", "faint", "train", "val", "mark")):
        assert contrast(theme[ground], theme[ink]) >= 4.5, (ground, ink, theme)
    assert all(contrast(theme["press"], theme["val"]) >= 4.5 for theme in themes)


COLOUR_BLINDNESS = {
    "no red": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "no green": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
}
"""Machado, Oliveira and Fernandes 2009, table 1, severity 1.0; on linear RGB."""


def colour_distance(colours: tuple[str, str], blindness: str) -> float:
    """CIE 1976 distance of two colours to a colour-blind person; 2.3 is just noticeable."""
    to_xyz = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    labs = []
    for colour in colours:
        perceived = (np.array(COLOUR_BLINDNESS[blindness]) @ linear_rgb(colour)).clip(0, 1)
        x, y, z = np.cbrt(np.array(to_xyz) @ perceived / (0.9505, 1, 1.089))
        labs.append((116 * y - 16, 500 * (x - y), 200 * (y - z)))
    return float(np.linalg.norm(np.subtract(*labs)))


def test_plot_colours_differ_for_colour_blind_readers(tmp_path: Path, picture: Path) -> None:
    make_page(tmp_path, make_evaluation([picture], ["a caption"]))
    themes = themes_of((tmp_path / "report.html").read_text(encoding="utf-8"))
    for theme in [*themes, {"train": TRAIN, "val": VAL, "mark": MARK}]:
        for blindness, pair in product(COLOUR_BLINDNESS, combinations(("train", "val", "mark"), 2)):
            assert colour_distance((theme[pair[0]], theme[pair[1]]), blindness) > 20, (blindness, pair, theme)
    assert colour_distance(("#00a000", "#b08000"), "no green") < 20  # two colours that they do confuse


def test_metrics_have_intervals_and_the_score_of_people(tmp_path: Path, picture: Path) -> None:
    evaluation = make_evaluation([picture] * 3, ["a caption"] * 3)
    evaluation.judgement.figures["CIDEr-D"] = mean_of([1.0, 1.0, 2.5])
    evaluation.judgement.people.update({"CIDEr-D": (0.875, 1.25), "BLEU-4": (float("nan"), 0.5)})
    page = make_page(tmp_path, evaluation)
    assert "nan" not in page.text("td") and "-" in page.text("td")
    assert page.text("small")[:2] == ["1.00 to 2.50", "0.25 to 0.25"] and page.text("th")[1] == "People"
    assert "1.000 to 2.500" in page.text("small") and "captioner 1.250" in page.text("small")
    assert "0.875" in page.text("td") and {"Value, 95 % interval", "People"} <= set(page.text("th"))
    assert {"95 % interval.", "Shuffled pictures.", "People."} <= set(page.text("strong"))


def test_report_leaves_out_sections_without_content(tmp_path: Path, picture: Path) -> None:
    evaluation = make_evaluation([picture], ["a caption"])
    write_report(tmp_path / "report.html", evaluation_report("a run", {}, evaluation))
    page = Page(tmp_path / "report.html")
    assert page.text("h2") == ["Pictures", "Metrics", "Words", "How it was made and measured"]
    assert page.text("a") == ["Pictures", "Metrics", "Words", "How it was made"]
    assert {"People.", "No picture.", "p"}.isdisjoint(page.text("strong"))
    full = make_page(
        tmp_path, evaluation, slices=make_slices("people", "none"), leaks=leak_section(["none"]),
        confidence=Section("a paragraph", []),
    )
    sections = ["Pictures", "Metrics", "Where it is weak", "Confidence", "Words", "Overlap with training", "Training"]
    assert full.text("h2")[:-1] == sections == full.text("a")[:-1]
    assert {"0.300 to 0.500", "31 pictures"} <= set(full.text("small"))
    assert "0.400" in full.text("td") and {"People", "none"} <= set(full.text("th"))


def test_report_of_a_run_in_progress_has_its_curves_and_captions(tmp_path: Path, picture: Path) -> None:
    samples = [Sample(f"{name}.png", picture, f"a {name} dog", (f"a {name} dog runs",)) for name in ("red", "big")]
    write_report(tmp_path / "report.html", progress_report("run", {"Epochs so far": "2"}, samples, HISTORY))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "A training that is not finished" in text and "<dt>Epochs so far</dt><dd>2</dd>" in text
    assert "training from 3.00 to 2.00; validation from 2.50 to 1.50" in text
    assert all(f'alt="{sample.caption}"' in text for sample in samples)
    Page(tmp_path / "report.html")


def test_confidence_section_describes_its_plots(tmp_path: Path, picture: Path) -> None:
    coverage = (2.5, 2.25, 2.0, 1.75, 1.5, 1.5, 1.5, 1.5, 1.5, 1.25)
    bins = (Bin(3, 0.75, 0.5), Bin(1, 0.25, 0.25)), (Bin(4, 0.5, 0.5),)
    section = confidence_section(ConfidenceReport(*bins, coverage, is_cross_fitted=True))
    make_page(tmp_path, make_evaluation([picture], ["a caption"]), confidence=section)
    assert [plot.description for plot in section.plots] == [
        "confidence is off by 0.188 on average for a word, by 0.000 for a caption",
        "the more confident half of the captions has CIDEr-D 1.500, all have 1.250",
    ]
    assert "learned on the other pictures" in section.text


def test_comparison_report_shows_two_captioners_side_by_side(tmp_path: Path, picture: Path) -> None:
    references = ("a dog runs on grass", "two cats on a red sofa")
    records = [Record(picture.name, picture, (text,)) for text in references]
    a, b = ["a dog runs on grass", "a dog runs on grass"], ["a cat", "two cats on a red sofa"]
    comparison = compare(("first", a), ("second <b>", b), records, "val")
    write_report(tmp_path / "report.html", comparison_report({"Data": "mine"}, comparison))
    page = Page(tmp_path / "report.html")
    assert page.text("h1") == ["first and second <b>"] and {"first", "second <b>", "mine"} <= set(page.text("dd"))
    assert comparison.sentence() in page.text("p")
    cells, difference = page.text("td"), comparison.differences["CIDEr-D"]
    assert f"{difference.difference:+.3f}" in cells
    values = {f"A {difference.a:.3f}, B {difference.b:.3f}", "A is higher on 1, B on 1, neither on 0"}
    assert values <= set(page.text("small")) and {"← A is higher", "B is higher →"} <= set(page.text("text"))
    assert {*a, b[1]} <= set(page.text("p")) and "cat" in page.text("mark") and page.text("b") == ["A", "B"] * 2
    assert page.text("button") == ["Random", "B better", "A better", "Both good", "Both poor"]


def test_report_shows_the_cautions_of_both_captioners_once(tmp_path: Path, picture: Path) -> None:
    records = [Record(picture.name, picture, ("a dog",)), Record(picture.name, picture, ("a cat",))]
    comparison = compare(("A", ["a dog"] * 2), ("B", ["a cat"] * 2), records, "val")
    write_report(tmp_path / "report.html", comparison_report({}, comparison))
    page = Page(tmp_path / "report.html")
    assert comparison.a.judgement.cautions and page.text("strong").count("Caution.") == 1
    assert all(caution in page.text("p") for caution in comparison.a.judgement.cautions)


def test_shares_show_their_denominator_and_a_dash_without_one(tmp_path: Path, picture: Path) -> None:
    captions = ["a red dog and a blue ball", "a dog"]
    evaluation = make_evaluation([picture] * 2, captions, ["a red dog with a ball"])
    evaluation.judgement.figures.update(judge_captions(captions, [["a red dog with a ball"]] * 2).figures)
    write_report(tmp_path / "report.html", evaluation_report("a run", {}, evaluation))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    row = r'<th scope="row">([\w ]+) <small>.*?<td class="number">(.*?)</td>'
    rows = dict(re.findall(row, page, re.DOTALL))
    assert rows["CHAIRi"].startswith("0.0% ") and "of 3 things<" in rows["CHAIRi"]
    assert "of 2 captions<" in rows["CHAIRs"]
    assert rows["Colours wrong"].startswith("50.0% ") and "of 2 colours<" in rows["Colours wrong"]
    assert rows["Counts wrong"].startswith("- <small>the captions name no numbers")


def test_shares_of_captions_without_known_words_are_dashes(tmp_path: Path, picture: Path) -> None:
    captions = ["كلب يجري على العشب"]
    evaluation = make_evaluation([picture], captions, ["كلب يجري"])
    evaluation.judgement.figures.update(judge_captions(captions, [["كلب يجري"]]).figures)
    page = make_page(tmp_path, evaluation)
    assert page.text("td").count("-") == 5
    assert any(text.startswith("the captions name no things") for text in page.text("small"))


def test_report_counts_have_the_right_grammatical_number(tmp_path: Path, picture: Path) -> None:
    captions, references = ["a red dog"], ["two red dogs"]
    evaluation = make_evaluation([picture], captions, references)
    evaluation.judgement.figures.update(judge_captions(captions, [references]).figures)
    page = make_page(
        tmp_path, evaluation, slices=make_slices("people", "none", 1), pictures=1234,
        leaks=leak_section(["none"], [(evaluation.records[0], evaluation.records[0])]),
    )
    text = " ".join(text for _, text in page.texts)
    assert re.findall(r"(?<![\d.,])1 (?:picture|caption|thing|place|colour|number|pair)s\b", text) == []
    assert {"1 picture", "0.0% to 0.0%; of 1 colour"} <= set(page.text("small")) and "1,234 pictures" in text


def test_report_says_why_a_metric_was_not_computed(tmp_path: Path, picture: Path) -> None:
    evaluation = make_evaluation([picture], ["a caption"])
    evaluation.protocol["absent"] = {"METEOR": "its data is missing"}
    lines = [text for text in make_page(tmp_path, evaluation).text("p") if "METEOR" in text]
    assert lines == ["METEOR was not computed: its data is missing."]


def test_report_lists_pictures_without_a_caption(tmp_path: Path, picture: Path) -> None:
    evaluation = make_evaluation([picture] * 2, ["a caption", ""], broken=["gone.png: no file"])
    sentences = ["could not be read", "left no caption"]
    texts = make_page(tmp_path, evaluation).text("p")
    assert [any(sentence in text for text in texts) for sentence in sentences] == [True, False]
    evaluation.captions[1].error = "the rules ban <b>"
    page = make_page(tmp_path, evaluation)
    assert all(any(sentence in text for text in page.text("p")) for sentence in sentences)
    assert {"gone.png: no file", "picture.png: the rules ban <b>"} <= set(page.text("li"))


def test_leaked_pairs_are_shown_as_pictures(tmp_path: Path) -> None:
    for folder in ("val", "train"):
        (tmp_path / folder).mkdir()
    judged, training = tmp_path / "val/judged.png", tmp_path / "train/copy.png"
    Image.linear_gradient("L").resize((90, 90)).convert("RGB").save(judged)
    training.write_bytes(judged.read_bytes())
    pair = Record("b/judged.png", judged, ()), Record("a/copy.png", training, ())
    evaluation = make_evaluation([judged], ["a caption"])
    page = make_page(tmp_path, evaluation, leaks=leak_section(["1 picture"], [pair] * 20))
    images = [decode_image(image) for image in page.all("img")][1:]
    assert all(image.tobytes() == Image.open(judged).tobytes() for image in images)
    assert page.text("figcaption")[: 2 * MAX_PAIRS] == ["b/judged.png", "a/copy.png"] * MAX_PAIRS
    assert any("the first 12 of 20 pairs" in text for text in page.text("p"))


def test_evaluation_report_shows_the_leaked_pairs_of_its_pictures(tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    for name, seed in (("judged.png", 1), ("training/copy.png", 1), ("training/other.png", 2)):
        pixels = np.random.default_rng(seed).integers(0, 256, (60, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((120, 120)).save(tmp_path / name)
    evaluation = make_evaluation([tmp_path / "judged.png"], ["a caption"])
    training = [Record(name, tmp_path / "training" / name, ("x",)) for name in ("other.png", "copy.png")]
    page = make_page(tmp_path, replace(evaluation, leaks=find_leaks(training, evaluation.records)))
    assert [text for text in page.text("figcaption") if text.endswith(".png")] == ["judged.png", "copy.png"]
    _, judged, copy = page.all("img")
    assert judged["src"] == copy["src"]
