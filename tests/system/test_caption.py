"""`myllm caption`: every picture once and in order, and no bad one ends the run."""

import json
import os
import shutil
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


def test_text_names_each_picture_with_the_captioners_own_caption(
    tiny_run: Path, pictures: list[Path], capfd: Capture
) -> None:
    assert caption(tiny_run, *pictures) == 0
    expected = Captioner.load(tiny_run).caption_batch(pictures)
    assert capfd.readouterr().out.splitlines() == [
        f"{path}: {one.text}" for path, one in zip(pictures, expected, strict=True)
    ]


def test_json_prints_a_row_a_picture_and_nothing_else(tiny_run: Path, pictures: list[Path], capfd: Capture) -> None:
    assert caption(tiny_run, *pictures, "--json", "--decode.beams=3") == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [row["image"] for row in rows] == [str(path) for path in pictures]
    expected = Captioner.load(tiny_run).caption_batch(pictures, beams=3)
    assert [row["caption"] for row in rows] == [one.text for one in expected]
    assert [row["alternatives"] for row in rows] == [one.alternatives for one in expected]
    assert all(len(row["alternatives"]) == 2 and row["score"] < 0 for row in rows)


def test_the_order_is_that_of_the_words_whatever_the_batch(
    tiny_run: Path, pictures: list[Path], tmp_path: Path, jsonl: Jsonl
) -> None:
    for size in (2, 32):
        options = ["--out", tmp_path / f"{size}.jsonl", "--batch-size", str(size)]
        assert caption(tiny_run, *reversed(pictures), *options) == 0
    small, large = (jsonl(tmp_path / f"{size}.jsonl") for size in (2, 32))
    assert [row["image"] for row in small] == [str(path) for path in reversed(pictures)]
    assert [row["caption"] for row in small] == [row["caption"] for row in large]


def test_a_folder_is_searched_to_its_bottom_and_other_files_are_passed_over(
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


def test_a_glob_is_searched_and_a_name_that_looks_like_one_is_a_name(
    tiny_run: Path, pictures: list[Path], tmp_path: Path, jsonl: Jsonl
) -> None:
    for name in ("a[1].png", "b1.png", "b2.png"):
        shutil.copy(pictures[0], tmp_path / name)
    assert caption(tiny_run, tmp_path / "b?.png", tmp_path / "a[1].png", "--out", tmp_path / "out.jsonl") == 0
    found = [Path(str(row["image"])).name for row in jsonl(tmp_path / "out.jsonl")]
    assert found == ["b1.png", "b2.png", "a[1].png"]


def test_one_broken_picture_is_reported_and_the_others_are_captioned(
    tiny_run: Path, pictures: list[Path], tmp_path: Path, jsonl: Jsonl, capfd: Capture
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(pictures[0].read_bytes()[:100])
    assert caption(tiny_run, pictures[0], broken, pictures[1], "--out", tmp_path / "out.jsonl") == 0
    assert [row["image"] for row in jsonl(tmp_path / "out.jsonl")] == [str(pictures[0]), str(pictures[1])]
    [error] = jsonl(tmp_path / "out.jsonl.errors.jsonl")
    assert error["image"] == str(broken) and "damaged picture" in str(error["error"])
    assert str(broken) in capfd.readouterr().err


def test_errors_of_an_earlier_run_do_not_outlive_it(tiny_run: Path, pictures: list[Path], tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").touch()
    (tmp_path / "out.jsonl.errors.jsonl").write_text('{"image": "gone.png", "error": "old"}\n')
    assert caption(tiny_run, pictures[0], "--out", tmp_path / "out.jsonl", "--overwrite") == 0
    assert not (tmp_path / "out.jsonl.errors.jsonl").exists()


def test_where_every_picture_is_broken_the_run_has_failed(
    tiny_run: Path, tmp_path: Path, jsonl: Jsonl, capfd: Capture
) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no picture")
    assert caption(tiny_run, tmp_path / "a.png", tmp_path / "b.png", "--out", tmp_path / "out.jsonl") == 1
    assert len(jsonl(tmp_path / "out.jsonl.errors.jsonl")) == 2


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("empty", "empty: no pictures in this folder or below"),
        ("nowhere.png", "nowhere.png: no such file or folder, and no file matches it as a glob"),
        ("https://example.org/dog.jpg", "addresses are not fetched; save the picture and give its path"),
    ],
)
def test_what_cannot_be_found_is_told_before_anything_is_written(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture, word: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert caption(tiny_run, word, "--out", "out.jsonl") == 1
    assert reason in capfd.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_an_existing_out_is_refused_and_kept(
    tiny_run: Path, pictures: list[Path], tmp_path: Path, capfd: Capture
) -> None:
    (tmp_path / "out.jsonl").write_text("mine")
    assert caption(tiny_run, pictures[0], "--out", tmp_path / "out.jsonl") == 2
    assert f"--out {tmp_path}/out.jsonl is there already; replace it by --overwrite" in capfd.readouterr().err
    assert (tmp_path / "out.jsonl").read_text() == "mine"


def test_an_out_that_cannot_be_written_to_is_told(
    tiny_run: Path, pictures: list[Path], tmp_path: Path, capfd: Capture
) -> None:
    (tmp_path / "file").touch()
    assert caption(tiny_run, pictures[0], "--out", tmp_path / "file/out.jsonl") == 1
    assert f"--out {tmp_path}/file/out.jsonl: cannot be written to" in capfd.readouterr().err


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (3, 2)])
def test_the_smallest_pictures_are_captioned(
    tiny_run: Path, tmp_path: Path, capfd: Capture, size: tuple[int, int]
) -> None:
    Image.new("RGB", size).save(tmp_path / "dot.png")
    assert caption(tiny_run, tmp_path / "dot.png") == 0
    assert capfd.readouterr().out.startswith(f"{tmp_path}/dot.png: ")


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX alone")
def test_a_name_of_odd_bytes_comes_back_as_it_was(
    tiny_run: Path, pictures: list[Path], tmp_path: Path, jsonl: Jsonl, capfd: Capture
) -> None:
    odd = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Path(os.fsdecode(odd)).write_bytes(pictures[0].read_bytes())
    assert caption(tiny_run, tmp_path, "--out", tmp_path / "out.jsonl") == 0
    assert [os.fsencode(str(row["image"])) for row in jsonl(tmp_path / "out.jsonl")] == [odd]
    assert caption(tiny_run, tmp_path) == 0
    assert r"caf\udce9.png: " in capfd.readouterr().out


