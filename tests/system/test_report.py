"""report.html in a real browser: sorting, word maps by mouse, keys and touch, print, narrow screens, accessibility."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from myllm.apps.cli import main
from myllm.caption import Caption
from myllm.data.records import Record
from myllm.data.scenes import draw_scene
from myllm.evaluation.compare import compare
from myllm.evaluation.evaluate import Evaluation
from myllm.evaluation.forest import slice_groups
from myllm.evaluation.gallery import PICTURES_PER_ORDER, GalleryPicture, WordMap
from myllm.evaluation.judge import judge_captions
from myllm.evaluation.plots import Row
from myllm.evaluation.report import (
    Report,
    Section,
    comparison_report,
    evaluation_report,
    leak_section,
    write_report,
)
from myllm.evaluation.slices import Slice

pytestmark = pytest.mark.slow
AXE = Path(__file__).parents[1] / "javascript/node_modules/axe-core/axe.min.js"
HISTORY: list[Row] = [
    {"epoch": 1, "train_loss": 3.0, "val_loss": 2.5, "train_perplexity": 20.1, "val_perplexity": 12.2},
    {"epoch": 2, "train_loss": 2.0, "val_loss": 1.5, "train_perplexity": 7.4, "val_perplexity": 4.5},
]
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}


def make_map(picture: int, word: int) -> NDArray[np.float64]:
    """Return a map with one ninth of the picture at 1, the rest at 0; each word has another ninth."""
    word_map = np.zeros((24, 24))
    row, column = divmod((picture + word) % 9, 3)
    word_map[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 1
    return word_map


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """An evaluation of ninety scenes; a third of the captions are right, the others belong to another scene."""
    folder, records = tmp_path_factory.mktemp("pictures"), []
    for number in range(90):
        image, scene = draw_scene(seed=0, part="val", number=number)
        image.resize((160, 120)).save(folder / f"{number}.png")
        records.append(Record(f"{number}.png", folder / f"{number}.png", tuple(scene.captions)))
    texts = [records[(index + index % 3) % 90].captions[0] for index in range(90)]
    texts[1] = "<script>document.title = 'run'</script> " + texts[1]
    judgement = judge_captions(texts, [record.captions for record in records], blind="a red ball")
    judgement.protocol["split"] = "val"
    judgement.protocol["decode"] = {"beams": 1, "do_sample": False}
    captions = [Caption(text, -0.01 * (index * 7 % 90), [], [], "end") for index, text in enumerate(texts)]
    return Evaluation(judgement, records, captions, ["broken.png: no picture"])


@pytest.fixture(scope="module")
def single(evaluation: Evaluation) -> Report:
    """The report of one captioner, with every section."""

    def word_maps(index: int) -> list[WordMap]:
        words = evaluation.captions[index].text.split()
        return [WordMap(word, make_map(index, position), 0.5) for position, word in enumerate(words)]

    report = evaluation_report("a run", {"Seed": "7"}, evaluation, HISTORY, word_maps)
    assert report.training is not None
    confidence = Section("Confidence is the share of words that are right.", report.training.plots)
    slices = slice_groups([Slice("people", "three or more", 40, 0.31, -0.1, (0.25, 0.37))], 0.41, (0.35, 0.47))
    records = evaluation.records
    leaks = leak_section(["2 pictures are in training too"], [(records[0], records[1]), (records[2], records[3])])
    return replace(report, slices=slices, leaks=leaks, confidence=confidence)


@pytest.fixture(scope="module")
def comparison(evaluation: Evaluation) -> Report:
    """The report of two captioners."""
    texts = [caption.text for caption in evaluation.captions]
    references = [record.captions[1] for record in evaluation.records]
    return comparison_report({"Data": "scenes"}, compare(("a", texts), ("b", references), evaluation.records, "val"))


@pytest.fixture(scope="module")
def address(
    single: Report, comparison: Report, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], str]:
    """address(name): the URL of the report `single` or `comparison`."""
    folder = tmp_path_factory.mktemp("reports")
    write_report(folder / "single.html", single)
    write_report(folder / "comparison.html", comparison)
    return lambda name: (folder / f"{name}.html").as_uri()


@pytest.fixture
def axe(program: Callable[[str], str]) -> str:
    """The script of axe-core, which npm installs."""
    program("node")
    return AXE.read_text(encoding="utf-8")


@pytest.fixture
def open_report(browser: Any, address: Callable[[str], str]) -> Iterator[Callable[..., Any]]:
    """open_report(name, shows_all, **options of a browser context): the page; errors and requests fail the test.

    shows_all: whether all pictures of the gallery are shown instead of the first six.
    """
    contexts, errors, requests = [], list[str](), list[str]()

    def open_page(name: str = "single", shows_all: bool = True, **options: Any) -> Any:
        contexts.append(browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options}))
        page = contexts[-1].new_page()
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address(name))
        if shows_all and options.get("java_script_enabled", True):
            page.locator("#all").click()
            page.evaluate("scrollTo(0, 0)")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []
    allowed = ("data:image/", address("single"), address("comparison"))
    assert requests and all(url.startswith(allowed) for url in requests)


def numbers_of(page: Any) -> list[int]:
    """Return the numbers of the gallery's pictures, in the order in which they are shown."""
    boxes = page.locator("#gallery > li").evaluate_all(
        "all => all.map(item => [item.offsetTop, item.offsetLeft, parseInt(item.querySelector('.name').innerText)])"
    )
    return [number for _, _, number in sorted(boxes)]


