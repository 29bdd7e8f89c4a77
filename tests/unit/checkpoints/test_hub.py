"""Captioners on a hub: a local server acts as the hub; it can also refuse, interrupt and damage downloads."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from myllm import Captioner
from myllm.apps.cli import main
from myllm.checkpoints import lora, native
from myllm.checkpoints.native import Checkpoint
from myllm.config import LoraConfig
from myllm.errors import CheckpointError
from myllm.model.lora import add_adapters
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.model.weight_files import weights_hash

REPO, COMMIT, OLDER = "someone/captioner", "0123456789abcdef0123456789abcdef01234567", "f" * 40
TOKEN = "hf_secretsecretsecret"


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's protocol that downloads and uploads need; `state` has its faults and what was created."""

    folder: Path
    requests: list[str]
    state: dict[str, Any]

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.requests.append(f"{self.command} {path}")
        files = {file.name: file for file in self.folder.iterdir()}
        name = path.rpartition("/")[2]
        if self.state.get("token") and self.headers.get("Authorization") != f"Bearer {self.state['token']}":
            return self.refuse(401, "RepoNotFound")
        if self.state.get("status"):
            return self.refuse(self.state["status"], self.state.get("code", ""))
        listed = {"id": REPO, "siblings": [{"rfilename": file} for file in files]}
        if re.fullmatch(rf"/api/models/{REPO}(/revision/[\w.]+)?", path):
            revision = path.partition("/revision/")[2] or "main"
            if revision not in ("main", "v1", COMMIT, OLDER):
                return self.refuse(404, "RevisionNotFound")
            return self.answer(json.dumps(listed | {"sha": OLDER if revision == "v1" else COMMIT}))
        if re.fullmatch(rf"/api/models/{REPO}/tree/\w+", path):
            tree = [{"type": "file", "path": file, "size": where.stat().st_size, "oid": git_hash(where.read_bytes())}
                    for file, where in files.items()]
            return self.answer(json.dumps(tree))
        if re.fullmatch(rf"/{REPO}/resolve/\w+/{re.escape(name)}", path) and name in files:
            return self.answer(files[name].read_bytes())
        return self.refuse(404, "RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Create a repository, check its card, ask for large files, and take the others with the commit."""
        path, body = self.path.split("?")[0], self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.requests.append(f"POST {path}")
        if self.headers.get("Authorization") != f"Bearer {self.state.get('token')}":
            return self.refuse(self.state.get("status", 401), "")
        address = f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]
        if path == "/api/repos/create":
            self.state["created"] = json.loads(body)
            return self.answer(json.dumps({"url": f"{address}/{REPO}"}))
        if path == "/api/validate-yaml":
            return self.answer(json.dumps({"errors": [], "warnings": []}))
        if path == f"/api/models/{REPO}/preupload/main":
            files = [{"path": file["path"], "shouldIgnore": False,
                      "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
                     for file in json.loads(body)["files"]]
            return self.answer(json.dumps({"files": files}))
        if path == f"/{REPO}.git/info/lfs/objects/batch":
            objects = [item | {"actions": {"upload": {"href": f"{address}/put/{item['oid']}"}}}
                       for item in json.loads(body)["objects"]]
            return self.answer(json.dumps({"transfer": "basic", "objects": objects}))
        assert path == f"/api/models/{REPO}/commit/main"
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                (self.folder / value["path"]).write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                (self.folder / value["oid"]).rename(self.folder / value["path"])
        url = f"{address}/{REPO}/commit/{COMMIT}"
        return self.answer(json.dumps({"success": True, "commitUrl": url, "commitOid": COMMIT, "hookOutput": ""}))

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
        if self.command == "GET" and is_weights and (byte_range := self.headers.get("Range")):
            start = int(byte_range.removeprefix("bytes=").split("-")[0])
        if is_weights and self.state.get("damaged"):
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
            if is_weights and self.state.get("breaks", 0) > 0:
                self.state["breaks"] -= 1
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
    handler = type("OurHub", (Hub,), {"folder": tmp_path / "there", "requests": [], "state": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as hub_server:
        Thread(target=hub_server.serve_forever, args=(0.02,), daemon=True).start()
        yield hub_server
        hub_server.shutdown()


@pytest.fixture
def load(
    server: ThreadingHTTPServer, hub_settings: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """load(source, **environment): the sum of the weights of a captioner on the hub, or the error."""
    monkeypatch.chdir(tmp_path)

    def run(source: str = REPO, **environment: str) -> str:
        hub_settings(**settings(server, tmp_path) | environment)
        try:
            return sum_of_weights(Captioner.load(source).model)
        except CheckpointError as error:
            assert TOKEN not in str(error)
            return f"CheckpointError: {error}"

    return run


def settings(server: ThreadingHTTPServer, home: Path) -> dict[str, str]:
    """Return the environment variables with which huggingface_hub uses the server, and a cache in `home`."""
    return {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(home / "hf")}


def sum_of_weights(model: VisionGPT2) -> str:
    return str(float(model.decoder.lm_head.weight.detach().double().sum()))


def set_faults(server: ThreadingHTTPServer, **faults: Any) -> None:
    server.RequestHandlerClass.state.update(faults)  # type: ignore[attr-defined]


@pytest.fixture
def expected(tiny_checkpoint: Checkpoint) -> str:
    """The result of `load` with the right weights."""
    return sum_of_weights(tiny_checkpoint.model)


@pytest.mark.slow
def test_the_environment_names_hub_cache_and_offline_use(
    server: ThreadingHTTPServer, tmp_path: Path, expected: str
) -> None:
    program = "from myllm import Captioner; import sys; model = Captioner.load(sys.argv[1]).model; "
    program += "print(float(model.decoder.lm_head.weight.detach().double().sum()))"
    for environment in ({}, {"HF_HUB_OFFLINE": "1"}):
        words, variables = [sys.executable, "-c", program, REPO], os.environ | settings(server, tmp_path) | environment
        process = subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True)
        assert process.stdout.strip() == expected, process.stderr


def test_hub_download_takes_one_format_and_then_works_offline(
    server: ThreadingHTTPServer, load: Callable[..., str], expected: str
) -> None:
    assert load() == expected
    requests = server.RequestHandlerClass.requests  # type: ignore[attr-defined]
    assert any(request.endswith("captioner.pt") for request in requests)
    assert not any("pytorch_model.bin" in request for request in requests)
    assert load(f"{REPO}@v1") == expected
    set_faults(server, status=500)
    assert load() == expected
    count = len(requests)
    assert load(HF_HUB_OFFLINE="1") == expected
    assert len(requests) == count


def test_hub_adapter_is_downloaded_and_merged_into_its_base(
    server: ThreadingHTTPServer, load: Callable[..., str], tmp_path: Path, expected: str
) -> None:
    there, base = tmp_path / "there", tmp_path / "base.pt"
    (there / "captioner.pt").rename(base)
    (there / "pytorch_model.bin").unlink()
    adapted = native.load(base)
    add_adapters(adapted.model, LoraConfig(rank=2))
    lora.save(adapted, LoraConfig(rank=2), str(base), weights_hash(native.load(base).model), there)
    assert load() == expected
    requests = server.RequestHandlerClass.requests  # type: ignore[attr-defined]
    assert any(request.endswith("adapter_model.safetensors") for request in requests)


def test_hub_private_repository_needs_hf_token(
    server: ThreadingHTTPServer, load: Callable[..., str], tmp_path: Path, expected: str
) -> None:
    set_faults(server, token=TOKEN)
    assert "the hub does not know it, or it is private: check the name, or set HF_TOKEN" in load()
    assert load(HF_TOKEN=TOKEN) == expected
    files_with_token = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert files_with_token == []


@pytest.fixture
def push(
    server: ThreadingHTTPServer, hub_settings: Callable[..., None], tiny_checkpoint: Checkpoint, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    """push(*words, **environment): what `myllm push` prints; mine.pt is a captioner."""
    monkeypatch.chdir(tmp_path)
    native.save(tiny_checkpoint, tmp_path / "mine.pt")

    def run(*words: str, **environment: str) -> str:
        hub_settings(**settings(server, tmp_path) | environment)
        with suppress(SystemExit):
            main(["push", *words])
        printed = capsys.readouterr()
        assert TOKEN not in printed.out + printed.err
        return printed.out.strip() or printed.err.strip()

    return run


def test_pushed_captioner_is_pulled_unchanged(
    server: ThreadingHTTPServer, push: Callable[..., str], load: Callable[..., str], tmp_path: Path, expected: str
) -> None:
    set_faults(server, token=TOKEN)
    for path in (tmp_path / "there").iterdir():
        path.unlink()
    assert "the hub requires a login: set HF_TOKEN" in push("mine.pt", REPO, "--private")
    assert push("mine.pt", REPO, "--private", HF_TOKEN=TOKEN).endswith(f"{REPO}/commit/{COMMIT}")
    created = server.RequestHandlerClass.state["created"]  # type: ignore[attr-defined]
    assert created == {"name": "captioner", "organization": "someone", "visibility": "private"}
    there = {path.name for path in (tmp_path / "there").iterdir()}
    assert there == {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    assert "# captioner: captions of pictures" in (tmp_path / "there/README.md").read_text(encoding="utf-8")
    assert load(HF_TOKEN=TOKEN) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mine.pt", "no-user"], "'no-user': not the name of a repository; expected user/name"),
        (["mine.pt"], "expected a captioner and a repository"),
        (["mine.pt", REPO], "HF_TOKEN does not permit this; use a token with write access"),
    ],
)
def test_push_names_the_obstacle(
    server: ThreadingHTTPServer, push: Callable[..., str], words: list[str], message: str
) -> None:
    set_faults(server, token="another", status=403)
    assert message in push(*words, HF_TOKEN=TOKEN)


def test_hub_download_resumes_after_an_interruption(
    server: ThreadingHTTPServer, load: Callable[..., str], expected: str
) -> None:
    set_faults(server, breaks=2)
    assert expected in (load(), load())


def test_hub_download_that_is_damaged_is_deleted(
    server: ThreadingHTTPServer, load: Callable[..., str], expected: str
) -> None:
    set_faults(server, damaged=True)
    assert "captioner.pt arrived damaged and has been deleted; run this again" in load()
    set_faults(server, damaged=False)
    assert load() == expected


@pytest.mark.parametrize(
    ("faults", "source", "message"),
    [
        ({"status": 403, "code": "GatedRepo"}, REPO, "it is gated"),
        ({"status": 404, "code": "RepoNotFound"}, REPO, "the hub does not know it, or it is private"),
        ({}, "no/where", "the hub does not know it, or it is private"),
        ({}, f"{REPO}@gone", "no such revision"),
        ({"status": 500}, REPO, "the hub answered 500; try again later"),
        ({"status": 429}, REPO, "the hub answered 429; try again later"),
    ],
)
def test_hub_refusals_are_explained_in_one_line(
    server: ThreadingHTTPServer, load: Callable[..., str], faults: dict[str, Any], source: str, message: str
) -> None:
    set_faults(server, **faults)
    output = load(source)
    assert output.startswith(f"CheckpointError: {source}: no such file or folder; as a hub id, ")
    assert message in output and "\n" not in output


def test_hub_out_of_reach_without_cache_is_explained(load: Callable[..., str]) -> None:
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        assert "the hub could not be reached, and it is not in the cache" in load(**environment)


def test_hub_repository_without_a_captioner_is_refused(load: Callable[..., str], tmp_path: Path) -> None:
    for path in (tmp_path / "there").iterdir():
        path.rename(path.with_suffix(".txt"))
    assert "it holds no captioner" in load()
