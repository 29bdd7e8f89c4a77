"""`myllm export --to onnx`: the same captions without torch, in Python and in transformers.js."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from PIL import Image

from myllm.apps.cli import main
from myllm.checkpoints import native
from myllm.checkpoints.native import Checkpoint
from myllm.inference.captioner import Captioner

REPOSITORY = Path(__file__).parents[2]
JAVASCRIPT = REPOSITORY / "tests/javascript"
Capture = pytest.CaptureFixture[str]
# Packages that a Python without torch may import in addition to the standard library
ALLOWED = (
    "myllm numpy array_api_compat onnxruntime PIL tokenizers google flatbuffers packaging coloredlogs humanfriendly "
    "sympy mpmath"
)
WITHOUT_TORCH = """
import importlib.abc, sys, sysconfig
from pathlib import Path

allowed, site = frozenset(sys.argv.pop(1).split()), Path(sysconfig.get_paths()["purelib"])

class RefuseOthers(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in allowed | sys.stdlib_module_names and any(map(Path.exists, [site / top, site / f"{top}.py"])):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, RefuseOthers())
"""
CAPTION = WITHOUT_TORCH + """
import json
from myllm.inference.onnx_captioner import OnnxCaptioner

captioner = OnnxCaptioner.load(sys.argv[1])
print(json.dumps([captioner.caption(picture, beams=beams).tokens for beams in (1, 3) for picture in sys.argv[2:]]))
"""
COMMAND = """
import sys

absent = "torch torchvision timm onnx onnxscript safetensors huggingface_hub transformers matplotlib jinja2".split()
sys.modules.update(dict.fromkeys(absent))
from myllm.apps.cli import main

sys.argv.pop(1)
sys.exit(main())
"""


@pytest.fixture(scope="module")
def random_model(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a captioner of random weights, which captions every picture differently."""
    folder = tmp_path_factory.mktemp("random")
    native.save(tiny_checkpoint, folder / "captioner.pt")
    return folder


@pytest.fixture(scope="module")
def exported(random_model: Path) -> Path:
    assert main(["export", str(random_model), "--to", "onnx", "--out", str(random_model / "onnx"), "--quiet"]) == 0
    return random_model / "onnx"


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join((str(REPOSITORY / "src"), os.environ["PYTHONPATH"]))
    command = [sys.executable, "-c", code, ALLOWED, *map(str, arguments)]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)


@pytest.mark.slow
def test_onnx_captioner_works_without_torch(random_model: Path, exported: Path, pictures: list[Path]) -> None:
    result = run_python(CAPTION, exported, *pictures)
    assert result.returncode == 0, result.stderr
    captioner = Captioner.load(random_model)
    expected = [captioner.caption(picture, beams=beams).tokens for beams in (1, 3) for picture in pictures]
    assert json.loads(result.stdout) == expected
    assert len({tuple(tokens) for tokens in expected}) > 3


@pytest.mark.slow
def test_caption_works_without_torch(random_model: Path, exported: Path, pictures: list[Path]) -> None:
    result = run_python(COMMAND, "caption", *pictures, "--model", exported, "--json", "--quiet")
    assert result.returncode == 0, result.stderr
    expected = [Captioner.load(random_model).caption(picture).text for picture in pictures]
    assert [json.loads(line)["caption"] for line in result.stdout.splitlines()] == expected


def test_seed_samples_the_same_captions_from_an_export_as_from_its_captioner(
    random_model: Path, exported: Path, pictures: list[Path], capfd: Capture
) -> None:
    def sampled(model: Path, seed: int) -> str:
        words = ["--decode.do_sample", "--decode.temperature=2", f"--seed={seed}", "--batch-size=2", "--quiet"]
        assert main(["caption", *map(str, pictures), "--model", str(model), "--devices=cpu", *words]) == 0
        return capfd.readouterr().out

    assert sampled(exported, 5) == sampled(random_model, 5) != sampled(exported, 6)


def test_packages_that_are_not_allowed_cannot_be_imported(random_model: Path) -> None:
    result = run_python(WITHOUT_TORCH + "import myllm.inference.captioner", random_model)
    assert "torch is not installed here" in result.stderr


