"""`myllm alt`: three small sites, audited and filled in by whole commands, and judged by axe-core in Chromium."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from PIL import Image

from myllm.apps.alt_wording import alternative_text
from myllm.apps.cli import main
from myllm.caption import Calibration
from myllm.checkpoints import native
from myllm.data.scenes import draw_scene
from myllm.inference.captioner import Captioner

Capture = pytest.CaptureFixture[str]
AXE = Path(__file__).parents[1] / "javascript/node_modules/axe-core/axe.min.js"
AXE_RULES = ("image-alt", "image-redundant-alt", "input-image-alt", "area-alt", "link-name")

SHOP = {
    "index.html": """<!DOCTYPE html>\r
<html lang="en"><head><meta charset="utf-8"><title>Shop</title></head><body><main><h1>Shop</h1>\r
<a href="about.html"><img src="img/scene0.png"></a>\r
<p><IMG SRC=img/scene1.png><p>Text<br><img src='img/scene%202.png?width=80' />\r
<a href="#top"><img src="img/scene1.png"> Up</a> <img src="img/scene1.png" alt="Kept  as it is">\r
<img src="https://example.org/count.gif" width="1" height="1">\r
<form><input type="image" src="img/scene0.png" value="Search"></form>\r
<picture><source srcset="img/scene1.png"><img src="img/scene0.png"></picture>\r
<map name="m"><area href="news/" shape="default"></map><img src="img/scene1.png" usemap="#m">\r
</main></body></html>""",
    "about.html": "<!DOCTYPE html><html lang=en><title>About us</title><main><img src=/img/scene0.png></main>",
    "news/index.html": "<!DOCTYPE html><html lang=en><title>News</title><main><h1>News</h1><img src=../img/scene0.png>",
}
BLOG = {
    "2021/post.html": """<!DOCTYPE html><html lang="en"><head><meta charset="iso-8859-1"><base href="../">
<title>é</title></head><body><main><figure>
<img data-src="img/scene0.png" src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">
<figcaption>caf\xe9</figcaption></figure><ul><li><a href="index.htm"><img src="img/scene1.png"></a>
<li><img src="img/plain.png"><li><img src="img/scene1.png" role="presentation"></ul></main></body></html>
""".encode("latin-1"),
    "index.htm": b"\xef\xbb\xbf<!DOCTYPE html><html lang=en><title>Blog</title><main><img src=img/scene0.png></p></b>",
}
DOCS = {
    "README.md": """# Docs

![](img/scene0.png) and ![Kept](img/scene1.png)

[![](img/scene1.png)](guide.md)

```html
<img src="no.png">
```

<p align="center">
  <a href="guide.md"><img src="img/scene0.png"></a> <img src="img/scene 2.png">
</p>

| a | b |
|---|---|
| ![][one] | `![](no.png)` |

[one]: <img/scene 2.png>
""",
    "guide.md": "# The guide\n\n- ![](img/scene1.png)\n\n<!-- ![](no.png) -->\n",
}
SITES: dict[str, dict[str, Any]] = {"shop": SHOP, "blog": BLOG, "docs": DOCS}


@pytest.fixture
def sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh folder with three sites, each with pictures; it is the working directory."""
    monkeypatch.chdir(tmp_path)
    for site, pages in SITES.items():
        for name, content in pages.items():
            file = tmp_path / site / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        (tmp_path / site / "img").mkdir()
        for number, name in enumerate(("scene0.png", "scene1.png", "scene 2.png")):
            draw_scene(seed=0, part="val", number=number)[0].save(tmp_path / site / "img" / name)
        Image.new("RGB", (40, 40), "white").save(tmp_path / site / "img/plain.png")
    return tmp_path


def alt(model: Path, *words: str | Path) -> int:
    """Run `myllm alt`; captions have a prefix, because the tiny captioner writes only "a" otherwise."""
    options = ["--devices=cpu", "--decode.prefix=a red ball on", "--quiet"]
    return main(["alt", *map(str, words), "--model", str(model), *options])


def audited(model: Path, capture: Capture, *words: str | Path) -> dict[str, Any]:
    alt(model, *words, "--json")
    return dict(json.loads(capture.readouterr().out))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_audit_lists_what_is_missing_changes_nothing_and_fails(tiny_run: Path, sites: Path, capfd: Capture) -> None:
    before = contents(sites)
    assert alt(tiny_run, "shop", "--min-confidence=0") == 1
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].split("  ")[0].strip() == "file" and len(lines) == 12
    assert all("no alternative text" in line for line in lines[1:])
    [about] = [line for line in lines if "names where its link leads: the title" in line and "/scene0" in line]
    assert re.match(r" shop/index.html +3 +img/scene0.png +no alternative text +\"About us\": ", about)
    assert contents(sites) == before


