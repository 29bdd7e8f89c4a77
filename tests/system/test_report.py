"""report.html in a real browser: opened, sorted, pointed at, by keys and by touch, printed, and held to axe-core."""

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
from myllm.evaluation.gallery import EACH, WordMap
from myllm.evaluation.judge import judge_captions
from myllm.evaluation.plots import Row
from myllm.evaluation.report import Report, Section, comparison_report, evaluation_report, write_report
from myllm.evaluation.slices import Slice

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
AXE = Path(__file__).parents[1] / "javascript/node_modules/axe-core/axe.min.js"
HISTORY: list[Row] = [
    {"epoch": 1, "train_loss": 3.0, "val_loss": 2.5, "train_perplexity": 20.1, "val_perplexity": 12.2},
    {"epoch": 2, "train_loss": 2.0, "val_loss": 1.5, "train_perplexity": 7.4, "val_perplexity": 4.5},
]
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}


def seen(place: int, word: int) -> NDArray[np.float64]:
    """All that was looked at is one ninth of a picture, each word's another one."""
    found = np.zeros((24, 24))
    row, column = divmod((place + word) % 9, 3)
    found[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 1
    return found


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """Ninety scenes, told rightly or in another's words, ever surer."""
    folder, records = tmp_path_factory.mktemp("pictures"), []
    for number in range(90):
        image, scene = draw_scene(seed=0, part="val", number=number)
        image.resize((160, 120)).save(folder / f"{number}.png")
        records.append(Record(folder / f"{number}.png", tuple(scene.captions)))
    own = [records[(at + at % 3) % 90].captions[0] for at in range(90)]
    own[1] = "<script>document.title = 'run'</script> " + own[1]
    judgement = judge_captions(own, [record.captions for record in records], blind="a red ball")
    judgement.protocol["split"] = "val"
    judgement.protocol["decode"] = {"beams": 1, "do_sample": False}
    said = [Caption(text, -0.01 * (at * 7 % 90), [], [], "end") for at, text in enumerate(own)]
    return Evaluation(judgement, records, said, ["broken.png: no picture"])


@pytest.fixture(scope="module")
def one(judged: Evaluation) -> Report:
    def look(place: int) -> list[WordMap]:
        words = judged.captions[place].text.split()
        return [WordMap(word, seen(place, at), 0.5) for at, word in enumerate(words)]

    report = evaluation_report("a run", {"Seed": "7"}, judged, HISTORY, look)
    assert report.training is not None
    calibration = Section(["Confidence is the share of words that are right."], report.training.plots)
    slices = [Slice("people", "three or more", 40, 0.31, -0.1, (0.25, 0.37))]
    return replace(report, slices=slices, leaks=["2 pictures are in training too"], calibration=calibration)


@pytest.fixture(scope="module")
def two(judged: Evaluation) -> Report:
    texts = [caption.text for caption in judged.captions]
    references = [record.captions[1] for record in judged.records]
    return comparison_report({"Data": "scenes"}, compare(("a", texts), ("b", references), judged.records, "val"))


@pytest.fixture(scope="module")
def address(one: Report, two: Report, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The address of the report of `one` or of `two`."""
    folder = tmp_path_factory.mktemp("reports")
    write_report(folder / "one.html", one)
    write_report(folder / "two.html", two)
    return lambda name: (folder / f"{name}.html").as_uri()


@pytest.fixture
def axe(program: Callable[[str], str]) -> str:
    """axe-core's script, which npm brings."""
    program("node")
    return AXE.read_text(encoding="utf-8")


@pytest.fixture
def opened(browser: Any, address: Callable[[str], str]) -> Iterator[Callable[..., Any]]:
    """opened(name, **options of a browser context): the page; complaints and requests fail the test at its end."""
    contexts, complaints, asked = [], list[str](), list[str]()

    def open_page(name: str = "one", **options: Any) -> Any:
        contexts.append(browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options}))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address(name))
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert asked and all(url.startswith(("data:image/", address("one"), address("two"))) for url in asked)


def names(page: Any) -> list[int]:
    """The pictures' numbers, in the order in which they are seen."""
    boxes = page.locator("#gallery > li").evaluate_all(
        "all => all.map(one => [one.offsetTop, one.offsetLeft, parseInt(one.querySelector('img').title)])"
    )
    return [number for _, _, number in sorted(boxes)]


