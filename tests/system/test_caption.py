"""`myllm caption`: every picture in order; a broken one does not end the run."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from myllm.apps.cli import main
from myllm.data.images import load_image
from myllm.evaluation.heatmaps import draw_words
from myllm.inference.captioner import Captioner

Capture = pytest.CaptureFixture[str]
Jsonl = Callable[[Path], list[dict[str, object]]]


def caption(model: Path, *words: str | Path) -> int:
    return main(["caption", *map(str, words), "--model", str(model), "--devices=cpu", "--quiet"])


def test_caption_prints_each_path_with_its_caption(
    tiny_run: Path, pictures: list[Path], capfd: Capture
) -> None:
    assert caption(tiny_run, *pictures) == 0
    expected = Captioner.load(tiny_run).caption_batch(pictures)
    assert capfd.readouterr().out.splitlines() == [
        f"{path}: {result.text}" for path, result in zip(pictures, expected, strict=True)
    ]


def test_caption_json_prints_a_row_for_each_picture_and_nothing_else(
    tiny_run: Path, pictures: list[Path], capfd: Capture
) -> None:
    assert caption(tiny_run, *pictures, "--json", "--decode.beams=3") == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [row["image"] for row in rows] == [str(path) for path in pictures]
    expected = Captioner.load(tiny_run).caption_batch(pictures, beams=3)
    assert [row["caption"] for row in rows] == [result.text for result in expected]
    assert [row["alternatives"] for row in rows] == [result.alternatives for result in expected]
    assert [row["ended_by"] for row in rows] == [result.ended_by for result in expected]
    assert all(len(row["alternatives"]) == 2 and row["score"] < 0 for row in rows)


def test_caption_keeps_the_order_of_the_paths_in_any_batch_size(
    tiny_run: Path, pictures: list[Path], tmp_path: Path, jsonl: Jsonl
) -> None:
    for size in (2, 32):
        options = ["--out", tmp_path / f"{size}.jsonl", "--batch-size", str(size)]
        assert caption(tiny_run, *reversed(pictures), *options) == 0
    small, large = (jsonl(tmp_path / f"{size}.jsonl") for size in (2, 32))
    assert [row["image"] for row in small] == [str(path) for path in reversed(pictures)]
    assert [row["caption"] for row in small] == [row["caption"] for row in large]


def test_caption_of_a_folder_takes_pictures_of_subfolders_and_no_other_files(
    tiny_run: Path, pictures: list[Path], tmp_path: Path, jsonl: Jsonl
) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    shutil.copy(pictures[0], tmp_path / "in/deep/b.PNG")
    shutil.copy(pictures[1], tmp_path / "in/a.png")
    (tmp_path / "in/notes.txt").write_text("no picture")
    assert caption(tiny_run, tmp_path / "in", "--out", tmp_path / "out.jsonl") == 0
    assert [row["image"] for row in jsonl(tmp_path / "out.jsonl")] == [
        f"{tmp_path}/in/a.png", f"{tmp_path}/in/deep/b.PNG",
    ]


def test_caption_of_a_glob_takes_its_matches_unless_a_file_has_that_name(
    tiny_run: Path, pictures: list[Path], tmp_path: Path, jsonl: Jsonl
) -> None:
    for name, picture in zip(("a[1].png", "b1.png", "b2.png"), pictures, strict=False):
        shutil.copy(picture, tmp_path / name)
    assert caption(tiny_run, tmp_path / "b?.png", tmp_path / "a[1].png", "--out", tmp_path / "out.jsonl") == 0
    names = [Path(str(row["image"])).name for row in jsonl(tmp_path / "out.jsonl")]
    assert names == ["b1.png", "b2.png", "a[1].png"]


def test_caption_reports_a_broken_picture_and_captions_the_others(
    tiny_run: Path, pictures: list[Path], tmp_path: Path, jsonl: Jsonl, capfd: Capture
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(pictures[0].read_bytes()[:100])
    assert caption(tiny_run, pictures[0], broken, pictures[1], "--out", tmp_path / "out.jsonl") == 0
    assert [row["image"] for row in jsonl(tmp_path / "out.jsonl")] == [str(pictures[0]), str(pictures[1])]
    [error] = jsonl(tmp_path / "out.jsonl.errors.jsonl")
    assert error["image"] == str(broken) and "damaged picture" in str(error["error"])
    assert capfd.readouterr().err.count(str(broken)) == 1


def test_caption_removes_the_errors_file_of_an_earlier_run(
    tiny_run: Path, pictures: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "out.jsonl").touch()
    (tmp_path / "out.jsonl.errors.jsonl").write_text('{"image": "gone.png", "error": "old"}\n')
    assert caption(tiny_run, pictures[0], "--out", tmp_path / "out.jsonl", "--overwrite") == 0
    assert not (tmp_path / "out.jsonl.errors.jsonl").exists()


def test_caption_fails_if_every_picture_is_broken(
    tiny_run: Path, tmp_path: Path, jsonl: Jsonl, capfd: Capture
) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no picture")
    assert caption(tiny_run, tmp_path / "a.png", tmp_path / "b.png", "--out", tmp_path / "out.jsonl") == 1
    assert len(jsonl(tmp_path / "out.jsonl.errors.jsonl")) == 2


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("empty", "empty: no pictures in this folder or its subfolders"),
        ("x" * 300, "cannot be read (File name too long)"),
        ("nowhere.png", "nowhere.png: no such file or folder, and no file matches it as a glob"),
        ("https://example.org/dog.jpg", "web addresses are not downloaded; save the picture and give its path"),
    ],
)
def test_caption_names_a_path_without_pictures_before_anything_is_written(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture, word: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert caption(tiny_run, word, "--out", "out.jsonl") == 1
    assert reason in capfd.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_caption_refuses_and_keeps_an_existing_file_of_another_kind(
    tiny_run: Path, pictures: list[Path], tmp_path: Path, capfd: Capture
) -> None:
    (tmp_path / "out.jsonl").write_text("mine")
    assert caption(tiny_run, pictures[0], "--out", tmp_path / "out.jsonl") == 1
    assert f"{tmp_path}/out.jsonl: ends with b'mine', which is not a row of captions" in capfd.readouterr().err
    assert (tmp_path / "out.jsonl").read_text() == "mine"


def test_caption_names_an_out_that_cannot_be_written(
    tiny_run: Path, pictures: list[Path], tmp_path: Path, capfd: Capture
) -> None:
    (tmp_path / "file").touch()
    assert caption(tiny_run, pictures[0], "--out", tmp_path / "file/out.jsonl") == 1
    assert f"--out {tmp_path}/file/out.jsonl: cannot be written to" in capfd.readouterr().err


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (3, 2)])
def test_caption_takes_the_smallest_pictures(
    tiny_run: Path, tmp_path: Path, capfd: Capture, size: tuple[int, int]
) -> None:
    Image.new("RGB", size).save(tmp_path / "dot.png")
    assert caption(tiny_run, tmp_path / "dot.png") == 0
    assert capfd.readouterr().out.startswith(f"{tmp_path}/dot.png: ")


@pytest.mark.skipif(os.name != "posix", reason="names are bytes only on POSIX")
def test_caption_returns_a_name_that_is_not_utf8_as_it_was(
    tiny_run: Path, pictures: list[Path], tmp_path: Path, jsonl: Jsonl, capfd: Capture
) -> None:
    odd = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Path(os.fsdecode(odd)).write_bytes(pictures[0].read_bytes())
    assert caption(tiny_run, tmp_path, "--out", tmp_path / "out.jsonl") == 0
    assert [os.fsencode(str(row["image"])) for row in jsonl(tmp_path / "out.jsonl")] == [odd]
    assert caption(tiny_run, tmp_path) == 0
    assert r"caf\udce9.png: " in capfd.readouterr().out


def test_caption_refuses_a_batch_size_of_0(tiny_run: Path, pictures: list[Path], capfd: Capture) -> None:
    assert caption(tiny_run, pictures[0], "--batch-size=0") == 2
    assert "--batch_size is 0; it must be above 0" in capfd.readouterr().err


def test_heatmaps_are_a_file_for_each_picture_with_a_panel_for_each_word(
    tiny_run: Path, pictures: list[Path], tmp_path: Path, capfd: Capture
) -> None:
    (tmp_path / "other").mkdir()
    namesake = Path(shutil.copy(pictures[1], tmp_path / "other" / pictures[0].name))
    broken = tmp_path / "broken.png"
    broken.touch()
    assert caption(tiny_run, *pictures[:2], broken, namesake, "--heatmaps", tmp_path / "looked") == 0
    name = pictures[0].name
    assert sorted(file.name for file in (tmp_path / "looked").iterdir()) == sorted(
        (f"{name}.png", f"{pictures[1].name}.png", f"{name}-2.png")
    )
    # the namesake is a copy of the second picture
    files = (f"{name}.png", f"{pictures[1].name}.png", f"{name}-2.png")
    first, second, namesakes = ((tmp_path / "looked" / file).read_bytes() for file in files)
    assert namesakes == second != first
    captioner = Captioner.load(tiny_run)
    result = captioner.caption(pictures[0])
    expected = draw_words(load_image(pictures[0]), result.words, result.attention, result.text)
    with Image.open(tmp_path / "looked" / f"{name}.png") as image:
        assert image.tobytes() == expected.tobytes()


def test_heatmaps_that_exist_are_kept_unless_overwritten(
    tiny_run: Path, pictures: list[Path], tmp_path: Path, capfd: Capture
) -> None:
    existing = tmp_path / f"{pictures[0].name}.png"
    existing.write_text("mine")
    assert caption(tiny_run, *pictures[:2], "--heatmaps", tmp_path) == 2
    output = capfd.readouterr()
    assert f"--heatmaps {tmp_path}: {existing.name} is there already; replace it by --overwrite" in output.err
    assert output.out == "" and existing.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1
    assert caption(tiny_run, *pictures[:2], "--heatmaps", tmp_path, "--overwrite") == 0
    assert existing.read_bytes().startswith(b"\x89PNG") and len(list(tmp_path.iterdir())) == 2


def test_heatmaps_of_a_picture_given_twice_are_two_files(
    tiny_run: Path, pictures: list[Path], tmp_path: Path, capfd: Capture
) -> None:
    broken = tmp_path / "broken.png"
    broken.touch()
    assert caption(tiny_run, pictures[0], broken, broken, pictures[0], "--heatmaps", tmp_path / "maps") == 0
    name = pictures[0].name
    assert sorted(file.name for file in (tmp_path / "maps").iterdir()) == [f"{name}-2.png", f"{name}.png"]


def test_heatmaps_of_a_list_in_standard_input(
    tiny_run: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jsonl: Jsonl
) -> None:
    paths = "".join(f"{picture}\n" for picture in pictures[:2])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(paths.encode())))
    assert caption(tiny_run, "-", "--heatmaps", tmp_path / "maps", "--out", tmp_path / "out.jsonl") == 0
    assert [row["image"] for row in jsonl(tmp_path / "out.jsonl")] == [str(picture) for picture in pictures[:2]]
    assert len(list((tmp_path / "maps").iterdir())) == 2


def test_several_captions_are_written_whatever_the_fields(
    tiny_run: Path, pictures: list[Path], tmp_path: Path, jsonl: Jsonl, capfd: Capture
) -> None:
    options = ["--n=3", "--fields=score"]
    assert caption(tiny_run, pictures[0], *options) == 0
    texts = [line.partition(": ")[2] for line in capfd.readouterr().out.splitlines()]
    assert len(texts) == 3
    assert caption(tiny_run, pictures[0], *options, "--json") == 0
    printed = json.loads(capfd.readouterr().out)
    assert caption(tiny_run, pictures[0], *options, "--out", tmp_path / "out.jsonl") == 0
    [written] = jsonl(tmp_path / "out.jsonl")
    for row in (printed, written):
        assert [row["caption"], *row["alternatives"]] == texts and "confidence" not in row
    assert caption(tiny_run, pictures[0], *options, "--to=txt", "--out", tmp_path / "texts") == 0
    assert (tmp_path / "texts" / pictures[0].name).with_suffix(".txt").read_text().splitlines() == texts


def test_a_glob_is_captioned_again_although_it_matches_what_was_written(
    tiny_run: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pics").mkdir()
    shutil.copy(pictures[0], "pics/a.png")
    for words in (["pics/*"], ["pics/*"], ["pics/a.png", "pics/a.txt"]):
        for options in (["--to=txt"], ["--out=pics/o.jsonl"]):
            assert caption(tiny_run, *words, *options, "--strict") == 0
    assert capfd.readouterr().err == ""


def test_captions_are_written_although_standard_output_is_closed(
    tiny_run: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jsonl: Jsonl
) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # as after >&-
    assert caption(tiny_run, pictures[0], "--out", tmp_path / "out.jsonl", "--json") == 0
    assert len(jsonl(tmp_path / "out.jsonl")) == 1


def sampled(model: Path, pictures: list[Path], capfd: Capture, *options: str) -> list[str]:
    assert caption(model, *pictures, "--decode.do_sample", "--decode.temperature=3", *options) == 0
    return capfd.readouterr().out.splitlines()


def test_seed_repeats_sampled_captions_in_any_batch_size(tiny_run: Path, pictures: list[Path], capfd: Capture) -> None:
    first = sampled(tiny_run, pictures, capfd, "--seed=5")
    assert sampled(tiny_run, pictures, capfd, "--seed=5", "--batch-size=2") == first
    assert sampled(tiny_run, pictures, capfd, "--seed=6") != first


def test_a_path_that_begins_with_dashes_follows_two_dashes(
    tiny_run: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(pictures[0], "--my-pic.png")
    assert main(["caption", "--model", str(tiny_run), "--devices=cpu", "--quiet", "--", "--my-pic.png"]) == 0
    assert capfd.readouterr().out.startswith("--my-pic.png: ")


def test_decode_options_given_together_equal_single_ones(tiny_run: Path, pictures: list[Path], capfd: Capture) -> None:
    assert caption(tiny_run, *pictures, "--json", "--decode", "{beams: 3}") == 0
    together = capfd.readouterr().out
    assert caption(tiny_run, *pictures, "--json", "--decode.beams=3") == 0
    assert capfd.readouterr().out == together and '"alternatives": []' not in together


@pytest.mark.skipif(os.name != "posix", reason="other systems do not allow such names")
def test_control_characters_of_names_are_escaped_on_the_terminal(
    tiny_run: Path, pictures: list[Path], tmp_path: Path, capfd: Capture
) -> None:
    shutil.copy(pictures[0], tmp_path / "a\x1b[31m\n.png")
    (tmp_path / "b\x1b[2J.png").touch()
    assert caption(tiny_run, tmp_path) == 0
    output = capfd.readouterr()
    assert r"a\x1b[31m\n.png: " in output.out and r"b\x1b[2J.png" in output.err
    assert "\x1b" not in output.out + output.err and output.out.count("\n") == 1


@pytest.mark.slow
def test_json_is_valid_and_text_is_printed_by_a_terminal_that_lacks_its_characters(
    tiny_run: Path, pictures: list[Path], tmp_path: Path
) -> None:
    encoding = "cp1252"
    name = "家 📦.png"
    shutil.copy(pictures[0], tmp_path / name)
    command = [sys.executable, "-m", "myllm", "caption", name, "--model", str(tiny_run), "--quiet"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": encoding}
    for option in ("--json", "--out=out.jsonl", "--json=false"):
        ran = subprocess.run([*command, option], cwd=tmp_path, env=environment, capture_output=True)
        assert ran.returncode == 0, ran.stderr
        if option == "--json":
            assert json.loads(ran.stdout.decode(encoding))["image"] == name
    assert json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))["image"] == name
    assert ran.stdout.decode(encoding).startswith(name.encode(encoding, "backslashreplace").decode(encoding))
