"""The ladder of recipes on photographs: train the rows that are named, and print the table of all that are finished.

Each row is a run of `myllm train` on Flickr8k; --print shows its command. Runs stay in --folder, and the same call
resumes one that was interrupted.

    python benchmarks/ladder.py --print
    python benchmarks/ladder.py plain dropout --folder runs/ladder --seed 0
"""

import argparse
import csv
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

FLICKR8K = Path(__file__).resolve().parents[2] / "shared" / "data" / "flickr8k"
# six epochs of people's captions on stored features of EfficientNet-Lite0, as photos-fast was
PLAIN = (
    "--vision.name tf_efficientnet_lite0 --vision.frozen true --vision.crop_pct 1 --mode last --augment false "
    "--text.n_layer 3 --text.n_head 8 --text.n_embd 256 --text.n_positions 28 --text.dropout 0 "
    "--captions.vocab_size 3000 --optimizer muon --muon_lr 0.02 --lr 4e-3 --schedule linear --weight_decay 0.3 "
    "--word_dropout 0.1 --label_smoothing 0.1 --epochs 6 --batch_size 64 --val_images 1000 --best_by CIDEr-D "
    "--decode.beams 5 --decode.max_new_tokens 30"
)
# name: (row that it starts from, or "", and options that are added)
ROWS = {
    "plain": ("", ""),
    "dropout": ("", "--text.dropout 0.2"),
    "views": ("", "--text.dropout 0.2 --views 5 --half_features true --ema 0.99"),
    "rewards": (
        "dropout", "--text.dropout 0.2 --self_critical.samples 5 --epochs 3 --lr 1e-4 --muon_lr 5e-4 --ema 0.99"
    ),
    "rewards, high rate": (
        "dropout", "--text.dropout 0.1 --self_critical.samples 5 --epochs 5 --lr 4e-4 --muon_lr 2e-3 --ema 0.98"
    ),
}
VIEWS = "--text.dropout 0.2 --views 5 --half_features true --ema 0.99"
REWARDS = "--self_critical.samples 5 --lr 4e-4 --muon_lr 2e-3"
LITE2 = "--vision.name tf_efficientnet_lite2"
# two of five captions in each epoch, the epoch with the lowest loss, and mirrored pictures
TWO = (
    f"{VIEWS} --label_smoothing 0 --captions_per_image 2 --epochs 10 --lr 2.8e-3 --muon_lr 0.014 --best_by loss "
    "--vision.mirrored true --decode.no_repeat_ngram_size 3"
)
MAPS = "--vision.feature_maps 4"
ROWS |= {
    "views, no smoothing": ("", f"{VIEWS} --label_smoothing 0"),
    "views, no smoothing, rewards": ("views, no smoothing", f"{VIEWS} --label_smoothing 0 {REWARDS} --epochs 8"),
    "views, no smoothing, rewards and people": (
        "views, no smoothing",
        f"{VIEWS} --label_smoothing 0 {REWARDS} --self_critical.people_weight 0.2 --epochs 6",
    ),
    "lite2": ("", f"{LITE2} {VIEWS} --epochs 7"),
    "lite2, rewards": ("lite2", f"{LITE2} {VIEWS} {REWARDS} --epochs 10"),
    "lite2, no smoothing": ("", f"{LITE2} {VIEWS} --label_smoothing 0"),
    "lite2, no smoothing, rewards and people, dropout": (
        "lite2, no smoothing",
        f"{LITE2} {VIEWS} {REWARDS} --self_critical.people_weight 0.1 --text.dropout 0.35 --ema 0.995 --epochs 5",
    ),
    "lite2, two captions": ("", f"{LITE2} {TWO}"),
    "lite2, two captions, maps": ("", f"{LITE2} {TWO} {MAPS}"),
    "lite2, two captions, maps, retrieval": ("", f"{LITE2} {TWO} {MAPS} --decode.rank_by retrieval"),
    "lite2, two captions, maps, retrieval, rewards and people": (
        "lite2, two captions, maps, retrieval",
        f"{LITE2} {TWO} {MAPS} {REWARDS} --decode.rank_by retrieval --self_critical.people_weight 0.25 "
        "--text.dropout 0.35 --ema 0.995 --best_by CIDEr-D --epochs 5 --base_share 0.5",
    ),
    "two captions, maps, retrieval": ("", f"{TWO} {MAPS} --decode.rank_by retrieval"),
    "views, no smoothing, fine-tuned": (
        "views, no smoothing",
        "--vision.frozen false --vision_layers 3 --vision_lr 2e-4 --vision_weight_decay 0.05 --augment true "
        "--text.dropout 0.2 --ema 0.99 --label_smoothing 0 --lr 1e-3 --muon_lr 5e-3 --epochs 3",
    ),
}
FIGURES = ("CIDEr-D", "BLEU-4", "METEOR", "CIDEr-D_shuffled", "distinct_captions")


