"""Train a preset on Flickr8k, then print minutes, figures and every 20th validation caption.

With --folder, the same call resumes an interrupted run.

    python benchmarks/photos.py --preset photos --folder runs/photos --seed 0 --processes 2
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from myllm.config import CaptionsConfig
from myllm.data.sources import read_records
from myllm.metrics.diversity import repeating_share

FLICKR8K = Path(__file__).resolve().parents[2] / "shared" / "data" / "flickr8k"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=FLICKR8K)
    parser.add_argument("--preset", default="photos-fast")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, help="training processes, by torchrun; default: 1")
    parser.add_argument("--folder", type=Path, help="keep run, features and evaluation in this folder")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        print(f"skipped: {arguments.data} is not a folder; give the folder of Flickr8k as --data")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        minutes = train(arguments, folder)
        captioned = ["--data", str(arguments.data), "--quiet", "--model", str(folder / "run"), "--overwrite"]
        _run_myllm(["evaluate", *captioned, "--out", str(folder / "evaluation")], folder)
        print_figures(str(arguments.data), folder / "evaluation", minutes)


def train(arguments: argparse.Namespace, folder: Path) -> float:
    """Train the preset, or resume its run; return the minutes of all sessions, with those for features."""
    out, spent = folder / "run", folder / "minutes.json"
    sessions = json.loads(spent.read_text()) if spent.exists() else []
    words = ["train", "--data", str(arguments.data), "--preset", arguments.preset, "--seed", str(arguments.seed)]
    if any(out.rglob("last.pt")):
        words = ["train", "--resume"]
    start = time.monotonic()
    try:
        _run_myllm([*words, "--out", str(out), "--quiet"], folder, arguments.processes)
    finally:
        folder.mkdir(parents=True, exist_ok=True)
        spent.write_text(json.dumps([*sessions, (time.monotonic() - start) / 60]))
    return sum(sessions) + (time.monotonic() - start) / 60


def print_figures(data: str, evaluation: Path, minutes: float) -> None:
    figures = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (evaluation / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    judged = {row["image"] for row in rows}
    records, _ = read_records(data, CaptionsConfig())
    people = [caption for record in records if record.name in judged for caption in record.captions]
    print(f"{minutes:.1f} minutes, features included; {json.dumps(figures['protocol'])}\n")
    print("| figure | value |\n|---|---|")
    for name in ("BLEU-1", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr-D", "CIDEr-D_shuffled", "distinct_captions"):
        if name in figures:
            print(f"| {name} | {figures[name]:.3f} |")
    repeating = repeating_share([row["caption"] for row in rows])
    print(f"| captions that repeat three words (people's) | {repeating:.1%} ({repeating_share(people):.1%}) |")
    print("\n| every 20th picture | caption | CIDEr-D |\n|---|---|---|")
    for row in rows[::20]:
        print(f"| {row['image']} | {row['caption']} | {row['CIDEr-D']:.2f} |")


def _run_myllm(words: list[str], folder: Path, processes: int = 1) -> None:
    # a cache of its own, so that the time includes the features
    environment = os.environ | {"MYLLM_CACHE": str(folder / "cache")}
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    subprocess.run([sys.executable, *torchrun, "-m", "myllm", *words], check=True, env=environment, stdout=sys.stderr)


if __name__ == "__main__":
    main()
