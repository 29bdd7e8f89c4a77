"""Pictures at addresses: from public networks only, whatever names, redirects and lookups say."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest

from myllm.apps import remote_pictures, serve
from myllm.apps.http_errors import ApiError
from myllm.apps.remote_pictures import RemotePictures, is_public


class Site(BaseHTTPRequestHandler):
    """A site: /picture, /large, /slow, /missing, and /redirect?ADDRESS."""

    requested: list[str]
    continued: threading.Event
    """Whether /slow is answered."""

    def do_GET(self) -> None:
        path, _, target = self.path.partition("?")
        self.requested.append(self.path)
        status = {"/redirect": 302, "/missing": 404}.get(path, 200)
        body = bytes(2000) if path == "/large" else b"picture"
        if path == "/slow":
            self.continued.wait(60)
        self.send_response(status)
        if target:
            self.send_header("Location", target)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    """The address of a site on this machine."""
    Site.requested, Site.continued = [], threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        Site.continued.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def this_machine_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count 127.0.0.1, and no other address of this machine, as public."""
    monkeypatch.setattr(remote_pictures, "is_public", lambda text: text == "127.0.0.1" or is_public(text))
    monkeypatch.setattr(remote_pictures, "is_this_machine", lambda address: False)


def download(url: str, is_allowed: bool = True, timeout: float = 30) -> bytes:
    return asyncio.run(RemotePictures(is_allowed, 1000, timeout).download(url, lambda count: None))


