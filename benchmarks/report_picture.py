"""Draw docs/report.png: the first screen of the demo's report, with the heat map of a word.

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
WIDTH, HEIGHT = 1120, 780


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, default=ROOT / "runs/demo/report.html")
    parser.add_argument("--word", default="star", help="show the map of the first such word on the screen")
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
        words = page.locator("#gallery > li:visible").get_by_role("button")
        words.filter(has_text=re.compile(f"^{arguments.word}s?$")).first.hover()
        page.mouse.wheel(0, -HEIGHT)
        picture = Image.open(io.BytesIO(page.screenshot()))
        chromium.close()
    picture.quantize(256).save(arguments.out, optimize=True)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
