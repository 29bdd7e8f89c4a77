"""Draws docs/report.png: the head of the demo's report, and its gallery with what was looked at for a word.

    python benchmarks/report_picture.py [--report runs/demo/report.html] [--word heart]
"""

import argparse
import io
import re
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT = 1000, 560


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, default=ROOT / "runs/demo/report.html")
    parser.add_argument("--word", default="star", help="point at the first one in the gallery")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/report.png")
    arguments = parser.parse_args()
    browser = shutil.which("chromium")
    if not arguments.report.is_file() or browser is None:
        print(f"left out: no {arguments.report}, or no chromium; run `myllm demo` or give --report")
        return
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(arguments.report.resolve().as_uri())
        head = page.screenshot()
        word = page.locator("#gallery > li").get_by_role("button", name=re.compile(f"^{arguments.word}s?$")).first
        word.scroll_into_view_if_needed()
        word.hover()
        picture = word.locator("xpath=ancestor::li[1]")
        page.mouse.wheel(0, (picture.bounding_box() or {"y": 0})["y"] - 20)
        page.wait_for_timeout(500)
        word.hover()
        shots = [Image.open(io.BytesIO(shot)) for shot in (head, page.screenshot())]
        chromium.close()
    both = Image.new("RGB", (WIDTH, 2 * HEIGHT))
    for place, shot in enumerate(shots):
        both.paste(shot, (0, place * HEIGHT))
    both.quantize(256).save(arguments.out, optimize=True)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