def test_a_batch_of_nothing_is_refused(tiny_run: Path, pictures: list[Path], capfd: Capture) -> None:
    assert caption(tiny_run, pictures[0], "--batch-size=0") == 2
    assert "--batch_size 0" in capfd.readouterr().err


def test_heatmaps_are_a_file_for_each_picture_with_a_panel_a_word(
    tiny_run: Path, pictures: list[Path], tmp_path: Path, capfd: Capture
) -> None:
    (tmp_path / "other").mkdir()
    namesake = Path(shutil.copy(pictures[1], tmp_path / "other" / pictures[0].name))
    broken = tmp_path / "broken.png"
    broken.touch()
    assert caption(tiny_run, *pictures[:2], broken, namesake, "--heatmaps", tmp_path / "looked") == 0
    name = pictures[0].name
    assert sorted(one.name for one in (tmp_path / "looked").iterdir()) == sorted(
        (f"{name}.png", f"{pictures[1].name}.png", f"{name}-2.png")
    )
    # the namesake is a copy of the second picture
    files = (f"{name}.png", f"{pictures[1].name}.png", f"{name}-2.png")
    drawn, other, copy = ((tmp_path / "looked" / file).read_bytes() for file in files)
    assert copy == other != drawn
    captioner = Captioner.load(tiny_run)
    told = captioner.caption(pictures[0])
    expected = draw_words(load_image(pictures[0]), told.words, told.attention, told.text)
    with Image.open(tmp_path / "looked" / f"{name}.png") as image:
        assert image.tobytes() == expected.tobytes()


def test_heatmaps_that_are_there_are_kept_unless_they_may_be_replaced(
    tiny_run: Path, pictures: list[Path], tmp_path: Path, capfd: Capture
) -> None:
    mine = tmp_path / f"{pictures[0].name}.png"
    mine.write_text("mine")
    assert caption(tiny_run, *pictures[:2], "--heatmaps", tmp_path) == 2
    told = capfd.readouterr()
    assert f"--heatmaps {tmp_path}: {mine.name} is there already; replace it by --overwrite" in told.err
    assert told.out == "" and mine.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1
    assert caption(tiny_run, *pictures[:2], "--heatmaps", tmp_path, "--overwrite") == 0
    assert mine.read_bytes().startswith(b"\x89PNG") and len(list(tmp_path.iterdir())) == 2
