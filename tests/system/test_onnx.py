"""`myllm export --to onnx`: the same captions without torch, in Python and, by transformers.js, in Node.js."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from myllm.apps.cli import main
from myllm.checkpoints import native
from myllm.checkpoints.native import Checkpoint
from myllm.inference.captioner import Captioner

REPOSITORY = Path(__file__).parents[2]
JAVASCRIPT = REPOSITORY / "tests/javascript"
Capture = pytest.CaptureFixture[str]
# a Python in which nothing but these is there beside the standard library
ALLOWED = "myllm numpy onnxruntime PIL tokenizers google flatbuffers packaging coloredlogs humanfriendly sympy mpmath"
WITHOUT_TORCH = """
import importlib.abc, sys, sysconfig
from pathlib import Path

allowed, here = frozenset(sys.argv.pop(1).split()), Path(sysconfig.get_paths()["purelib"])

class Bare(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in allowed | sys.stdlib_module_names and any(map(Path.exists, [here / top, here / f"{top}.py"])):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Bare())
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
def random(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with captioner.pt, of random weights: no two pictures get the same caption from it."""
    folder = tmp_path_factory.mktemp("random")
    native.save(tiny_checkpoint, folder / "captioner.pt")
    return folder


@pytest.fixture(scope="module")
def exported(random: Path) -> Path:
    assert main(["export", str(random), "--to", "onnx", "--out", str(random / "onnx"), "--quiet"]) == 0
    return random / "onnx"


def python(code: str, *words: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join((str(REPOSITORY / "src"), os.environ["PYTHONPATH"]))
    command = [sys.executable, "-c", code, ALLOWED, *map(str, words)]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=120)


def test_it_captions_without_torch(random: Path, exported: Path, pictures: list[Path]) -> None:
    told = python(CAPTION, exported, *pictures)
    assert told.returncode == 0, told.stderr
    captioner = Captioner.load(random)
    expected = [captioner.caption(picture, beams=beams).tokens for beams in (1, 3) for picture in pictures]
    assert json.loads(told.stdout) == expected
    assert len({tuple(tokens) for tokens in expected}) > 3


def test_the_command_line_captions_without_torch(random: Path, exported: Path, pictures: list[Path]) -> None:
    told = python(COMMAND, "caption", *pictures, "--model", exported, "--json", "--quiet")
    assert told.returncode == 0, told.stderr
    expected = [Captioner.load(random).caption(picture).text for picture in pictures]
    assert [json.loads(line)["caption"] for line in told.stdout.splitlines()] == expected


def test_without_torch_nothing_else_works(random: Path) -> None:
    """The guard guards: what needs torch fails there."""
    told = python(WITHOUT_TORCH + "import myllm.inference.captioner", random)
    assert "torch is not installed here" in told.stderr


def test_the_command_line_takes_an_export(
    tiny_run: Path, pictures: list[Path], scenes: Path, tmp_path: Path, capfd: Capture
) -> None:
    assert main(["export", str(tiny_run), "--to", "onnx", "--out", str(tmp_path / "onnx")]) == 0
    told = capfd.readouterr().out
    assert "decoder_model_merged.onnx, encoder_model.onnx" in told and " MB)" in told
    words = [str(picture) for picture in pictures]
    rows = []
    for model in (tiny_run, tmp_path / "onnx"):
        assert main(["caption", *words, "--model", str(model), "--json", "--quiet", "--decode.beams=3"]) == 0
        rows.append([json.loads(line) for line in capfd.readouterr().out.splitlines()])
    for one, other in zip(*rows, strict=True):
        assert one.pop("score") == pytest.approx(other.pop("score"), abs=1e-4)
        assert one.pop("confidence") == pytest.approx(other.pop("confidence"), abs=1e-4)
        assert one == other
    figures = []
    for model in (tiny_run, tmp_path / "onnx"):
        assert main(["evaluate", "--model", str(model), "--data", str(scenes), "--split", "val", "--json"]) == 0
        figures.append(json.loads(capfd.readouterr().out))
    shared = {name for name, value in figures[0].items() if isinstance(value, float)} - {"CIDEr-D_blind"}
    assert "CIDEr-D" in shared and "CIDEr-D_blind" not in figures[1]
    assert {name: figures[0][name] for name in shared} == {name: figures[1][name] for name in shared}


def test_what_rounding_costs_is_told(tiny_run: Path, scenes: Path, tmp_path: Path, capfd: Capture) -> None:
    words = ["export", str(tiny_run), "--to", "onnx", "--precision", "int8", "--out", str(tmp_path / "onnx")]
    assert main([*words, "--data", str(scenes), "--limit", "2"]) == 0
    told = capfd.readouterr().out
    assert "encoder_model_int8.onnx" in told
    assert "CIDEr-D" in told and "points" in told and "of 2 pictures of val, greedy" in told


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["export", "captioner.pt", "--to", "hf", "--precision", "int8", "--out", "x"], 2, "only --to onnx and web"),
        (["export", "captioner.pt", "--to", "hf", "--data", "y", "--out", "x"], 2, "only --to onnx and web"),
        (["export", "captioner.pt", "--to", "onnx", "--dtype", "bfloat16", "--out", "x"], 2, "only --to safetensors"),
        (["export", "captioner.pt", "--to", "onnx", "--out", "onnx"], 2, "onnx is there already"),
        (["export", "captioner.pt", "--to", "onnx", "--data", "nowhere", "--out", "x"], 1, "nowhere"),
        (["import", "onnx", "--out", "x"], 1, "an ONNX export, made to be run"),
        (["info", "onnx"], 1, "an ONNX export, made to be run"),
        (["caption", "captioner.pt", "--model", "onnx", "--precision", "int8"], 2, "an ONNX export in fp32"),
        (["caption", "cube.png", "--model", "onnx", "--heatmaps", "x"], 2, "an ONNX export has no attention weights"),
    ],
)
def test_what_stands_in_the_way_is_told(
    random: Path, exported: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture, words: list[str], code: int,
    told: str,
) -> None:
    monkeypatch.chdir(random)
    Image.new("RGB", (64, 64)).save("cube.png")
    before = sorted(random.iterdir())
    assert main(words) == code
    assert told in capfd.readouterr().err
    assert sorted(random.iterdir()) == before


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_transformers_js_captions_with_it(
    random: Path, tiny_run: Path, pictures: list[Path], tmp_path: Path, program: Callable[[str], str], precision: str
) -> None:
    # random weights tell every picture from every other; captions of trained ones are text
    for model, name in ((random, "random"), (tiny_run, "trained"))[: 2 if precision == "fp32" else 1]:
        words = ["export", str(model), "--to", "onnx", "--precision", precision, "--out", str(tmp_path / name)]
        assert main([*words, "--quiet"]) == 0
        command = [program("node"), JAVASCRIPT / "caption.mjs", tmp_path, name, *pictures]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, ran.stderr
        found: list[dict[str, Any]] = json.loads(ran.stdout.splitlines()[-1])
        captioner: Any = Captioner.load(model)
        if precision != "fp32":  # rounded by the same numbers, computed by another build of the runtime
            from myllm.inference.onnx_captioner import OnnxCaptioner

            captioner = OnnxCaptioner.load(tmp_path / name)
        for one, picture in zip(found, pictures, strict=True):
            expected = captioner.caption(picture, beams=1)
            assert one["tokens"][:1] == [0]
            assert [token for token in one["tokens"][1:] if token != 0] == expected.tokens
            assert name == "random" or one["text"] == expected.text