def painted_map(item: Any) -> NDArray[np.int64] | None:
    """Return the colour at the centre of each ninth of the map over a picture, (3, 3, 4); None if no map is shown."""
    if not item.locator("canvas").is_visible():
        return None
    pixels = item.locator("canvas").evaluate(
        """canvas => {
            const copy = new OffscreenCanvas(canvas.width, canvas.height);
            const context = copy.getContext('2d', { willReadFrequently: true });
            context.drawImage(canvas, 0, 0);
            const colour = (x, y) => [...context.getImageData(x * canvas.width / 6, y * canvas.height / 6, 1, 1).data];
            return [1, 3, 5].map(y => [1, 3, 5].map(x => colour(x, y)));
        }"""
    )
    return np.array(pixels)


def number_of(picture: GalleryPicture) -> int:
    return int(picture.name.removesuffix(".png"))


def shows_map(item: Any, picture: int, word: int) -> bool:
    """Return whether the ninth of `make_map`, at 9 times the even share, is bright and all others are dark."""
    colours = painted_map(item)
    if colours is None:
        return False
    brightness = colours[..., :3].sum(2).ravel()
    ninth = (picture + word) % 9
    return bool(brightness[ninth] > 400 and np.delete(brightness, ninth).max() < 150)


@pytest.mark.parametrize("name", ["single", "comparison"])
def test_report_opens_without_errors_and_shows_a_script_in_a_caption_as_text(
    open_report: Callable[..., Any], name: str, single: Report, comparison: Report
) -> None:
    page, report = open_report(name), {"single": single, "comparison": comparison}[name]
    assert page.title() == f"{report.title}: a report by MyLLM"
    assert page.locator("#gallery img").count() == len(report.gallery)
    widths = page.locator("#gallery img").evaluate_all("all => all.map(image => image.naturalWidth)")
    assert min(widths) == 160
    if any(picture.name == "1.png" for picture in report.gallery):
        card = page.locator("#gallery > li", has=page.get_by_text("1.png", exact=True))
        caption = card.locator(".caption").first
        assert caption.inner_text().startswith("<script>document.title = 'run'</script>")


def test_report_runs_no_other_script(browser: Any, address: Callable[[str], str]) -> None:
    page, errors = browser.new_page(), list[str]()
    page.on("console", lambda message: errors.append(message.text))
    page.goto(address("single"))
    page.evaluate("""() => {
        const script = document.createElement('script');
        script.textContent = 'window.ran = true';
        document.body.append(script);
        const image = document.createElement('img');
        image.setAttribute('onerror', 'window.ran = true');
        image.src = 'http://127.0.0.1:9/picture.png';
        document.body.append(image);
    }""")
    page.locator("body > img").wait_for(state="attached")
    assert page.evaluate("window.ran") is None
    assert len(errors) >= 2 and all("Content Security Policy" in error for error in errors)
    page.close()


def test_report_buttons_sort_the_gallery(open_report: Callable[..., Any], evaluation: Evaluation) -> None:
    page = open_report()
    cider_d, score = evaluation.per_image["CIDEr-D"], [caption.score for caption in evaluation.captions]
    random = numbers_of(page)
    orders: dict[str, Callable[[int], float]] = {
        "Best": lambda number: -cider_d[number], "Worst": lambda number: cider_d[number],
        "Most confident": lambda number: -score[number], "Least confident": lambda number: score[number],
    }
    for label, key in orders.items():
        page.get_by_role("button", name=label, exact=True).click()
        numbers = numbers_of(page)
        assert numbers == sorted(sorted(numbers), key=key) and set(numbers) == set(random) and numbers != random
        first = sorted(range(90), key=key)[:PICTURES_PER_ORDER]  # of all pictures, not only of those on the page
        assert numbers[:PICTURES_PER_ORDER] == first
        assert page.locator("#orders [aria-pressed=true]").all_inner_texts() == [label]
    page.get_by_role("button", name="Random", exact=True).click()
    assert numbers_of(page) == random


