"""HF_GPT2_REPO: a hub id served by a hub of our own on this machine, a folder, and what happens without either."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import save_file

from myllm.config import GPTConfig
from myllm.errors import ConfigError
from myllm.model.gpt import GPT
from myllm.model.gpt2_weights import fit_to_pretrained

REPO = "someone/gpt2-tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROGRAM = """
from myllm.errors import CheckpointError
from myllm.model.gpt import GPT
try:
    print(float(GPT.from_pretrained().transformer.wte.weight.detach().double().sum()))
except CheckpointError as error:
    print("CheckpointError:", error)
"""


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in Hugging Face's layout, and a large file that nobody asked for."""
    folder = tmp_path_factory.mktemp("gpt2")
    facts = {"vocab_size": 19, "n_positions": 8, "n_layer": 1, "n_head": 2, "n_embd": 4}
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"} | facts))
    turned = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # GPT-2's files keep these as (in, out)
    state = GPT(GPTConfig(**facts)).state_dict()  # type: ignore[arg-type]
    del state["lm_head.weight"]
    save_file(
        {name: (value.T if name.endswith(turned) else value).contiguous() for name, value in state.items()},
        folder / "model.safetensors",
    )
    torch.save(state, folder / "tf_model.h5")
    return folder


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as a download needs: revision, list of files, file."""

    folder: Path
    asked: list[str]

    def do_GET(self) -> None:
        place = self.path.split("?")[0]
        self.asked.append(f"{self.command} {place}")
        files = {path.name: path for path in self.folder.iterdir()}
        name = place.rpartition("/")[2]
        if place == f"/api/models/{REPO}/revision/main":
            self.answer(json.dumps({"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": one} for one in files]}))
        elif place == f"/api/models/{REPO}/tree/{COMMIT}":
            tree = [{"type": "file", "path": one, "size": path.stat().st_size, "oid": oid(path.read_bytes())}
                    for one, path in files.items()]
            self.answer(json.dumps(tree))
        elif place == f"/{REPO}/resolve/{COMMIT}/{name}" and name in files:
            self.answer(files[name].read_bytes())
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def answer(self, content: str | bytes) -> None:
        body = content.encode() if isinstance(content, str) else content
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json" if isinstance(content, str) else "application/octet-stream")
        self.send_header("ETag", f'"{oid(body)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Nothing on the terminal."""


def oid(content: bytes) -> str:
    """Git's name for a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def hub(gpt2: Path) -> Iterator[ThreadingHTTPServer]:
    handler = type("OurHub", (Hub,), {"folder": gpt2, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def loaded(home: Path, **environment: str) -> str:
    """What the program prints in a process of its own, as huggingface_hub reads the environment when imported."""
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"} | environment,
        capture_output=True, text=True, timeout=120,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def expected(folder: Path) -> str:
    return str(float(GPT.from_pretrained(str(folder)).transformer.wte.weight.detach().double().sum()))


def test_a_folder_is_taken_as_it_is(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_GPT2_REPO", str(gpt2))
    theirs = GPT.from_pretrained(str(gpt2)).state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in GPT.from_pretrained().state_dict().items())


def test_what_was_left_at_the_default_follows_the_weights_and_what_was_set_is_not_overruled(gpt2: Path) -> None:
    found = GPT.from_pretrained(str(gpt2)).config
    asked = GPTConfig(pretrained=str(gpt2), dropout=0.2)
    assert fit_to_pretrained(asked) == replace(found, vocab_size=asked.vocab_size, dropout=0.2, pretrained=str(gpt2))
    with pytest.raises(ConfigError, match=f"n_layer is 5, .* has {found.n_layer}; set --text.n_layer {found.n_layer}"):
        fit_to_pretrained(replace(asked, n_layer=5))
    assert fit_to_pretrained(GPTConfig(n_layer=5)) == GPTConfig(n_layer=5)


def test_a_hub_id_is_downloaded_once_and_then_read_without_network(
    gpt2: Path, hub: ThreadingHTTPServer, tmp_path: Path
) -> None:
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    assert loaded(tmp_path, HF_GPT2_REPO=REPO, HF_ENDPOINT=endpoint) == expected(gpt2)
    asked = hub.RequestHandlerClass.asked  # type: ignore[attr-defined]
    assert f"GET /{REPO}/resolve/{COMMIT}/model.safetensors" in asked
    assert not any("tf_model.h5" in place for place in asked)
    assert loaded(tmp_path, HF_GPT2_REPO=REPO, HF_HUB_OFFLINE="1") == expected(gpt2)


def test_without_the_variable_it_is_openais_and_an_argument_overrules_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(repo: str, **_: object) -> str:  # at the network's edge
        asked.append(repo)
        raise OSError("no network")

    monkeypatch.setattr("myllm.model.gpt.snapshot_download", answer)
    for variable, source in (("", True), ("someone/else", True), ("someone/else", "my/own")):
        monkeypatch.setenv("HF_GPT2_REPO", variable)
        with pytest.raises(Exception, match="no network"):
            GPT.from_pretrained(source)
    assert asked == ["openai-community/gpt2", "someone/else", "my/own"]


@pytest.mark.parametrize(
    ("repo", "environment"),
    [
        ("openai-community/gpt2", {"HF_HUB_OFFLINE": "1"}),
        ("openai-community/gpt2", {"HF_ENDPOINT": "http://127.0.0.1:9"}),  # nobody listens there
        ("no/such/folder", {"HF_HUB_OFFLINE": "1"}),
        ("", {"HF_HUB_OFFLINE": "1"}),
    ],
)
def test_without_network_and_cache_one_message_names_the_way_out(
    tmp_path: Path, repo: str, environment: dict[str, str]
) -> None:
    [message] = loaded(tmp_path, HF_GPT2_REPO=repo, **environment).splitlines()
    assert message.startswith(f"CheckpointError: GPT-2 '{repo or 'openai-community/gpt2'}'")
    assert "Set HF_GPT2_REPO to a folder" in message and "--text.pretrained false" in message


def test_an_id_that_the_hub_does_not_know_is_named(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    found = loaded(tmp_path, HF_GPT2_REPO="no/where", HF_ENDPOINT=f"http://127.0.0.1:{hub.server_port}")
    assert found.startswith("CheckpointError: GPT-2 'no/where'") and "404" in found
