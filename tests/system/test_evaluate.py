"""`myllm evaluate`: figures and their control on a split."""

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


def test_evaluate_json_has_the_figures_their_control_and_their_protocol(
    tiny_run: Path, scenes: Path, capfd: Capture
) -> None:
    assert evaluate(tiny_run, scenes, "--split=heldout", "--json", "--decode.beams=2") == 0
    figures = json.loads(capfd.readouterr().out)
    names = {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D", "CIDEr-D_shuffled", "distinct_captions"}
    assert names <= figures.keys()
    assert figures["protocol"]["split"] == "heldout" and figures["protocol"]["decode"]["beams"] == 2
    assert figures["protocol"]["pictures"] == 3 and figures["protocol"]["references"] == 15


@pytest.mark.slow
@pytest.mark.meteor
def test_evaluate_on_val_repeats_the_figures_of_the_run(
    train: Callable[..., int], scenes: Path, tmp_path: Path, capfd: Capture
) -> None:
    assert train(tmp_path / "run", "--epochs=1", "--quiet") == 0
    capfd.readouterr()
    assert evaluate(tmp_path / "run", scenes, "--json") == 0
    figures = json.loads(capfd.readouterr().out)
    of_run = json.loads((tmp_path / "run/metrics.json").read_text())
    assert "METEOR" in of_run
    assert {name: figures[name] for name in of_run if name != "protocol"} == {
        name: value for name, value in of_run.items() if name != "protocol"
    }


def test_evaluate_judges_scenes_by_the_things_in_them(tiny_run: Path, scenes: Path, capfd: Capture) -> None:
    assert evaluate(tiny_run, scenes, "--split=train", "--json") == 0
    figures = json.loads(capfd.readouterr().out)
    things = read_things(scenes)
    names = [name for name in things if name.startswith("train")]
    captions = Captioner.load(tiny_run).caption_batch(scenes / "flickr30k_images" / name for name in names)
    verdicts = [judge_scene_caption(caption.text, things[name]) for caption, name in zip(captions, names, strict=True)]
    assert figures["true"] == sum(verdict.true for verdict in verdicts) / len(names)
    assert figures["complete"] == sum(verdict.complete for verdict in verdicts) / len(names)


def test_evaluate_does_not_judge_scenes_among_other_pictures(
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


def test_evaluate_prints_split_search_tokenizer_and_controls(tiny_run: Path, scenes: Path, capfd: Capture) -> None:
    assert evaluate(tiny_run, scenes) == 0
    output = capfd.readouterr().out
    assert "Split val, 3 pictures, greedy, tokenizer PTB 3.4.1" in output
    assert all(name in output for name in ("other pictures", "no picture", "the gap", "complete"))


def test_evaluate_out_has_figures_a_row_for_each_picture_and_samples(
    tiny_run: Path, scenes: Path, tmp_path: Path, jsonl: Callable[[Path], list[dict[str, object]]]
) -> None:
    assert evaluate(tiny_run, scenes, "--out", str(tmp_path / "out")) == 0
    assert json.loads((tmp_path / "out/metrics.json").read_text())["protocol"]["split"] == "val"
    rows = jsonl(tmp_path / "out/captions.jsonl")
    assert [row["image"] for row in rows] == [f"val_00000{number}.png" for number in range(3)]
    assert all({"caption", "score", "CIDEr-D", "ROUGE-L"} <= row.keys() for row in rows)
    Image.open(tmp_path / "out/samples.png").verify()


def test_evaluate_keeps_existing_figures_unless_overwritten(
    tiny_run: Path, scenes: Path, tmp_path: Path, capfd: Capture
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    before = (run / "metrics.json").read_bytes()
    assert evaluate(run, scenes, "--split=heldout", "--out", str(run)) == 2
    assert f"--out {run} holds metrics.json already" in capfd.readouterr().err
    assert (run / "metrics.json").read_bytes() == before
    assert evaluate(run, scenes, "--split=heldout", "--out", str(run), "--overwrite") == 0
    assert json.loads((run / "metrics.json").read_text())["protocol"]["split"] == "heldout"


def test_evaluate_limit_takes_the_first_pictures(tiny_run: Path, scenes: Path, capfd: Capture) -> None:
    assert evaluate(tiny_run, scenes, "--limit=2", "--json") == 0
    assert json.loads(capfd.readouterr().out)["protocol"]["pictures"] == 2


def test_evaluate_names_a_broken_picture_and_leaves_it_out(
    tiny_run: Path, scenes: Path, tmp_path: Path, capfd: Capture
) -> None:
    data = Path(shutil.copytree(scenes, tmp_path / "data"))
    (data / "flickr30k_images/val_000001.png").write_bytes(b"no picture")
    assert evaluate(tiny_run, data, "--json") == 0
    output = capfd.readouterr()
    assert json.loads(output.out)["protocol"]["pictures"] == 2
    assert "val_000001.png" in output.err and "val_000001.png" in json.loads(output.out)["broken_pictures"][0]


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (["--split=test"], 2, "--split 'test': .* has train, val, heldout"),
        (["--limit=0"], 2, "--limit is 0; it must be above 0"),
        (["--batch_size=0"], 2, "--batch_size is 0; it must be above 0"),
        (["--decode.beams=0"], 2, "decode.beams is 0"),
        (["--decode.beans=2"], 2, "unknown option --decode.beans; did you mean --decode.beams"),
    ],
)
def test_evaluate_names_an_option_that_cannot_work(
    tiny_run: Path, scenes: Path, capfd: Capture, options: list[str], code: int, reason: str
) -> None:
    assert evaluate(tiny_run, scenes, *options) == code
    assert re.search(reason, capfd.readouterr().err)


def test_evaluate_names_an_empty_split(tiny_run: Path, scenes: Path, tmp_path: Path, capfd: Capture) -> None:
    data = Path(shutil.copytree(scenes, tmp_path / "data"))
    (data / "splits/mine.txt").touch()
    assert evaluate(tiny_run, data, "--split=mine") == 1
    assert f"{data}/splits/mine.txt: names no picture" in capfd.readouterr().err


def test_evaluate_and_compare_take_metrics(tiny_run: Path, scenes: Path, capfd: Capture) -> None:
    assert evaluate(tiny_run, scenes, "--metrics=BLEU-1", "--json") == 0
    figures = json.loads(capfd.readouterr().out)
    assert "BLEU-1" in figures and not figures.keys() & {"ROUGE-L", "METEOR"}
    words = ["compare", str(tiny_run), str(tiny_run), "--data", str(scenes), "--quiet", "--json", "--metrics=BLEU-1"]
    assert main(words) == 0
    differences = json.loads(capfd.readouterr().out)["differences"]
    assert "BLEU-1" in differences and "ROUGE-L" not in differences


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
