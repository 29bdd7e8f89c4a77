"""`myllm export --to web` in a real browser: the same pixels, the same captions, and nothing asked of anywhere else."""

import functools
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from myllm.apps.cli import main
from myllm.checkpoints import native
from myllm.checkpoints.native import Checkpoint
from myllm.config import PreprocessConfig
from myllm.data.images import Preprocess
from myllm.inference.captioner import Captioner

pytestmark = [pytest.mark.slow, pytest.mark.parity, pytest.mark.timeout(600)]
RNG = np.random.default_rng(0)


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *words: Any) -> None: ...


@pytest.fixture(scope="module")
def random(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random")
    native.save(replace(tiny_checkpoint, decode=replace(tiny_checkpoint.decode, beams=2)), folder / "captioner.pt")
    return folder


@pytest.fixture(scope="module")
def site(
    random: Path, program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, str]]:
    """The exported folder, served as it is, and its address."""
    program("npm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYLLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        words = ["export", str(random), "--to", "web", "--precision", "fp32", "--out", str(random / "web")]
        assert main([*words, "--quiet"]) == 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Silent, directory=str(random / "web")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield random / "web", f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture
def page(browser: Any, site: tuple[Path, str]) -> Iterator[Any]:
    """The page, opened; what it complains of and what it asks for fail the test where they should not be."""
    context, complaints, asked = browser.new_context(), list[str](), list[str]()
    page = context.new_page()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    context.on("request", lambda request: asked.append(request.url))
    page.goto(site[1])
    yield page
    context.close()
    assert complaints == []
    assert asked and all(address.startswith((site[1], "blob:", "data:")) for address in asked)


def pictures(folder: Path) -> list[Path]:
    """Files of many sizes and kinds; without loss, as browsers may open JPEG a little otherwise."""
    for at, size in enumerate([(64, 64), (90, 50), (33, 200), (300, 220), (40, 1000)]):
        drawn = RNG.integers(30 * at, 30 * at + 130, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(drawn).resize(size).save(folder / f"{at}.png")
    Image.new("RGBA", (50, 50), (200, 30, 30, 0)).save(folder / "clear.png")
    turned = Image.fromarray(RNG.integers(0, 255, (60, 30, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(folder / "turned.webp", lossless=True, exif=exif)
    return sorted(folder.iterdir())


def shown(page: Any, files: list[Path]) -> list[str]:
    """The captions that the page writes, in the order of the files."""
    page.wait_for_selector("body[data-state=ready]", timeout=60_000)
    page.set_input_files("#chooser", [str(file) for file in files])
    page.locator("figcaption small, figcaption.error").nth(len(files) - 1).wait_for(timeout=120_000)
    told = page.evaluate("[...document.querySelectorAll('figcaption')].map(one => one.firstChild.textContent)")
    return [one.strip() for one in reversed(told)]


def test_the_page_captions_as_python_does(page: Any, random: Path, tmp_path: Path) -> None:
    files = pictures(tmp_path)
    told = shown(page, files)
    captioner = Captioner.load(random)
    assert told == [captioner.caption(file).text for file in files]
    assert len(set(told)) > 3
    assert page.input_value("#beams") == "2"
    assert page.get_attribute("figure img", "alt") == told[-1]
    page.fill("#beams", "1")
    page.evaluate("document.getElementById('results').replaceChildren()")
    assert shown(page, files) == [captioner.caption(file, beams=1).text for file in files]


def test_a_broken_picture_is_told_and_the_next_is_captioned(page: Any, random: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    told = shown(page, [tmp_path / "broken.png", tmp_path / "red.png"])
    assert told[0] == "broken.png: not a picture that this browser opens"
    assert told[1] == Captioner.load(random).caption(tmp_path / "red.png").text


SEARCHES: list[dict[str, Any]] = [
    {"beams": 1},
    {"beams": 4, "length_penalty": 2.0, "early_stopping": True},
    {"beams": 3, "early_stopping": "never", "max_new_tokens": 12},
    {"beams": 3, "repetition_penalty": 1.7, "min_new_tokens": 5, "length_penalty": -1.0},
    {"beams": 1, "repetition_penalty": 2.5, "no_repeat_ngram_size": 2, "max_new_tokens": 20},
    {"beams": 2, "no_repeat_ngram_size": 1, "max_new_tokens": 9},
    {"beams": 5, "max_new_tokens": 1},
]


def test_every_search_gives_the_tokens_of_torch(page: Any, random: Path) -> None:
    captioner = Captioner.load(random)
    image = Image.fromarray(RNG.integers(0, 255, (80, 100, 3), dtype=np.uint8))
    given = {"width": 100, "height": 80, "data": list(image.tobytes())}
    found = page.evaluate(
        """async ([image, searches]) => {
            const { Captioner } = await import('./captioner.js');
            const captioner = await Captioner.load(new URL('./model/', location.href).href);
            const told = [];
            for (const options of searches) told.push(await captioner.caption(image, options));
            return told;
        }""",
        [given, SEARCHES],
    )
    for one, options in zip(found, SEARCHES, strict=True):
        expected = captioner.caption(image, **options)
        assert one["tokens"] == expected.tokens, options
        assert one["score"] == pytest.approx(expected.score, abs=1e-4)
        assert [text.strip() for text in one["alternatives"]] == expected.alternatives  # of control characters, too


def test_pixels_are_pillows_to_the_bit(page: Any) -> None:
    cases, mean, std = [], (0.48, 0.5, 0.4), (0.2, 0.3, 0.25)
    for width, height in [(24, 24), (37, 50), (60, 40), (5, 7), (170, 10), (1, 1)]:
        for interpolation in ("bilinear", "bicubic", "lanczos", "box", "hamming", "nearest"):
            for crop_mode, crop_pct in (("center", 1.0), ("squash", 0.9), ("border", 0.875), ("center", 0.95)):
                image_size = (24, 32) if crop_pct == 0.95 else (24, 24)
                config = PreprocessConfig(image_size, mean, std, interpolation, crop_pct, crop_mode)
                cases.append((RNG.integers(0, 256, (height, width, 3), dtype=np.uint8), config))
    given = [
        [{"width": pixels.shape[1], "height": pixels.shape[0], "data": pixels.ravel().tolist()}, asdict(config)]
        for pixels, config in cases
    ]
    found = page.evaluate(
        """async cases => {
            const { preprocessed } = await import('./pixels.js');
            return cases.map(([image, preprocess]) => {
                image.data = Uint8Array.from(image.data);
                return [...preprocessed(image, preprocess)];
            });
        }""",
        given,
    )
    for values, (pixels, config) in zip(found, cases, strict=True):
        expected = Preprocess(config)(Image.fromarray(pixels))
        assert np.array_equal(np.array(values, np.float32), expected.ravel()), (pixels.shape, config)


def test_a_folder_that_lacks_the_model_says_so(browser: Any, site: tuple[Path, str]) -> None:
    page = browser.new_page()
    page.route("**/model/config.json", lambda route: route.fulfill(status=404))
    page.goto(site[1])
    page.get_by_text("config.json: the server answered 404").wait_for()
    assert page.inner_text("#status").startswith("The model could not be opened")
    page.close()


def test_the_runtime_is_what_was_known_and_npms_absence_is_told(
    random: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(random), "--to", "web", "--out", str(tmp_path / "web"), "--quiet"]
    monkeypatch.setenv("MYLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(words) == 2
    assert "install Node.js" in capfd.readouterr().err
    (tmp_path / "npm").write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2; exit 1\n")
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join((str(tmp_path), "/usr/bin", "/bin")))
    assert main(words) == 2
    assert "failed (npm error code ENOTFOUND)" in capfd.readouterr().err
    kept = tmp_path / "cache/npm/onnxruntime-web@1.30.0"
    kept.mkdir(parents=True)
    (kept / "ort.wasm.bundle.min.mjs").write_text("alert('hostile')")
    assert main(words) == 1
    assert "missing, or not that of onnxruntime-web@1.30.0" in capfd.readouterr().err
    assert not (tmp_path / "web").exists()