def test_comparison_report_sorts_by_which_captioner_is_better(
    open_report: Callable[..., Any], comparison: Report
) -> None:
    page = open_report("comparison")
    gain_of = {
        picture.name: picture.captions[1].cider_d - picture.captions[0].cider_d for picture in comparison.gallery
    }
    for label, sign in (("B better", -1), ("A better", 1)):
        page.get_by_role("button", name=label, exact=True).click()
        gains = [sign * gain_of[f"{number}.png"] for number in numbers_of(page)]
        assert gains == sorted(gains) and gains[0] < 0


def test_word_map_is_shown_while_the_word_is_pointed_at(open_report: Callable[..., Any], single: Report) -> None:
    page = open_report()
    for index in (0, 3):
        item, picture = page.locator("#gallery > li").nth(index), number_of(single.gallery[index])
        words = item.locator("button.word")
        assert words.count() == len(single.gallery[index].captions[0].text.split())
        for word in (0, 2):
            words.nth(word).hover()
            assert shows_map(item, picture, word)
            status = page.get_by_role("status").inner_text()
            assert status.startswith(f"“{words.nth(word).inner_text()}”: looked mostly") and status.endswith("50%")
        assert item.locator("canvas").bounding_box() == item.locator("img").bounding_box()
        page.mouse.move(0, 0)
        item.locator("canvas").wait_for(state="hidden")
        assert page.get_by_role("status").inner_text() == "" and page.locator("#hint").is_visible()


def test_word_maps_are_reached_by_keys(open_report: Callable[..., Any], single: Report) -> None:
    page = open_report()
    item, picture = page.locator("#gallery > li").first, number_of(single.gallery[0])
    page.get_by_role("button", name=single.orders[-1].label, exact=True).focus()
    page.keyboard.press("Tab")
    assert shows_map(item, picture, 0)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert shows_map(item, picture, 2)
    page.keyboard.press("Enter")
    page.keyboard.press("End")
    last = item.locator("button.word").count() - 1
    assert shows_map(item, picture, last)
    page.keyboard.press("Tab")  # to the next picture: the pressed word keeps its map
    assert shows_map(item, picture, 2) and item.locator("[aria-pressed=true]").count() == 1
    neighbour = page.locator("#gallery > li").nth(1)
    assert neighbour.locator("button.word:focus").count() == 1
    assert neighbour.locator("button.word[tabindex='0']").count() == 1
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Escape")
    assert item.locator("[aria-pressed=true]").count() == 0 and painted_map(item) is None


def test_word_map_is_shown_and_hidden_by_a_tap(open_report: Callable[..., Any], single: Report) -> None:
    page = open_report(**PHONE)
    item, picture = page.locator("#gallery > li").first, number_of(single.gallery[0])
    item.locator("button.word").nth(1).tap()
    assert shows_map(item, picture, 1)
    item.locator("button.word").nth(0).tap()
    assert shows_map(item, picture, 0)
    item.locator("button.word").nth(0).tap()
    assert painted_map(item) is None


@pytest.mark.parametrize("name", ["single", "comparison"])
@pytest.mark.parametrize("width", [320, 360, 768])
def test_report_is_not_wider_than_the_screen(open_report: Callable[..., Any], name: str, width: int) -> None:
    page = open_report(name, **PHONE | {"viewport": {"width": width, "height": 740}})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("p, li, dd, h1, img, svg, button").evaluate_all(
        "all => all.filter(item => item.checkVisibility() && item.getBoundingClientRect().right > innerWidth + 1)"
        ".map(item => item.outerHTML)"
    ) == []


@pytest.mark.parametrize("name", ["single", "comparison"])
def test_first_screen_has_the_verdict_and_six_pictures_with_captions(
    open_report: Callable[..., Any], name: str, single: Report, comparison: Report
) -> None:
    report = {"single": single, "comparison": comparison}[name]
    page = open_report(name, shows_all=False, viewport={"width": 1280, "height": 800})
    assert page.locator(".verdict").inner_text() == "\n\n".join(report.verdict)
    for selector in (".verdict", "#gallery .caption"):
        boxes = [item.bounding_box() for item in page.locator(selector).all() if item.is_visible()]
        assert min(box["y"] + 20 for box in boxes) < 800
    shown = page.locator("#gallery > li:visible")
    assert shown.count() == 6
    assert all(item.locator("img").bounding_box()["y"] < 650 for item in shown.all())
    assert shown.locator(".name").all_inner_texts() == [picture.name for picture in report.gallery[:6]]
    page.locator("#all").click()
    assert page.locator("#gallery > li:visible").count() == len(report.gallery)
    page.locator("#all").click()
    assert shown.count() == 6


