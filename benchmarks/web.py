"""Opens an exported page in headless Chromium: seconds until it is ready and for each picture, memory, a screenshot.

    python benchmarks/web.py --model runs/demo --pictures runs/demo/scenes/flickr30k_images --screenshot docs/web.png

Without --model the captioner is ViT-B/16 with GPT-2 small, of random weights, and writes 20 tokens for drawn pictures.
"""

import argparse
import functools
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

# nothing of Chromium's own goes to a network, and none of it is asked
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)


def random_captioner(path: Path) -> None:
    """As large as a vit-gpt2; its tokenizer knows bytes alone."""
    import torch

    from myllm import CaptionerConfig, DecodeConfig, GPTConfig, VisionConfig, VisionGPT2
    from myllm.checkpoints import native
    from myllm.data.tokenizer import train_tokenizer

    torch.manual_seed(0)
    model = VisionGPT2(CaptionerConfig(VisionConfig(pretrained=False), GPTConfig(), "last")).eval()
    tokenizer = train_tokenizer([], vocab_size=257)
    decode = DecodeConfig(max_new_tokens=20, min_new_tokens=20)
    native.save(native.Checkpoint(model, tokenizer, model.encoder.preprocess, decode=decode), path)


def some_pictures(folder: Path) -> None:
    from myllm.apps.cli import main

    assert main(["scenes", "--out", str(folder), "--count", "20", "--quiet"]) == 0


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *words: Any) -> None: ...


def measure(site: Path, pictures: list[Path], screenshot: Path | None) -> None:
    from playwright.sync_api import sync_playwright

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        page, asked = chromium.new_page(viewport={"width": 900, "height": 640}), list[str]()
        page.context.on("request", lambda request: asked.append(request.url))
        began, address = perf_counter(), f"http://127.0.0.1:{server.server_port}/"
        page.goto(address)
        page.wait_for_selector("body[data-state=ready]", timeout=600_000)
        print(f"| ready after | {perf_counter() - began:.1f} s |")
        for beams in (1, 4):
            page.fill("#beams", str(beams))
            page.evaluate("document.getElementById('results').replaceChildren()")
            began = perf_counter()
            page.set_input_files("#chooser", [str(picture) for picture in pictures])
            page.locator("figcaption small, figcaption.error").nth(len(pictures) - 1).wait_for(timeout=600_000)
            print(f"| a picture, beam {beams} | {(perf_counter() - began) / len(pictures):.2f} s |")
            if beams == 1 and screenshot is not None:
                page.screenshot(path=screenshot)
        print(f"| memory of the page's process | {renderer_megabytes():,.0f} MB |")
        outside = [one for one in asked if not one.startswith((address, "blob:", "data:"))]
        print(f"| requests to any other place | {len(outside)} of {len(asked)} |")
        chromium.close()


def renderer_megabytes() -> float:
    """The largest process of Chromium's that draws a page."""
    told = subprocess.run(["ps", "-eo", "rss,args"], capture_output=True, text=True, check=True).stdout
    return max((int(line.split()[0]) / 1024 for line in told.splitlines() if "--type=renderer" in line), default=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--screenshot", type=Path)
    arguments = parser.parse_args()
    if shutil.which("chromium") is None or shutil.which("npm") is None:
        print("left out: needs chromium, and npm for the page's runtime")
        return
    with TemporaryDirectory(prefix="myllm-web-") as name:
        folder = Path(name)
        model = arguments.model or str(folder / "captioner.pt")
        if arguments.model is None:
            random_captioner(folder / "captioner.pt")
        if arguments.pictures is None:
            some_pictures(folder / "scenes")
        images = arguments.pictures or folder / "scenes/flickr30k_images"
        words = ["export", model, "--to", "web", "--precision", arguments.precision, "--out", str(folder / "web")]
        subprocess.run([sys.executable, "-m", "myllm", *words, "--quiet"], check=True)
        size = sum(path.stat().st_size for path in (folder / "web").rglob("*") if path.is_file()) / 1e6
        print(f"| | {arguments.precision} |\n|---|---|\n| the folder | {size:.0f} MB |")
        measure(folder / "web", sorted(images.iterdir())[: arguments.count], arguments.screenshot)


if __name__ == "__main__":
    main()