def painted(item: Any) -> NDArray[np.int64] | None:
    """(3, 3, 4): the colour in the middle of each ninth of the map over a picture; None where no map is seen."""
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


def is_map_of(item: Any, place: int, word: int) -> bool:
    """Whether the ninth that was looked at is bright and all others are dark."""
    found = painted(item)
    if found is None:
        return False
    light = found[..., :3].sum(2).ravel()
    looked = (place + word) % 9
    return bool(light[looked] > 500 and np.delete(light, looked).max() < 150)


@pytest.mark.parametrize("name", ["one", "two"])
def test_it_opens_without_complaint_and_a_script_in_a_caption_stays_text(
    opened: Callable[..., Any], name: str, one: Report, two: Report
) -> None:
    page, report = opened(name), {"one": one, "two": two}[name]
    assert page.title() == f"{report.title}: a report by MyLLM"
    assert page.locator("#gallery img").count() == len(report.gallery)
    widths = page.locator("#gallery img").evaluate_all("all => all.map(one => one.naturalWidth)")
    assert min(widths) == 160
    if any(shown.name == "1.png" for shown in report.gallery):
        told = page.locator("#gallery li", has=page.get_by_title("1.png", exact=True)).locator(".caption").first
        assert told.inner_text().startswith("<script>document.title = 'run'</script>")


def test_no_other_script_is_run(browser: Any, address: Callable[[str], str]) -> None:
    page, complaints = browser.new_page(), list[str]()
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(address("one"))
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
    assert len(complaints) >= 2 and all("Content Security Policy" in complaint for complaint in complaints)
    page.close()


def test_each_button_sorts_as_it_says(opened: Callable[..., Any], judged: Evaluation) -> None:
    page = opened()
    cider_d, score = judged.per_image["CIDEr-D"], [caption.score for caption in judged.captions]
    hung = names(page)
    orders: dict[str, Callable[[int], float]] = {
        "Best": lambda at: -cider_d[at], "Worst": lambda at: cider_d[at],
        "Most confident": lambda at: -score[at], "Least confident": lambda at: score[at],
    }
    for label, value in orders.items():
        page.get_by_role("button", name=label, exact=True).click()
        found = names(page)
        assert found == sorted(sorted(found), key=value) and set(found) == set(hung) and found != hung
        assert found[:EACH] == sorted(range(90), key=value)[:EACH]  # of the whole split, not of those shown
        assert page.locator("#orders [aria-pressed=true]").all_inner_texts() == [label]
    page.get_by_role("button", name="Random", exact=True).click()
    assert names(page) == hung


def test_two_are_sorted_by_who_is_ahead(opened: Callable[..., Any], two: Report) -> None:
    page = opened("two")
    gain = {shown.name: shown.spoken[1].cider_d - shown.spoken[0].cider_d for shown in two.gallery}
    for label, sign in (("B ahead", -1), ("A ahead", 1)):
        page.get_by_role("button", name=label, exact=True).click()
        gains = [sign * gain[f"{number}.png"] for number in names(page)]
        assert gains == sorted(gains) and gains[0] < 0


def test_a_word_that_is_pointed_at_shows_its_map(opened: Callable[..., Any], one: Report) -> None:
    page = opened()
    for at in (0, 3):
        item, place = page.locator("#gallery > li").nth(at), int(one.gallery[at].name.removesuffix(".png"))
        words = item.locator("button.word")
        assert words.count() == len(one.gallery[at].spoken[0].text.split())
        for word in (0, 2):
            words.nth(word).hover()
            assert is_map_of(item, place, word)
            told = item.get_by_role("status").inner_text()
            assert told.startswith(f"“{words.nth(word).inner_text()}”: looked mostly") and told.endswith("50%")
        assert item.locator("canvas").bounding_box() == item.locator("img").bounding_box()
        page.mouse.move(0, 0)
        item.locator("canvas").wait_for(state="hidden")
        assert item.get_by_role("status").inner_text() == ""


