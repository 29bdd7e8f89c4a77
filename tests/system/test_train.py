"""`myllm train`: what a run leaves behind, and that no interruption, mistake or full disk costs more than a step."""

import csv
import json
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from myllm.apps.cli import main
from myllm.inference.captioner import Captioner
from myllm.presets import PRESETS

Train = Callable[..., int]
Stopped = Callable[..., subprocess.CompletedProcess[str]]
WRITTEN = (
    "captioner.pt", "last.pt", "config.yaml", "metrics.csv", "metrics.json", "loss.png", "perplexity.png",
    "loss.svg", "perplexity.svg", "lengths.png", "lengths.svg", "words.png", "words.svg",
    "samples.png", "samples.jsonl", "report.html",
)


def rows_of(run: Path) -> list[dict[str, str]]:
    """metrics.csv without the one column that no two runs share."""
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [{name: value for name, value in row.items() if name != "minutes"} for row in csv.DictReader(file)]


def weights(path: Path, part: str = "model") -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)[part]  # type: ignore[no-any-return]


def assert_same_run(one: Path, other: Path) -> None:
    """To the bit: every epoch's figures, and the weights of the best and of the last step."""
    assert rows_of(one) == rows_of(other)
    for name, part in (("captioner.pt", "model"), ("last.pt", "objective")):
        ours, theirs = weights(one / name, part), weights(other / name, part)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """What a disk without room does to a write, done by the operating system to this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_run_folder_is_complete(tiny_run: Path) -> None:
    assert {name for name in WRITTEN if (tiny_run / name).stat().st_size} == set(WRITTEN)
    assert list(tiny_run.glob("events.out.tfevents.*"))
    assert not list(tiny_run.glob(".*"))  # nothing half-written
    for name in ("loss.png", "perplexity.png", "lengths.png", "words.png", "samples.png"):
        Image.open(tiny_run / name).verify()


def test_metrics_csv_has_a_row_an_epoch_and_the_loss_falls(tiny_run: Path) -> None:
    rows = rows_of(tiny_run)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[-1]["val_loss"]) < float(rows[0]["val_loss"])


def test_metrics_json_has_the_figures_and_how_they_were_measured(tiny_run: Path) -> None:
    figures = json.loads((tiny_run / "metrics.json").read_text())
    assert {"BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr-D", "CIDEr-D_shuffled", "distinct_captions"} <= figures.keys()
    assert figures["protocol"]["split"] == "val" and figures["protocol"]["pictures"] == 3


def test_the_report_is_of_this_run(tiny_run: Path, jsonl: Callable[[Path], list[dict[str, object]]]) -> None:
    page = (tiny_run / "report.html").read_text(encoding="utf-8")
    figures = json.loads((tiny_run / "metrics.json").read_text())
    assert "<h1>captioner</h1>" in page and "<dt>Epochs</dt><dd>4, the best is " in page
    assert all(f"{figures[name]:.3f} <small>" in page for name in ("BLEU-1", "CIDEr-D", "CIDEr-D_shuffled"))
    assert all(f'alt="{sample["caption"]}"' in page for sample in jsonl(tiny_run / "samples.jsonl"))


def test_captioner_pt_alone_captions(tiny_run: Path, pictures: list[Path], tmp_path: Path) -> None:
    shutil.copy(tiny_run / "captioner.pt", tmp_path / "alone.pt")
    there = [one.text for one in Captioner.load(tiny_run).caption_batch(pictures)]
    assert [one.text for one in Captioner.load(tmp_path / "alone.pt").caption_batch(pictures)] == there


def test_the_same_seed_gives_the_same_run_and_another_does_not(train: Train, tiny_run: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "again", "--epochs=4", "--quiet") == 0
    assert_same_run(tmp_path / "again", tiny_run)
    assert train(tmp_path / "other", "--epochs=1", "--seed=1", "--quiet") == 0
    assert rows_of(tmp_path / "other")[0] != rows_of(tiny_run)[0]


@pytest.mark.slow
def test_ctrl_c_saves_tells_how_to_go_on_and_the_resumed_run_is_the_uninterrupted_one(
    stopped: Stopped, tiny: list[str], tiny_run: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["train", "--data", str(scenes), "--out", str(out), *tiny, "--epochs=4"]
    process = stopped(words, signal.SIGINT, (out / "metrics.csv").exists)
    assert process.returncode == 130, process.stderr
    assert f"myllm train --config {out}/config.yaml --resume" in process.stdout
    assert len(rows_of(out)) < 4
    assert main(["train", "--config", f"{out}/config.yaml", "--resume"]) == 0
    assert "Resuming at epoch" in capsys.readouterr().out
    assert_same_run(out, tiny_run)


@pytest.mark.slow
def test_a_killed_run_leaves_whole_files_and_goes_on(
    stopped: Stopped, tiny: list[str], tiny_run: Path, scenes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = ["train", "--data", str(scenes), "--out", str(out), *tiny, "--epochs=4"]
    process = stopped(words, signal.SIGKILL, (out / "last.pt").exists)
    assert process.returncode == -signal.SIGKILL
    assert Captioner.load(out).model is not None
    assert main(["train", "--config", f"{out}/config.yaml", "--resume", "--quiet"]) == 0
    assert_same_run(out, tiny_run)


def test_a_run_is_refused_where_one_is_and_stays_as_it_was(
    train: Train, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in tiny_run.iterdir()}
    assert train(tiny_run, "--epochs=1") == 2
    assert f"--out {tiny_run} holds a run already" in (told := capsys.readouterr().err)
    assert "--resume" in told and "--overwrite" in told
    assert {path: path.read_bytes() for path in tiny_run.iterdir()} == before


def test_overwrite_begins_anew(train: Train, tiny_run: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    assert train(out, "--epochs=1", "--overwrite", "--quiet") == 0
    assert len(rows_of(out)) == 1


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--overwrite", "--data=nowhere"], 1),
        (["--overwrite", "--vision.name=vit_nowhere"], 2),
        (["--resume", "--text.n_layer=2"], 1),
        (["--resume", "--overwrite"], 2),
    ],
)
def test_a_run_that_cannot_begin_or_go_on_costs_nothing(
    train: Train, tiny_run: Path, tmp_path: Path, options: list[str], code: int
) -> None:
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    before = {name: (out / name).read_bytes() for name in WRITTEN}
    assert train(out, "--epochs=9", *options) == code
    assert {name: (out / name).read_bytes() for name in WRITTEN} == before


def test_resume_without_a_run_says_so_and_makes_no_folder(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "--resume") == 2
    assert f"{tmp_path}/run/last.pt is missing, so there is no run to resume" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_resume_with_other_data_is_refused(
    train: Train, tiny_run: Path, tiny_picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    assert train(out, "--epochs=5", "--resume", data=tiny_picture_folder) == 1
    assert f"{out}/last.pt" in capsys.readouterr().err
    assert len(list(out.glob("events.*"))) == 1


def test_a_finished_run_goes_on_for_more_epochs(train: Train, tiny_run: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    assert train(out, "--epochs=5", "--resume", "--quiet") == 0
    assert rows_of(out)[:4] == rows_of(tiny_run) and len(rows_of(out)) == 5


def test_config_yaml_alone_reproduces_the_run(tiny_run: Path, tmp_path: Path) -> None:
    words = ["--config", str(tiny_run / "config.yaml"), "--out", str(tmp_path / "other"), "--quiet"]
    assert main(["train", *words]) == 0
    assert_same_run(tmp_path / "other", tiny_run)


def test_a_preset_gives_the_options_that_are_not_given(train: Train, tmp_path: Path) -> None:
    assert train(tmp_path / "run", "--preset", "photos-fast", "--vision.frozen=false", "--max-steps=1", "--quiet") == 0
    saved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert saved["best_by"] == PRESETS["photos-fast"]["best_by"] == "CIDEr-D"
    assert saved["decode"]["beams"] == 5 and saved["decode"]["max_new_tokens"] == 12


def test_hyphen_and_underscore_are_the_same_in_a_name(train: Train, tmp_path: Path) -> None:
    assert train(tmp_path / "a", "--max-steps=1", "--text.n-embd=16", "--batch-size", "4", "--quiet") == 0
    assert train(tmp_path / "b", "--max_steps=1", "--text.n_embd=16", "--batch_size", "4", "--quiet") == 0
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_json_prints_nothing_but_json_on_standard_output(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "--max-steps=1", "--json") == 0
    told = capfd.readouterr()
    assert json.loads(told.out) == json.loads((tmp_path / "run/metrics.json").read_text())
    assert "training pictures" in told.err


def test_quiet_leaves_the_figures_and_what_was_written(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "--max-steps=1", "--quiet") == 0
    told = capfd.readouterr().out.strip().splitlines()
    assert told[0].startswith("Split val, 3 pictures, greedy")
    assert told[-1].startswith(f"Wrote {tmp_path}/run: captioner.pt, config.yaml")


def test_each_epoch_shows_its_figures_and_three_captions_beside_a_reference(
    train: Train, scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "--epochs=1") == 0
    told = capfd.readouterr().out
    assert "epoch 1  " in told and "perplexity" in told and "shuffled pictures" in told
    assert told.count("reference: ") == 3
    assert f"myllm caption PICTURES --model {tmp_path}/run" in told


def test_without_room_on_the_disk_the_last_good_checkpoint_stays(
    train: Train, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    before = {name: (out / name).read_bytes() for name in ("captioner.pt", "last.pt")}
    with files_no_larger_than(200_000):
        assert train(out, "--epochs=5", "--resume", "--quiet") == 1
    assert "cannot write" in (told := capsys.readouterr().err) and "Make room" in told
    assert {name: (out / name).read_bytes() for name in before} == before
    assert not list(out.glob(".*"))
    assert train(out, "--epochs=5", "--resume", "--quiet") == 0


def test_patience_stops_after_so_many_epochs_without_a_better_one(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # the first epoch is the best for ever: no caption is like another, and CIDEr-D stays 0
    options = ["--epochs=9", "--lr=1e-9", "--best_by=CIDEr-D", "--patience=2"]
    assert train(tmp_path / "run", *options) == 0
    assert len(rows_of(tmp_path / "run")) == 3
    assert "stopped: 2 epochs without a better CIDEr-D" in capsys.readouterr().out
    assert train(tmp_path / "run", *options, "--resume") == 0  # a run that has stopped has nothing to go on with
    assert len(rows_of(tmp_path / "run")) == 3


def test_a_loss_that_is_no_number_ends_the_run_with_the_way_out(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "--epochs=9", "--lr=1e30", "--quiet") == 1
    assert "the loss is nan" in (told := capsys.readouterr().err) and "lower --lr" in told


def test_a_long_caption_is_cut_and_reported(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", "--text.n_positions=8", "--max-steps=1") == 0
    assert "captions cut at the context's end" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        [
            "--optimizer=muon",
            "--word_presence_weight=1",
            "--word_dropout=0.2",
            "--label_smoothing=0.1",
            "--schedule=linear",
        ],
        ["--mode=layerwise", "--stages=[new,text,all]", "--accumulate=2", "--schedule=cosine"],
        ["--augment=true", "--workers=0", "--precision=bf16", "--decode.do_sample=true"],
    ],
)
def test_every_way_to_train_trains(train: Train, tmp_path: Path, options: list[str]) -> None:
    assert train(tmp_path / "run", "--epochs=1", "--quiet", *options) == 0
    assert float(rows_of(tmp_path / "run")[0]["val_loss"]) < 6
