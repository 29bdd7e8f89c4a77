"""The server as a whole: keys, figures, its description, and limits that keep it alive."""

import asyncio
import base64
import html
import json
import re
import select
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from torch import Tensor

from myllm.apps import connections, server
from myllm.apps.serve import allow_files, find_key
from myllm.apps.serve_options import ServeOptions
from myllm.caption import Caption
from myllm.inference.captioner import Captioner

Png = Callable[[int], bytes]
ROOT = Path(__file__).parents[3]
PICTURE = base64.b64encode(b"GIF89a").decode()


def post(address: str, picture: bytes, **fields: Any) -> httpx2.Response:
    return httpx2.post(f"{address}/v1/caption", files={"image": picture}, data=fields)


def figures(address: str, name: str) -> dict[str, float]:
    """Return the figures of this name, by their labels."""
    text = httpx2.get(f"{address}/metrics").text
    return {labels: float(value) for labels, value in re.findall(rf"^{name}(\{{.*\}}|) (\S+)$", text, re.MULTILINE)}


def send(address: str, picture: bytes, **fields: Any) -> socket.socket:
    """Send a request for a caption; return its connection, on which the answer will arrive."""
    request = httpx2.Request("POST", f"{address}/v1/caption", files={"image": picture}, data=fields)
    lines = ["POST /v1/caption HTTP/1.1", *(f"{name}: {value}" for name, value in request.headers.items())]
    connection = socket.create_connection((request.url.host, request.url.port or 0), timeout=60)
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + request.read())
    return connection


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Gate(Captioner):
    """A captioner that computes nothing until it is opened."""

    opened: threading.Event

    def caption_tensors(self, *arguments: Any, **named: Any) -> list[Caption]:
        assert self.opened.wait(60)
        return super().caption_tensors(*arguments, **named)


class Broken(Captioner):
    """A captioner with a fault."""

    def caption_tensors(self, *arguments: Any, **named: Any) -> list[Caption]:
        raise RuntimeError("secret path")


@pytest.fixture
def gate(served_captioner: Captioner) -> Iterator[Gate]:
    gate = Gate(served_captioner.checkpoint, served_captioner.device)
    gate.opened = threading.Event()
    yield gate
    gate.opened.set()


def test_the_key_is_required_where_pictures_are_answered(run_server: Callable[..., Any], png: Png) -> None:
    address = run_server(api_key="s3cret ü").url
    for path in ("/", "/docs", "/openapi.json", "/healthz", "/readyz"):
        assert httpx2.get(address + path).status_code == 200
    wrong = ("", "Bearer wrong", "s3cret", "Basic s3cret", "Bearer", "Bearer s3cret")
    for header in ({}, *({"Authorization": value} for value in wrong)):
        for path in ("/v1/models", "/metrics", "/api/tags", "/v1/nothing"):
            answer = httpx2.get(address + path, headers=header)
            assert answer.status_code == 401 and "s3cret" not in answer.text
        answer = httpx2.post(f"{address}/v1/caption", content=b"x" * 10, headers=header)
        assert answer.json()["error"]["code"] == "bad_key"
    right = [(b"Authorization", "Bearer s3cret ü".encode())]
    assert httpx2.get(f"{address}/v1/models", headers=right).status_code == 200


def test_blanks_around_the_key_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYLLM_API_KEY", "of the environment\n")
    assert find_key(ServeOptions()) == "of the environment"
    assert find_key(ServeOptions(api_key=" abc\r\n")) == "abc"


@pytest.mark.parametrize("prefix", ["", "/captions", "/captions/", "/v1", "/"])
def test_the_key_is_required_below_a_path_prefix(run_server: Callable[..., Any], prefix: str) -> None:
    transport = httpx2.ASGITransport(server.make_app(run_server(api_key="abc").served), root_path=prefix)

    async def get(path: str, **headers: str) -> httpx2.Response:
        async with httpx2.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.get(prefix.rstrip("/") + path, headers=headers)

    for path in ("/v1/models", "/metrics", "/api/tags", "/api/nothing"):
        answer = asyncio.run(get(path))
        # a prefix that ends with / is no prefix for the router, which then knows no such path
        assert answer.status_code == (404 if prefix == "/captions/" else 401)
        assert isinstance(answer.json()["error"], str) == (path.startswith("/api/") and prefix != "/captions/")
        assert asyncio.run(get(path, Authorization="Bearer abc")).status_code in (200, 404)
    assert asyncio.run(get("/healthz")).status_code == (404 if prefix == "/captions/" else 200)


