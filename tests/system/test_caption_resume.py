"""`myllm caption --out`: each picture has one caption, whatever interrupts the run; and other forms than JSONL."""

import csv
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pyarrow.parquet import read_table

from myllm.apps.caption_log import CaptionLog
from myllm.apps.cli import main
from myllm.errors import MyLLMError
from myllm.files import lock_file
from myllm.inference.captioner import Captioner

Capture = pytest.CaptureFixture[str]
Jsonl = Callable[[Path], list[dict[str, Any]]]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with five pictures in pics/ and one that is broken."""
    (tmp_path / "pics").mkdir()
    for number, picture in enumerate(pictures):
        shutil.copy(picture, tmp_path / f"pics/{number}.png")
    (tmp_path / "pics/broken.png").write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words(model: Path, *more: str) -> list[str]:
    return ["caption", "pics", "--model", str(model), "--devices=cpu", "--batch-size=2", *more]


def caption(model: Path, *more: str) -> int:
    return main(words(model, "--quiet", *more))


def expected_captions(model: Path, **decode: Any) -> dict[str, str]:
    paths = [f"pics/{number}.png" for number in range(5)]
    captions = Captioner.load(model).caption_batch(map(Path, paths), **decode)
    return {path: caption.text for path, caption in zip(paths, captions, strict=True)}


def captions_of(rows: list[dict[str, Any]]) -> dict[str, str]:
    assert len({row["image"] for row in rows}) == len(rows)
    return {row["image"]: row["caption"] for row in rows}


@pytest.mark.slow
def test_caption_that_is_killed_again_and_again_captions_each_picture_once(
    tiny_run: Path, folder: Path, jsonl: Jsonl, stopped: Any
) -> None:
    for number in range(5, 40):
        Image.new("RGB", (64, 64), (number, 99, 0)).save(folder / f"pics/{number}.png")
    log, chance, size = Path("texts/.myllm-captions.jsonl"), random.Random(0), 0
    command = words(tiny_run, "--to=txt", "--out=texts", "--decode.max_new_tokens=3", "--fields=score")
    for _ in range(3):
        killed = stopped(command, signal.SIGKILL, log, size=size + chance.randrange(400))
        assert killed.returncode == -signal.SIGKILL and log.stat().st_size > size
        size = log.stat().st_size
    assert main(command) == 0
    rows = captions_of(jsonl(log))
    assert rows.keys() == {f"pics/{number}.png" for number in range(40)}
    assert [row["image"] for row in jsonl(Path(f"{log}.errors.jsonl"))] == ["pics/broken.png"]
    texts = {path.stem: path.read_text() for path in Path("texts").glob("*.txt")}
    assert texts == {Path(image).stem: f"{text}\n" for image, text in rows.items()}


def test_csv_has_the_rows_of_the_log(tiny_run: Path, folder: Path) -> None:
    assert caption(tiny_run, "--out=out.csv", "--fields=score") == 0
    with (folder / "out.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert captions_of(table) == expected_captions(tiny_run) and list(table[0]) == ["image", "caption", "score"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_caption_that_is_stopped_keeps_what_is_done_and_prints_the_command_that_resumes(
    tiny_run: Path, folder: Path, jsonl: Jsonl, stopped: Any, number: signal.Signals, code: int
) -> None:
    for index in range(5, 100):
        Image.new("RGB", (64, 64), (index, 99, 0)).save(folder / f"pics/{index}.png")
    run = stopped(words(tiny_run, "--out", "out.jsonl", "--quiet"), number, Path("out.jsonl"))
    assert run.returncode == code
    command = f"myllm caption pics --batch_size 2 --devices cpu --model {tiny_run} --out out.jsonl"
    assert f"Resume with: {command}" in run.stderr
    done = jsonl(folder / "out.jsonl")
    assert 0 < len(done) < 100
    assert caption(tiny_run, "--out", "out.jsonl") == 0
    assert len(captions_of(jsonl(folder / "out.jsonl"))) == 100 and jsonl(folder / "out.jsonl")[: len(done)] == done


def test_a_finished_run_is_not_repeated_and_a_new_picture_is_added(
    tiny_run: Path, folder: Path, jsonl: Jsonl, capfd: Capture
) -> None:
    assert caption(tiny_run, "--out", "out.jsonl") == 0
    before = (folder / "out.jsonl").read_bytes()
    assert captions_of(jsonl(folder / "out.jsonl")) == expected_captions(tiny_run)
    shutil.copy("pics/0.png", "pics/00.png")
    assert main(words(tiny_run, "--out", "out.jsonl")) == 0
    rows = jsonl(folder / "out.jsonl")
    assert (folder / "out.jsonl").read_bytes().startswith(before) and rows[-1] == rows[0] | {"image": "pics/00.png"}
    summary = "1 picture captioned in out.jsonl, 1 of them copies of others, 5 had a caption already"
    assert summary in capfd.readouterr().err


def test_equal_pictures_are_captioned_once_and_written_for_each(
    tiny_run: Path, folder: Path, jsonl: Jsonl, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        shutil.copy(f"pics/{number}.png", f"pics/{number}-copy.png")
    count, original = [], Captioner.caption_tensors
    monkeypatch.setattr(
        Captioner, "caption_tensors",
        lambda self, images, *rest, **more: count.append(len(images)) or original(self, images, *rest, **more),
    )
    assert caption(tiny_run, "--out", "out.jsonl") == 0
    rows = captions_of(jsonl(folder / "out.jsonl"))
    assert len(rows) == 10 and sum(count) == 5
    assert all(rows[f"pics/{number}.png"] == rows[f"pics/{number}-copy.png"] for number in range(5))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--decode.beams=2", "decode.beams is 2, but the captions in --out out.jsonl were made with 1"),
        ("--precision=int8", 'precision is "int8", but'), ("--seed=3", "seed is 3, but"),
        ("--fields=words", 'fields is ["words"], but'),
    ],
)
def test_a_run_with_other_options_is_refused_unless_captions_may_be_mixed(
    tiny_run: Path, folder: Path, jsonl: Jsonl, capfd: Capture, option: str, message: str
) -> None:
    assert caption(tiny_run, "--out", "out.jsonl") == 0
    before = (folder / "out.jsonl").read_bytes()
    shutil.copy("pics/0.png", "pics/9.png")
    assert caption(tiny_run, "--out", "out.jsonl", option) == 2
    assert message in capfd.readouterr().err and (folder / "out.jsonl").read_bytes() == before
    assert caption(tiny_run, "--out", "out.jsonl", option, "--mixed") == 0
    assert (folder / "out.jsonl").read_bytes().startswith(before) and len(jsonl(folder / "out.jsonl")) == 6


def test_captions_of_another_program_are_not_continued_unless_mixed(
    tiny_run: Path, folder: Path, jsonl: Jsonl, capfd: Capture
) -> None:
    (folder / "out.jsonl").write_text('{"image": "pics/0.png", "caption": "mine"}\n')
    assert caption(tiny_run, "--out", "out.jsonl") == 2
    assert "without out.jsonl.run.json, which says how its captions were made" in capfd.readouterr().err
    assert caption(tiny_run, "--out", "out.jsonl", "--mixed") == 0
    assert captions_of(jsonl(folder / "out.jsonl")) == expected_captions(tiny_run) | {"pics/0.png": "mine"}


def test_overwrite_without_a_single_caption_keeps_the_old_table(tiny_run: Path, folder: Path) -> None:
    assert caption(tiny_run, "--out=out.csv") == 0
    before = (folder / "out.csv").read_bytes()
    for path in (folder / "pics").glob("[0-9].png"):
        path.unlink()  # what is left is broken
    assert caption(tiny_run, "--out=out.csv", "--overwrite") == 1
    assert (folder / "out.csv").read_bytes() == before


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_a_table_has_all_captions_after_some_were_made_again(tiny_run: Path, folder: Path, name: str) -> None:
    assert caption(tiny_run, f"--out={name}") == 0
    shutil.copy("pics/2.png", "pics/0.png")
    assert caption(tiny_run, f"--out={name}", "--only=changed") == 0
    Path("list.txt").write_text("pics/1.png\n")
    assert caption(tiny_run, f"--out={name}", "--only=list.txt", "--overwrite") == 0
    with Path(name).open("rb") as file:
        rows = list(csv.DictReader(io.TextIOWrapper(file))) if name == "out.csv" else read_table(file).to_pylist()
    assert captions_of(rows) == expected_captions(tiny_run)


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_a_table_of_your_own_is_not_replaced(tiny_run: Path, folder: Path, capfd: Capture, name: str) -> None:
    Path(name).write_text("mine")
    for option in ([], ["--mixed"]):
        assert caption(tiny_run, f"--out={name}", *option) == 2
        assert f"--out {name} is there already, and is not a table" in capfd.readouterr().err
    assert Path(name).read_text() == "mine"
    assert caption(tiny_run, f"--out={name}", "--overwrite") == 0 and Path(name).read_bytes() != b"mine"


def test_overwriting_loses_no_caption_if_it_is_interrupted(
    tiny_run: Path, folder: Path, jsonl: Jsonl, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    assert caption(tiny_run, "--out=out.jsonl") == 0
    old, new = expected_captions(tiny_run), expected_captions(tiny_run, prefix="a small")
    options = ["--out=out.jsonl", "--decode.prefix=a small", "--batch-size=1"]
    whole = CaptionLog.append

    def append_some(self: CaptionLog, rows: list[dict[str, Any]]) -> None:
        if self.size > 1.3 * size:
            raise MyLLMError("a fault")
        whole(self, rows)

    size = Path("out.jsonl").stat().st_size
    with monkeypatch.context() as patch:
        patch.setattr(CaptionLog, "append", append_some)
        assert caption(tiny_run, *options, "--overwrite") == 1
    rows = jsonl(folder / "out.jsonl")
    assert captions_of(rows[: len(old)]) == old and 0 < len(rows) - len(old) < len(old)
    assert captions_of(rows[len(old) :]).items() <= new.items()
    Path("pics/4.png").unlink()
    assert main(words(tiny_run, *options)) == 0
    assert "--overwrite was interrupted; it goes on with the pictures that are left" in capfd.readouterr().err
    done = jsonl(folder / "out.jsonl")
    assert captions_of(done).items() >= {name: new[name] for name in new if name != "pics/4.png"}.items()
    assert len(done) == len(captions_of(done))


def test_overwriting_with_the_same_options_keeps_captions_of_other_pictures(
    tiny_run: Path, folder: Path, jsonl: Jsonl
) -> None:
    assert caption(tiny_run, "--out=out.jsonl") == 0
    before = captions_of(jsonl(folder / "out.jsonl"))
    one = ["caption", "pics/0.png", "--model", str(tiny_run), "--quiet", "--devices=cpu", "--batch-size=2"]
    assert main([*one, "--out=out.jsonl", "--overwrite"]) == 0
    assert captions_of(jsonl(folder / "out.jsonl")) == before
    assert main([*one, "--out=out.jsonl", "--overwrite", "--decode.prefix=a small"]) == 0
    assert captions_of(jsonl(folder / "out.jsonl")).keys() == {"pics/0.png"}


def test_a_lower_minimum_of_confidence_tries_pictures_again_and_others_still_count_as_failed(
    tiny_run: Path, folder: Path, jsonl: Jsonl
) -> None:
    options = ["--out=out.jsonl", "--strict"]
    Path("pics/broken.png").unlink()
    assert caption(tiny_run, *options, "--min-confidence=0.9999") == 1
    errors = Path("out.jsonl.errors.jsonl").read_bytes()
    assert caption(tiny_run, *options, "--min-confidence=0.9999") == 1
    assert Path("out.jsonl.errors.jsonl").read_bytes() == errors and not Path("out.jsonl").exists()
    assert caption(tiny_run, *options, "--min-confidence=0.000001") == 0
    assert captions_of(jsonl(folder / "out.jsonl")) == expected_captions(tiny_run)


def test_a_missing_list_of_only_is_an_error(tiny_run: Path, folder: Path, capfd: Capture) -> None:
    assert caption(tiny_run, "--out=out.jsonl", "--only=faild") == 2
    message = "--only faild: there is no such list, and it is none of changed, failed, unprocessed; did you mean failed"
    assert message in capfd.readouterr().err


def test_a_damaged_list_of_errors_is_an_error_that_names_the_line(
    tiny_run: Path, folder: Path, capfd: Capture
) -> None:
    assert caption(tiny_run, "--out=out.jsonl") == 0
    with Path("out.jsonl.errors.jsonl").open("a") as file:
        file.write("no row\n")
    assert caption(tiny_run, "--out=out.jsonl") == 1
    assert "out.jsonl.errors.jsonl: line 2 is not a row of captions, b'no row'; correct or remove it" in (
        capfd.readouterr().err
    )


def test_an_index_that_cannot_be_written_is_an_error_in_words(tmp_path: Path) -> None:
    with CaptionLog(tmp_path / "out.jsonl") as log:
        log._index.execute("PRAGMA query_only = true")  # sqlite3 then refuses, as on a full disk
        with pytest.raises(MyLLMError, match=r"its index, a temporary file, cannot be written .*SQLITE_TMPDIR"):
            log.append([{"image": "0.png", "caption": "a cube"}])


def test_a_broken_link_is_listed_once(tiny_run: Path, folder: Path, jsonl: Jsonl) -> None:
    Path("pics/link.png").symlink_to("nowhere.png")
    for only in ([], ["--only=unprocessed"], ["--only=changed"], []):
        caption(tiny_run, "--out=out.jsonl", *only)
        images = [row["image"] for row in jsonl(Path("out.jsonl.errors.jsonl"))]
        assert sorted(images) == ["pics/broken.png", "pics/link.png"]


def test_overwrite_replaces_all_captions_and_keeps_the_old_ones_until_there_are_new_ones(
    tiny_run: Path, folder: Path, jsonl: Jsonl
) -> None:
    (folder / "out.jsonl").write_text("mine")
    assert main(["caption", "pics", "--model", "nowhere", "--out", "out.jsonl", "--overwrite", "--quiet"]) != 0
    assert (folder / "out.jsonl").read_text() == "mine"
    assert caption(tiny_run, "--out", "out.jsonl", "--overwrite") == 0
    assert captions_of(jsonl(folder / "out.jsonl")) == expected_captions(tiny_run)
    assert caption(tiny_run, "--out", "out.jsonl", "--overwrite", "--decode.beams=3") == 0
    assert captions_of(jsonl(folder / "out.jsonl")) == expected_captions(tiny_run, beams=3)


def test_overwriting_that_is_interrupted_before_its_first_caption_is_resumed(
    tiny_run: Path, folder: Path, jsonl: Jsonl, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    assert caption(tiny_run, "--to=txt", "--out=texts") == 0
    options = ["--to=txt", "--out=texts", "--decode.prefix=a small"]
    log = Path("texts/.myllm-captions.jsonl")
    before = log.read_bytes()

    def fail(*arguments: Any, **more: Any) -> Any:
        raise MyLLMError("a fault")

    with monkeypatch.context() as patch:
        patch.setattr(Captioner, "caption_tensors", fail)
        assert caption(tiny_run, *options, "--overwrite") == caption(tiny_run, *options) == 1
    assert log.read_bytes() == before
    assert main(words(tiny_run, *options)) == 0
    assert "--overwrite was interrupted; it goes on with the pictures that are left in texts" in capfd.readouterr().err
    expected = expected_captions(tiny_run, prefix="a small")
    assert captions_of(jsonl(log)) == expected
    assert {path.stem: path.read_text() for path in Path("texts").glob("*.txt")} == {
        Path(image).stem: f"{text}\n" for image, text in expected.items()
    }
    content = log.read_bytes()
    assert caption(tiny_run, *options) == 0 and log.read_bytes() == content


@pytest.mark.parametrize("only", ["list.txt", "failed", "unprocessed", "changed"])
def test_overwriting_some_captions_with_other_options_is_refused_unless_mixed(
    tiny_run: Path, folder: Path, capfd: Capture, only: str
) -> None:
    assert caption(tiny_run, "--out", "out.jsonl") == 0
    Path("list.txt").write_text("pics/0.png\n")
    before = Path("out.jsonl").read_bytes(), Path("out.jsonl.run.json").read_bytes()
    assert caption(tiny_run, "--out", "out.jsonl", f"--only={only}", "--overwrite", "--decode.beams=3") == 2
    message = "--mixed to keep them beside the new ones, or --overwrite without --only to make them again"
    assert message in capfd.readouterr().err
    assert (Path("out.jsonl").read_bytes(), Path("out.jsonl.run.json").read_bytes()) == before


def test_overwriting_a_list_resumes_where_it_was_interrupted(
    tiny_run: Path, folder: Path, jsonl: Jsonl, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert caption(tiny_run, "--out", "out.jsonl") == 0
    old, new = expected_captions(tiny_run), expected_captions(tiny_run, prefix="a small")
    Path("list.txt").write_text("".join(f"pics/{number}.png\n" for number in range(4)))
    options = ["--out", "out.jsonl", "--only=list.txt", "--decode.prefix=a small", "--batch-size=1", "--mixed"]
    original, count, before = Captioner.caption_tensors, 0, len(jsonl(folder / "out.jsonl"))

    def caption_once_and_fail(*arguments: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count % 2 == 0:
            raise MyLLMError("a fault")
        return original(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr("myllm.apps.caption.count_cores", lambda: 1)
        patch.setattr(Captioner, "caption_tensors", caption_once_and_fail)
        assert caption(tiny_run, *options, "--overwrite") == caption(tiny_run, *options) == 1
    # a fault may come before the row of the picture before it is written, which is then captioned again
    assert captions_of(jsonl(folder / "out.jsonl")[before:]).items() <= new.items()
    # another command in between neither ends nor repeats it
    shutil.copy("pics/4.png", "pics/new.png")
    assert caption(tiny_run, "--out", "out.jsonl", "--decode.prefix=a small") == 0
    assert caption(tiny_run, *options) == 0
    rows = captions_of(jsonl(folder / "out.jsonl"))
    assert rows == new | {"pics/4.png": old["pics/4.png"], "pics/new.png": old["pics/4.png"]}
    content = Path("out.jsonl").read_bytes()
    assert caption(tiny_run, *options) == 0 and Path("out.jsonl").read_bytes() == content


def test_only_chooses_pictures_by_what_became_of_them(tiny_run: Path, folder: Path, jsonl: Jsonl) -> None:
    assert caption(tiny_run, "--out", "out.jsonl", "--min-confidence=0.000001") == 0
    options = ["--out", "out.jsonl", "--min-confidence=0.000001"]
    shutil.copy("pics/0.png", "pics/broken.png")  # repaired
    shutil.copy("pics/1.png", "pics/new.png")
    shutil.copy("pics/2.png", "pics/0.png")  # changed
    assert caption(tiny_run, *options, "--only=unprocessed") == 0
    assert [row["image"] for row in jsonl(folder / "out.jsonl")][5:] == ["pics/new.png"]
    assert [row["image"] for row in jsonl(folder / "out.jsonl.errors.jsonl")] == ["pics/broken.png"]
    assert caption(tiny_run, *options, "--only=failed") == 0
    assert [row["image"] for row in jsonl(folder / "out.jsonl")][5:] == ["pics/new.png", "pics/broken.png"]
    assert not Path("out.jsonl.errors.jsonl").exists()
    before = captions_of(jsonl(folder / "out.jsonl"))
    assert caption(tiny_run, *options, "--only=changed") == 0
    assert captions_of(jsonl(folder / "out.jsonl")) == before | {"pics/0.png": before["pics/2.png"]}
    shutil.copy("pics/0.png", "pics/listed.png")
    shutil.copy("pics/0.png", "pics/unlisted.png")
    (folder / "list.txt").write_text("pics/listed.png\n")
    assert caption(tiny_run, *options, "--only=list.txt") == 0
    assert captions_of(jsonl(folder / "out.jsonl")).keys() == before.keys() | {"pics/listed.png"}


def test_only_failed_that_is_killed_still_knows_what_failed(
    tiny_run: Path, folder: Path, jsonl: Jsonl, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        Path(f"pics/broken{number}.png").write_bytes(b"no picture")
    assert caption(tiny_run, "--out", "out.jsonl") == 0
    for number in range(4):  # broken4.png stays broken
        Image.new("RGB", (64, 64), (number, 99, 0)).save(f"pics/broken{number}.png")
    options = ["--out", "out.jsonl", "--only=failed", "--batch-size=1"]
    whole = CaptionLog.append

    def append_or_die(self: CaptionLog, rows: list[dict[str, Any]]) -> None:
        if self.count == 6:
            raise RuntimeError("killed")
        whole(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(CaptionLog, "append", append_or_die)
        with pytest.raises(RuntimeError, match="killed"):
            main(words(tiny_run, "--quiet", *options))
    assert len(captions_of(jsonl(folder / "out.jsonl"))) == 6
    assert caption(tiny_run, *options) == 0
    assert len(captions_of(jsonl(folder / "out.jsonl"))) == 9
    failed = ["pics/broken.png", "pics/broken4.png"]
    assert sorted(row["image"] for row in jsonl(folder / "out.jsonl.errors.jsonl")) == failed


def test_text_files_of_your_own_stay_and_empty_ones_do_not_count(tiny_run: Path, folder: Path) -> None:
    expected = expected_captions(tiny_run)
    Path("pics/0.txt").write_text("mine\n")
    Path("pics/1.txt").write_text(" \n")
    assert caption(tiny_run, "--to=txt", "--template=a photo: {caption}", "--trigger=zxq") == 0
    assert Path("pics/0.txt").read_text() == "mine\n"
    for number in range(1, 5):
        assert Path(f"pics/{number}.txt").read_text() == f"zxq, a photo: {expected[f'pics/{number}.png']}\n"
    Path("pics/2.txt").write_text("")  # as a full disk leaves it
    assert caption(tiny_run, "--to=txt", "--template=a photo: {caption}", "--trigger=zxq") == 0
    assert Path("pics/2.txt").read_text() == f"zxq, a photo: {expected['pics/2.png']}\n"


@pytest.mark.parametrize(("option", "template"), [("--append", "old, {}\n"), ("--prepend", "{}, old\n")])
def test_captions_are_added_to_existing_text_files_once(
    tiny_run: Path, folder: Path, option: str, template: str
) -> None:
    Path("pics/0.txt").write_text("old\n")
    expected = expected_captions(tiny_run)
    for _ in range(2):
        assert caption(tiny_run, "--to=txt", option) == 0
        assert Path("pics/0.txt").read_text() == template.format(expected["pics/0.png"])
        assert Path("pics/1.txt").read_text() == f"{expected['pics/1.png']}\n"


def test_two_pictures_do_not_share_a_text_file(tiny_run: Path, folder: Path, jsonl: Jsonl) -> None:
    with Image.open("pics/1.png") as image:
        image.convert("RGB").save("pics/0.jpg")
    assert caption(tiny_run, "--to=txt", "--out=texts") == 0
    errors = jsonl(Path("texts/.myllm-captions.jsonl.errors.jsonl"))
    assert [row["image"] for row in errors] == ["pics/broken.png", "pics/0.png"]
    assert "texts/0.txt is the text file of pics/0.jpg; give --to jsonl, or rename one of them" in errors[1]["error"]


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])  # before and after the good one
def test_a_broken_picture_leaves_its_text_file_to_one_of_the_same_name(
    tiny_run: Path, folder: Path, suffix: str
) -> None:
    Path(f"pics/0{suffix}").write_bytes(b"no picture")
    assert caption(tiny_run, "--to=txt") == 0
    assert Path("pics/0.txt").read_text() == expected_captions(tiny_run)["pics/0.png"] + "\n"


def test_a_renamed_picture_is_captioned_if_the_text_of_its_old_name_was_removed(tiny_run: Path, folder: Path) -> None:
    assert caption(tiny_run, "--to=txt") == 0
    text = Path("pics/0.txt").read_text()
    Path("pics/0.png").rename("pics/0.webp")
    Path("pics/0.txt").unlink()
    assert caption(tiny_run, "--to=txt") == 0 and Path("pics/0.txt").read_text() == text


def test_a_text_file_that_cannot_be_written_fails_only_its_picture(tiny_run: Path, folder: Path, jsonl: Jsonl) -> None:
    names = ["0" * 251 + ".png", "1.png"]
    Path("pics/0.png").rename(f"pics/{names[0]}")
    Path("pics/1.txt").mkdir()
    for _ in range(2):
        assert caption(tiny_run, "--to=txt") == 0
        errors = jsonl(Path("pics/.myllm-captions.jsonl.errors.jsonl"))
        assert sorted(Path(row["image"]).name for row in errors) == ["1.png", "broken.png"]
        assert all(Path("pics", name).with_suffix(".txt").is_file() for name in (names[0], "2.png", "3.png", "4.png"))


@pytest.mark.parametrize("option", ["--append", "--prepend"])
def test_a_text_is_added_once_whatever_is_repeated(
    tiny_run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    expected = expected_captions(tiny_run)["pics/0.png"]
    own = Path("pics/0.txt")
    own.write_bytes(b"\xef\xbb\xbfold\r\nline 2\r\n")
    parts = ["old\r\nline 2", expected]
    text = "\ufeff" + ", ".join(parts if option == "--append" else parts[::-1]) + "\r\n"
    model, options = ["--model", str(tiny_run), "--quiet", "--devices=cpu"], ["--to=txt", option]
    for paths in (["pics"], ["pics"], ["pics/0.png"], [str(folder / "pics"), "pics"]):
        assert main(["caption", *paths, *model, *options]) == 0
        assert own.read_bytes().decode() == text
    assert main(["caption", "pics", *model, *options, "--overwrite"]) == 0 and own.read_bytes().decode() == text
    monkeypatch.chdir(folder / "pics")
    assert main(["caption", ".", *model, *options]) == 0 and own.name in os.listdir()
    assert Path("0.txt").read_bytes().decode() == text and not Path("pics").exists()
    Path("0.txt").write_text(f"{expected}, edited by hand")
    assert main(["caption", ".", *model, *options]) == 0
    assert Path("0.txt").read_text() == f"{expected}, edited by hand"


def test_overwriting_replaces_an_added_text(tiny_run: Path, folder: Path) -> None:
    Path("pics/0.txt").write_text("old\n")
    assert caption(tiny_run, "--to=txt", "--append") == 0
    new = expected_captions(tiny_run, prefix="a small")["pics/0.png"]
    assert caption(tiny_run, "--to=txt", "--append", "--decode.prefix=a small", "--overwrite") == 0
    assert Path("pics/0.txt").read_text() == f"old, {new}\n"


def test_parquet_has_the_rows_of_the_log(tiny_run: Path, folder: Path, jsonl: Jsonl) -> None:
    from datasets import Dataset

    assert caption(tiny_run, "--out", "out.parquet", "--n=2", "--fields=words,alternatives") == 0
    rows = [dict(row) for row in Dataset.from_parquet("out.parquet", cache_dir=str(folder / "cache"))]
    logged = [{name: row[name] for name in row if name != "digest"} for row in jsonl(Path("out.parquet.jsonl"))]
    assert rows == logged and all(len(row["alternatives"]) == 1 and row["words"][0]["text"] for row in rows)


def test_captions_with_too_little_confidence_are_listed_and_not_computed_again(
    tiny_run: Path, folder: Path, jsonl: Jsonl, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert caption(tiny_run, "--out", "all.jsonl") == 0
    confidences = sorted(row["confidence"] for row in jsonl(Path("all.jsonl")))
    options = ["--out", "out.jsonl", f"--min-confidence={confidences[2]}"]
    assert caption(tiny_run, *options) == 0
    assert sorted(row["confidence"] for row in jsonl(Path("out.jsonl"))) == confidences[2:]
    unsure = [row for row in jsonl(Path("out.jsonl.errors.jsonl")) if "confidence" in row]
    assert sorted(row["confidence"] for row in unsure) == confidences[:2]
    monkeypatch.setattr(Captioner, "caption_tensors", None)
    assert caption(tiny_run, *options) == 0


def test_strict_fails_if_any_picture_failed(tiny_run: Path, folder: Path) -> None:
    assert caption(tiny_run, "--out", "out.jsonl", "--strict") == 1
    Path("pics/broken.png").unlink()
    assert caption(tiny_run, "--out", "out.jsonl", "--strict") == 0


def test_two_runs_do_not_write_the_same_file(tiny_run: Path, folder: Path, capfd: Capture) -> None:
    with lock_file(Path(".out.jsonl.lock"), "out.jsonl", "file"):
        assert caption(tiny_run, "--out", "out.jsonl") == 2
    assert "--out out.jsonl is in use by process" in capfd.readouterr().err


@pytest.mark.slow
def test_a_full_disk_leaves_whole_rows_and_the_command_that_resumes(
    tiny_run: Path, folder: Path, jsonl: Jsonl
) -> None:
    for number in range(5, 40):
        Image.new("RGB", (64, 64), (number, 99, 0)).save(folder / f"pics/{number}.png")
    environment = os.environ | {"PYTHONPATH": f"{os.environ['PYTHONPATH']}{os.pathsep}{ROOT / 'src'}"}
    run = subprocess.run(
        [sys.executable, "-m", "myllm", *words(tiny_run, "--out", "out.jsonl", "--quiet")], env=environment,
        stderr=subprocess.PIPE, text=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)),
    )
    assert run.returncode == 1 and "cannot write" in run.stderr and "Resume with: myllm caption" in run.stderr
    assert "Traceback" not in run.stderr
    done = jsonl(Path("out.jsonl"))
    assert 0 < len(done) < 40
    assert caption(tiny_run, "--out", "out.jsonl") == 0
    assert len(captions_of(jsonl(Path("out.jsonl")))) == 40 and jsonl(Path("out.jsonl"))[: len(done)] == done


def test_an_output_folder_that_vanishes_ends_the_run_with_a_message(
    tiny_run: Path, folder: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Captioner.caption_tensors

    def caption_and_remove(self: Captioner, *arguments: Any, **more: Any) -> Any:
        if Path("gone/out.jsonl").exists():
            shutil.rmtree("gone", ignore_errors=True)  # two threads may be here
        return original(self, *arguments, **more)

    monkeypatch.setattr(Captioner, "caption_tensors", caption_and_remove)
    assert caption(tiny_run, "--out", "gone/out.jsonl", "--batch-size=1") == 1
    assert "gone/out.jsonl: was moved, removed or replaced while it was written" in capfd.readouterr().err


@pytest.mark.slow
def test_paths_come_from_a_list_and_from_standard_input(
    tiny_run: Path, folder: Path, jsonl: Jsonl, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("list.txt").write_text("pics/1.png\n\npics/nowhere.png\npics/0.png\n")
    options = ["--model", str(tiny_run), "--devices=cpu", "--quiet"]
    assert main(["caption", "--from", "list.txt", "--out", "out.jsonl", *options]) == 0
    assert [row["image"] for row in jsonl(Path("out.jsonl"))] == ["pics/1.png", "pics/0.png"]
    assert [row["image"] for row in jsonl(Path("out.jsonl.errors.jsonl"))] == ["pics/nowhere.png"]
    ran = subprocess.run(
        [sys.executable, "-m", "myllm", "caption", "-", "--json", *options], input="pics/2.png\0pics/3.png\0",
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True, check=True,
    )
    assert [json.loads(line)["image"] for line in ran.stdout.splitlines()] == ["pics/2.png", "pics/3.png"]


def test_a_copy_of_a_picture_that_cannot_be_captioned_is_listed_too(tiny_run: Path, folder: Path, jsonl: Jsonl) -> None:
    for number in range(5):
        shutil.copy(f"pics/{number}.png", f"pics/{number}-copy.png")
    impossible = ["--decode.min_new_tokens=7", "--decode.no_repeat_ngram_size=1", "--decode.only_words=[a]"]
    assert caption(tiny_run, "--out", "out.jsonl", *impossible) == 1
    errors = jsonl(Path("out.jsonl.errors.jsonl"))
    assert len({row["image"] for row in errors}) == len(errors) == 11 and not Path("out.jsonl").exists()
