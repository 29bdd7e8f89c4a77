"""The rules of the other tests work: each catches a planted fault."""

import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SOUND = {
    "__init__.py": "",
    "files.py": "",
    "apps/train.py": "",
    "data/records.py": "from myllm.data.splits import split",
    "data/splits.py": "",
    "apps/cli.py": "import myllm.data.records",
}
faults = runpy.run_path(str(Path(__file__).with_name("test_imports.py")))["faults"]


def test_no_network_refuses_and_records_a_connection_that_leaves_the_machine(refused_connections: Path) -> None:
    with pytest.raises(RuntimeError, match="192.0.2.1:80"), socket.socket() as client:
        client.connect(("192.0.2.1", 80))
    assert refused_connections.read_text().split() == ["192.0.2.1:80"]
    refused_connections.unlink()  # otherwise this test would fail


def test_no_network_refuses_to_look_up_a_name(refused_connections: Path) -> None:
    with pytest.raises(RuntimeError, match=r"example\.invalid:443"):
        socket.create_connection(("example.invalid", 443))
    refused_connections.unlink()


def test_no_network_holds_in_processes_that_a_test_starts(refused_connections: Path) -> None:
    program = "import socket; socket.socket().connect_ex(('192.0.2.1', 80))"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "a test connected to 192.0.2.1:80" in process.stderr
    refused_connections.unlink()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_network_allows_this_machine(host: str) -> None:
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
        ("tools.py", "", "is not in the order"),
        ("apps/caption.py", "from myllm.apps.train import train", "imports the verb train"),
        ("model/gpt.py", "x = 1\n" * 401, "401 lines"),
    ],
)
def test_import_rules_find_a_planted_fault(tmp_path: Path, file: str, source: str, fault: str) -> None:
    for name, text in (SOUND | {file: source}).items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    results = faults(tmp_path, {"caption", "train", "demo"})
    assert len(results) == 1 and fault in results[0], results


def test_import_rules_let_demo_import_train(tmp_path: Path) -> None:
    (tmp_path / "apps").mkdir()
    (tmp_path / "apps/train.py").touch()
    (tmp_path / "apps/demo.py").write_text("from myllm.apps.train import train")
    assert faults(tmp_path, {"caption", "train", "demo"}) == []
