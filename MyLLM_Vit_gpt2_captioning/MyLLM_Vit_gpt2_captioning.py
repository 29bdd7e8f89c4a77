"""Train the seed's captioner on data/ and show what it says: `myllm train --preset seed`, from any directory.

Takes every option of `myllm train`. data/ is looked for in the repository, then in the working directory.
"""

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "src"))

from myllm.apps.original import main  # noqa: E402 - the package is found beside this file where it is not installed

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], REPOSITORY))
