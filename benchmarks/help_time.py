"""Time `myllm --help` and the help of each verb as whole processes, and a Python that does nothing for comparison.

    python benchmarks/help_time.py [--rounds 7]

Commands take turns, so that changes in the load of the machine affect all of them.
"""

import argparse
import subprocess
import sys
from statistics import median
from time import perf_counter

from myllm.apps.cli import VERBS


def seconds(command: list[str]) -> float:
    """Run a command and return how long its process took."""
    start = perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds

    commands = {"python -c pass": [sys.executable, "-c", "pass"]}
    for verb in ([], *(name.split() for name in VERBS)):
        commands[" ".join(["myllm", *verb, "--help"])] = [sys.executable, "-m", "myllm", *verb, "--help"]
    for command in commands.values():
        seconds(command)  # fills the file cache and writes the bytecode
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            times[name].append(seconds(command))

    print(f"| command | median, s | min to max of {rounds}, s |\n|---|---|---|")
    for name, values in times.items():
        print(f"| `{name}` | {median(values):.2f} | {min(values):.2f} to {max(values):.2f} |")


if __name__ == "__main__":
    main()
