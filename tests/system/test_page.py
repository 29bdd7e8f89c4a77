"""The page of `myllm serve` in a real browser: with a stand-in that fails on purpose, and with the server itself."""

import json
import os
import re
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parents[1]
AXE = TESTS / "javascript/node_modules/axe-core/axe.min.js"
STAND_IN = runpy.run_path(str(TESTS / "fixtures/page_server.py"))
CAPTION = " ".join(STAND_IN["WORDS"])
PHONE = {"viewport": {"width": 400, "height": 860}, "is_mobile": True, "has_touch": True}
OpenPage = Callable[..., Any]


@pytest.fixture
def server() -> Iterator[Any]:
    """The stand-in, which serves the page."""
    server = STAND_IN["PageServer"]()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def open_page(browser: Any, server: Any) -> Iterator[OpenPage]:
    """open_page(**options of a browser context): the page; messages and requests to others fail the test."""
    contexts, messages, requests = [], list[str](), list[str]()

    def open_page(**options: Any) -> Any:
        contexts.append(browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options}))
        page = contexts[-1].new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        contexts[-1].on("request", lambda request: requests.append(request.url))
        page.goto(server.address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    # Chromium writes this one about every answer that is an error
    assert [text for text in messages if not text.startswith("Failed to load resource")] == []
    assert requests and all(url.startswith((server.address, "blob:", "data:")) for url in requests)


@pytest.fixture
def page(open_page: OpenPage) -> Any:
    """The page on a desktop."""
    return open_page()


@pytest.fixture
def picture(tmp_path: Path) -> Callable[[str], Path]:
    """picture(name): a picture file of 240 x 160 pixels."""

    def save(name: str) -> Path:
        Image.new("RGB", (240, 160), (40, 90, 140)).save(tmp_path / name)
        return tmp_path / name

    return save


def choose(page: Any, *files: Path) -> None:
    page.wait_for_selector("body[data-state=ready]")
    page.set_input_files("#chooser", [str(file) for file in files])


def captioned(page: Any, *files: Path) -> Any:
    """Return the cards of these files, once all are captioned."""
    choose(page, *files)
    cards = page.locator(".card[data-state=done]")
    cards.nth(len(files) - 1).wait_for()
    return cards


def transfer(page: Any, name: str, kind: str, event: str) -> None:
    """Drop or paste a file on the page; event: the JavaScript that makes the event of `data`, a DataTransfer."""
    page.wait_for_selector("body[data-state=ready]")
    page.evaluate(
        """([name, kind, event]) => {
            const data = new DataTransfer();
            if (name) data.items.add(new File(['content'], name, { type: kind }));
            else data.setData('text/plain', 'words');
            const options = { bubbles: true, cancelable: true };
            document.body.dispatchEvent(event === 'drop'
                ? new DragEvent('drop', { ...options, dataTransfer: data })
                : new ClipboardEvent('paste', { ...options, clipboardData: data }));
        }""",
        [name, kind, event],
    )


def drop_folder(page: Any, folder: Path) -> None:
    """Drop a folder on the page, which only the protocol of Chromium's developer tools can do."""
    data = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    for event in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": event, "x": 300, "y": 200, "data": data})


def stop_clock(page: Any) -> None:
    """Let time pass on the page only by `page.clock.run_for`."""
    page.clock.install(time=0)
    page.clock.pause_at(1000)


def focused(page: Any) -> str:
    """Return the label or the text of the element that has the focus."""
    text: str = page.evaluate("(document.activeElement.ariaLabel ?? document.activeElement.textContent).trim()")
    return text


def painted_map(page: Any) -> list[list[int]]:
    """Return the colours (red, green, blue, opacity) of the first card's map: upper left, and lower right."""
    colours: list[list[int]] = page.locator(".card canvas").first.evaluate(
        """canvas => {
            const { width, height } = canvas;
            const { data } = canvas.getContext('2d').getImageData(0, 0, width, height);
            return [[0.13, 0.25], [0.87, 0.75]].map(([x, y]) => {
                const pixel = Math.round(y * height) * width + Math.round(x * width);
                return [...data.slice(4 * pixel, 4 * pixel + 4)];
            });
        }"""
    )
    return colours


def test_page_shows_the_words_as_they_come(page: Any, server: Any, picture: Callable[[str], Path]) -> None:
    choose(page, picture("slow.png"))
    for words in ("a", "a small", "a small red"):
        server.next_word.release()
        page.get_by_text(words, exact=True).wait_for()
    for _ in STAND_IN["WORDS"]:
        server.next_word.release()
    page.wait_for_selector(".card[data-state=done]")
    assert page.inner_text(".caption") == CAPTION
    assert page.inner_text(".share") == "confidence 83\u00a0%"
    assert page.get_attribute(".card img", "alt") == CAPTION
    assert page.inner_text("#announcement") == f"slow.png: {CAPTION}"
    assert server.requests == [
        {"image": ["slow.png"], "stream": ["true"], "model": ["captioner"], "attention": ["true"]}
    ]


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_page_captions_a_dropped_and_a_pasted_picture(page: Any, server: Any, event: str) -> None:
    transfer(page, "dog.png", "image/png", event)
    page.wait_for_selector(".card[data-state=done]")
    assert page.inner_text(".name") == "dog.png" and server.requests[0]["image"] == ["dog.png"]


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_page_says_that_text_is_no_picture(page: Any, event: str) -> None:
    transfer(page, "", "", event)
    page.locator("#status").get_by_text("That was not a picture file").wait_for()
    assert page.locator(".card").count() == 0


def test_page_captions_the_pictures_of_a_dropped_folder(page: Any, server: Any, tmp_path: Path) -> None:
    page.wait_for_selector("body[data-state=ready]")
    (tmp_path / "notes.txt").write_text("no picture")
    drop_folder(page, tmp_path)
    page.locator("#status").get_by_text("That folder has no pictures.").wait_for()
    for number in range(120):  # Chromium lists 100 files at a time
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    drop_folder(page, tmp_path)
    page.get_by_text("120 captioned", exact=True).wait_for()
    assert page.locator(".name").all_inner_texts() == [f"{number}.png" for number in range(120)]


def test_page_keeps_the_order_of_ten_pictures_and_sends_four_at_once(
    page: Any, server: Any, picture: Callable[[str], Path]
) -> None:
    choose(page, *(picture(f"slow{number}.png") for number in range(10)))
    page.locator(".card[data-state=working]").nth(3).wait_for()
    assert page.locator(".card[data-state=waiting]").count() == 6
    while len(server.requests) < 4:
        time.sleep(0.01)
    for _ in range(10 * len(STAND_IN["WORDS"])):
        server.next_word.release()
    page.get_by_text("10 captioned", exact=True).wait_for()
    names = page.locator(".name").all_inner_texts()
    assert names == [f"slow{number}.png" for number in range(10)]
    sent = [fields["image"][0] for fields in server.requests]
    assert sorted(sent[:4]) == names[:4] and sorted(sent) == names


def test_word_shows_its_map_and_confidence_by_mouse_and_keys(page: Any, picture: Callable[[str], Path]) -> None:
    captioned(page, picture("dog.png"))
    words, canvas, note = page.locator(".word"), page.locator(".card canvas"), page.locator(".description")
    assert not canvas.is_visible() and note.inner_text() == ""
    assert page.locator(".unsure").all_inner_texts() == ["small"]
    words.nth(0).hover()
    assert note.inner_text() == "looked mostly at the upper left; confidence 98\u00a0%"
    upper_left, lower_right = painted_map(page)
    assert upper_left[0] > 200 and lower_right[0] < 60 and lower_right[3] > 100
    box, image = canvas.bounding_box(), page.locator(".card img").bounding_box()
    assert box == pytest.approx(image, abs=1) and box["width"] / box["height"] == pytest.approx(1.5, abs=0.02)
    page.mouse.move(0, 0)
    assert not canvas.is_visible()
    words.nth(0).focus()
    page.keyboard.press("ArrowRight")
    assert "confidence 34" in note.inner_text() and canvas.is_visible()
    page.keyboard.press("End")
    assert "confidence 83" in note.inner_text()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert "confidence 83" in note.inner_text() and words.nth(7).get_attribute("aria-pressed") == "true"
    assert page.evaluate("document.activeElement.textContent") == "Copy text"


def test_word_shows_its_map_when_tapped(open_page: OpenPage, picture: Callable[[str], Path]) -> None:
    page = open_page(**PHONE)
    captioned(page, picture("dog.png"))
    page.locator(".word").nth(3).tap()
    assert page.locator(".card canvas").is_visible()
    page.locator(".word").nth(3).tap()
    page.locator(".name").tap()
    assert not page.locator(".card canvas").is_visible()


def test_captioner_without_maps_shows_confidence_only(
    page: Any, server: Any, picture: Callable[[str], Path]
) -> None:
    page.wait_for_selector("body[data-state=ready]")
    page.click("#options summary")
    page.select_option("#model", "export")
    captioned(page, picture("dog.png"))
    page.locator(".word").nth(1).hover()
    assert page.inner_text(".description") == "confidence 34\u00a0%"
    assert not page.locator(".card canvas").is_visible() and not page.locator(".locate").is_visible()
    assert server.requests == [{"image": ["dog.png"], "stream": ["true"], "model": ["export"]}]


def test_changed_options_are_sent_and_reset(page: Any, server: Any, picture: Callable[[str], Path]) -> None:
    page.wait_for_selector("body[data-state=ready]")
    page.click("#options summary")
    page.fill("#beams", "3")
    page.fill("#bad_words", "dog, a cat,")
    page.fill("#prefix", "a photo of")
    captioned(page, picture("dog.png"))
    sent = {name: value for name, value in server.requests[0].items() if name in STAND_IN["DEFAULTS"]}
    assert sent == {"beams": ["3"], "bad_words": ["dog", "a cat"], "prefix": ["a photo of"]}
    page.click(".alternatives summary")
    assert page.locator(".alternatives li").all_inner_texts() == ["a ball and 2 cubes", "a ball and 3 cubes"]
    page.click("#decoding [type=reset]")
    page.fill("#force_words", "cat")
    page.click(".again")
    page.get_by_text("Not in the caption: cat.").wait_for()
    assert (server.requests[1]["force_words"], server.requests[1]["beams"]) == (["cat"], ["4"])
    page.check("#do_sample")
    page.fill("#temperature", "0.7")
    page.fill("#num_return_sequences", "2")
    assert page.is_disabled("#beams") and page.is_disabled("#force_words")
    page.click(".again")
    page.wait_for_selector(".card[data-state=done]")
    sent = {name: value for name, value in server.requests[2].items() if name in STAND_IN["DEFAULTS"]}
    assert sent == {"do_sample": ["true"], "temperature": ["0.7"], "num_return_sequences": ["2"]}


def test_wrong_option_is_pointed_out(page: Any, server: Any, picture: Callable[[str], Path]) -> None:
    page.wait_for_selector("body[data-state=ready]")
    page.locator("#beams").evaluate("field => { field.value = '17'; }")
    choose(page, picture("dog.png"))
    page.locator(".error").get_by_text("One of the options has a wrong value").wait_for()
    assert page.is_visible("#beams") and server.requests == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken.png", "The file is not a picture"), ("torn.png", "The server broke the answer off. Try again."),
        ("late.png", "No caption within 30 s"),
    ],
)
def test_page_shows_an_error_in_words_and_captions_the_next(
    page: Any, picture: Callable[[str], Path], name: str, message: str
) -> None:
    choose(page, picture(name), picture("dog.png"))
    page.get_by_text("1 captioned, 1 failed", exact=True).wait_for()
    assert page.locator(".card").nth(0).locator(".error").inner_text() == message
    assert page.locator(".card").nth(1).locator(".caption").inner_text() == CAPTION