def command(row: str, data: Path, folder: Path, seed: int) -> list[str]:
    """Return the words of `myllm train ...` for a row."""
    start, options = ROWS[row]
    base = ["--base", str(run_of(start, folder, seed) / "captioner.pt")] if start else []
    out = run_of(row, folder, seed)
    words = ["train", "--data", str(data), "--out", str(out), *PLAIN.split(), *options.split(), *base]
    words += ["--seed", str(seed), "--quiet"]
    if (out / "last.pt").exists():
        return ["train", "--out", str(out), "--resume", "--quiet"]
    return words


def run_of(row: str, folder: Path, seed: int) -> Path:
    return folder / f"{row.replace(', ', '-').replace(' ', '-')}-{seed}"


def minutes_of(row: str, folder: Path, seed: int) -> float:
    """Return the minutes of training, with those of the row that it starts from."""
    start = ROWS[row][0]
    return minutes_in(run_of(row, folder, seed)) + (minutes_of(start, folder, seed) if start else 0.0)


def minutes_in(run: Path) -> float:
    """Return the minutes of training of a run folder, with those of its runs that follow each other."""
    minutes = 0.0
    for path in (run / "metrics.csv", *run.glob("run*/metrics.csv")):
        with path.open(newline="") as file:
            minutes += float(list(csv.DictReader(file))[-1]["minutes"])
    return minutes


def print_head(first: str) -> None:
    print(f"| {first} | minutes | {' | '.join(FIGURES)} |\n|---|---|{'---|' * len(FIGURES)}")


def print_row(first: str, minutes: float, figures: dict[str, Any]) -> None:
    """Print the figures, as `myllm score --json` or a run's metrics.json has them, with their intervals."""
    cells = []
    for name in FIGURES:
        low_high = figures["intervals"].get(name)
        cells.append(f"{figures[name]:.3f}" + (f" ({low_high[0]:.3f} to {low_high[1]:.3f})" if low_high else ""))
    print(f"| {first} | {minutes:.0f} | {' | '.join(cells)} |")


def print_table(folder: Path, seed: int) -> None:
    print_head("row")
    for row in ROWS:
        metrics = run_of(row, folder, seed) / "metrics.json"
        if metrics.exists():
            print_row(row, minutes_of(row, folder, seed), json.loads(metrics.read_text(encoding="utf-8")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help=f"one or more of: {'; '.join(ROWS)}")
    parser.add_argument("--data", type=Path, default=FLICKR8K)
    parser.add_argument("--folder", type=Path, default=Path("runs/ladder"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--print", action="store_true", help="print the command of each row, and run nothing")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        print(f"skipped: {arguments.data} is not a folder; give the folder of Flickr8k as --data")
        return
    for row in ROWS if arguments.print else arguments.rows:
        words = command(row, arguments.data, arguments.folder, arguments.seed)
        if arguments.print:
            print(f"{row}:\n  myllm {shlex.join(words)}")
        elif not (run_of(row, arguments.folder, arguments.seed) / "metrics.json").exists():
            subprocess.run([sys.executable, "-m", "myllm", *words], check=True)
    if not arguments.print:
        print_table(arguments.folder, arguments.seed)


if __name__ == "__main__":
    main()