@pytest.mark.parametrize("address", [
    "127.0.0.1", "127.8.8.8", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
    "224.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.2.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fd00::1",
    "ff02::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001::1",
    "2001:db8::1",
])
def test_addresses_of_this_machine_and_of_private_networks_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.215.14", "2606:4700:4700::1111"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.usefixtures("this_machine_is_public")
def test_pictures_are_downloaded_also_after_redirects(site: str) -> None:
    assert download(f"{site}/picture") == b"picture"
    assert download(f"{site}/redirect?/picture") == b"picture"
    assert download(f"{site}/redirect?/redirect?{site}/picture") == b"picture"


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that the next lookups of names find; no real lookup is made."""
    answers = list[str]()

    async def lookup(self: Any, host: str, port: int, **options: Any) -> list[Any]:
        host.encode("idna")  # fails as in the real one
        return [(2, 1, 6, "", (answers.pop(0), port))]

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", lookup)
    return answers


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0"])
def test_this_machine_is_refused_under_every_name(site: str, host: str) -> None:
    port = site.rpartition(":")[2]
    with pytest.raises(ApiError) as raised:
        download(f"http://{host}:{port}/picture")
    assert raised.value.status == 400 and Site.requested == []


def test_a_public_address_of_this_machine_is_refused(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_pictures, "is_public", lambda text: True)
    with pytest.raises(ApiError, match="is not public"):
        download(f"{site}/picture")
    assert Site.requested == []


@pytest.mark.parametrize(("host", "address"), [
    ("2130706433", "127.0.0.1"), ("127.1", "127.0.0.1"), ("0x7f.1", "127.0.0.1"), ("photos.example", "10.0.0.1"),
    ("[::ffff:127.0.0.1]", "::ffff:127.0.0.1"), ("metadata.example", "169.254.169.254"),
])
def test_names_of_private_addresses_are_refused(site: str, addresses: list[str], host: str, address: str) -> None:
    addresses.append(address)
    port = site.rpartition(":")[2]
    with pytest.raises(ApiError) as raised:
        download(f"http://{host}:{port}/picture")
    assert raised.value.status == 400 and Site.requested == []


@pytest.mark.usefixtures("this_machine_is_public")
@pytest.mark.parametrize("host", ["127.0.0.2", "[::1]"])
def test_redirects_into_this_machine_are_refused(site: str, host: str) -> None:
    port = site.rpartition(":")[2]
    with pytest.raises(ApiError, match="is not public"):
        download(f"{site}/redirect?http://{host}:{port}/picture")
    assert len(Site.requested) == 1


@pytest.mark.usefixtures("this_machine_is_public")
def test_the_address_that_was_checked_is_the_one_that_is_connected_to(
    site: str, addresses: list[str]
) -> None:
    addresses += ["127.0.0.1", "127.0.0.2"]  # a second lookup would lead elsewhere
    assert download(f"http://photos.example:{site.rpartition(':')[2]}/picture") == b"picture"
    assert addresses == ["127.0.0.2"]


@pytest.mark.usefixtures("addresses")
@pytest.mark.parametrize("host", ["a..b", ".example.com", "a" * 64, "a" * 64 + ".com"])
def test_hosts_that_cannot_be_names_are_refused(host: str) -> None:
    with pytest.raises(ApiError, match="cannot be downloaded") as raised:
        download(f"http://{host}/x.png")
    assert raised.value.status == 400


@pytest.mark.usefixtures("this_machine_is_public")
@pytest.mark.parametrize("target", ["http://[", "//[::1", "http://a..b/"])
def test_redirects_to_what_is_no_address_are_refused(site: str, addresses: list[str], target: str) -> None:
    addresses.append("127.0.0.1")
    with pytest.raises(ApiError, match="cannot be downloaded|not of the form") as raised:
        download(f"{site}/redirect?{target}")
    assert raised.value.status == 400


@pytest.mark.usefixtures("this_machine_is_public")
@pytest.mark.parametrize(("path", "status", "message"), [
    ("/large", 413, "more than 1,000 bytes"), ("/missing", 400, "answered with status 404"),
    ("/redirect?/redirect?/redirect?/redirect?/redirect?/picture", 400, "redirects more than 3 times"),
    ("/redirect?file:///etc/passwd", 400, "not of the form"), ("/redirect?gopher://127.0.0.1/", 400, "not of the form"),
])
def test_what_cannot_be_downloaded_is_refused_in_words(site: str, path: str, status: int, message: str) -> None:
    with pytest.raises(ApiError, match=message) as raised:
        download(site + path)
    assert raised.value.status == status


@pytest.mark.usefixtures("this_machine_is_public")
def test_slow_downloads_and_closed_ports_are_refused(site: str) -> None:
    with pytest.raises(ApiError, match="did not arrive within 0.3 seconds"):
        download(f"{site}/slow", timeout=0.3)
    with pytest.raises(ApiError, match="cannot be downloaded"):
        download("http://127.0.0.1:1/picture")


@pytest.mark.parametrize("url", [
    "ftp://8.8.8.8/a", "http://", "http:///a", "http://user:password@8.8.8.8/", "http://8.8.8.8:99999/", "http://a b/",
    "http://[::1", "file:///etc/passwd", "http://8.8.8.8/\r\nX: y",
])
def test_addresses_of_other_forms_are_refused(url: str) -> None:
    with pytest.raises(ApiError, match="not of the form"):
        download(url)


def test_downloads_are_off_by_default(site: str) -> None:
    with pytest.raises(ApiError, match="downloads no pictures; send the picture itself"):
        download(f"{site}/picture", is_allowed=False)


@pytest.mark.usefixtures("this_machine_is_public")
def test_server_captions_pictures_at_addresses_if_it_may(
    run_server: Callable[..., Any], site: str, png: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Site, "do_GET", lambda self: (
        self.send_response(200), self.end_headers(), self.wfile.write(png(0))
    ))
    server = run_server(allow_urls=True)
    part = {"type": "image_url", "image_url": {"url": f"{site}/a.png"}}
    body = {"model": "tiny", "messages": [{"role": "user", "content": [part]}]}
    answer = httpx2.post(f"{server.url}/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"] == server.captioner.caption(png(0)).text


@pytest.mark.usefixtures("this_machine_is_public")
def test_downloads_take_places_in_the_queue_and_count_as_memory(
    run_server: Callable[..., Any], site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "MAX_DOWNLOAD_SECONDS", 60.0)
    server = run_server(allow_urls=True, max_queue=1, timeout=60)
    batcher, bodies = server.served.service.batcher, server.served.bodies

    def post(path: str) -> httpx2.Response:
        part = {"type": "image_url", "image_url": {"url": site + path}}
        body = {"messages": [{"role": "user", "content": [part]}]}
        return httpx2.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)

    with ThreadPoolExecutor(1) as clients:
        slow = clients.submit(post, "/slow")
        while not Site.requested and not slow.done():
            time.sleep(0.01)
        assert batcher.places_taken == 1
        assert (post("/picture").status_code, Site.requested) == (503, ["/slow"])
        Site.continued.set()
        assert slow.result().status_code == 400  # it is no picture
    bodies.max_total = 1000
    assert post("/large").status_code == 503
    assert (batcher.places_taken, bodies.held) == (0, 0)