def test_pages_of_other_sites_may_call_the_server_only_if_they_are_listed(run_server: Callable[..., Any]) -> None:
    def allowed(address: str, origin: str) -> list[str | None]:
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        answers = [httpx2.request(*call, headers=headers) for call in (
            ("OPTIONS", f"{address}/v1/caption"), ("GET", f"{address}/v1/models"),
        )]
        return [answer.headers.get("access-control-allow-origin") for answer in answers]

    assert allowed(run_server().url, "https://photos.example") == [None, None]
    address = run_server(cors=("https://photos.example",), api_key="abc").url
    assert allowed(address, "https://photos.example") == ["https://photos.example"] * 2
    assert allowed(address, "https://other.example") == [None, None]


def test_openai_client_in_a_page_of_another_site_may_send_its_headers_and_read_errors(
    run_server: Callable[..., Any], served_captioner: Captioner, png: Png
) -> None:
    broken = Broken(served_captioner.checkpoint, served_captioner.device)
    address, origin = run_server(captioner=broken, cors=("https://photos.example",)).url, "https://photos.example"
    sent = "authorization,content-type,x-stainless-os,x-stainless-retry-count"
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": sent}
    answer = httpx2.options(f"{address}/v1/chat/completions", headers=headers)
    assert answer.status_code == 200 and answer.headers["access-control-allow-headers"] == sent
    for path, status in (("/healthz", 200), ("/v1/nothing", 404)):
        answer = httpx2.get(address + path, headers={"Origin": origin})
        assert answer.status_code == status and answer.headers["access-control-expose-headers"] == "Retry-After"
    answer = httpx2.post(f"{address}/v1/caption", files={"image": png(0)}, headers={"Origin": origin})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (500, origin)


def test_request_that_another_ctrl_c_ends_is_answered_in_json(run_server: Callable[..., Any]) -> None:
    served = run_server().served

    async def answer() -> list[Any]:
        messages, reading = list[Any](), asyncio.Event()

        async def receive() -> Any:
            reading.set()
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            messages.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/caption", "query_string": b"", "headers": []}
        task = asyncio.create_task(server.make_app(served)(scope, receive, send))
        await reading.wait()
        served.is_stopping = True
        task.cancel()
        await task
        return messages

    start, body = asyncio.run(answer())
    assert start["status"] == 503 and json.loads(body["body"])["error"]["code"] == "stopped"


def test_head_is_answered_like_get_without_a_body(server: Any) -> None:
    for path in ("/", "/page.js", "/docs", "/healthz", "/readyz", "/v1/models", "/api/tags", "/nothing", "/v1/caption"):
        answers = httpx2.head(server.url + path), httpx2.get(server.url + path)
        head, get = ({**answer.headers, "date": "", "content": answer.content} for answer in answers)
        assert answers[0].status_code == answers[1].status_code
        assert head.pop("content") == b"" and get.pop("content") != b""
        if path not in ("/nothing", "/v1/caption"):  # whose messages have the method
            assert head == get


def test_every_code_of_an_error_is_documented() -> None:
    codes = {code for code, _ in server.ROUTER_ERRORS.values()}
    for path in (ROOT / "src/myllm/apps").glob("*.py"):
        codes.update(re.findall(r'ApiError\(\s*\d+, "(\w+)"', path.read_text(encoding="utf-8")))
    docs = (ROOT / "docs/serve.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| [45]\d\d \| ([^|]+) \|", docs, re.MULTILINE)
    # client_left is for the log only: its client has left
    assert {code for row in table for code in re.findall(r"`(\w+)`", row)} == codes - {"client_left"}


def test_messages_of_libraries_are_logged_as_json() -> None:
    lines = (
        "import logging, warnings", "from myllm.apps.server_log import log_as_json", "log_as_json(logging.INFO)",
        "logging.getLogger('python_multipart.multipart').warning('Skipping data')", "warnings.warn('old')",
        "logging.getLogger('PIL').info('a detail')",
    )
    result = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    messages = [json.loads(line)["message"] for line in result.stderr.splitlines()]
    assert messages[0] == "Skipping data" and "UserWarning: old" in messages[1] and len(messages) == 2


