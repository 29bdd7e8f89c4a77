"""Runs the parity tests of decoding and prints a table: each claim, its cases, and how many equal transformers."""

import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

TESTS = Path(__file__).resolve().parents[1] / "tests/parity/test_generate.py"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", str(TESTS), f"--junitxml={report}"]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=False, cwd=TESTS.parents[2])
        cases, equal = Counter[str](), Counter[str]()
        for case in ElementTree.parse(report).iter("testcase"):
            claim = re.sub(r"\[.*", "", case.attrib["name"]).removeprefix("test_").replace("_", " ")
            cases[claim] += 1
            equal[claim] += case.find("failure") is None and case.find("error") is None
    print("| claim | cases | equal |\n|---|---|---|")
    for claim, count in cases.items():
        print(f"| {claim} | {count} | {equal[claim]} |")
    print(f"| all | {cases.total()} | {equal.total()} |")


if __name__ == "__main__":
    main()