def test_even_heat_map_leaves_the_picture_as_it_is(
    browser: Any, evaluation: Evaluation, tmp_path: Path
) -> None:
    report = evaluation_report("even", {}, evaluation, word_maps=lambda index: [WordMap("a", np.ones((8, 8)))])
    write_report(tmp_path / "even.html", report)
    page = browser.new_page()
    page.goto((tmp_path / "even.html").as_uri())
    item = page.locator("#gallery > li", has=page.locator(".word")).first
    item.locator(".word").hover()
    colours = painted_map(item)
    assert colours is not None and colours[..., 3].max() < 5  # opacity
    page.close()


@pytest.mark.parametrize("width", [360, 1200])
def test_captions_that_are_read_from_the_right_stay_within_their_card(
    browser: Any, evaluation: Evaluation, tmp_path: Path, width: int
) -> None:
    arabic = "كلب يجري على العشب"
    records = [replace(record, captions=(arabic,)) for record in evaluation.records]
    write_report(tmp_path / "right.html", evaluation_report("right", {}, replace(evaluation, records=records)))
    page = browser.new_page(viewport={"width": width, "height": 740})
    page.goto((tmp_path / "right.html").as_uri())
    inset = page.locator(".references li").first.evaluate(
        "item => [getComputedStyle(item, '::before').right, getComputedStyle(item).paddingRight, "
        "getComputedStyle(item).listStyleType]"
    )
    assert inset[0] == "0px" and float(inset[1].removesuffix("px")) > 10 and inset[2] == "none"
    page.close()


def test_comparison_on_a_phone_shows_all_values(open_report: Callable[..., Any]) -> None:
    page = open_report("comparison", **PHONE)
    cells = page.locator(".forest th, .forest td, .forest circle").all()
    boxes = [cell.bounding_box() for cell in cells if cell.is_visible()]
    assert len(boxes) > 60 and all(box["x"] >= 0 and box["x"] + box["width"] <= 360 for box in boxes)


def test_invented_words_are_marked(open_report: Callable[..., Any], comparison: Report) -> None:
    page = open_report("comparison")
    marked = [
        span.text for picture in comparison.gallery for caption in picture.captions for span in caption.spans
        if span.is_invented
    ]
    assert len(marked) > 10 and page.locator("#gallery mark.invented").all_inner_texts() == marked


@pytest.mark.parametrize("name", ["single", "comparison"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_has_no_accessibility_violations(
    axe: str, open_report: Callable[..., Any], name: str, scheme: str
) -> None:
    page = open_report(name, color_scheme=scheme, bypass_csp=True)
    if name == "single":
        page.locator("button.word").nth(1).click()
    page.add_script_tag(content=axe)
    results = page.evaluate("axe.run()")
    assert len(results["passes"]) > 20  # the checks did run
    assert [
        (violation["id"], [node["html"] for node in violation["nodes"]][:3])
        for violation in results["violations"]
        if violation["impact"] in ("serious", "critical", "moderate")
    ] == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


def test_printed_report_has_all_but_the_controls(open_report: Callable[..., Any]) -> None:
    page = open_report(color_scheme="dark")
    page.locator("button.word").first.click()
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("#orders").is_visible() and not page.locator("canvas").first.is_visible()
    assert all(image.is_visible() for image in page.locator("#gallery img").all())
    pages = len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4")))
    assert 4 < pages < 40


def test_report_without_scripts_shows_everything_in_one_order(open_report: Callable[..., Any], single: Report) -> None:
    page = open_report(java_script_enabled=False)
    assert page.locator("#gallery > li").count() == len(single.gallery)
    assert page.locator(".caption").first.inner_text() == single.gallery[0].captions[0].text
    assert not page.locator("#orders").is_visible() and page.locator("#gallery button").count() == 0


def test_evaluate_and_compare_write_reports(tiny_run: Path, scenes: Path, tmp_path: Path) -> None:
    common = ["--data", str(scenes), "--split=train", "--limit=12", "--devices=cpu", "--quiet"]
    assert main(["evaluate", "--model", str(tiny_run), "--out", str(tmp_path / "a"), *common]) == 0
    captions = (tmp_path / "a/captions.jsonl").read_text(encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(captions.replace('"caption": "', '"caption": "no '), encoding="utf-8")
    out = tmp_path / "comparison"
    assert main(["compare", str(tiny_run), str(tmp_path / "b.jsonl"), "--out", str(out), *common]) == 0
    for folder in (tmp_path / "a", out):
        page = (folder / "report.html").read_text(encoding="utf-8")
        assert page.count("<img ") == 12 and len(page) < 5_000_000
        for name in ("lengths.png", "lengths.svg", "words.png", "words.svg"):
            assert (folder / name).stat().st_size > 1000
        assert "data-map=" in page and 'class="heat-scale"' in page
    assert page.count(" better</button>") == 2 and "B decodes</dt><dd>captions from a file</dd>" in page
