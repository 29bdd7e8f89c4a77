"""Data of a hub: a local server stands for it."""

import hashlib
import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from myllm.config import CaptionsConfig
from myllm.data.sources import data_name, read_records
from myllm.errors import DataError

REPO, COMMIT = "someone/photos", "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's protocol that downloads of data need."""

    folder: Path

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        names = [file.relative_to(self.folder).as_posix() for file in sorted(self.folder.rglob("*")) if file.is_file()]
        if path.startswith(f"/api/datasets/{REPO}/tree/"):
            return self.answer(json.dumps([
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name in names for content in [(self.folder / name).read_bytes()]
            ]))
        if path.startswith(f"/api/datasets/{REPO}"):
            siblings = [{"rfilename": name} for name in names]
            return self.answer(json.dumps({"id": REPO, "sha": COMMIT, "siblings": siblings}))
        name = path.partition(f"/datasets/{REPO}/resolve/{COMMIT}/")[2]
        if name in names:
            return self.answer((self.folder / name).read_bytes())
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def answer(self, content: str | bytes) -> None:
        body = content.encode() if isinstance(content, str) else content
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def read(
    hub_settings: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., str]]:
    """read(*data, **environment): name and records of data, or the error; the hub has the folder tmp_path/there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there/train").mkdir(parents=True)
    (tmp_path / "there/train/1.jpg").write_bytes(b"p1")
    (tmp_path / "there/train/metadata.jsonl").write_text('{"file_name": "1.jpg", "text": "a dog"}\n')
    handler = type("OurHub", (Hub,), {"folder": tmp_path / "there"})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        address = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hf")}

        def run(*data: str, **environment: str) -> str:
            hub_settings(**address | environment)
            try:
                records, _ = read_records(list(data), CaptionsConfig())
            except DataError as error:
                return f"DataError: {error}"
            rows = [(record.name, record.captions, record.split, record.image.read_bytes()) for record in records]
            return f"{data_name(list(data))} {rows}"

        yield run
        server.shutdown()


def test_a_repository_is_downloaded_once_and_read_like_a_folder(read: Callable[..., str]) -> None:
    expected = "photos [('train/1.jpg', ('a dog',), 'train', b'p1')]"
    assert read(REPO) == expected
    assert read(REPO, HF_HUB_OFFLINE="1") == expected
    assert read(f"{REPO}@{COMMIT}").endswith(expected.removeprefix("photos"))


def test_names_of_mixed_data_begin_with_the_repository(read: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/1.jpg").write_bytes(b"other")
    (tmp_path / "mine/1.txt").write_text("a cat")
    assert [name in read(REPO, "mine") for name in ("'photos/train/1.jpg'", "'mine/1.jpg'")] == [True, True]


def test_an_unknown_repository_and_a_hub_out_of_reach_are_named(read: Callable[..., str]) -> None:
    assert read("someone/gone").startswith(
        "DataError: someone/gone: no such folder or file; as data of a hub, the hub does not know it, or it is private"
    )
    assert "as data of a hub, the hub could not be reached, and it is not in the cache" in read(
        "someone/gone", HF_HUB_OFFLINE="1"
    )
