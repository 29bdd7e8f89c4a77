"""Bad input gives one message with the file, the fault and the fix, and exit code 1 or 2; nothing is lost."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from myllm.apps.cli import main

Capture = pytest.CaptureFixture[str]
Train = Callable[..., int]


def printed_error(capture: Capture) -> str:
    """Return the message on standard error; fails unless it is one line of ours and no traceback."""
    message = capture.readouterr().err
    assert "Traceback" not in message and message.startswith("myllm: ") and message.count("\n") == 1, message
    return message


def without_results(data: Path) -> None:
    (data / "results.csv").unlink()


def with_results(content: bytes) -> Callable[[Path], None]:
    def damage(data: Path) -> None:
        (data / "results.csv").write_bytes(content)

    return damage


def in_latin_1(data: Path) -> None:
    with (data / "results.csv").open("ab") as file:
        file.write("scene0.png| 5| a café\n".encode("latin-1"))


def without_pictures(data: Path) -> None:
    for picture in (data / "flickr30k_images").iterdir():
        picture.unlink()


def with_broken_pictures(data: Path) -> None:
    for picture in (data / "flickr30k_images").iterdir():
        picture.write_bytes(picture.read_bytes()[:90])


HEADER = b"image_name| comment_number| comment\n"
DATA: list[tuple[Callable[[Path], object], str, str]] = [
    (shutil.rmtree, r"DATA: no such folder", r"myllm scenes --out data"),
    (
        without_results,
        r"DATA: holds no captions in a known format. Found only flickr30k_images/",
        r"Expected one of: results.csv .*'image_name\| comment_number\| comment'",
    ),
    (with_results(b""), r"DATA/results.csv: the file is empty", r"expected a header 'image_name"),
    (with_results(HEADER), r"DATA/results.csv: only the header", r"expected a line"),
    (
        with_results(b"image_nr| number| comment\n1| 2| 3\n"),
        r"DATA/results.csv: line 1 has no column with the picture's name",
        r"--captions.image_column",
    ),
    (in_latin_1, r"DATA/results.csv: line 62 holds byte 0xe9", r"iconv -f LATIN1 -t UTF-8"),
    (
        without_pictures,
        r"DATA: all 12 captioned pictures are missing; looked in DATA/flickr30k_images",
        r"put the pictures",
    ),
    (with_broken_pictures, r"none of \d+ pictures can be read: DATA/flickr30k_images/scene", r"damaged picture"),
]


@pytest.mark.parametrize(("damage", "fault", "fix"), DATA)
def test_train_names_data_that_cannot_be_used(
    train: Train, tiny_picture_folder: Path, tmp_path: Path, capsys: Capture,
    damage: Callable[[Path], object], fault: str, fix: str,
) -> None:
    damage(tiny_picture_folder)
    assert train(tmp_path / "run", "--quiet", data=tiny_picture_folder) == 1
    message = printed_error(capsys).replace(str(tiny_picture_folder), "DATA")
    assert re.search(fault, message) and re.search(fix, message), message
    assert not (tmp_path / "run").exists()


def test_train_names_a_broken_picture_and_trains_on_the_others(
    train: Train, tiny_picture_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    broken = tiny_picture_folder / "flickr30k_images/scene3.png"
    broken.write_bytes(broken.read_bytes()[:90])
    assert train(tmp_path / "run", "--max-steps=1", "--quiet", data=tiny_picture_folder) == 0
    assert re.search(rf"1 broken picture left out \({broken}: damaged picture", capsys.readouterr().out)


OPTIONS = [
    (
        ["--vision.name=vit_bse_patch16_224"],
        r"vision.name 'vit_bse_patch16_224'",
        r"did you mean .*vit_base_patch16_224",
    ),
    (["--text.n_embd=33"], r"text.n_embd 33 is not divisible by text.n_head 2", r"take n_embd 32 or another n_head"),
    (
        ["--vision.name=resnet18", "--mode=layerwise"],
        r"vision.name resnet18 has no blocks of tokens",
        r"take --mode last",
    ),
    (["--mode=layers"], r"mode", r"layerwise"),
    (["--epochs=two"], r"epochs.*two", r"myllm train --help"),
    (["--epochs=0"], r"epochs is 0", r"it must be above 0"),
    (["--epoch=2"], r"unknown option --epoch", r"did you mean --epochs"),
    (["--preset=photo"], r"preset", r"photos"),
    (["--stages=[everything]"], r"stages \['everything'\]", r"expected one or more of new, text and all"),
    (["--precision=fp16"], r"precision fp16", r"take fp32 or bf16"),
    (["--config=nowhere.yaml"], r"--config nowhere.yaml: cannot be read", r"No such file"),
]


@pytest.mark.parametrize(("options", "fault", "fix"), OPTIONS, ids=[options[0] for options, _, _ in OPTIONS])
def test_train_names_options_that_cannot_work(
    train: Train, tmp_path: Path, capsys: Capture, options: list[str], fault: str, fix: str
) -> None:
    assert train(tmp_path / "run", *options, "--quiet") == 2
    message = printed_error(capsys)
    assert re.search(fault, message) and re.search(fix, message), message
    assert not (tmp_path / "run").exists()


def test_train_names_a_missing_gpu(
    train: Train, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert train(tmp_path / "run", "--devices=cuda") == 2
    assert "devices cuda: this machine has no usable GPU; take --devices cpu or auto" in printed_error(capsys)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (
            "epochs: 2\ntext:\n  n_layers: 3\n",
            r"mine.yaml, line 3: unknown option 'text.n_layers'; did you mean text.n_layer",
        ),
        ("text:\n  n_head: 2\n  n_embd: wide\n", r"mine.yaml, line 3: text.n_embd is 'wide'; expected a whole number"),
    ],
)
def test_train_names_a_wrong_option_in_yaml_with_its_line(
    tmp_path: Path, scenes: Path, capsys: Capture, content: str, fault: str
) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    words = ["train", "--config", str(tmp_path / "mine.yaml"), "--data", str(scenes), "--out", str(tmp_path / "run")]
    assert main(words) == 2
    assert re.search(fault, message := printed_error(capsys)), message


Make = Callable[[Path], object]
"""The fixture `hostile`."""


def hostile_pickle(file: Path, hostile: Make) -> None:
    torch.save(hostile(file.parent / "was-run"), file)


def truncated(file: Path, _: Make) -> None:
    file.write_bytes(file.read_bytes()[:-500])


def of_a_newer_format(file: Path, _: Make) -> None:
    torch.save(torch.load(file, weights_only=True) | {"format_version": 99}, file)


def missing(file: Path, _: Make) -> None:
    file.unlink()


@pytest.mark.parametrize("verb", ["caption", "evaluate"])
@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (hostile_pickle, r"captioner.pt: refused: .* could run code"),
        (truncated, r"captioner.pt: damaged, cut short"),
        (of_a_newer_format, r"captioner.pt: format version 99, this myllm reads up to 1; upgrade myllm"),
        (missing, r"captioner.pt: no such file; expected a captioner.pt or the run folder"),
    ],
)
def test_a_damaged_or_hostile_checkpoint_is_named_and_not_run(
    tiny_captioner_file: Path, scenes: Path, capsys: Capture, hostile: Make,
    verb: str, damage: Callable[[Path, Make], None], fault: str,
) -> None:
    damage(tiny_captioner_file, hostile)
    of_verb = {"caption": [str(scenes)], "evaluate": ["--data", str(scenes)]}[verb]
    out = tiny_captioner_file.parents[1] / "out"
    words = [verb, *of_verb, "--model", str(tiny_captioner_file.parent), "--out", str(out)]
    assert main(words) == 1
    assert re.search(fault, message := printed_error(capsys)), message
    assert not (tiny_captioner_file.parent / "was-run").exists() and not out.exists()


@pytest.mark.parametrize("damage", [hostile_pickle, truncated])
def test_a_damaged_or_hostile_last_pt_is_named_and_not_run(
    train: Train,
    tiny_run: Path,
    tmp_path: Path,
    capsys: Capture,
    hostile: Make,
    damage: Callable[[Path, Make], None],
) -> None:
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    damage(out / "last.pt", hostile)
    shutil.copy(out / "last.pt", out / "last.previous.pt")
    assert train(out, "--epochs=5", "--resume", "--quiet") == 1
    assert f"{out}/last.pt" in (message := printed_error(capsys)) and "--overwrite" in message
    assert not (out / "was-run").exists()
    assert (out / "captioner.pt").read_bytes() == (tiny_run / "captioner.pt").read_bytes()


def test_a_picture_of_one_pixel_trains_like_any_other(train: Train, tiny_picture_folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tiny_picture_folder / "flickr30k_images/scene3.png")
    assert train(tmp_path / "run", "--max-steps=1", "--quiet", data=tiny_picture_folder) == 0


@pytest.mark.slow
def test_train_writes_utf8_and_finishes_if_the_terminal_cannot_print_a_caption(
    tiny: list[str], tiny_picture_folder: Path, tmp_path: Path
) -> None:
    results = tiny_picture_folder / "results.csv"
    results.write_text(results.read_text(encoding="utf-8").replace("a ", "一个 "), encoding="utf-8")
    command = [sys.executable, "-m", "myllm", "train", "--data", str(tiny_picture_folder), "--out", "run", *tiny]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "cp1252"}
    ran = subprocess.run([*command, "--epochs=1"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert r"\u4e00\u4e2a" in ran.stdout  # the samples
    assert "一个" in (tmp_path / "run/samples.jsonl").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "run/metrics.json").read_text(encoding="utf-8"))["protocol"]["split"] == "val"