def test_page_sends_no_file_that_is_too_large_or_not_a_picture(page: Any, server: Any, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(bytes(2_100_000))
    (tmp_path / "notes.pdf").write_bytes(b"%PDF-1.7")
    choose(page, tmp_path / "large.png", tmp_path / "notes.pdf")
    page.get_by_text("0 captioned, 2 failed", exact=True).wait_for()
    large, notes = page.locator(".error").all_inner_texts()
    assert large == "The file has 2.1 MB; the server takes at most 2.0 MB" and notes == "Not a picture"
    assert server.requests == []


def test_page_tries_again_while_the_server_is_busy(page: Any, server: Any, picture: Callable[[str], Path]) -> None:
    server.is_busy = True
    choose(page, picture("dog.png"))
    page.get_by_text("The server is busy. Trying again in 1 s").wait_for()
    server.is_busy = False
    page.wait_for_selector(".card[data-state=done]")
    assert len(server.requests) > 1


def test_page_says_that_the_server_is_away_and_can_try_again(page: Any, picture: Callable[[str], Path]) -> None:
    page.route("**/v1/caption", lambda route: route.abort())
    choose(page, picture("dog.png"))
    page.locator(".error").get_by_text("The server does not answer. Is it running?").wait_for()
    page.unroute("**/v1/caption")
    page.click(".again")
    page.wait_for_selector(".card[data-state=done]")
    assert page.inner_text(".caption") == CAPTION and not page.is_visible(".error")


def test_page_tries_again_to_open_when_the_server_was_away(
    page: Any, server: Any, picture: Callable[[str], Path]
) -> None:
    page.route("**/v1/models", lambda route: route.abort())
    page.reload()
    page.locator("#status").get_by_text("The server does not answer. Is it running? Try again.").wait_for()
    page.set_input_files("#chooser", [str(picture("dog.png"))])
    page.locator(".error").get_by_text("The server does not answer.").wait_for()
    page.unroute("**/v1/models")
    page.focus("#retry")
    page.keyboard.press("Enter")
    page.wait_for_selector(".card[data-state=done]")
    assert not page.is_visible("#retry")
    assert page.evaluate("document.activeElement.id") == "chooser"


def test_page_asks_for_the_key_and_then_captions_what_was_refused(
    open_page: OpenPage, server: Any, picture: Callable[[str], Path]
) -> None:
    server.needs_key = True
    page = open_page()
    page.set_input_files("#chooser", [str(picture("dog.png"))])
    rounds = [
        ("This server needs a key.", "400", "wrong"), ("The key is wrong.", "600", STAND_IN["KEY"]),
    ]
    for message, weight, key in rounds:  # an error is bold and red
        status = page.locator("#status")
        status.get_by_text(message).wait_for()
        page.get_by_text("Waiting for the key").wait_for()
        assert status.evaluate("status => getComputedStyle(status).fontWeight") == weight
        page.fill("#key-field", key)
        page.keyboard.press("Enter")
    page.wait_for_selector(".card[data-state=done]")
    assert not page.is_visible("#key")
    assert page.evaluate("document.activeElement.id") == "chooser"
    assert STAND_IN["KEY"] not in page.evaluate("JSON.stringify([{ ...localStorage }, { ...sessionStorage }])")


def test_page_refuses_a_key_that_cannot_be_sent(open_page: OpenPage, server: Any) -> None:
    server.needs_key = True
    page = open_page()
    page.fill("#key-field", "ключ")
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('#key-field').validity.patternMismatch")
    assert page.inner_text("#status").startswith("This server needs a key.") and page.is_visible("#key")
    page.fill("#key-field", STAND_IN["KEY"])
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-state=ready]")


