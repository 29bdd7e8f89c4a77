"""The demo with several seeds, one after the other: what it reaches and how long it takes, as a markdown table."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FIGURES = ("true", "complete", "CIDEr-D (shuffled)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, help="training time of each; the demo's own where not given")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            out = Path(folder) / f"seed{seed}"
            command = [sys.executable, "-m", "myllm", "demo", "--quiet", "--seed", str(seed), "--out", str(out)]
            command += ["--minutes", str(arguments.minutes)] if arguments.minutes else []
            began = time.monotonic()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            minutes = (time.monotonic() - began) / 60
            report = json.loads((out / "report.json").read_text(encoding="utf-8"))
            rows.append((seed, minutes, report["seen pairs"], report["held-out pairs"]))
    columns = ("seed", "minutes", *(f"{part}: {one}" for part in ("seen", "held-out") for one in FIGURES))
    print(f"| {' | '.join(columns)} |")
    print("|---|---|---|---|---|---|---|---|")
    for seed, minutes, seen, held in rows:
        print(f"| {seed} | {minutes:.1f} | {_told(seen)} | {_told(held)} |")
    if len(rows) > 1:
        shares = [statistics.mean(row[part][name] for row in rows) for part in (2, 3) for name in ("true", "complete")]
        print("mean: seen {:.1%} and {:.1%}, held-out {:.1%} and {:.1%}".format(*shares))


def _told(figures: dict[str, float]) -> str:
    return (
        f"{figures['true']:.1%} | {figures['complete']:.1%} | "
        f"{figures['CIDEr-D']:.2f} ({figures['CIDEr-D_shuffled']:.2f})"
    )


if __name__ == "__main__":
    main()
