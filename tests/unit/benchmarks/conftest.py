"""Puts the folder of benchmarks on the path, as running one of them does."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))
