"""Help, metrics and captioning with an ONNX export work without importing torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from myllm.apps.cli import VERBS


def loaded_modules(*arguments: str) -> set[str]:
    """Run Python with these arguments and return the modules that it imports."""
    command = [sys.executable, "-X", "importtime", *arguments]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-2000:]
    # each line of `-X importtime` ends with the name of a module
    return {line.rpartition("|")[2].strip() for line in process.stderr.splitlines()}


@pytest.mark.parametrize("module", [
    "myllm", "myllm.config", "myllm.data.records",
    *(f"myllm.apps.{verb}" for verb in ("score", "caption", "label", "evaluate", "compare", "serve")),
    *(f"myllm.apps.{verb}" for verb in ("scenes", "diagram", "data")),
])
def test_module_imports_without_torch(module: str) -> None:
    loaded = loaded_modules("-c", f"import {module}")
    assert module in loaded
    assert "torch" not in loaded


def test_the_search_imports_without_torch_and_onnx_runtime() -> None:
    files = (Path(__file__).parents[2] / "src/myllm/decoding").glob("[!_]*.py")
    modules = [f"myllm.decoding.{file.stem}" for file in files]
    loaded = loaded_modules("-c", f"import {', '.join(modules)}")
    assert loaded > set(modules) and not {"torch", "onnxruntime"} & loaded


def test_the_captioner_of_exports_imports_without_torch() -> None:
    assert "torch" not in loaded_modules("-c", "import myllm.inference.onnx_captioner")


@pytest.mark.parametrize("verb", [[], *(verb.split() for verb in VERBS)], ids=" ".join)
def test_help_is_printed_without_torch(verb: list[str]) -> None:
    loaded = loaded_modules("-m", "myllm", *verb, "--help")
    assert "myllm.apps.cli" in loaded
    assert "torch" not in loaded


@pytest.mark.parametrize("words", [["scenes", "--count=20", "--out=data"], ["diagram", "--out=a.svg"]], ids=" ".join)
def test_verb_runs_without_torch(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "torch" not in loaded_modules("-m", "myllm", *words)
    assert (tmp_path / words[-1].partition("=")[2]).exists()