def test_addresses_that_are_not_served_are_errors_in_json(server: Any) -> None:
    for method, path, status in (
        ("GET", "/nothing", 404), ("GET", "/v1/caption", 405), ("DELETE", "/v1/models", 405),
        ("GET", "/page/../../server.py", 404), ("GET", "/%2e%2e/server.py", 404), ("GET", "/..%2fserver.py", 404),
        ("GET", "//etc/passwd", 404), ("POST", "/api/pull", 404),
    ):
        with closing(socket.create_connection(("127.0.0.1", server.port))) as connection:
            connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
        assert head.split()[1] == str(status).encode(), path
        assert "error" in json.loads(body)


def test_docs_describe_every_address_and_need_no_other(server: Any) -> None:
    page, schema = html.unescape(httpx2.get(f"{server.url}/docs").text), httpx2.get(f"{server.url}/openapi.json").json()
    assert set(schema["paths"]) > {"/v1/caption", "/v1/models", "/v1/chat/completions", "/api/generate", "/metrics"}
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            assert f"{method.upper()} {path}" in page and operation["description"] in page
    assert "Number of beams in beam search" in page
    assert re.findall(r"(?:src|href)=[\"']?(?:https?:)?//", page) == []


def test_page_is_served(server: Any) -> None:
    answer = httpx2.get(server.url)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    for name, kind in (("page.css", "text/css"), ("engine.js", "text/javascript"), ("heatmap.js", "text/javascript")):
        answer = httpx2.get(f"{server.url}/{name}")
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind)
    assert httpx2.get(f"{server.url}/files.py").status_code == 404
    for part in ("bytes=0-9", "bytes=zz", "bytes=9999999-"):  # not supported, and therefore ignored
        answer = httpx2.get(server.url, headers={"Range": part})
        assert answer.status_code == 200 and answer.text == httpx2.get(server.url).text


def test_figures_count_what_happened(run_server: Callable[..., Any], png: Png) -> None:
    address = run_server().url
    for content in (png(0), png(1), b"no picture"):
        post(address, content)
    assert figures(address, "myllm_requests_total") == {
        '{path="/v1/caption",status="200"}': 2, '{path="/v1/caption",status="400"}': 1,
    }
    assert figures(address, "myllm_batch_pictures_sum") == {"": 2}
    assert figures(address, "myllm_queue_pictures") == figures(address, "myllm_pictures") == {"": 0}
    assert figures(address, "myllm_decode_steps_total")['{wanted="false"}'] == 0