def test_audit_suggests_the_caption_of_each_picture_once_captioned(
    tiny_run: Path, sites: Path, capfd: Capture
) -> None:
    report = audited(tiny_run, capfd, "shop", "--min-confidence=0", "--people")
    captioner = Captioner.load(tiny_run)
    described = [fault for fault in report["faults"] if "describes the picture" in fault["reason"]]
    assert [Path(fault["file"]).name for fault in described] == ["about.html", *["index.html"] * 4, "index.html"]
    for fault in described:
        picture = "scene 2.png" if "202" in fault["picture"] else Path(fault["picture"]).name
        caption = captioner.caption(sites / "shop/img" / picture, prefix="a red ball on")
        assert fault["alt"] == alternative_text(caption.text, True, caption.ended_by == "length")
        assert fault["confidence"] == round(caption.confidence, 6)


def test_the_most_confident_caption_of_a_beam_search_is_suggested_unless_another_ranking_is_asked_for(
    tiny_run: Path, sites: Path, capfd: Capture
) -> None:
    run = sites / "captioner.pt"
    shutil.copy(tiny_run / "captioner.pt", run)
    native.write_calibration(Calibration(logprob=-1.0, score=0.0, constant=0.0), run)  # rare words are right
    captioner, page, confidences = Captioner.load(run), "blog/picture.html", list[float]()
    (sites / page).write_text('<img src="img/scene0.png">')
    search: dict[str, Any] = {"beams": 8, "num_beam_groups": 8, "diversity_penalty": 9.0, "min_new_tokens": 6}
    options = ["--min-confidence=0", *(f"--decode.{name}={value}" for name, value in search.items())]
    for words, rank_by in (((), "confidence"), (("--decode.rank_by=score",), "score")):
        [fault] = audited(run, capfd, page, *options, *words)["faults"]
        picture = sites / "blog/img/scene0.png"
        expected = captioner.caption(picture, prefix="a red ball on", rank_by=rank_by, **search)
        assert fault["confidence"] == round(expected.confidence, 6)
        confidences.append(expected.confidence)
    assert confidences[0] > confidences[1]


def test_write_fills_in_what_is_missing_and_keeps_every_other_byte(tiny_run: Path, sites: Path) -> None:
    before = contents(sites)
    assert alt(tiny_run, *SITES, "--write", "--min-confidence=0") == 0
    for path, content in contents(sites).items():
        without = content
        if path.suffix in (".md", ".htm", ".html"):  # what was inserted is taken out again
            without = re.sub(rb' alt="(?!Kept)[^"]*"', b"", re.sub(rb"!\[(?!Kept)[^\]]+\]", b"![]", content))
        assert without == before[path]
    changed = [path.name for path, content in contents(sites).items() if content != before[path]]
    assert sorted(changed) == sorted(Path(name).name for pages in SITES.values() for name in pages)
    assert alt(tiny_run, *SITES) == 0  # nothing is missing any more