@pytest.mark.parametrize("is_secure", [True, False])
def test_captions_are_copied_as_text_alt_attribute_and_json(
    open_page: OpenPage, picture: Callable[[str], Path], is_secure: bool
) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    captioned(page, picture("dog.png"))
    stop_clock(page)
    copied = {}
    if not is_secure:  # as on a phone that reaches the server by its address in the network
        page.evaluate("() => { navigator.clipboard.writeText = undefined; }")
    for kind in ("text", "alt", "json"):
        page.click(f"[data-copy={kind}]")
        page.get_by_role("button", name="Copied").wait_for()
        copied[kind] = page.evaluate("navigator.clipboard.readText()")
        page.clock.run_for(1500)
        page.get_by_role("button", name="Copied").wait_for(state="detached")
    row = json.loads(copied["json"])
    assert copied["text"] == CAPTION and copied["alt"] == f'alt="{CAPTION}"'
    assert row["image"] == "dog.png" and row["caption"] == CAPTION and row["confidence"] == 0.83
    assert row["words"][1] == {"text": "small", "confidence": 0.34} and "attention" not in row


def test_captions_are_saved_as_json_lines(page: Any, picture: Callable[[str], Path]) -> None:
    captioned(page, picture("dog.png"), picture("cat.png"))
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "captions.jsonl"
    rows = [json.loads(line) for line in download.value.path().read_text(encoding="utf-8").splitlines()]
    assert [(row["image"], row["caption"]) for row in rows] == [("dog.png", CAPTION), ("cat.png", CAPTION)]