def test_keys_reach_each_word(opened: Callable[..., Any], one: Report) -> None:
    page = opened()
    item, place = page.locator("#gallery > li").first, int(one.gallery[0].name.removesuffix(".png"))
    page.get_by_role("button", name=one.orders[-1].label, exact=True).focus()
    page.keyboard.press("Tab")
    assert is_map_of(item, place, 0)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert is_map_of(item, place, 2)
    page.keyboard.press("Enter")
    page.keyboard.press("End")
    last = item.locator("button.word").count() - 1
    assert is_map_of(item, place, last)
    page.keyboard.press("Tab")  # to the next picture: what was pressed stays
    assert is_map_of(item, place, 2) and item.locator("[aria-pressed=true]").count() == 1
    beside = page.locator("#gallery > li").nth(1)
    assert beside.locator("button.word:focus").count() == 1 == beside.locator("button.word[tabindex='0']").count()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Escape")
    assert item.locator("[aria-pressed=true]").count() == 0 and painted(item) is None


def test_a_tap_shows_a_map_and_another_hides_it(opened: Callable[..., Any], one: Report) -> None:
    page = opened(**PHONE)
    item, place = page.locator("#gallery > li").first, int(one.gallery[0].name.removesuffix(".png"))
    item.locator("button.word").nth(1).tap()
    assert is_map_of(item, place, 1)
    item.locator("button.word").nth(0).tap()
    assert is_map_of(item, place, 0)
    item.locator("button.word").nth(0).tap()
    assert painted(item) is None


@pytest.mark.parametrize("name", ["one", "two"])
@pytest.mark.parametrize("width", [320, 360, 768])
def test_nothing_is_wider_than_the_screen(opened: Callable[..., Any], name: str, width: int) -> None:
    page = opened(name, **PHONE | {"viewport": {"width": width, "height": 740}})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("p, li, dd, h1, img, svg, button").evaluate_all(
        "all => all.filter(one => one.checkVisibility() && one.getBoundingClientRect().right > innerWidth + 1)"
        ".map(one => one.outerHTML)"
    ) == []


@pytest.mark.parametrize("name", ["one", "two"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(axe: str, opened: Callable[..., Any], name: str, scheme: str) -> None:
    page = opened(name, color_scheme=scheme, bypass_csp=True)
    if name == "one":
        page.locator("button.word").nth(1).click()
    page.add_script_tag(content=axe)
    found = page.evaluate("axe.run()")
    assert len(found["passes"]) > 20  # it has looked
    told = [(one["id"], one["impact"], [node["html"] for node in one["nodes"]][:3]) for one in found["violations"]]
    assert [one for one in told if one[1] in ("serious", "critical", "moderate")] == []
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


def test_on_paper_there_is_all_but_what_would_be_pressed(opened: Callable[..., Any], one: Report) -> None:
    page = opened(color_scheme="dark")
    page.locator("button.word").first.click()
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("#orders").is_visible() and not page.locator("canvas").first.is_visible()
    assert all(image.is_visible() for image in page.locator("#gallery img").all())
    pages = len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4")))
    assert 4 < pages < 40


def test_without_scripts_all_is_there_in_one_order(opened: Callable[..., Any], one: Report) -> None:
    page = opened(java_script_enabled=False)
    assert page.locator("#gallery > li").count() == len(one.gallery)
    assert page.locator(".caption").first.inner_text() == one.gallery[0].spoken[0].text
    assert not page.locator("#orders").is_visible() and page.locator("#gallery button").count() == 0


def test_evaluate_and_compare_write_it(tiny_run: Path, scenes: Path, tmp_path: Path) -> None:
    common = ["--data", str(scenes), "--split=train", "--limit=12", "--devices=cpu", "--quiet"]
    assert main(["evaluate", "--model", str(tiny_run), "--out", str(tmp_path / "a"), *common]) == 0
    captions = (tmp_path / "a/captions.jsonl").read_text(encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(captions.replace('"caption": "', '"caption": "no '), encoding="utf-8")
    out = tmp_path / "two"
    assert main(["compare", str(tiny_run), str(tmp_path / "b.jsonl"), "--out", str(out), *common]) == 0
    for folder in (tmp_path / "a", out):
        page = (folder / "report.html").read_text(encoding="utf-8")
        assert page.count("<img ") == 12 and len(page) < 5_000_000
        for name in ("lengths.png", "lengths.svg", "words.png", "words.svg"):
            assert (folder / name).stat().st_size > 1000
        assert "data-map=" in page and "from dark blue" in page
    assert page.count(" ahead</button>") == 2 and "B decodes</dt><dd>captions from a file</dd>" in page
