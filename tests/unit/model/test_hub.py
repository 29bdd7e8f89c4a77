"""HF_GPT2_REPO and GPT.from_pretrained: a hub id, served by a hub in this process, a folder, or neither."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import save_file

from myllm.config import GPTConfig
from myllm.errors import CheckpointError, ConfigError
from myllm.model.gpt import GPT
from myllm.model.gpt2_weights import fit_to_pretrained

REPO = "someone/gpt2-tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in Hugging Face's layout, with a large file that must not be downloaded."""
    folder = tmp_path_factory.mktemp("gpt2")
    facts = {"vocab_size": 19, "n_positions": 8, "n_layer": 1, "n_head": 2, "n_embd": 4}
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"} | facts))
    conv1d = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # GPT-2's files store these as (in, out)
    state = GPT(GPTConfig(**facts)).state_dict()  # type: ignore[arg-type]
    del state["lm_head.weight"]
    save_file(
        {name: (value.T if name.endswith(conv1d) else value).contiguous() for name, value in state.items()},
        folder / "model.safetensors",
    )
    torch.save(state, folder / "tf_model.h5")
    return folder


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's protocol that a download needs: revision, list of files, file."""

    folder: Path
    requests: list[str]

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.requests.append(f"{self.command} {path}")
        files = {file.name: file for file in self.folder.iterdir()}
        name = path.rpartition("/")[2]
        if path == f"/api/models/{REPO}/revision/main":
            self.answer(json.dumps({"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}))
        elif path == f"/api/models/{REPO}/tree/{COMMIT}":
            tree = [{"type": "file", "path": name, "size": file.stat().st_size, "oid": oid(file.read_bytes())}
                    for name, file in files.items()]
            self.answer(json.dumps(tree))
        elif path == f"/{REPO}/resolve/{COMMIT}/{name}" and name in files:
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
        """Log nothing."""


def oid(content: bytes) -> str:
    """Return git's hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def hub(gpt2: Path) -> Iterator[ThreadingHTTPServer]:
    handler = type("TestHub", (Hub,), {"folder": gpt2, "requests": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def load(hub_settings: Callable[..., None], tmp_path: Path) -> Callable[..., str]:
    """load(**environment): the sum of the embeddings of `GPT.from_pretrained()`, or the error."""

    def run(**environment: str) -> str:
        hub_settings(HF_HOME=str(tmp_path), **environment)
        try:
            return sum_of_embeddings(GPT.from_pretrained())
        except CheckpointError as error:
            return f"CheckpointError: {error}"

    return run


def sum_of_embeddings(gpt: GPT) -> str:
    return str(float(gpt.transformer.wte.weight.detach().double().sum()))


def expected(folder: Path) -> str:
    return sum_of_embeddings(GPT.from_pretrained(str(folder)))


def test_from_pretrained_takes_a_folder(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_GPT2_REPO", str(gpt2))
    expected = GPT.from_pretrained(str(gpt2)).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in GPT.from_pretrained().state_dict().items())


def test_fit_to_pretrained_changes_defaults_and_refuses_other_values(gpt2: Path) -> None:
    pretrained = GPT.from_pretrained(str(gpt2)).config
    config = GPTConfig(pretrained=str(gpt2), dropout=0.2)
    fitted = fit_to_pretrained(config)
    assert fitted == replace(pretrained, vocab_size=config.vocab_size, dropout=0.2, pretrained=str(gpt2))
    n_layer = pretrained.n_layer
    with pytest.raises(ConfigError, match=f"n_layer is 5, .* has {n_layer}; set --text.n_layer {n_layer}"):
        fit_to_pretrained(replace(config, n_layer=5))
    assert fit_to_pretrained(GPTConfig(n_layer=5)) == GPTConfig(n_layer=5)


def test_from_pretrained_downloads_a_hub_id_once(
    gpt2: Path, hub: ThreadingHTTPServer, load: Callable[..., str]
) -> None:
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    assert load(HF_GPT2_REPO=REPO, HF_ENDPOINT=endpoint) == expected(gpt2)
    requests = hub.RequestHandlerClass.requests  # type: ignore[attr-defined]
    assert f"GET /{REPO}/resolve/{COMMIT}/model.safetensors" in requests
    assert not any("tf_model.h5" in request for request in requests)
    assert load(HF_GPT2_REPO=REPO, HF_HUB_OFFLINE="1") == expected(gpt2)


def test_from_pretrained_takes_the_argument_before_the_variable_before_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    repos: list[str] = []

    def download(repo: str, **_: object) -> str:
        repos.append(repo)
        raise OSError("no network")

    monkeypatch.setattr("myllm.model.gpt2_weights.snapshot_download", download)
    for variable, source in (("", True), ("someone/else", True), ("someone/else", "my/own")):
        monkeypatch.setenv("HF_GPT2_REPO", variable)
        with pytest.raises(Exception, match="no network"):
            GPT.from_pretrained(source)
    assert repos == ["openai-community/gpt2", "someone/else", "my/own"]


@pytest.mark.parametrize(
    ("repo", "environment"),
    [
        ("openai-community/gpt2", {"HF_HUB_OFFLINE": "1"}),
        ("openai-community/gpt2", {"HF_ENDPOINT": "http://127.0.0.1:9"}),  # nobody listens there
        ("no/such/folder", {"HF_HUB_OFFLINE": "1"}),
        ("", {"HF_HUB_OFFLINE": "1"}),
    ],
)
def test_from_pretrained_without_network_and_cache_says_what_to_do(
    load: Callable[..., str], repo: str, environment: dict[str, str]
) -> None:
    [message] = load(HF_GPT2_REPO=repo, **environment).splitlines()
    assert message.startswith(f"CheckpointError: GPT-2 '{repo or 'openai-community/gpt2'}'")
    assert "Set HF_GPT2_REPO to a folder" in message and "--text.pretrained false" in message


def test_from_pretrained_names_an_id_that_the_hub_does_not_know(
    hub: ThreadingHTTPServer, load: Callable[..., str]
) -> None:
    message = load(HF_GPT2_REPO="no/where", HF_ENDPOINT=f"http://127.0.0.1:{hub.server_port}")
    assert message.startswith("CheckpointError: GPT-2 'no/where'") and "404" in message
