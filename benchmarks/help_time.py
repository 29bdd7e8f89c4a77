"""Times `myllm --help` and each verb's as whole processes, beside a Python that does nothing.

    python benchmarks/help_time.py [--rounds 7]

Commands take turns, so that all see the same machine.
"""

import argparse
import subprocess
import sys
from statistics import median
from time import perf_counter

from myllm.apps.cli import VERBS


def seconds(command: list[str]) -> float:
    """From the start of the process to its end."""
    start = perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds

    commands = {"python -c pass": [sys.executable, "-c", "pass"]}
    for words in ([], *([verb] for verb in VERBS)):
        commands[" ".join(["myllm", *words, "--help"])] = [sys.executable, "-m", "myllm", *words, "--help"]
    for command in commands.values():
        seconds(command)  # fills the file cache and writes the bytecode
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            times[name].append(seconds(command))

    print(f"| command | median, s | min to max of {rounds}, s |\n|---|---|---|")
    for name, taken in times.items():
        print(f"| `{name}` | {median(taken):.2f} | {min(taken):.2f} to {max(taken):.2f} |")


if __name__ == "__main__":
    main()
