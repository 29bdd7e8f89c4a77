"""Runs the demo with several seeds and prints its figures and minutes as a markdown table."""

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
    parser.add_argument("--minutes", type=float, help="training time of each; the default is the demo's")
    parser.add_argument("--max-steps", type=int, help="train for this many steps instead of a time")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            out = Path(folder) / f"seed{seed}"
            command = [sys.executable, "-m", "myllm", "demo", "--quiet", "--seed", str(seed), "--out", str(out)]
            command += ["--minutes", str(arguments.minutes)] if arguments.minutes else []
            command += ["--max-steps", str(arguments.max_steps)] if arguments.max_steps else []
            start = time.monotonic()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            minutes = (time.monotonic() - start) / 60
            report = json.loads((out / "report.json").read_text(encoding="utf-8"))
            rows.append((seed, minutes, report["seen pairs"], report["held-out pairs"]))
    columns = (
        "seed",
        "minutes",
        *(f"{part}: {name}" for part in ("seen", "held-out") for name in (*SHARES, "CIDEr-D (shuffled)")),
    )
    print(f"| {' | '.join(columns)} |")
    print(f"|{'---|' * len(columns)}")
    for seed, minutes, seen_pairs, held_out_pairs in rows:
        print(f"| {seed} | {minutes:.1f} | {_cells(seen_pairs)} | {_cells(held_out_pairs)} |")
    if len(rows) > 1:
        for column, part in ((2, "seen"), (3, "held-out")):
            shares = (f"{name} {statistics.mean(row[column][name] for row in rows):.1%}" for name in SHARES)
            print(f"mean, {part}: {', '.join(shares)}")


def _cells(figures: dict[str, float]) -> str:
    shares = " | ".join(f"{figures[name]:.1%}" for name in SHARES)
    return f"{shares} | {figures['CIDEr-D']:.2f} ({figures['CIDEr-D_shuffled']:.2f})"


if __name__ == "__main__":
    main()