def test_history_outlives_a_reload_and_can_be_cleared(page: Any, server: Any, picture: Callable[[str], Path]) -> None:
    captioned(page, picture("dog.png"), picture("cat.png"))
    page.get_by_text("History (2)").wait_for()  # a thumbnail is drawn first
    page.reload()
    page.get_by_text("History (2)").wait_for()
    page.locator(".open").nth(1).click()
    page.locator(".word").nth(0).hover()
    assert page.locator(".card canvas").is_visible() and page.inner_text(".caption") == CAPTION
    assert not page.is_visible(".again") and len(server.requests) == 2
    page.click("#clear")
    assert not page.is_visible("#history") and page.evaluate("Object.values({ ...localStorage })") == ["[]"]
    page.reload()
    page.wait_for_selector("body[data-state=ready]")
    assert not page.is_visible("#history")


def test_history_entry_is_opened_and_closed_and_deleted_by_keys(
    page: Any, picture: Callable[[str], Path]
) -> None:
    captioned(page, picture("dog.png"), picture("cat.png"))
    page.get_by_text("History (2)").wait_for()
    page.reload()
    page.locator(".open").nth(1).focus()
    page.keyboard.press("Enter")
    assert focused(page) == "a" and page.locator(".card canvas").is_visible()
    page.keyboard.press("Enter")
    page.focus(".remove")
    page.keyboard.press("Enter")
    assert page.locator(".card").count() == 0 and page.locator(".open").count() == 2
    deleted = page.locator(".delete").nth(1).get_attribute("aria-label")
    page.locator(".delete").nth(1).focus()
    page.keyboard.press("Enter")
    page.get_by_text("History (1)").wait_for()
    assert {deleted, focused(page)} == {f"Delete {name}.png from the history" for name in ("dog", "cat")}
    page.keyboard.press("Enter")
    assert not page.is_visible("#history") and page.evaluate("document.activeElement.id") == "chooser"


