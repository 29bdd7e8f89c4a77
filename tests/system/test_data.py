"""`myllm data inspect`, `convert` and `split` on whole data sets."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from myllm.apps.cli import main
from myllm.config import CaptionsConfig
from myllm.data.sources import read_records
from myllm.data.splits import split_records
from myllm.data.tokenizer import train_tokenizer
from myllm.files import read_picture

Capture = pytest.CaptureFixture[str]
AS_WRITTEN = CaptionsConfig(lowercase=False)


@pytest.fixture
def data(scenes: Path, tmp_path: Path) -> Path:
    """A copy of the scenes without lists of splits."""
    folder = Path(shutil.copytree(scenes, tmp_path / "data"))
    shutil.rmtree(folder / "splits")
    return folder


def add_picture(folder: Path, name: str, image: Image.Image) -> None:
    image.save(folder / "flickr30k_images" / name)
    with (folder / "results.csv").open("a") as file:
        file.write(f"{name}| 0| a copy\n")


def lists(folder: Path) -> dict[str, set[str]]:
    return {path.stem: set(path.read_text().splitlines()) for path in folder.glob("*.txt")}


def test_data_inspect_reports_what_was_planted_and_draws_a_sheet(data: Path, capsys: Capture) -> None:
    pictures = sorted((data / "flickr30k_images").iterdir())
    with Image.open(pictures[0]) as image:
        add_picture(data, "smaller.png", image.convert("RGB").resize((100, 100)))
    (data / "flickr30k_images/again.png").write_bytes(pictures[1].read_bytes())
    (data / "flickr30k_images/unused.png").write_bytes(pictures[2].read_bytes())
    (data / "flickr30k_images/broken.png").write_bytes(pictures[3].read_bytes()[:300])
    rows = ("again.png| 0| собака", "broken.png| 0| a", "missing.png| 0| a")
    with (data / "results.csv").open("a", encoding="utf-8") as file:
        file.write("".join(f"{row}\n" for row in rows))
    sheet = data.parent / "sheet.png"
    assert main(["data", "inspect", str(data), "--sheet", str(sheet), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["pictures"], facts["captions"], facts["scripts"]) == (63, 303, {"Latin": 302, "Cyrillic": 1})
    findings = "\n".join(facts["findings"])
    for text in ("1 captioned picture missing (missing.png)", "1 picture without captions (unused.png)",
                 f"{pictures[1].name} = again.png", "broken.png: ",
                 "~ smaller.png"):
        assert text in findings
    with Image.open(sheet) as image:
        assert image.format == "PNG" and image.width > 1500


def test_data_inspect_without_a_readable_picture_has_no_sheet(data: Path, capsys: Capture) -> None:
    for path in (data / "flickr30k_images").iterdir():
        path.write_bytes(b"\x89PNG" + path.name.encode())
    words = ["data", "inspect", str(data), "--fast"]
    assert main([*words, "--sheet", str(data.parent / "sheet.png")]) == 1
    assert "no picture can be read" in capsys.readouterr().err
    assert main(words) == 0 and "60 pictures that cannot be read" in capsys.readouterr().out


def test_data_inspect_does_not_overwrite_a_sheet(scenes: Path, tmp_path: Path, capsys: Capture) -> None:
    sheet = tmp_path / "sheet.png"
    sheet.write_bytes(b"mine")
    assert main(["data", "inspect", str(scenes), "--sheet", str(sheet), "--fast"]) == 2
    assert "replace it by --overwrite" in capsys.readouterr().err and sheet.read_bytes() == b"mine"
    assert main(["data", "inspect", str(scenes), "--sheet", str(tmp_path / "sheet.jpg"), "--fast"]) == 2
    assert main(["data", "inspect", str(scenes), "--sheet", str(sheet), "--fast", "--overwrite", "--quiet"]) == 0
    assert sheet.read_bytes().startswith(b"\x89PNG")


def test_data_inspect_counts_the_tokens_of_the_tokenizer_that_is_named(
    scenes: Path, tmp_path: Path, capsys: Capture
) -> None:
    tokenizer = train_tokenizer(["a"], 257)  # a token for each byte
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert main(["data", "inspect", str(scenes), "--tokenizer", str(tmp_path), "--fast", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    longest = max(len(caption) for record in read_records(scenes, AS_WRITTEN)[0] for caption in record.captions)
    assert facts["tokens"]["longest"] == longest + 2 and str(tmp_path) in facts["tokenizer"]


@pytest.mark.parametrize("to", ["csv", "jsonl", "sidecar", "webdataset", "parquet"])
def test_data_convert_gives_the_same_records_again(to: str, scenes: Path, tmp_path: Path, capsys: Capture) -> None:
    if to == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / "out"
    assert main(["data", "convert", str(scenes), str(out), "--to", to, "--quiet"]) == 0
    assert "Wrote 60 pictures with 300 captions" in capsys.readouterr().out

    def contents(folder: Path) -> dict[str, Any]:
        records, _ = read_records(folder, AS_WRITTEN)
        return {record.name: (record.captions, record.split, read_picture(record.image, 2**20)) for record in records}

    assert contents(out) == contents(scenes)


def test_data_convert_never_overwrites_and_does_not_write_into_its_data(
    scenes: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "out").mkdir()
    for out, reason in ((tmp_path / "out", "is there already"), (scenes / "out", "is inside")):
        assert main(["data", "convert", str(scenes), str(out), "--to=csv"]) == 2
        assert reason in capsys.readouterr().err
    assert main(["data", "convert", str(scenes), "--to=csv"]) == 2
    assert "expected DATA... OUT" in capsys.readouterr().err


def test_data_convert_that_is_killed_leaves_nothing_that_is_taken_for_data(
    scenes: Path, tmp_path: Path, stopped: Callable[..., Any]
) -> None:
    folder = Path(shutil.copytree(scenes, tmp_path / "data"))
    copies = [f"{number}.png" for number in range(100)]
    for name in copies:
        (folder / "flickr30k_images" / name).hardlink_to(folder / "flickr30k_images/val_000000.png")
    (folder / "splits/train.txt").write_text("\n".join(copies))
    rows = ["image_name| comment_number| comment", *(f"{name}| 0| a dog" for name in copies)]
    (folder / "results.csv").write_text("\n".join(rows))
    words = ["data", "convert", str(folder), str(tmp_path / "out"), "--to=csv"]
    assert stopped(words, signal.SIGKILL, tmp_path / ".out*/images/1.png").returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()


def test_data_split_writes_lists_that_training_reads(data: Path, capsys: Capture) -> None:
    assert main(["data", "split", str(data), "--val=0.2", "--test=0.2", "--quiet"]) == 0
    output = capsys.readouterr().out
    records, findings = read_records(data, AS_WRITTEN)
    splits = {name: {record.name for record in part} for name, part in split_records(records, findings).items()}
    assert splits == lists(data / "splits")
    assert splits.keys() == {"train", "val", "test"} and findings.lines() == []
    assert sum(map(len, splits.values())) == 60
    assert f"val    {len(splits['val'])} pictures" in output


def test_data_split_keeps_copies_together_and_names_them(data: Path, capsys: Capture) -> None:
    pictures = sorted((data / "flickr30k_images").iterdir())
    for number, path in enumerate(pictures[:12]):
        with Image.open(path) as image:
            add_picture(data, f"equal {number}.png", image.convert("RGB"))
            add_picture(data, f"smaller {number}.png", image.convert("RGB").resize((100, 100)))
    assert main(["data", "split", str(data), "--val=0.3", "--test=0.3", "--quiet"]) == 0
    splits = lists(data / "splits")
    for number, path in enumerate(pictures[:12]):
        group = {path.name, f"equal {number}.png", f"smaller {number}.png"}
        assert sum(bool(part & group) for part in splits.values()) == 1
    assert "groups of copies kept together" in capsys.readouterr().out


def test_data_split_moves_no_picture_if_some_are_added(data: Path) -> None:
    words = ["data", "split", str(data), "--fast", "--quiet"]
    rows = (data / "results.csv").read_text().splitlines(keepends=True)
    (data / "results.csv").write_text("".join(rows[: len(rows) // 2]))
    assert main([*words, "--out", str(data.parent / "half")]) == 0
    (data / "results.csv").write_text("".join(rows))
    assert main([*words, "--out", str(data.parent / "all")]) == 0
    before, after = lists(data.parent / "half"), lists(data.parent / "all")
    assert all(before[name] <= after[name] for name in before)


def test_data_split_depends_on_the_seed(data: Path) -> None:
    for out, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        words = ["data", "split", str(data), "--fast", "--quiet", "--seed", seed, "--out", str(data.parent / out)]
        assert main(words) == 0
    assert lists(data.parent / "a") == lists(data.parent / "b") != lists(data.parent / "c")


def test_data_split_replaces_lists_only_if_told_to(data: Path, capsys: Capture) -> None:
    (data / "splits").mkdir()
    (data / "splits/heldout.txt").write_text("val_000000.png\n")
    (data / "splits/train.txt").write_text("val_000001.png\n")
    assert main(["data", "split", str(data), "--fast"]) == 2
    assert "holds heldout.txt, train.txt already; replace the lists by --overwrite" in capsys.readouterr().err
    assert main(["data", "split", str(data), "--fast", "--overwrite", "--quiet"]) == 0
    splits = lists(data / "splits")
    assert splits.keys() == {"train", "val", "test"} and sum(map(len, splits.values())) == 60
    assert [path.name for path in data.iterdir() if path.name.startswith(".")] == []


def test_data_split_says_that_it_replaces_the_splits_that_data_has(data: Path, capsys: Capture) -> None:
    (data / "Flickr_8k.trainImages.txt").write_text("train_000000.png\n")
    assert main(["data", "split", str(data), "--fast", "--quiet"]) == 0
    assert "the lists replace the splits that the data has" in capsys.readouterr().out
    records, _ = read_records(data, AS_WRITTEN)
    assert {record.split for record in records} == {"train", "val", "test"} and len(records) == 60


def test_data_split_of_data_of_a_hub_needs_a_folder_for_the_lists(capsys: Capture) -> None:
    assert main(["data", "split", "user/name"]) == 2
    assert "user/name is data of a hub; give --out for the lists" in capsys.readouterr().err


def test_data_split_does_not_remove_other_files(data: Path, capsys: Capture) -> None:
    assert main(["data", "split", str(data), "--fast", "--overwrite", "--out", str(data)]) == 2
    assert "which is not a list of a split" in capsys.readouterr().err
    assert (data / "results.csv").is_file()


@pytest.mark.parametrize("shares", [["--val=0.6", "--test=0.4"], ["--val=1"]])
def test_data_split_that_leaves_nothing_to_train_on_is_refused(shares: list[str], data: Path) -> None:
    assert main(["data", "split", str(data), *shares]) == 2