def test_full_queue_is_refused_at_once_and_loses_nobody(run_server: Callable[..., Any], gate: Gate, png: Png) -> None:
    server = run_server(captioner=gate, max_queue=3)
    with ThreadPoolExecutor(3) as clients:
        waiting = [clients.submit(post, server.url, png(number)) for number in range(3)]
        wait_until(lambda: server.served.service.batcher.is_full)
        refused = post(server.url, png(0))
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert refused.json()["error"]["code"] == "queue_full"
        ollama = httpx2.post(f"{server.url}/api/generate", json={"model": "tiny", "images": ["YWJj"]})
        assert ollama.status_code == 503 and "try again later" in ollama.json()["error"]
        assert httpx2.get(f"{server.url}/healthz").status_code == 200
        gate.opened.set()
        assert [client.result().json()["caption"] for client in waiting] == [
            gate.caption(png(number)).text for number in range(3)
        ]
    assert post(server.url, png(0)).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_request_for_heat_maps_keeps_its_place_until_they_are_computed(
    run_server: Callable[..., Any], served_captioner: Captioner, png: Png, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    begun, opened, compute = threading.Event(), threading.Event(), served_captioner.attention_maps

    def attention_maps(*arguments: Any, **named: Any) -> Tensor:
        begun.set()
        assert opened.wait(200)
        return compute(*arguments, **named)

    monkeypatch.setattr(served_captioner, "attention_maps", attention_maps)
    server = run_server(max_queue=1)
    with ThreadPoolExecutor(1) as clients:
        waiting = clients.submit(post, server.url, png(0), attention=True, stream=stream)
        assert begun.wait(200)
        refused = post(server.url, png(1))
        opened.set()
        assert (refused.status_code, waiting.result().status_code) == (503, 200)


@pytest.mark.parametrize("stream", [False, True])
def test_caption_that_takes_too_long_is_given_up(
    run_server: Callable[..., Any], gate: Gate, png: Png, stream: bool
) -> None:
    server = run_server(captioner=gate, timeout=1)
    answer = post(server.url, png(0), stream=stream)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    assert server.served.service.batcher.places_taken == 0
    gate.opened.set()
    wait_until(lambda: post(server.url, png(0)).status_code == 200)


@pytest.mark.parametrize("stream", ["false", "true"])
def test_client_that_leaves_frees_its_place_and_costs_no_step(
    run_server: Callable[..., Any], gate: Gate, png: Png, stream: str
) -> None:
    server = run_server(captioner=gate)
    batcher = server.served.service.batcher
    clients = [send(server.url, png(number), stream=stream) for number in range(5)]
    wait_until(lambda: batcher.places_taken == 5)
    for client in clients:
        client.close()
    wait_until(lambda: batcher.places_taken == 0)
    gate.opened.set()
    assert post(server.url, png(0)).json()["caption"] == gate.caption(png(0)).text
    steps = figures(server.url, "myllm_decode_steps_total")
    # those that were in a batch, at most one for each thread, end after its first step
    assert steps['{wanted="false"}'] <= 5 and steps['{wanted="true"}'] == len(gate.caption(png(0)).token_logprobs)
    assert '{path="/v1/caption",status="499"}' in figures(server.url, "myllm_requests_total") or stream == "true"


def test_requests_that_are_too_large_are_refused_before_they_are_read(
    run_server: Callable[..., Any], png: Png, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = run_server(max_bytes=30_000).url
    assert post(address, png(0)).status_code == 200
    answer = post(address, bytes(40_000))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")

    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(10_000)

    with monkeypatch.context() as patch:
        patch.setattr(connections.BoundedConnection, "idle_seconds", 1.0)  # so soon is an endless body cut off
        answer = httpx2.post(f"{address}/v1/caption", content=endless(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert post(address, png(0)).status_code == 200


def test_a_gigabyte_is_refused_before_it_is_read(server: Any) -> None:
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=60)) as connection:
        connection.sendall(b"POST /v1/caption HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
        assert b" 413 " in connection.recv(1000)


@pytest.mark.parametrize("is_stopped", [True, False])
def test_slow_bodies_are_ended(run_server: Callable[..., Any], is_stopped: bool) -> None:
    server = run_server(timeout=0.3)
    answer = b""
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=60)) as connection:
        connection.sendall(b"POST /v1/caption HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{")
        while not is_stopped and not select.select([connection], [], [], 0.02)[0]:
            connection.sendall(b" ")
        with suppress(ConnectionResetError):  # the last blank may come after the server's end
            while part := connection.recv(1000):
                answer += part
    assert b" 408 " in answer and b"did not arrive within 0.3 seconds" in answer


def test_half_a_body_is_dropped_when_its_client_leaves(run_server: Callable[..., Any], png: Png) -> None:
    server = run_server()
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=60)) as connection:
        connection.sendall(b"POST /v1/caption HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n" + bytes(50))
        wait_until(lambda: server.served.bodies.held == 50)
    wait_until(lambda: server.served.bodies.held == 0)
    wait_until(lambda: figures(server.url, "myllm_requests_total") != {})
    assert figures(server.url, "myllm_requests_total")['{path="/v1/caption",status="400"}'] == 1
    assert post(server.url, png(0)).status_code == 200