@pytest.mark.slow
def test_caption_and_evaluate_accept_an_onnx_export(
    tiny_run: Path, pictures: list[Path], scenes: Path, tmp_path: Path, capfd: Capture
) -> None:
    assert main(["export", str(tiny_run), "--to", "onnx", "--out", str(tmp_path / "onnx")]) == 0
    output = capfd.readouterr().out
    assert "decoder_model_merged.onnx, encoder_model.onnx" in output and " MB)" in output
    paths = [str(picture) for picture in pictures]
    rows = []
    for model in (tiny_run, tmp_path / "onnx"):
        assert main(["caption", *paths, "--model", str(model), "--json", "--quiet", "--decode.beams=3"]) == 0
        rows.append([json.loads(line) for line in capfd.readouterr().out.splitlines()])
    for row, exported_row in zip(*rows, strict=True):
        for name in ("score", "confidence"):
            assert exported_row.pop(name) == pytest.approx(row.pop(name), abs=1e-4)
        assert exported_row == row
    scores = []
    for model in (tiny_run, tmp_path / "onnx"):
        assert main(["evaluate", "--model", str(model), "--data", str(scenes), "--split", "val", "--json"]) == 0
        scores.append(json.loads(capfd.readouterr().out))
    shared = {name for name, value in scores[0].items() if isinstance(value, float)} - {"CIDEr-D_blind"}
    assert "CIDEr-D" in shared and "CIDEr-D_blind" not in scores[1]
    assert {name: scores[0][name] for name in shared} == {name: scores[1][name] for name in shared}


@pytest.mark.slow
def test_export_prints_what_quantization_changes(tiny_run: Path, scenes: Path, tmp_path: Path, capfd: Capture) -> None:
    command = ["export", str(tiny_run), "--to", "onnx", "--precision", "int8", "--out", str(tmp_path / "onnx")]
    assert main([*command, "--data", str(scenes), "--limit", "2"]) == 0
    output = capfd.readouterr().out
    assert "encoder_model_int8.onnx" in output
    encoder = onnx.load(tmp_path / "onnx/onnx/encoder_model_int8.onnx")
    assert "DequantizeLinear" in {node.op_type for node in encoder.graph.node}
    assert "CIDEr-D" in output and "points" in output and "of 2 pictures of val, greedy" in output


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (["export", "captioner.pt", "--to", "hf", "--precision", "int8", "--out", "x"], 2, "only --to onnx and web"),
        (["export", "captioner.pt", "--to", "hf", "--data", "y", "--out", "x"], 2, "only --to onnx and web"),
        (["export", "captioner.pt", "--to", "onnx", "--dtype", "bfloat16", "--out", "x"], 2, "only --to safetensors"),
        (["export", "captioner.pt", "--to", "onnx", "--out", "onnx"], 2, "onnx is there already"),
        (["export", "captioner.pt", "--to", "onnx", "--data", "nowhere", "--out", "x"], 1, "nowhere"),
        (["import", "onnx", "--out", "x"], 1, "an ONNX export, whose weights cannot be taken out"),
        (["info", "onnx"], 1, "an ONNX export, whose weights cannot be taken out"),
        (["caption", "captioner.pt", "--model", "onnx", "--precision", "int8"], 2, "an ONNX export in fp32"),
        (["caption", "cube.png", "--model", "onnx", "--heatmaps", "x"], 2, "an ONNX export has no attention weights"),
    ],
)
def test_onnx_exports_are_refused_with_a_reason(
    random_model: Path, exported: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture, command: list[str], code: int,
    message: str,
) -> None:
    monkeypatch.chdir(random_model)
    Image.new("RGB", (64, 64)).save("cube.png")
    before = sorted(random_model.iterdir())
    assert main(command) == code
    assert message in capfd.readouterr().err
    assert sorted(random_model.iterdir()) == before


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_transformers_js_finds_the_tokens_of_python(
    random_model: Path, tiny_run: Path, pictures: list[Path], tmp_path: Path, program: Callable[[str], str],
    precision: str,
) -> None:
    # random weights give every picture other tokens; captions of trained ones are readable text
    for model, name in ((random_model, "random"), (tiny_run, "trained"))[: 2 if precision == "fp32" else 1]:
        options = ["--to", "onnx", "--precision", precision, "--out", str(tmp_path / name), "--quiet"]
        assert main(["export", str(model), *options]) == 0
        command = [program("node"), JAVASCRIPT / "caption.mjs", tmp_path, name, *pictures]
        process = subprocess.run(command, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        results: list[dict[str, Any]] = json.loads(process.stdout.splitlines()[-1])
        captioner: Any = Captioner.load(model)
        if precision != "fp32":  # the same quantized weights, in another build of ONNX Runtime
            from myllm.inference.onnx_captioner import OnnxCaptioner

            captioner = OnnxCaptioner.load(tmp_path / name)
        for result, picture in zip(results, pictures, strict=True):
            expected = captioner.caption(picture, beams=1)
            assert result["tokens"][:1] == [0]
            assert [token for token in result["tokens"][1:] if token != 0] == expected.tokens
            assert name == "random" or result["text"] == expected.text
