"""Train the original captioner on data/ and print captions of sample pictures: `myllm train --preset vit-gpt2`.

Takes every option of `myllm train`, and runs in any directory; data/ is looked for in the repository, then in the
working directory.
"""

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PYTHON = REPOSITORY / ".venv/bin/python"
FIX = f"run this script with {PYTHON}" + ("" if PYTHON.exists() else ", which `make demo` creates")

if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 - the rest of the package cannot even be read by older versions
        sys.exit(f"Python {sys.version_info[0]}.{sys.version_info[1]} is too old, 3.11 or newer is needed: {FIX}")
    sys.path.insert(0, str(REPOSITORY / "src"))
    try:
        from myllm.apps.original import main

        sys.exit(main(sys.argv[1:], REPOSITORY))
    except ModuleNotFoundError as error:
        sys.exit(f"{error.name} is not installed: {FIX}")
