"""The guards guard: each one catches a planted fault."""

import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SOUND = {
    "__init__.py": "",
    "files.py": "",
    "data/records.py": "from myllm.data.splits import split",
    "data/splits.py": "",
    "apps/cli.py": "import myllm.data.records",
}
faults = runpy.run_path(str(Path(__file__).with_name("test_imports.py")))["faults"]


def test_a_connection_that_leaves_the_machine_raises_and_is_remembered(refused_connections: Path) -> None:
    with pytest.raises(RuntimeError, match="192.0.2.1:80"), socket.socket() as client:
        client.connect(("192.0.2.1", 80))
    assert refused_connections.read_text().split() == ["192.0.2.1:80"]
    refused_connections.unlink()  # or this test would fail, as it should


def test_a_name_is_not_even_looked_up(refused_connections: Path) -> None:
    with pytest.raises(RuntimeError, match=r"example\.invalid:443"):
        socket.create_connection(("example.invalid", 443))
    refused_connections.unlink()


def test_a_process_that_a_test_starts_is_guarded_too(refused_connections: Path) -> None:
    program = "import socket; socket.socket().connect_ex(('192.0.2.1', 80))"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "a test reached out to 192.0.2.1:80" in process.stderr
    refused_connections.unlink()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_this_machine_may_be_reached(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection((host, server.getsockname()[1])):
        pass


@pytest.mark.parametrize(
    ("file", "source", "fault"),
    [
        ("config.py", "from myllm.data import records", "does not stand left of config"),
        ("config.py", "import myllm.files", "does not stand left of config"),
        ("metrics/bleu.py", "def late():\n    from myllm.apps import cli", "does not stand left of metrics"),
        ("data/records.py", "from myllm import Captioner", "imports __init__"),
        ("data/records.py", "from . import splits", "absolute imports only"),
        ("data/splits.py", "import myllm.data.records", "cycle: data.records -> data.splits -> data.records"),
        ("data/images.py", "from timm.data import create_transform", "whose home is model/backbones.py"),
        ("data/utils.py", "", "a name that says nothing"),
        ("data/__init__.py", "from myllm.data.records import read", "not empty"),
        ("tools.py", "", "has no place in the order"),
        ("model/gpt.py", "x = 1\n" * 401, "401 lines"),
    ],
)
def test_a_planted_fault_is_found(tmp_path: Path, file: str, source: str, fault: str) -> None:
    for name, text in (SOUND | {file: source}).items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert len(found := faults(tmp_path)) == 1, found
    assert fault in found[0]
