"""The demo with several seeds, one after the other: what it reaches and how long it takes, as a markdown table."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHARES = ("true", "complete", "placed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, help="training time of each; the demo's own where not given")
    parser.add_argument("--max-steps", type=int, help="steps of each instead, as on a slower machine")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            out = Path(folder) / f"seed{seed}"
            command = [sys.executable, "-m", "myllm", "demo", "--quiet", "--seed", str(seed), "--out", str(out)]
            command += ["--minutes", str(arguments.minutes)] if arguments.minutes else []
            command += ["--max-steps", str(arguments.max_steps)] if arguments.max_steps else []
            began = time.monotonic()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            minutes = (time.monotonic() - began) / 60
            report = json.loads((out / "report.json").read_text(encoding="utf-8"))
            rows.append((seed, minutes, report["seen pairs"], report["held-out pairs"]))
    columns = (
        "seed",
        "minutes",
        *(f"{part}: {one}" for part in ("seen", "held-out") for one in (*SHARES, "CIDEr-D (shuffled)")),
    )
    print(f"| {' | '.join(columns)} |")
    print(f"|{'---|' * len(columns)}")
    for seed, minutes, seen, held in rows:
        print(f"| {seed} | {minutes:.1f} | {_told(seen)} | {_told(held)} |")
    if len(rows) > 1:
        for part, name in ((2, "seen"), (3, "held-out")):
            shares = (f"{one} {statistics.mean(row[part][one] for row in rows):.1%}" for one in SHARES)
            print(f"mean, {name}: {', '.join(shares)}")


def _told(figures: dict[str, float]) -> str:
    shares = " | ".join(f"{figures[one]:.1%}" for one in SHARES)
    return f"{shares} | {figures['CIDEr-D']:.2f} ({figures['CIDEr-D_shuffled']:.2f})"


if __name__ == "__main__":
    main()
