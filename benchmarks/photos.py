"""Train preset photos-fast on Flickr8k, then print minutes, figures and every 100th validation caption."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FLICKR8K = Path(__file__).resolve().parents[2] / "shared" / "data" / "flickr8k"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=FLICKR8K)
    parser.add_argument("--preset", default="photos-fast")
    parser.add_argument("--out", type=Path, help="keep the run in this folder")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        print(f"skipped: {arguments.data} is not a folder; give the folder of Flickr8k as --data")
        return
    with tempfile.TemporaryDirectory() as folder:
        out = arguments.out or Path(folder) / "run"
        # an empty cache, so that the time includes the features
        environment = {"MYLLM_CACHE": str(Path(folder) / "cache")}
        data = ["--data", str(arguments.data), "--quiet"]
        start = time.monotonic()
        _run_myllm(["train", *data, "--preset", arguments.preset, "--out", str(out)], environment)
        minutes = (time.monotonic() - start) / 60
        evaluation = Path(folder) / "evaluation"
        _run_myllm(["evaluate", *data, "--model", str(out), "--out", str(evaluation)], environment)
        figures = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
        print(f"{minutes:.1f} minutes, features included; {json.dumps(figures['protocol'])}\n")
        print("| figure | value |\n|---|---|")
        for name in ("BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr-D", "CIDEr-D_shuffled", "distinct_captions"):
            print(f"| {name} | {figures[name]:.3f} |")
        print("\n| every 100th picture | caption | CIDEr-D |\n|---|---|---|")
        for line in (evaluation / "captions.jsonl").read_text(encoding="utf-8").splitlines()[::100]:
            row = json.loads(line)
            print(f"| {row['image']} | {row['caption']} | {row['CIDEr-D']:.2f} |")


def _run_myllm(words: list[str], environment: dict[str, str]) -> None:
    subprocess.run([sys.executable, "-m", "myllm", *words], check=True, env=os.environ | environment, stdout=sys.stderr)


if __name__ == "__main__":
    main()