def test_history_entry_without_words_has_the_focus_on_its_copy_button(
    page: Any, picture: Callable[[str], Path]
) -> None:
    captioned(page, picture("dog.png"))
    page.get_by_text("History (1)").wait_for()
    page.evaluate(
        """() => {
            const [[key, text]] = Object.entries({ ...localStorage });
            const [entry] = JSON.parse(text);
            localStorage.setItem(key, JSON.stringify([{ ...entry, answer: { ...entry.answer, words: [] } }]));
        }"""
    )
    page.reload()
    page.click(".open")
    assert focused(page) == "Copy text"


def test_pressed_button_keeps_the_focus_in_its_card(page: Any, picture: Callable[[str], Path]) -> None:
    captioned(page, picture("dog.png"))
    stop_clock(page)
    page.focus("[data-copy=text]")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Copied").wait_for()
    page.clock.run_for(1500)
    page.get_by_role("button", name="Copied").wait_for(state="detached")
    assert focused(page) == "Copy text"
    page.focus(".again")
    page.keyboard.press("Enter")
    page.wait_for_selector(".card:focus[data-state=done]")


def test_history_keeps_the_newest_when_the_browser_has_no_room(
    page: Any, picture: Callable[[str], Path]
) -> None:
    captioned(page, *(picture(f"{number}.png") for number in range(6)))
    page.get_by_text("History (6)").wait_for()
    page.evaluate(
        """() => {
            const setItem = Storage.prototype.setItem;
            Storage.prototype.setItem = function (key, text) {
                if (JSON.parse(text).length > 3) throw new DOMException('full', 'QuotaExceededError');
                setItem.call(this, key, text);
            };
        }"""
    )
    choose(page, picture("newest.png"))
    page.get_by_text("History (3)").wait_for()
    names = page.evaluate("JSON.parse(Object.values({ ...localStorage })[0]).map(({ name }) => name)")
    assert names[0] == "newest.png"


