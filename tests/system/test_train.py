"""`myllm train`: the files of a run, and that no interruption, mistake or full disk costs more than a step."""

import csv
import json
import os
import re
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
from tensorboardX import SummaryWriter

from myllm.apps.cli import main
from myllm.files import LOCK_FILE, lock_folder
from myllm.inference.captioner import Captioner
from myllm.presets import PRESETS

Train = Callable[..., int]
Stopped = Callable[..., subprocess.CompletedProcess[str]]
WRITTEN = (
    "captioner.pt", "last.pt", "config.yaml", "metrics.csv", "metrics.json", "loss.png", "perplexity.png",
    "loss.svg", "perplexity.svg", "lengths.png", "lengths.svg", "words.png", "words.svg",
    "samples.png", "samples.jsonl", "report.html",
)


TIMES = ("minutes", "tokens_per_second", "data_wait")


def rows_of(run: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv without times and speeds, which differ between runs."""
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [{name: row[name] for name in row if name not in TIMES} for row in csv.DictReader(file)]


def weights(path: Path, part: str = "model") -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)[part]  # type: ignore[no-any-return]


def assert_same_run(run: Path, expected: Path) -> None:
    """Compare to the bit: the figures of each epoch, and the weights of the best epoch and of the last step."""
    assert rows_of(run) == rows_of(expected)
    for name, part in (("captioner.pt", "model"), ("last.pt", "objective")):
        result, correct = weights(run / name, part), weights(expected / name, part)
        assert result.keys() == correct.keys()
        assert all(torch.equal(result[key], correct[key]) for key in result), name


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Let the operating system refuse larger files of this process, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_train_writes_all_files_of_the_run_folder(tiny_run: Path) -> None:
    assert {name for name in WRITTEN if (tiny_run / name).stat().st_size} == set(WRITTEN)
    assert list(tiny_run.glob("events.out.tfevents.*"))
    assert not list(tiny_run.glob(".*"))  # nothing half-written
    for name in ("loss.png", "perplexity.png", "lengths.png", "words.png", "samples.png"):
        Image.open(tiny_run / name).verify()


def test_train_writes_a_row_of_metrics_csv_for_each_epoch_and_the_loss_falls(tiny_run: Path) -> None:
    rows = rows_of(tiny_run)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[-1]["val_loss"]) < float(rows[0]["val_loss"])
    assert all(float(row["gradient_norm"]) > 0 for row in rows)
    assert 0.01 > float(rows[1]["learning_rate"]) > float(rows[2]["learning_rate"]) > float(rows[3]["learning_rate"])


def test_train_writes_steps_and_epochs_for_tensorboard(tiny_run: Path) -> None:
    [events] = tiny_run.glob("events.out.tfevents.*")
    tags = set(re.findall(rb"[a-z_]+/[a-z_]+|val_loss|learning_rate|gradient_norm", events.read_bytes()))
    assert tags >= {b"step/loss", b"step/learning_rate", b"step/gradient_norm", b"val_loss", b"learning_rate"}


@pytest.mark.parametrize(("rate", "code"), [("0.01", 0), ("1e30", 1)])
def test_train_closes_its_tensorboard_file_however_it_ends(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: str, code: int
) -> None:
    writers = list[SummaryWriter]()

    def make(folder: str) -> SummaryWriter:
        writers.append(SummaryWriter(folder))
        return writers[-1]

    monkeypatch.setattr("myllm.apps.train.SummaryWriter", make)
    monkeypatch.setattr("myllm.apps.train.STEPS_PER_EVENT", 1)
    assert train(tmp_path / "run", f"--lr={rate}", "--max-steps=4", "--quiet") == code
    [writer] = writers
    assert writer.all_writers is None  # a thread would write the last events up to two minutes later


def test_train_writes_figures_and_protocol_into_metrics_json(tiny_run: Path) -> None:
    figures = json.loads((tiny_run / "metrics.json").read_text())
    assert {"BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr-D", "CIDEr-D_shuffled", "distinct_captions"} <= figures.keys()
    assert figures["protocol"]["split"] == "val" and figures["protocol"]["pictures"] == 3


def test_train_writes_a_report_of_the_run(tiny_run: Path, jsonl: Callable[[Path], list[dict[str, object]]]) -> None:
    page = (tiny_run / "report.html").read_text(encoding="utf-8")
    figures = json.loads((tiny_run / "metrics.json").read_text())
    assert "<h1>captioner</h1>" in page and "<dt>Epochs</dt><dd>4, the best is " in page
    assert all(f"{figures[name]:.3f} <small>" in page for name in ("BLEU-1", "CIDEr-D", "CIDEr-D_shuffled"))
    assert all(f'alt="{sample["caption"]}"' in page for sample in jsonl(tiny_run / "samples.jsonl"))


def test_captioner_pt_captions_without_the_rest_of_the_run(
    tiny_run: Path, pictures: list[Path], tmp_path: Path
) -> None:
    shutil.copy(tiny_run / "captioner.pt", tmp_path / "copy.pt")
    expected = [caption.text for caption in Captioner.load(tiny_run).caption_batch(pictures)]
    assert [caption.text for caption in Captioner.load(tmp_path / "copy.pt").caption_batch(pictures)] == expected


@pytest.mark.slow
def test_train_with_the_same_seed_is_the_same_run(train: Train, tiny_run: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "again", "--epochs=4", "--quiet") == 0
    assert_same_run(tmp_path / "again", tiny_run)
    assert train(tmp_path / "other", "--epochs=1", "--seed=1", "--quiet") == 0
    assert rows_of(tmp_path / "other")[0] != rows_of(tiny_run)[0]


@pytest.mark.slow
def test_train_saves_on_ctrl_c_and_resumes_to_the_uninterrupted_run(
    stopped: Stopped, tiny: list[str], tiny_run: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["train", "--data", str(scenes), "--out", str(out), *tiny, "--epochs=4"]
    process = stopped(words, signal.SIGINT, out / "metrics.csv")
    assert process.returncode == 130, process.stderr
    assert f"myllm train --out {out} --resume" in process.stdout
    assert len(rows_of(out)) < 4
    assert main(["train", "--config", f"{out}/config.yaml", "--resume"]) == 0
    assert "Resuming at epoch" in capsys.readouterr().out
    assert_same_run(out, tiny_run)


@pytest.mark.slow
def test_train_saves_on_sigterm_exits_with_143_and_resumes_with_no_other_option(
    stopped: Stopped, tiny: list[str], tiny_run: Path, scenes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = ["train", "--data", str(scenes), "--out", str(out), *tiny, "--epochs=4"]
    process = stopped(words, signal.SIGTERM, out / "metrics.csv")
    assert process.returncode == 143, process.stderr
    assert "A training that is not finished" in (out / "report.html").read_text(encoding="utf-8")
    assert len(rows_of(out)) < 4 and not list(out.glob(".*"))
    assert main(["train", "--out", str(out), "--resume", "--quiet"]) == 0
    assert_same_run(out, tiny_run)


def test_train_resumes_from_the_predecessor_of_a_damaged_state_and_ends_as_the_uninterrupted_run(
    train: Train, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    content = bytearray((out / "last.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (out / "last.pt").write_bytes(content)
    assert main(["train", "--out", str(out), "--resume"]) == 0
    output = capsys.readouterr().out
    assert f"last.pt is missing or damaged, so the run resumes from {out}/last.previous.pt" in output
    assert "Resuming at epoch 4" in output
    assert_same_run(out, tiny_run)


def test_train_removes_what_a_killed_process_left_half_written(train: Train, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.last.pt.abc.part").write_bytes(b"half")
    assert train(tmp_path / "run", "--max-steps=1", "--quiet") == 0
    assert not list((tmp_path / "run").glob(".*"))


@pytest.mark.slow
def test_train_with_resume_and_another_rate_trains_with_it_and_says_so(
    train: Train, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    assert main(["train", "--out", str(out), "--resume", "--epochs=5", "--lr=0.002"]) == 0
    output = capsys.readouterr().out
    assert "lr is 0.002 from here on; it was 0.01" in output and "epochs is 5 from here on; it was 4" in output
    assert "the schedule now ends later, so the learning rate goes up to" in output
    assert float(rows_of(out)[-1]["learning_rate"]) < 0.002
    assert yaml.safe_load((out / "config.yaml").read_text())["lr"] == 0.002


@pytest.mark.slow
def test_train_resumes_a_killed_run(
    stopped: Stopped, tiny: list[str], tiny_run: Path, scenes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = ["train", "--data", str(scenes), "--out", str(out), *tiny, "--epochs=4"]
    process = stopped(words, signal.SIGKILL, out / "last.pt")
    assert process.returncode == -signal.SIGKILL
    assert Captioner.load(out).model is not None
    assert main(["train", "--config", f"{out}/config.yaml", "--resume", "--quiet"]) == 0
    assert_same_run(out, tiny_run)


def test_train_refuses_a_folder_with_a_run_and_leaves_it_unchanged(
    train: Train, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in tiny_run.iterdir()}
    assert train(tiny_run, "--epochs=1") == 2
    assert f"--out {tiny_run} holds a run already" in (message := capsys.readouterr().err)
    assert "--resume" in message and "--overwrite" in message
    assert {path: path.read_bytes() for path in tiny_run.iterdir()} == before


def test_train_refuses_a_folder_that_another_process_trains_into(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with lock_folder(tmp_path / "run"):
        assert train(tmp_path / "run", "--epochs=1") == 2
        assert f"{tmp_path}/run is in use by process {os.getpid()}" in capsys.readouterr().err
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_FILE]


@pytest.mark.slow
def test_train_with_overwrite_starts_again(train: Train, tiny_run: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    assert train(out, "--epochs=1", "--overwrite", "--quiet") == 0
    assert len(rows_of(out)) == 1


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--overwrite", "--data=nowhere"], 1),
        (["--overwrite", "--vision.name=vit_nowhere"], 2),
        (["--resume", "--text.n_layer=2"], 2),
        (["--resume", "--seed=1"], 2),
        (["--resume", "--overwrite"], 2),
    ],
)
def test_train_changes_no_file_of_a_run_that_it_cannot_replace_or_resume(
    train: Train, tiny_run: Path, tmp_path: Path, options: list[str], code: int
) -> None:
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    before = {name: (out / name).read_bytes() for name in WRITTEN}
    assert train(out, "--epochs=9", *options) == code
    assert {name: (out / name).read_bytes() for name in WRITTEN} == before


def test_train_refuses_to_resume_without_a_run_and_makes_no_folder(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "--resume") == 2
    assert f"--resume: {tmp_path}/run/last.pt is " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_train_refuses_to_resume_with_other_data(
    train: Train, tiny_run: Path, tiny_picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    assert train(out, "--epochs=5", "--resume", data=tiny_picture_folder) == 1
    assert f"{out}/last.pt" in capsys.readouterr().err
    assert len(list(out.glob("events.*"))) == 1


@pytest.mark.slow
def test_train_resumes_a_finished_run_for_more_epochs(train: Train, tiny_run: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    assert train(out, "--epochs=5", "--resume", "--quiet") == 0
    assert rows_of(out)[:4] == rows_of(tiny_run) and len(rows_of(out)) == 5


@pytest.mark.slow
def test_train_resumed_with_other_decoding_options_stores_them_in_the_captioner(
    tiny_run: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(tiny_run, tmp_path / "run")
    assert main(["train", "--out", str(out), "--resume", "--decode.beams=2", "--quiet"]) == 0
    assert Captioner.load(out).decode.beams == 2 and Captioner.load(tiny_run).decode.beams == 1


@pytest.mark.slow
def test_train_with_config_yaml_reproduces_the_run(tiny_run: Path, tmp_path: Path) -> None:
    words = ["--config", str(tiny_run / "config.yaml"), "--out", str(tmp_path / "other"), "--quiet"]
    assert main(["train", *words]) == 0
    assert_same_run(tmp_path / "other", tiny_run)


@pytest.mark.slow
def test_train_takes_options_that_are_not_given_from_the_preset(train: Train, tmp_path: Path) -> None:
    own = ("--vision.frozen=false", "--vision.feature_maps=1", "--max-steps=1", "--quiet")
    assert train(tmp_path / "run", "--preset", "photos-fast", *own) == 0
    saved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert saved["ema"] == PRESETS["photos-fast"]["ema"] == 0.99
    assert saved["decode"]["beams"] == PRESETS["photos-fast"]["decode"]["beams"] == 10
    assert saved["decode"]["max_new_tokens"] == 12


@pytest.mark.slow
def test_train_accepts_hyphen_and_underscore_in_option_names(train: Train, tmp_path: Path) -> None:
    assert train(tmp_path / "a", "--max-steps=1", "--text.n-embd=16", "--batch-size", "4", "--quiet") == 0
    assert train(tmp_path / "b", "--max_steps=1", "--text.n_embd=16", "--batch_size", "4", "--quiet") == 0
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_train_with_json_prints_only_json_on_standard_output(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "--max-steps=1", "--json") == 0
    printed = capfd.readouterr()
    assert json.loads(printed.out) == json.loads((tmp_path / "run/metrics.json").read_text())
    assert "training pictures" in printed.err


def test_train_with_quiet_prints_figures_and_files(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "--max-steps=1", "--quiet") == 0
    lines = [line for line in capfd.readouterr().out.strip().splitlines() if not line.startswith("!")]
    assert lines[0].startswith("Split val, 3 pictures, greedy")
    assert lines[-1].startswith(f"Wrote {tmp_path}/run: captioner.pt, config.yaml")


@pytest.mark.slow
def test_train_prints_figures_and_three_captions_after_each_epoch(
    train: Train, scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "--epochs=1") == 0
    output = capfd.readouterr().out
    assert "epoch 1  " in output and "perplexity" in output and "shuffled pictures" in output
    assert output.count("reference: ") == 3
    assert f"myllm caption PICTURES --model {tmp_path}/run" in output


@pytest.mark.slow
def test_train_keeps_the_last_good_checkpoint_if_the_disk_is_full(
    train: Train, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    before = {name: (out / name).read_bytes() for name in ("captioner.pt", "last.pt")}
    with files_no_larger_than(200_000):
        assert train(out, "--epochs=5", "--resume", "--quiet") == 1
    assert "cannot write" in (message := capsys.readouterr().err) and "Make room" in message
    assert {name: (out / name).read_bytes() for name in before} == before
    assert not list(out.glob(".*"))
    assert train(out, "--epochs=5", "--resume", "--quiet") == 0


@pytest.mark.slow
def test_train_stops_after_patience_epochs_without_a_better_one(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MYLLM_CACHE", str(tmp_path / "cache"))
    # so low a rate that the weights, and the validation loss, never change
    options = ["--epochs=9", "--lr=1e-30", "--vision.frozen=true", "--best_by=CIDEr-D", "--patience=2"]
    assert train(tmp_path / "run", *options) == 0
    assert len(rows_of(tmp_path / "run")) == 3
    output = capsys.readouterr().out
    assert "CIDEr-D needs at least 50 captioned validation pictures, and there are 3" in output
    assert "stopped: 2 epochs without a better loss" in output
    assert train(tmp_path / "run", *options, "--resume") == 0  # a stopped run stays stopped
    assert len(rows_of(tmp_path / "run")) == 3


def test_train_ends_with_the_fix_if_the_loss_is_not_finite(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "--epochs=9", "--lr=1e30", "--quiet") == 1
    assert "steps in a row is not finite" in (message := capsys.readouterr().err) and "lower --lr" in message


def test_train_cuts_and_reports_long_captions(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", "--text.n_positions=8", "--max-steps=1") == 0
    assert "captions cut at the context's end" in capsys.readouterr().out


@pytest.mark.parametrize("source", ["command line", "file"])
def test_train_with_base_refuses_an_option_that_differs_even_at_its_default(
    scenes: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    (tmp_path / "mine.yaml").write_text("text:\n  n_layer: 12\n")
    option = "--text.n-layer=12" if source == "command line" else f"--config={tmp_path}/mine.yaml"
    assert main(["train", f"--data={scenes}", f"--out={tmp_path}/run", f"--base={tiny_run}", option]) == 2
    assert f"text.n_layer is 12, but the base {tiny_run} has 1; leave that out" in capsys.readouterr().err


def test_train_accepts_the_config_yaml_of_its_base(tiny_run: Path, tmp_path: Path) -> None:
    words = ["train", f"--config={tiny_run}/config.yaml", f"--base={tiny_run}", f"--out={tmp_path}/run"]
    assert main([*words, "--max-steps=1", "--quiet"]) == 0


@pytest.mark.slow
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
def test_train_runs_with_options_that_change_how_it_trains(train: Train, tmp_path: Path, options: list[str]) -> None:
    assert train(tmp_path / "run", "--epochs=1", "--quiet", *options) == 0
    assert float(rows_of(tmp_path / "run")[0]["val_loss"]) < 6
