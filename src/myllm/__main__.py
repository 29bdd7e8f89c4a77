"""`python -m myllm` is `myllm`."""

import sys

from myllm.apps.cli import main

sys.exit(main())
