"""`myllm evaluate`: figures with their control, on the split that was asked for."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from myllm.apps.cli import main
from myllm.data.scenes import read_things
from myllm.evaluation.scenes import judge_scene_caption
from myllm.inference.captioner import Captioner

Capture = pytest.CaptureFixture[str]


def evaluate(model: Path, data: Path, *options: str) -> int:
    return main(["evaluate", "--model", str(model), "--data", str(data), "--devices=cpu", "--quiet", *options])


def test_json_holds_the_figures_their_control_and_their_protocol(tiny_run: Path, scenes: Path, capfd: Capture) -> None:
    assert evaluate(tiny_run, scenes, "--split=heldout", "--json", "--decode.beams=2") == 0
    figures = json.loads(capfd.readouterr().out)
    named = {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D", "CIDEr-D_shuffled", "distinct_captions"}
    assert named <= figures.keys()
    assert figures["protocol"]["split"] == "heldout" and figures["protocol"]["decode"]["beams"] == 2
    assert figures["protocol"]["pictures"] == 3 and figures["protocol"]["references"] == 15


@pytest.mark.meteor
def test_the_runs_own_figures_come_back(tiny_run: Path, scenes: Path, capfd: Capture) -> None:
    assert evaluate(tiny_run, scenes, "--json") == 0
    figures = json.loads(capfd.readouterr().out)
    own = json.loads((tiny_run / "metrics.json").read_text())
    assert {name: figures[name] for name in own if name != "protocol"} == {
        name: value for name, value in own.items() if name != "protocol"
    }


def test_scenes_are_judged_by_what_was_drawn(tiny_run: Path, scenes: Path, capfd: Capture) -> None:
    assert evaluate(tiny_run, scenes, "--split=train", "--json") == 0
    figures = json.loads(capfd.readouterr().out)
    things = read_things(scenes)
    names = [name for name in things if name.startswith("train")]
    captions = Captioner.load(tiny_run).caption_batch(scenes / "flickr30k_images" / name for name in names)
    verdicts = [judge_scene_caption(caption.text, things[name]) for caption, name in zip(captions, names, strict=True)]
    assert figures["true"] == sum(verdict.true for verdict in verdicts) / len(names)
    assert figures["complete"] == sum(verdict.complete for verdict in verdicts) / len(names)


def test_pictures_put_beside_the_scenes_are_scored_but_not_judged(
    tiny_run: Path, scenes: Path, tmp_path: Path, capfd: Capture
) -> None:
    data = Path(shutil.copytree(scenes, tmp_path / "data"))
    Image.new("RGB", (9, 9)).save(data / "flickr30k_images/mine.png")
    for path, line in (("results.csv", "mine.png| 0| a dog\n"), ("splits/val.txt", "mine.png\n")):
        with (data / path).open("a") as file:
            file.write(line)
    assert evaluate(tiny_run, data, "--json") == 0
    figures = json.loads(capfd.readouterr().out)
    assert figures["protocol"]["pictures"] == 4 and "true" not in figures


def test_text_says_what_a_person_needs(tiny_run: Path, scenes: Path, capfd: Capture) -> None:
    assert evaluate(tiny_run, scenes) == 0
    told = capfd.readouterr().out
    assert "Split val, 3 pictures, greedy, tokenizer PTB 3.4.1" in told
    assert "other pictures" in told and "no picture" in told and "the gap" in told and "complete" in told


def test_out_holds_figures_a_row_a_picture_and_samples(
    tiny_run: Path, scenes: Path, tmp_path: Path, jsonl: Callable[[Path], list[dict[str, object]]]
) -> None:
    assert evaluate(tiny_run, scenes, "--out", str(tmp_path / "out")) == 0
    assert json.loads((tmp_path / "out/metrics.json").read_text())["protocol"]["split"] == "val"
    rows = jsonl(tmp_path / "out/captions.jsonl")
    assert [row["image"] for row in rows] == [f"val_00000{number}.png" for number in range(3)]
    assert all({"caption", "score", "CIDEr-D", "ROUGE-L"} <= row.keys() for row in rows)
    Image.open(tmp_path / "out/samples.png").verify()


def test_figures_that_are_there_already_are_kept(tiny_run: Path, scenes: Path, tmp_path: Path, capfd: Capture) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    own = (run / "metrics.json").read_bytes()
    assert evaluate(run, scenes, "--split=heldout", "--out", str(run)) == 2
    assert f"--out {run} holds metrics.json already" in capfd.readouterr().err
    assert (run / "metrics.json").read_bytes() == own
    assert evaluate(run, scenes, "--split=heldout", "--out", str(run), "--overwrite") == 0
    assert json.loads((run / "metrics.json").read_text())["protocol"]["split"] == "heldout"


def test_limit_takes_the_first_pictures(tiny_run: Path, scenes: Path, capfd: Capture) -> None:
    assert evaluate(tiny_run, scenes, "--limit=2", "--json") == 0
    assert json.loads(capfd.readouterr().out)["protocol"]["pictures"] == 2


def test_a_broken_picture_is_named_and_in_no_figure(
    tiny_run: Path, scenes: Path, tmp_path: Path, capfd: Capture
) -> None:
    data = Path(shutil.copytree(scenes, tmp_path / "data"))
    (data / "flickr30k_images/val_000001.png").write_bytes(b"no picture")
    assert evaluate(tiny_run, data, "--json") == 0
    told = capfd.readouterr()
    assert json.loads(told.out)["protocol"]["pictures"] == 2
    assert "val_000001.png" in told.err and "val_000001.png" in json.loads(told.out)["broken_pictures"][0]


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (["--split=test"], 2, "--split 'test': .* has train, val, heldout"),
        (["--limit=0"], 2, "--limit 0 must be above 0"),
        (["--batch_size=0"], 2, "--batch_size 0"),
        (["--decode.beams=0"], 2, "decode.beams is 0"),
        (["--decode.beans=2"], 2, "unknown option --decode.beans; did you mean --decode.beams"),
    ],
)
def test_what_cannot_be_evaluated_is_told(
    tiny_run: Path, scenes: Path, capfd: Capture, options: list[str], code: int, reason: str
) -> None:
    assert evaluate(tiny_run, scenes, *options) == code
    assert re.search(reason, capfd.readouterr().err)


def test_an_empty_split_is_told(tiny_run: Path, scenes: Path, tmp_path: Path, capfd: Capture) -> None:
    data = Path(shutil.copytree(scenes, tmp_path / "data"))
    (data / "splits/mine.txt").touch()
    assert evaluate(tiny_run, data, "--split=mine") == 1
    assert f"--split 'mine': {data} has no picture in it" in capfd.readouterr().err


def test_byte_equal_copies_in_training_are_named_as_leaks(
    tiny_run: Path, scenes: Path, tmp_path: Path, capfd: Capture
) -> None:
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    judged = (data / "splits/val.txt").read_text().split()
    captions, train = data / "results.csv", data / "splits/train.txt"
    rows = captions.read_text().splitlines()
    for name in judged[:2]:
        shutil.copy(data / "flickr30k_images" / name, data / "flickr30k_images" / f"copy_{name}")
        rows += [f"copy_{row}" for row in rows if row.startswith(name)]
    captions.write_text("\n".join(rows) + "\n")
    train.write_text(train.read_text() + "".join(f"copy_{name}\n" for name in judged[:2]))
    assert evaluate(tiny_run, data, "--json", "--metrics=CIDEr-D") == 0
    leaks = json.loads(capfd.readouterr().out)["leaks"]
    assert leaks["equal"] == [[name, f"copy_{name}"] for name in judged[:2]]
    assert evaluate(tiny_run, data, "--metrics=CIDEr-D") == 0
    assert "2 of 3 pictures are in the training data, too" in " ".join(capfd.readouterr().out.split())


def test_calibration_on_too_few_words_is_not_done_and_figures_are_written(
    tiny_run: Path, scenes: Path, tmp_path: Path, capfd: Capture
) -> None:
    shutil.copytree(tiny_run, tmp_path / "model")
    options = ("--calibrate", "--metrics=CIDEr-D", f"--out={tmp_path / 'judged'}")
    assert evaluate(tmp_path / "model", scenes, *options) == 0
    assert "confidence is not calibrated" in capfd.readouterr().out
    protocol = json.loads((tmp_path / "judged/metrics.json").read_text())["protocol"]
    assert "at least 100 are needed" in protocol["not_calibrated"]