def test_diff_prints_what_write_changes_and_changes_nothing(
    tiny_run: Path, sites: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    before = contents(sites)
    assert alt(tiny_run, *SITES, "--diff", "--min-confidence=0") == 1
    patch = capfdbinary.readouterr().out
    assert contents(sites) == before
    assert alt(tiny_run, *SITES, "--write", "--min-confidence=0") == 0
    after = contents(sites)
    for path, content in before.items():
        path.write_bytes(content)
    subprocess.run(["git", "apply", "-p0", "-"], input=patch, check=True, cwd=sites)
    assert contents(sites) == after


def test_captions_below_the_confidence_complex_and_unreadable_pictures_are_for_a_person(
    tiny_run: Path, sites: Path, capfd: Capture
) -> None:
    shutil.copy("shop/img/scene0.png", "shop/sales-chart.png")
    Path("shop/broken.png").write_bytes(b"no picture")
    pictures = ("img/scene0.png", "sales-chart.png", "broken.png", "gone.png", "http://example.org/a.png", "a.svg")
    Path("shop/page.html").write_text("".join(f"<img src='{picture}'>\n" for picture in pictures))
    report = audited(tiny_run, capfd, "shop/page.html", "--min-confidence=0.999")
    assert [fault["alt"] for fault in report["faults"]] == [None] * 6
    reasons = (
        "the captioner is not sure", '"chart" in its name', "not a picture", "there is no file", "another server", "SVG"
    )
    for fault, reason, line in zip(report["faults"], reasons, range(1, 7), strict=True):
        assert reason in fault["reason"] and fault["line"] == line
    assert report["for_a_person"] == report["missing"] == 6
    before = contents(sites)
    assert alt(tiny_run, "shop/page.html", "--write", "--min-confidence=0.999") == 1
    assert contents(sites) == before


def test_write_describes_pictures_that_only_look_like_spacers_and_keeps_texts_of_templates(
    tiny_run: Path, sites: Path, capfd: Capture
) -> None:
    shutil.copy("shop/img/scene1.png", "shop/img/pixel.png")
    Image.new("RGB", (1, 1)).save("shop/img/blank.gif")
    page, templates = Path("shop/page.html"), [
        '<img src=img/scene0.png {% if x %}alt="Our dog Rex"{% endif %}>', '<img src=img/scene0.png :alt="text">'
    ]
    described = [
        "<img src=img/blank.gif data-src=img/scene0.png>", "<img src=img/pixel.png>",
        "<section hidden><img src=img/scene0.png></section>",
    ]
    spacers = ["<img src=img/blank.gif>", "<img src=img/spacer.gif>", "<img src=count.html width=1 height=1>"]
    Path("shop/count.html").write_text("no picture")
    page.write_text("\n".join([*templates, *described, *spacers]))
    report = audited(tiny_run, capfd, page, "--min-confidence=0", "--write")
    assert (report["made_by_template"], report["written"], report["for_a_person"], report["wrong"]) == (2, 6, 0, 0)
    lines = page.read_text().split("\n")
    assert lines[:2] == templates
    assert all('<img alt="A red ball on' in line for line in lines[2:5]) and all('alt=""' in line for line in lines[5:])
    assert alt(tiny_run, page) == 0


def test_captioner_without_calibration_is_warned_of(tmp_path: Path, sites: Path, capfd: Capture) -> None:
    model = Path(__file__).parents[1] / "fixtures/captioner-v1"
    assert alt(model, "docs/guide.md") == 1
    assert "is not calibrated" in capfd.readouterr().err


def test_pages_that_cannot_be_read_are_named_and_the_others_filled_in(
    tiny_run: Path, sites: Path, capfd: Capture
) -> None:
    shutil.copy("shop/img/scene0.png", "shop/binary.html")
    Path("shop/latin.html").write_bytes(b"<p>caf\xe9<img src=img/scene0.png>")
    Path("shop/nul\n.html").write_bytes(b"<p>\0<img src=img/scene0.png>")
    Path("shop/loop.html").symlink_to("loop.html")
    assert alt(tiny_run, "shop", "--write", "--min-confidence=0") == 1
    errors = capfd.readouterr().err
    assert "Traceback" not in errors and errors.count("! shop/") == 3
    for name in ("binary.html: line 1 holds byte", "latin.html: line 1 holds byte 0xe9", "loop.html: not a file"):
        assert f"shop/{name}" in errors
    assert b"alt=" in Path("shop/nul\n.html").read_bytes() and b"alt=" in Path("shop/about.html").read_bytes()


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [(["nowhere"], 1, "nowhere: no such file or folder"), (["shop/img"], 1, "no pages in this folder"),
     (["shop", "--diff", "--write"], 2, "--diff and --write: choose one of them"),
     (["shop", "--min-confidence=2"], 2, "--min_confidence is 2.0; it must be"), ([], 2, "no paths are given")],
)
def test_wrong_usage_is_named(
    tiny_run: Path, sites: Path, capfd: Capture, words: list[str], code: int, reason: str
) -> None:
    assert alt(tiny_run, *words) == code
    assert reason in capfd.readouterr().err


@pytest.mark.slow
def test_closed_standard_output_ends_the_command_without_a_traceback(sites: Path) -> None:
    model = Path(__file__).parents[1] / "fixtures/captioner-v1"
    command = [sys.executable, "-m", "myllm", "alt", "shop", "--model", str(model), "--devices=cpu", "--write"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], *sys.path])}
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=environment, text=True)
    os.close(write)
    assert "Traceback" not in result.stderr and "Exception" not in result.stderr, result.stderr
    assert b'alt="About us"' in Path("shop/index.html").read_bytes()


def faults_by_axe(browser: Any, folder: Path) -> list[str]:
    """Return the faults that axe-core finds in the pages of a folder; Markdown pages are shown as HTML."""
    faults = []
    for page in sorted(path for path in folder.rglob("*") if path.suffix in (".md", ".html", ".htm")):
        tab = browser.new_page()
        tab.route("http*://**", lambda route: route.abort())
        if page.suffix == ".md":
            markdown = MarkdownIt("commonmark", {"html": True}).enable("table").render(page.read_text(encoding="utf-8"))
            tab.set_content(f"<!DOCTYPE html><html lang=en><title>Docs</title><main>{markdown}")
        else:
            tab.goto(page.as_uri())
        tab.add_script_tag(content=AXE.read_text(encoding="utf-8"))
        results = tab.evaluate("rules => axe.run(document, {runOnly: rules})", list(AXE_RULES))
        assert results["passes"] or results["violations"]
        for fault in results["violations"]:
            faults += [f"{page.name}: {fault['id']} {node['html']}" for node in fault["nodes"]]
        tab.close()
    return faults


@pytest.mark.slow
def test_axe_finds_no_fault_of_pictures_after_write(
    tiny_run: Path, sites: Path, browser: Any, program: Callable[[str], str]
) -> None:
    program("node")  # npm installs axe-core
    before = faults_by_axe(browser, sites)
    assert sum("image-alt" in fault for fault in before) > 10 and any("link-name" in fault for fault in before)
    assert alt(tiny_run, *SITES, "--write", "--min-confidence=0") == 0
    assert faults_by_axe(browser, sites) == []
