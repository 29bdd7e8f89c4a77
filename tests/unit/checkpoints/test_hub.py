"""Captioners on a hub: one of our own on this machine, which also refuses, breaks off and lies."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from myllm.checkpoints import hub, lora, native
from myllm.checkpoints.native import Checkpoint
from myllm.config import LoraConfig
from myllm.model.lora import add_adapters
from myllm.model.weight_files import weights_hash

REPO, COMMIT, OLDER = "someone/captioner", "0123456789abcdef0123456789abcdef01234567", "f" * 40
TOKEN = "hf_secretsecretsecret"
PROGRAM = """
import sys
from myllm import Captioner
from myllm.errors import MyLLMError
try:
    captioner = Captioner.load(sys.argv[1])
    print(float(captioner.model.decoder.lm_head.weight.detach().double().sum()))
except MyLLMError as error:
    print(f"{type(error).__name__}: {error}")
"""


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as a download needs; `mood` is what it does wrong."""

    folder: Path
    asked: list[str]
    mood: dict[str, Any]

    def do_GET(self) -> None:
        place = self.path.split("?")[0]
        self.asked.append(f"{self.command} {place}")
        files = {path.name: path for path in self.folder.iterdir()}
        name = place.rpartition("/")[2]
        if self.mood.get("token") and self.headers.get("Authorization") != f"Bearer {self.mood['token']}":
            return self.refuse(401, "RepoNotFound")
        if self.mood.get("status"):
            return self.refuse(self.mood["status"], self.mood.get("code", ""))
        listed = {"id": REPO, "siblings": [{"rfilename": one} for one in files]}
        if re.fullmatch(rf"/api/models/{REPO}(/revision/[\w.]+)?", place):
            revision = place.partition("/revision/")[2] or "main"
            if revision not in ("main", "v1", COMMIT, OLDER):
                return self.refuse(404, "RevisionNotFound")
            return self.answer(json.dumps(listed | {"sha": OLDER if revision == "v1" else COMMIT}))
        if re.fullmatch(rf"/api/models/{REPO}/tree/\w+", place):
            tree = [{"type": "file", "path": one, "size": path.stat().st_size, "oid": git_hash(path.read_bytes())}
                    for one, path in files.items()]
            return self.answer(json.dumps(tree))
        if re.fullmatch(rf"/{REPO}/resolve/\w+/{re.escape(name)}", place) and name in files:
            return self.answer(files[name].read_bytes())
        return self.refuse(404, "RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """A repository is made, its card checked; then large files are asked for, and the others come in the commit."""
        place, body = self.path.split("?")[0], self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append(f"POST {place}")
        if self.headers.get("Authorization") != f"Bearer {self.mood.get('token')}":
            return self.refuse(self.mood.get("status", 401), "")
        here = f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]
        if place == "/api/repos/create":
            self.mood["made"] = json.loads(body)
            return self.answer(json.dumps({"url": f"{here}/{REPO}"}))
        if place == "/api/validate-yaml":
            return self.answer(json.dumps({"errors": [], "warnings": []}))
        if place == f"/api/models/{REPO}/preupload/main":
            files = [{"path": one["path"], "shouldIgnore": False,
                      "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular"}
                     for one in json.loads(body)["files"]]
            return self.answer(json.dumps({"files": files}))
        if place == f"/{REPO}.git/info/lfs/objects/batch":
            objects = [one | {"actions": {"upload": {"href": f"{here}/put/{one['oid']}"}}}
                       for one in json.loads(body)["objects"]]
            return self.answer(json.dumps({"transfer": "basic", "objects": objects}))
        assert place == f"/api/models/{REPO}/commit/main"
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                (self.folder / value["path"]).write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                (self.folder / value["oid"]).rename(self.folder / value["path"])
        facts = {"success": True, "commitUrl": f"{here}/{REPO}/commit/{COMMIT}", "commitOid": COMMIT, "hookOutput": ""}
        return self.answer(json.dumps(facts))

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == oid
        (self.folder / oid).write_bytes(content)
        self.answer(json.dumps({}))

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, content: str | bytes) -> None:
        body = content.encode() if isinstance(content, str) else content
        tag, start = git_hash(body), 0
        is_weights = isinstance(content, bytes) and len(body) > 20_000
        if self.command == "GET" and is_weights and (asked := self.headers.get("Range")):
            start = int(asked.removeprefix("bytes=").split("-")[0])
        if is_weights and self.mood.get("damaged"):
            body = body[:-9] + b"\0" * 9
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Type", "application/json" if isinstance(content, str) else "application/octet-stream")
        self.send_header("ETag", f'"{tag}"')
        self.send_header("X-Repo-Commit", OLDER if OLDER in self.path else COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command != "HEAD":
            sent = body[start:]
            if is_weights and self.mood.get("breaks", 0) > 0:
                self.mood["breaks"] -= 1
                sent = sent[: len(sent) // 2]
                self.close_connection = True
            self.wfile.write(sent)

    def log_message(self, *args: object) -> None:
        """Nothing on the terminal."""


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def server(tiny_checkpoint: Checkpoint, tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    (tmp_path / "there").mkdir()
    native.save(tiny_checkpoint, tmp_path / "there/captioner.pt")
    (tmp_path / "there/pytorch_model.bin").write_bytes(b"an older form that nobody asked for")
    handler = type("OurHub", (Hub,), {"folder": tmp_path / "there", "asked": [], "mood": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as one:
        Thread(target=one.serve_forever, daemon=True).start()
        yield one
        one.shutdown()


def loaded(server: ThreadingHTTPServer, home: Path, source: str = REPO, **environment: str) -> str:
    """What the program prints of the captioner that it opens."""
    return printed(server, home, ["-c", PROGRAM, source], **environment)


def printed(server: ThreadingHTTPServer, home: Path, words: list[str], **environment: str) -> str:
    """What a process of its own prints: huggingface_hub reads its settings when it is imported."""
    address = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(home / "hf")}
    process = subprocess.run(
        [sys.executable, *words], cwd=home, capture_output=True, text=True, timeout=120,
        env=os.environ | address | {"HF_HUB_DISABLE_XET": "1"} | environment,
    )
    assert process.returncode in (0, 1), process.stderr
    assert TOKEN not in process.stdout + process.stderr
    return process.stdout.strip() or process.stderr.strip()


@pytest.fixture
def told(tiny_checkpoint: Checkpoint) -> str:
    """What is printed where all went well."""
    return str(float(tiny_checkpoint.model.decoder.lm_head.weight.detach().double().sum()))


def wrong(server: ThreadingHTTPServer, **mood: Any) -> None:
    server.RequestHandlerClass.mood.update(mood)  # type: ignore[attr-defined]


def test_one_form_is_downloaded_once_and_then_read_without_network(
    server: ThreadingHTTPServer, tmp_path: Path, told: str
) -> None:
    assert loaded(server, tmp_path) == told
    asked = server.RequestHandlerClass.asked  # type: ignore[attr-defined]
    assert any(place.endswith("captioner.pt") for place in asked)
    assert not any("pytorch_model.bin" in place for place in asked)
    assert loaded(server, tmp_path, HF_HUB_OFFLINE="1") == told
    assert loaded(server, tmp_path, f"{REPO}@v1") == told


def test_an_adapter_is_downloaded_and_put_on_its_captioner(
    server: ThreadingHTTPServer, tmp_path: Path, told: str
) -> None:
    there, base = tmp_path / "there", tmp_path / "base.pt"
    (there / "captioner.pt").rename(base)
    (there / "pytorch_model.bin").unlink()
    adapted = native.load(base)
    add_adapters(adapted.model, LoraConfig(rank=2))
    lora.save(adapted, LoraConfig(rank=2), str(base), weights_hash(native.load(base).model), there)
    assert loaded(server, tmp_path) == told
    asked = server.RequestHandlerClass.asked  # type: ignore[attr-defined]
    assert any(place.endswith("adapter_model.safetensors") for place in asked)


def test_a_private_one_takes_the_token_of_the_environment(
    server: ThreadingHTTPServer, tmp_path: Path, told: str
) -> None:
    wrong(server, token=TOKEN)
    assert "unknown to the hub, or private: check the name, or set HF_TOKEN" in loaded(server, tmp_path)
    assert loaded(server, tmp_path, HF_TOKEN=TOKEN) == told
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert kept == []


def test_what_is_pushed_is_what_is_pulled(
    server: ThreadingHTTPServer, tiny_checkpoint: Checkpoint, tmp_path: Path, told: str
) -> None:
    wrong(server, token=TOKEN)
    for path in (tmp_path / "there").iterdir():
        path.unlink()
    native.save(tiny_checkpoint, tmp_path / "mine.pt")
    push = ["-m", "myllm", "push", "mine.pt", REPO, "--private"]
    assert "it asks who you are: set HF_TOKEN" in printed(server, tmp_path, push)
    assert printed(server, tmp_path, push, HF_TOKEN=TOKEN).endswith(f"{REPO}/commit/{COMMIT}")
    made = server.RequestHandlerClass.mood["made"]  # type: ignore[attr-defined]
    assert made == {"name": "captioner", "organization": "someone", "visibility": "private"}
    there = {path.name for path in (tmp_path / "there").iterdir()}
    assert there == {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    assert "# captioner: captions of pictures" in (tmp_path / "there/README.md").read_text(encoding="utf-8")
    assert loaded(server, tmp_path, HF_TOKEN=TOKEN) == told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mine.pt", "no-user"], "'no-user': no name for a repository; expected user/name"),
        (["mine.pt"], "expected a captioner and a repository"),
    ],
)
def test_what_cannot_be_pushed_is_told(
    server: ThreadingHTTPServer, tiny_checkpoint: Checkpoint, tmp_path: Path, words: list[str], message: str
) -> None:
    native.save(tiny_checkpoint, tmp_path / "mine.pt")
    assert message in subprocess.run(
        [sys.executable, "-m", "myllm", "push", *words], cwd=tmp_path, capture_output=True, text=True
    ).stderr
    wrong(server, token="another", status=403)
    if len(words) == 2:
        refused = printed(server, tmp_path, ["-m", "myllm", "push", "mine.pt", REPO], HF_TOKEN=TOKEN)
        assert "HF_TOKEN may not do this; take one that may write" in refused


def test_what_broke_off_is_gone_on_with(server: ThreadingHTTPServer, tmp_path: Path, told: str) -> None:
    wrong(server, breaks=2)
    found = loaded(server, tmp_path)
    assert found == told or loaded(server, tmp_path) == told


def test_what_came_damaged_is_thrown_away(server: ThreadingHTTPServer, tmp_path: Path, told: str) -> None:
    wrong(server, damaged=True)
    assert "captioner.pt came damaged, and was thrown away; run this again" in loaded(server, tmp_path)
    wrong(server, damaged=False)
    assert loaded(server, tmp_path) == told


@pytest.mark.parametrize(
    ("mood", "source", "message"),
    [
        ({"status": 403, "code": "GatedRepo"}, REPO, "it is gated"),
        ({"status": 404, "code": "RepoNotFound"}, REPO, "unknown to the hub, or private"),
        ({}, "no/where", "unknown to the hub, or private"),
        ({}, f"{REPO}@gone", "no such revision"),
        ({"status": 500}, REPO, "the hub answered 500; try again later"),
        ({"status": 429}, REPO, "the hub answered 429; try again later"),
    ],
)
def test_what_the_hub_refuses_is_told(
    server: ThreadingHTTPServer, tmp_path: Path, mood: dict[str, Any], source: str, message: str
) -> None:
    wrong(server, **mood)
    found = loaded(server, tmp_path, source)
    assert found.startswith(f"CheckpointError: {source}: no such file or folder here; as a hub id, ")
    assert message in found and "\n" not in found


def test_without_network_and_cache_that_is_told(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        assert "the hub was not reached, and it is not in the cache" in loaded(server, tmp_path, **environment)


def test_a_repository_without_a_captioner_is_told(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    for path in (tmp_path / "there").iterdir():
        path.rename(path.with_suffix(".txt"))
    assert "it holds no captioner" in loaded(server, tmp_path)


def test_what_is_here_is_never_asked_of_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert hub.is_id("user/name") and hub.is_id("user/name@v1.0")
    assert not any(map(hub.is_id, ("runs/demo", "run/captioner.pt", "runs", "/a/b", "a/b/c")))