def test_closed_picture_is_no_longer_captioned_and_not_kept(
    page: Any, server: Any, picture: Callable[[str], Path]
) -> None:
    choose(page, picture("slow.png"), picture("dog.png"))
    page.get_by_text("Captioning: 1 of 2 done").wait_for()
    page.get_by_role("button", name="Close slow.png").click()
    page.locator(".card").nth(1).wait_for(state="detached")
    assert focused(page) == "Close dog.png"
    server.next_word.release(8)
    page.get_by_text("History (1)").wait_for()
    assert page.locator(".name").all_inner_texts() == ["dog.png"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", [{}, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_and_nothing_is_cut_off(
    open_page: OpenPage, server: Any, program: Callable[[str], str], picture: Callable[[str], Path],
    device: dict[str, Any], scheme: str,
) -> None:
    program("node")  # npm installs axe-core
    page = open_page(color_scheme=scheme, bypass_csp=True, **device)
    page.add_script_tag(content=AXE.read_text(encoding="utf-8"))

    def check() -> None:
        results = page.evaluate("axe.run()")
        assert [violation["id"] for violation in results["violations"]] == []
        assert page.evaluate("document.documentElement.scrollWidth") == page.viewport_size["width"]

    page.wait_for_selector("body[data-state=ready]")
    check()
    page.click("#options summary")
    page.fill("#beams", "4")
    long_name = f"{'photograph' * 12}.png"
    choose(page, picture("dog.png"), picture(long_name), picture("broken.png"), picture("slow.png"))
    page.get_by_text("Captioning: 3 of 4 done").wait_for()
    page.locator(".alternatives summary").first.click()
    page.locator(".word").first.focus()
    page.click("#history summary")
    page.evaluate("document.querySelectorAll('#retry, #key').forEach(part => { part.hidden = false; })")
    check()
    server.next_word.release(8)


def test_phone_offers_its_camera(open_page: OpenPage, page: Any) -> None:
    page.wait_for_selector("body[data-state=ready]")
    assert not page.is_visible("#camera")
    phone = open_page(**PHONE)
    assert phone.is_visible("#camera")
    assert phone.get_attribute("#camera input", "capture") == "environment"


@pytest.fixture
def real_server(tiny_checkpoint: Any, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of `myllm serve`, and the file of its captioner, which captions every picture differently."""
    from myllm.checkpoints import native

    decode = replace(tiny_checkpoint.decode, prefix="a red")  # so that each caption has words of letters
    native.save(replace(tiny_checkpoint, decode=decode), tmp_path / "captioner.pt")
    environment = os.environ | {"PYTHONPATH": f"{os.environ['PYTHONPATH']}{os.pathsep}{TESTS.parent / 'src'}"}
    process = subprocess.Popen(
        [sys.executable, "-m", "myllm", "serve", "--model", str(tmp_path / "captioner.pt"), "--port", "0"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    assert process.stdout is not None
    address = next((found[0] for line in process.stdout if (found := re.search(r"http://[\d.:]+", line))), "no address")
    yield address, tmp_path / "captioner.pt"
    process.terminate()
    process.communicate()


def test_page_shows_the_captions_and_confidence_of_the_real_server(
    browser: Any, real_server: tuple[str, Path], tmp_path: Path
) -> None:
    from myllm.inference.captioner import Captioner

    rng, files = np.random.default_rng(0), [tmp_path / f"{number}.png" for number in range(3)]
    for file in files:
        Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(file)
    page = browser.new_page()
    page.goto(real_server[0])
    cards = captioned(page, *files)
    captioner = Captioner.load(real_server[1])
    expected = [captioner.caption(file) for file in files]
    assert cards.locator(".caption").all_text_contents() == [caption.text for caption in expected]
    percents = [int(text.split()[1]) for text in cards.locator(".share").all_inner_texts()]
    assert percents == pytest.approx([100 * caption.confidence for caption in expected], abs=0.51)
    page.locator(".word").first.hover()
    assert page.locator(".card canvas").first.is_visible()
    page.close()
