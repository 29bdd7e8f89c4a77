"""`myllm export --to web` in a real browser: the captions of Python, and no request to any other server."""

import base64
import functools
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from myllm.apps.cli import main
from myllm.caption import Calibration
from myllm.checkpoints import native
from myllm.checkpoints.native import Checkpoint
from myllm.inference.captioner import Captioner

pytestmark = [pytest.mark.slow, pytest.mark.parity]
RNG = np.random.default_rng(0)


class _SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, *words: Any) -> None: ...


@pytest.fixture(scope="module")
def random_model(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a calibrated captioner of random weights, which captions every picture differently."""
    folder = tmp_path_factory.mktemp("random")
    calibration = Calibration(0.2, 0.1, 3.0, {"a": 1.0, "red": -0.5}, ("ball",))
    decode = replace(tiny_checkpoint.decode, beams=2)
    native.save(replace(tiny_checkpoint, decode=decode, calibration=calibration), folder / "captioner.pt")
    return folder


@pytest.fixture(scope="module")
def site(
    random_model: Path, program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, str]]:
    """The exported folder and the address that it is served from."""
    program("npm")
    out = random_model / "web"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYLLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        options = ["--to", "web", "--precision", "fp32", "--out", str(out), "--quiet"]
        assert main(["export", str(random_model), *options]) == 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_SilentHandler, directory=str(out)))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield out, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture
def page(browser: Any, site: tuple[Path, str]) -> Iterator[Any]:
    """The open page. Messages on its console and requests to other servers fail the test."""
    context, messages, requests = browser.new_context(), list[str](), list[str]()
    page = context.new_page()
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    context.on("request", lambda request: requests.append(request.url))
    page.goto(site[1])
    yield page
    context.close()
    assert messages == []
    assert requests and all(address.startswith((site[1], "blob:", "data:")) for address in requests)


def save_pictures(folder: Path) -> list[Path]:
    """Write files of many sizes and formats, all lossless, because browsers may decode JPEG slightly differently."""
    for index, size in enumerate([(64, 64), (90, 50), (33, 200), (300, 220), (40, 1000)]):
        pixels = RNG.integers(30 * index, 30 * index + 130, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(size).save(folder / f"{index}.png")
    Image.new("RGBA", (50, 50), (200, 30, 30, 0)).save(folder / "transparent.png")
    sideways = Image.fromarray(RNG.integers(0, 255, (60, 30, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways.save(folder / "sideways.png", exif=exif)
    sideways.save(folder / "upright.webp", lossless=True)  # Chromium ignores the orientation of WebP files
    return sorted(folder.iterdir())


def caption_in_page(page: Any, files: list[Path]) -> list[tuple[str, str]]:
    """Return what the page shows of each file: its caption, and its confidence or the error."""
    page.wait_for_selector("body[data-state=ready]")
    while page.locator(".remove").count():
        page.locator(".remove").first.click()
    page.set_input_files("#chooser", [str(file) for file in files])
    cards = page.locator(".card:is([data-state=done], [data-state=failed])")
    cards.nth(len(files) - 1).wait_for()
    rows: list[list[str]] = cards.evaluate_all(
        """cards => cards.map(card => card.dataset.state === 'done'
            ? [card.querySelector('.caption').textContent, card.querySelector('.share').textContent]
            : ['', card.querySelector('.error').textContent])"""
    )
    return [(text, note) for text, note in rows]


def test_page_shows_the_captions_and_confidence_of_python(page: Any, random_model: Path, tmp_path: Path) -> None:
    files, captioner = save_pictures(tmp_path), Captioner.load(random_model)
    results, expected = caption_in_page(page, files), [captioner.caption(file) for file in files]
    assert [text for text, _ in results] == [caption.text for caption in expected]
    assert len({text for text, _ in results}) > 3
    percents = [int(note.split()[1]) for _, note in results]
    assert percents == pytest.approx([100 * caption.confidence for caption in expected], abs=0.51)
    assert len(set(percents)) > 3
    assert page.input_value("#beams") == "2"
    assert page.get_attribute(".card img", "alt") == results[0][0]
    page.click("#options summary")
    page.fill("#beams", "1")
    greedy = [captioner.caption(file, beams=1).text for file in files]
    assert [text for text, _ in caption_in_page(page, files)] == greedy


def test_page_names_a_broken_picture_and_captions_the_next(page: Any, random_model: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    broken, red = caption_in_page(page, [tmp_path / "broken.png", tmp_path / "red.png"])
    assert broken == ("", "Not a picture that this browser opens")
    assert red[0] == Captioner.load(random_model).caption(tmp_path / "red.png").text


COUNT_BITMAPS = """
const createBitmap = self.createImageBitmap;
self.opened = self.open = self.mostOpen = 0;
self.createImageBitmap = async (...options) => {
    self.opened++;
    self.mostOpen = Math.max(self.mostOpen, ++self.open);
    const bitmap = await createBitmap.call(self, ...options);
    const close = bitmap.close.bind(bitmap);
    bitmap.close = () => { self.open--; close(); };
    return bitmap;
};
"""


def test_page_decodes_one_picture_at_a_time_and_closes_it(
    browser: Any, site: tuple[Path, str], tmp_path: Path
) -> None:
    worker = COUNT_BITMAPS + (site[0] / "worker.js").read_text(encoding="utf-8")
    page = browser.new_page()
    page.route("**/worker.js", lambda route: route.fulfill(body=worker, content_type="text/javascript"))
    page.goto(site[1])
    caption_in_page(page, save_pictures(tmp_path))
    assert page.workers[0].evaluate("[self.opened, self.mostOpen, self.open]") == [8, 1, 0]
    page.close()


SEARCHES: list[dict[str, Any]] = [
    {"beams": 1},
    {"beams": 4, "length_penalty": 2.0, "early_stopping": True},
    {"beams": 3, "early_stopping": "never", "max_new_tokens": 12},
    {"beams": 3, "repetition_penalty": 1.7, "min_new_tokens": 5, "length_penalty": -1.0},
    {"beams": 1, "repetition_penalty": 2.5, "no_repeat_ngram_size": 2, "max_new_tokens": 20},
    {"beams": 2, "no_repeat_ngram_size": 1, "max_new_tokens": 9},
    {"beams": 4, "num_return_sequences": 2},
    {"beams": 5, "max_new_tokens": 1},
]


@pytest.mark.parametrize("is_calibrated", [True, False])
def test_page_captions_as_torch_with_every_search(page: Any, random_model: Path, is_calibrated: bool) -> None:
    captioner = Captioner.load(random_model)
    image = Image.fromarray(RNG.integers(0, 255, (80, 100, 3), dtype=np.uint8))
    pixels = {"width": 100, "height": 80, "data": list(image.tobytes())}
    results = page.evaluate(
        """async ([image, searches, isCalibrated]) => {
            const { Captioner } = await import('./captioner.js');
            const captioner = await Captioner.load(new URL('./model/', location.href).href);
            if (!isCalibrated) captioner.settings.calibration = null;
            const results = [];
            for (const options of searches) results.push(await captioner.caption(image, options));
            return results;
        }""",
        [pixels, SEARCHES, is_calibrated],
    )
    for result, options in zip(results, SEARCHES, strict=True):
        expected = captioner.caption(image, **options)
        expected.calibration = expected.calibration if is_calibrated else None
        assert result["tokens"] == expected.tokens, options
        assert result["caption"] == expected.text and result["ended_by"] == expected.ended_by
        assert [word["text"] for word in result["words"]] == [word.text for word in expected.words]
        assert result["alternatives"] == expected.alternatives
        assert result["score"] == pytest.approx(expected.score, abs=1e-4)
        assert result["confidence"] == pytest.approx(expected.confidence, abs=1e-4)


@pytest.mark.parametrize("size", [(100, 80), (50, 120)])
def test_page_finds_the_heat_maps_of_occlusion_in_python(
    page: Any, random_model: Path, size: tuple[int, int]
) -> None:
    captioner = Captioner.load(random_model)
    image = Image.fromarray(RNG.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    result = page.evaluate(
        """async image => {
            const { Captioner } = await import('./captioner.js');
            const captioner = await Captioner.load(new URL('./model/', location.href).href);
            const answer = await captioner.caption(image, { beams: 1 });
            return captioner.findMaps(image, answer);
        }""",
        {"width": size[0], "height": size[1], "data": list(image.tobytes())},
    )
    caption = captioner.caption(image, beams=1)
    maps = captioner.attention_maps(image, caption, method="occlusion", longest=32).double()
    words = torch.stack([maps[word.tokens].mean(0) for word in caption.words])
    attention = result["attention"]
    assert (attention["height"], attention["width"]) == words.shape[1:]
    assert attention["peak"] == pytest.approx(float(words.max()) * words[0].numel(), rel=1e-3)
    for encoded, expected in zip(result["maps"], words, strict=True):
        cells = np.frombuffer(base64.b64decode(encoded), np.uint8)
        assert cells == pytest.approx(255 * (expected / words.max()).flatten().numpy(), abs=1)


def test_page_shows_where_the_captioner_looked(page: Any, tmp_path: Path) -> None:
    caption_in_page(page, save_pictures(tmp_path))
    card = page.locator(".card", has=page.locator(".word")).first  # some captions of random weights have no letter
    card.locator(".word").first.hover()
    assert not card.locator("canvas").is_visible()
    card.locator(".locate").click()
    card.locator(".locate").wait_for(state="hidden")
    assert card.evaluate("card => document.activeElement === card")
    card.locator(".word").first.hover()
    assert card.locator("canvas").is_visible() and "looked" in card.locator(".description").inner_text()


def test_page_names_a_missing_model_file(browser: Any, site: tuple[Path, str]) -> None:
    page = browser.new_page()
    page.route("**/model/config.json", lambda route: route.fulfill(status=404))
    page.goto(site[1])
    page.locator("#status").get_by_text("config.json: the server answered 404").wait_for()
    assert page.inner_text("#status").startswith("The model could not be opened")
    page.unroute("**/model/config.json")
    page.click("#retry")
    page.wait_for_selector("body[data-state=ready]")
    page.close()


def test_export_to_web_names_the_default_options_that_the_page_ignores(
    tiny_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    decode = replace(tiny_checkpoint.decode, bad_words=("dog",))
    native.save(replace(tiny_checkpoint, decode=decode), tmp_path / "captioner.pt")
    monkeypatch.setenv("MYLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "")  # no npm, so the export ends early
    assert main(["export", str(tmp_path), "--to", "web", "--out", str(tmp_path / "web"), "--quiet"]) == 2
    output, errors = capfd.readouterr()
    assert "the page ignores the captioner's decode.bad_words ('dog',)" in " ".join((output + errors).split())


def test_export_to_web_names_a_missing_npm_and_refuses_an_unknown_runtime(
    random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(random_model), "--to", "web", "--out", str(tmp_path / "web"), "--quiet"]
    monkeypatch.setenv("MYLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(command) == 2
    assert "npm not found" in capfd.readouterr().err
    (tmp_path / "npm").write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2; exit 1\n")
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join((str(tmp_path), "/usr/bin", "/bin")))
    assert main(command) == 2
    assert "failed (npm error code ENOTFOUND)" in capfd.readouterr().err
    runtime = tmp_path / "cache/npm/onnxruntime-web@1.30.0"
    runtime.mkdir(parents=True)
    (runtime / "ort.wasm.bundle.min.mjs").write_text("alert('hostile')")
    assert main(command) == 1
    assert "is missing or differs from onnxruntime-web@1.30.0" in capfd.readouterr().err
    assert not (tmp_path / "web").exists()
