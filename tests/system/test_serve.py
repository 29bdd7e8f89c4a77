"""`myllm serve` as a process: what clients get while others leave, send junk, or the server is told to stop."""

import base64
import http.client
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest

from myllm.apps.cli import main
from myllm.checkpoints import native
from myllm.data.scenes import draw_scene
from myllm.export import onnx_export
from myllm.inference.captioner import Captioner

ROOT = Path(__file__).parents[2]
KEY = "sk-secret-0987654321"


class Process:
    """A running `myllm serve`."""

    def __init__(self, *words: str, **environment: str) -> None:
        path = os.pathsep.join((os.environ["PYTHONPATH"], str(ROOT / "src")))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "myllm", "serve", "--port=0", *words], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path, **environment},
        )
        assert self.process.stdout is not None
        self.first_line = self.process.stdout.readline()
        self.url = self.first_line.split()[-1] if self.first_line else ""

    def stop(self) -> tuple[int, str]:
        """Send SIGTERM; return the exit code, and all that was printed."""
        self.process.send_signal(signal.SIGTERM)
        output, errors = self.process.communicate()
        return self.process.returncode, self.first_line + output + errors


@pytest.fixture(scope="module")
def model(tiny_checkpoint: native.Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny" / native.FILE_NAME
    native.save(tiny_checkpoint, path)
    return path


@pytest.fixture(scope="module")
def export(tiny_checkpoint: native.Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the same captioner, whose server starts without torch."""
    folder = tmp_path_factory.mktemp("export") / "small"
    onnx_export.to_folder(tiny_checkpoint, folder)
    return folder


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """start(*words, **environment): a running server."""
    processes = list[Process]()

    def run(*words: str, **environment: str) -> Process:
        processes.append(Process(*words, **environment))
        return processes[-1]

    yield run
    for process in processes:
        process.process.kill()
        process.process.communicate()


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    files = []
    for number in range(12):
        file = io.BytesIO()
        draw_scene(0, "val", number)[0].save(file, "PNG")
        files.append(file.getvalue())
    return files


@pytest.fixture(scope="module")
def expected(model: Path, files: list[bytes]) -> list[str]:
    """The captions of the files, by two beams."""
    captioner = Captioner.load(model)
    return [captioner.caption(file, beams=2).text for file in files]


def send(url: str, picture: bytes, share: float = 1.0) -> http.client.HTTPConnection:
    """Send a share of a request; return its connection, on which the answer will arrive."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=120)
    body = json.dumps({"image": base64.b64encode(picture).decode(), "beams": 2}).encode()
    connection.putrequest("POST", "/v1/caption")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body[: int(share * len(body))])
    return connection


def post(url: str, picture: bytes, **headers: str) -> httpx2.Response:
    return httpx2.post(
        f"{url}/v1/caption", files={"image": picture}, data={"beams": "2"}, headers=headers, timeout=120
    )


@pytest.mark.slow
def test_good_requests_are_answered_right_among_junk_and_clients_that_leave(
    start: Callable[..., Process], export: Path, files: list[bytes], expected: list[str]
) -> None:
    server, chance = start(f"--model={export}", "--batch_size=8"), random.Random(0)

    def junk() -> int:
        body = chance.choice([b"no picture", files[0][:300], b"\x89PNG\r\n\x1a\n" + bytes(99), b""])
        return post(server.url, body).status_code

    def leave() -> None:
        connection = send(server.url, files[0], share=chance.choice([0.5, 1.0]))
        time.sleep(chance.uniform(0, 0.02))
        connection.close()

    def request(number: int) -> Any:
        if number % 10 == 3:
            return leave()
        if number % 20 == 5:
            return junk()
        answer = post(server.url, files[number % 12])
        return answer.status_code == 200 and answer.json()["caption"] == expected[number % 12]

    with ThreadPoolExecutor(24) as clients:
        results = list(clients.map(request, range(240)))
    assert [result for result in results if result is not None and result is not True] == [400] * 12
    assert results.count(True) == 240 - 24 - 12


def test_sigterm_answers_what_was_received_and_leaves_nothing(
    start: Callable[..., Process], export: Path, files: list[bytes], expected: list[str]
) -> None:
    server = start(f"--model={export}", "--batch_size=2", "--quiet")
    connections = [send(server.url, files[number % 12]) for number in range(40)]
    # once this is answered, the connections before have been accepted
    assert httpx2.get(f"{server.url}/healthz", timeout=120).status_code == 200
    server.process.send_signal(signal.SIGTERM)
    for number, connection in enumerate(connections):
        answer = connection.getresponse()
        assert answer.status == 200 and json.loads(answer.read())["caption"] == expected[number % 12]
    assert server.process.wait() == 0
    with pytest.raises(httpx2.ConnectError):
        post(server.url, files[0])


@pytest.mark.slow
def test_served_captioners_have_names_and_a_key_and_answer_label(
    start: Callable[..., Process], model: Path, export: Path, files: list[bytes], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    regex = "(a|two) [a-z]{1,6}"  # captions that end: `myllm label` takes none that was cut
    words = [f"--model={model}", f"--model=other={export}", "--decode.beams=3", f"--decode.regex={regex}"]
    server = start(*words, MYLLM_API_KEY=KEY)
    assert server.first_line.startswith("Serving tiny, other on http://127.0.0.1:")
    assert post(server.url, files[0]).status_code == 401
    answer = post(server.url, files[0], Authorization=f"Bearer {KEY}")
    expected = Captioner.load(model).caption(files[0], beams=2, regex=regex).text
    assert answer.json()["caption"] == expected

    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_bytes(files[0])
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    words = ["label", str(tmp_path / "pictures"), "--n=3", "--out", str(tmp_path / "out.jsonl"), "--quiet"]
    assert main([*words, "--teacher", f"{server.url}/v1", "--model=other"]) == 0
    row = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))
    caption = Captioner.load(model).caption(files[0], beams=3, regex=regex)
    # captions are cleaned, and equal ones are one
    cleaned = dict.fromkeys(" ".join(text.split()) for text in [caption.text, *caption.alternatives])
    assert [row["caption"], *row["alternatives"]] == [text for text in cleaned if text]

    code, output = server.stop()
    assert code == 0 and '"status": 401' in output
    assert KEY not in output and expected not in output


@pytest.mark.parametrize(("words", "message"), [
    (["--model={model}", "--model={model}"], "a model of the name 'tiny' is given already; write NAME="),
    (["--model={model}", "--port={port}"], "in use; give another --port, or 0 for a free one"),
    (["--model={model}", "--host=192.0.2.1"], "give an address of this machine as --host"),
    (["--model={model}", "--port=70000"], "--port is 70000; it must be at most 65535"),
    (["--model={model}", "--api_key="], "--api_key is empty"),
    (["--model={model}", "--decode.beams=20"], "--max_captions 16 is less than the beams or captions of 'tiny'"),
])
def test_wrong_usage_is_an_error(
    words: list[str], message: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        values = {"model": model, "port": taken.getsockname()[1]}
        assert main(["serve", "--port=0", *(word.format(**values) for word in words)]) == 2
    assert message in capsys.readouterr().err
