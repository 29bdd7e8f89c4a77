"""Captions by Ray Serve on a cluster of two machines, which are processes here."""

import base64
import http.client
import json
import select
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from myllm.errors import ConfigError
from myllm.inference.captioner import Captioner

BATCH, QUEUE, REPLICAS = 2, 6, 2
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`"),  # in Ray's code
]


@pytest.fixture(scope="module")
def app() -> Callable[[dict[str, Any]], Any]:
    from myllm.apps.ray_serve import app

    return app


@pytest.fixture(scope="module")
def url(cluster: Any, app: Callable[[dict[str, Any]], Any], tiny_run: Path) -> Iterator[str]:
    """Address of the tiny run's captioner, which has a replica on each machine."""
    import ray
    from ray import serve

    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    on_sigterm = signal.getsignal(signal.SIGTERM)
    ray.init(cluster.address, log_to_driver=False)
    signal.signal(signal.SIGTERM, on_sigterm)  # Ray replaces it
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny_run.parent)
        options = {"num_replicas": REPLICAS, "batch_size": BATCH, "max_queue": str(QUEUE), "timeout": 120}
        serve.run(app({"model": tiny_run.name, **options}))
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="module")
def expected(tiny_run: Path, pictures: list[Path]) -> list[str]:
    """The captions of the pictures, by three beams."""
    captioner = Captioner.load(tiny_run)
    return [captioner.caption(picture, beams=3).text for picture in pictures]


def test_ray_serve_captions_equal_the_captioners_and_a_bad_picture_fails_only_itself(
    url: str, pictures: list[Path], expected: list[str]
) -> None:
    files = [*(picture.read_bytes() for picture in pictures), b"no picture"]

    def caption(number: int) -> tuple[int, str | None]:
        answer = httpx2.post(f"{url}/v1/caption", files={"image": files[number % 6]}, data={"beams": 3}, timeout=120)
        return answer.status_code, answer.json().get("caption")

    with ThreadPoolExecutor(QUEUE) as clients:
        answers = list(clients.map(caption, range(60)))
    assert answers == [*((200, text) for text in expected), (400, None)] * 10


def test_ray_serve_answers_503_if_the_queue_is_full_and_the_others_get_their_captions(
    url: str, pictures: list[Path], expected: list[str]
) -> None:
    body = json.dumps({"image": base64.b64encode(pictures[0].read_bytes()).decode(), "beams": 3}).encode()
    connections: list[http.client.HTTPConnection] = []
    # Ray takes more than the queue holds if several requests come before it has queued the first: send one by one
    while not connections or not select.select([connection.sock for connection in connections], [], [], 0.5)[0]:
        assert len(connections) < 200
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=120)
        connection.putrequest("POST", "/v1/caption")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body[:-1])  # without the last byte, none can be answered
        connections.append(connection)
    assert len(connections) > QUEUE
    for connection in connections:
        with suppress(OSError):  # some have been answered and closed
            connection.send(body[-1:])
    answers = [connection.getresponse() for connection in connections]
    assert {answer.headers["Retry-After"] for answer in answers if answer.status == 503} == {"1"}
    captions = [json.loads(answer.read())["caption"] for answer in answers if answer.status != 503]
    assert captions == [expected[0]] * len(captions) and len(captions) >= QUEUE


def test_ray_serve_refuses_options_that_it_cannot_honour(app: Callable[[dict[str, Any]], Any]) -> None:
    for options, message in (
        ({"host": "0.0.0.0"}, "host does not work with Ray Serve"), ({"modl": "captioner"}, "did you mean --model?"),
        ({"num_replicas": 0}, "num_replicas is 0; it must be above 0"),
        ({"cors": ["https://a", "https://b"], "quiet": True}, "quiet does not work"),
    ):
        with pytest.raises(ConfigError, match=message):
            app(options)