def png_head(width: int, height: int, chunk: bytes = b"") -> bytes:
    """Return a PNG of this size, whose pixels are missing."""
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = [(b"IHDR", head), *([(b"zTXt", chunk)] if chunk else []), (b"IDAT", zlib.compress(bytes(100)))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


@pytest.mark.parametrize(("bomb", "message"), [
    (png_head(60_000, 60_000), "3600000000 pixels"), (png_head(10_000, 9_000), "90,000,000 pixels are above"),
    (png_head(8, 8, b"Comment\0\0" + zlib.compress(bytes(100_000_000))), "not a picture"),
], ids=["size", "size within Pillow's limit", "text"])
def test_picture_bombs_are_refused_before_they_are_decoded(
    server: Any, png: Png, bomb: bytes, message: str
) -> None:
    answer = post(server.url, bomb)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_picture")
    assert message in answer.json()["error"]["message"]
    assert post(server.url, png(0)).status_code == 200


@pytest.mark.parametrize(("path", "fields"), [
    ("/v1/caption", {"image": PICTURE}), ("/api/generate", {"images": [PICTURE]}), ("/api/show", {}),
    ("/api/chat", {"messages": [{"role": "user", "images": [PICTURE]}]}),
    ("/v1/chat/completions", {"messages": [{"content": [{
        "type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"},
    }]}]}),
])
def test_every_api_refuses_nan_and_does_not_read_model_names_as_paths(
    server: Any, path: str, fields: dict[str, Any]
) -> None:
    for value in ("NaN", "Infinity", "-Infinity"):
        body = json.dumps({**fields, "temperature": float(value)})
        answer = httpx2.post(server.url + path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400 and f"{value} is not a number in JSON" in answer.text, answer.text
    for name in ("../tiny", "/etc/passwd", "..%2ftiny", "tiny/../tiny"):
        answer = httpx2.post(server.url + path, json={**fields, "model": name})
        assert answer.status_code == 404 and "is not served; known are tiny" in answer.text, answer.text


@pytest.mark.parametrize("text", ["\\ud800", "\\udfff a", "\\ud800\\ud800"])
@pytest.mark.parametrize(("path", "fields"), [
    *(("/v1/caption", {"image": PICTURE, name: value}) for name, value in (
        ("prefix", "X"), ("bad_words", ["X"]), ("force_words", ["a", "X"]), ("stop_strings", ["X"]), ("X", 1),
    )),
    ("/api/generate", {"images": [PICTURE], "options": {"stop": ["X"]}}), ("/api/show", {"model": "X"}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "X"}], "stop": "X"}),
])
def test_half_characters_are_refused_wherever_they_are(
    server: Any, path: str, fields: dict[str, Any], text: str
) -> None:
    body = json.dumps(fields).replace("X", text)
    answer = httpx2.post(server.url + path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and "half of a surrogate pair" in answer.text


def test_memory_for_requests_is_limited(run_server: Callable[..., Any]) -> None:
    server = run_server(max_bytes=1000)
    server.served.bodies.max_total = 1500
    head = b"POST /v1/caption HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    with (
        closing(socket.create_connection(("127.0.0.1", server.port), timeout=60)) as first,
        closing(socket.create_connection(("127.0.0.1", server.port), timeout=60)) as second,
    ):
        first.sendall(head + bytes(900))
        wait_until(lambda: server.served.bodies.held == 900)
        second.sendall(head + bytes(900))
        assert b" 503 " in second.recv(1000)
        first.close()
        wait_until(lambda: server.served.bodies.held == 0)


def test_connections_that_ask_for_nothing_are_closed(
    run_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections.BoundedConnection, "idle_seconds", 0.2)
    server = run_server()
    for sent in (b"", b"GET /healthz HTTP/1.1\r\nX-Slow: "):
        with closing(socket.create_connection(("127.0.0.1", server.port), timeout=60)) as connection:
            connection.sendall(sent)
            with suppress(ConnectionResetError):
                assert connection.recv(1000) == b""


def test_too_many_connections_are_refused_in_words(
    run_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections.BoundedConnection, "max_connections", 1000)  # set for this process by the server
    server = run_server(max_connections=5)
    held = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(5)]
    answer = httpx2.get(f"{server.url}/healthz")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "too_many_connections")
    for connection in held:
        connection.close()
    wait_until(lambda: httpx2.get(f"{server.url}/healthz").status_code == 200)


def test_idle_connections_do_not_disturb_others(run_server: Callable[..., Any], png: Png) -> None:
    count = 2000
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    allow_files(2 * count + 500)  # the server is in this process
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 2 * count + 500:
        pytest.skip("the system permits fewer open files")
    server = run_server(max_connections=count + 10)
    with ExitStack() as stack:
        stack.callback(setattr, connections.BoundedConnection, "max_connections", 1000)
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        for _ in range(count):
            stack.enter_context(closing(socket.create_connection(("127.0.0.1", server.port), timeout=60)))
        answer = post(server.url, png(0))
        assert answer.json()["caption"] == server.captioner.caption(png(0)).text


def test_what_is_not_http_is_an_error_in_json(server: Any) -> None:
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=60)) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00 hello\r\n\r\n")
        head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400") and json.loads(body)["error"]["code"] == "bad_request"


def test_a_fault_of_ours_is_logged_and_answered_without_details(
    run_server: Callable[..., Any], served_captioner: Captioner, png: Png
) -> None:
    server = run_server(captioner=Broken(served_captioner.checkpoint, served_captioner.device))
    for stream in ("false", "true"):
        answer = post(server.url, png(0), stream=stream)
        assert answer.status_code == 500 and "secret" not in answer.text
        assert answer.json()["error"]["code"] == "internal_error"


