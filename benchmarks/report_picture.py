"""Draw docs/report.png: the top of the demo's report, and its gallery with the map of a word.

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
    parser.add_argument("--word", default="star", help="show the map of the first such word in the gallery")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/report.png")
    arguments = parser.parse_args()
    browser = shutil.which("chromium")
    if not arguments.report.is_file() or browser is None:
        print(f"left out: it needs {arguments.report} and chromium; run `myllm demo` or give --report")
        return
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(arguments.report.resolve().as_uri())
        top = page.screenshot()
        word = page.locator("#gallery > li").get_by_role("button", name=re.compile(f"^{arguments.word}s?$")).first
        word.scroll_into_view_if_needed()
        word.hover()
        card = word.locator("xpath=ancestor::li[1]")
        page.mouse.wheel(0, (card.bounding_box() or {"y": 0})["y"] - 20)
        page.wait_for_timeout(500)
        word.hover()
        shots = [Image.open(io.BytesIO(shot)) for shot in (top, page.screenshot())]
        chromium.close()
    picture = Image.new("RGB", (WIDTH, 2 * HEIGHT))
    for index, shot in enumerate(shots):
        picture.paste(shot, (0, index * HEIGHT))
    picture.quantize(256).save(arguments.out, optimize=True)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
