"""Measure an exported page in headless Chromium: seconds until it is ready and for each picture, memory, requests.

    python benchmarks/web.py --model runs/demo --pictures runs/demo/scenes/flickr30k_images --screenshot docs/web.png

Without --model the captioner is ViT-B/16 with GPT-2 small, with random weights, and writes 20 tokens for each picture.
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

# Chromium sends no requests by itself
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)


def random_captioner(path: Path) -> None:
    """Save a captioner as large as vit-gpt2, with a tokenizer of single bytes."""
    import torch

    from myllm import CaptionerConfig, DecodeConfig, GPTConfig, VisionConfig, VisionGPT2
    from myllm.checkpoints import native
    from myllm.data.tokenizer import train_tokenizer

    torch.manual_seed(0)
    model = VisionGPT2(CaptionerConfig(VisionConfig(pretrained=False), GPTConfig(), "last")).eval()
    tokenizer = train_tokenizer([], vocab_size=257)
    decode = DecodeConfig(max_new_tokens=20, min_new_tokens=20)
    native.save(native.Checkpoint(model, tokenizer, model.encoder.preprocess, decode=decode), path)


def draw_pictures(folder: Path) -> None:
    from myllm.apps.cli import main

    assert main(["scenes", "--out", str(folder), "--count", "20", "--quiet"]) == 0


class SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, *words: Any) -> None: ...


def measure(site: Path, pictures: list[Path], screenshot: Path | None) -> None:
    from playwright.sync_api import sync_playwright

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(SilentHandler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        page, requests = chromium.new_page(viewport={"width": 1000, "height": 760}), list[str]()
        page.context.on("request", lambda request: requests.append(request.url))
        start, address = perf_counter(), f"http://127.0.0.1:{server.server_port}/"
        page.goto(address)
        page.wait_for_selector("body[data-state=ready]", timeout=600_000)
        print(f"| ready after | {perf_counter() - start:.1f} s |")
        for beams in (1, 4):
            page.evaluate("beams => { document.getElementById('beams').value = beams; }", beams)
            while page.locator(".remove").count():
                page.locator(".remove").first.click()
            start = perf_counter()
            page.set_input_files("#chooser", [str(picture) for picture in pictures])
            finished = page.locator(".card:not([data-state=waiting], [data-state=working])")
            finished.nth(len(pictures) - 1).wait_for(timeout=600_000)
            print(f"| a picture, {beams} beams | {(perf_counter() - start) / len(pictures):.2f} s |")
        if page.locator(".locate").first.is_visible():  # random weights may write no word, and then there is no map
            start = perf_counter()
            page.locator(".locate").first.click()
            page.locator(".locate").first.wait_for(state="hidden", timeout=600_000)
            print(f"| heat maps of a picture | {perf_counter() - start:.2f} s |")
        if screenshot is not None:
            words = page.locator(".card").first.locator(".word")
            longest = max(words.all_inner_texts(), key=len)  # it names a thing or a colour
            words.filter(has_text=longest).first.hover()
            page.screenshot(path=screenshot)
        print(f"| memory of the page's process | {renderer_megabytes():,.0f} MB |")
        foreign = [url for url in requests if not url.startswith((address, "blob:", "data:"))]
        print(f"| requests to other servers | {len(foreign)} of {len(requests)} |")
        chromium.close()


def renderer_megabytes() -> float:
    """Resident memory of Chromium's largest renderer process."""
    processes = subprocess.run(["ps", "-eo", "rss,args"], capture_output=True, text=True, check=True).stdout
    renderers = (line for line in processes.splitlines() if "--type=renderer" in line)
    return max((int(line.split()[0]) / 1024 for line in renderers), default=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--screenshot", type=Path)
    arguments = parser.parse_args()
    if shutil.which("chromium") is None or shutil.which("npm") is None:
        print("skipped: needs chromium, and npm for the page's runtime")
        return
    with TemporaryDirectory(prefix="myllm-web-") as name:
        folder = Path(name)
        model = arguments.model or str(folder / "captioner.pt")
        if arguments.model is None:
            random_captioner(folder / "captioner.pt")
        if arguments.pictures is None:
            draw_pictures(folder / "scenes")
        images = arguments.pictures or folder / "scenes/flickr30k_images"
        options = ["--to", "web", "--precision", arguments.precision, "--out", str(folder / "web"), "--quiet"]
        subprocess.run([sys.executable, "-m", "myllm", "export", model, *options], check=True)
        size = sum(path.stat().st_size for path in (folder / "web").rglob("*") if path.is_file()) / 1e6
        print(f"| | {arguments.precision} |\n|---|---|\n| the folder | {size:.0f} MB |")
        measure(folder / "web", sorted(images.iterdir())[: arguments.count], arguments.screenshot)


if __name__ == "__main__":
    main()
