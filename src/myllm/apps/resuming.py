"""The command that resumes a run."""

import json
import shlex
from functools import reduce
from typing import Any

from myllm.apps.options import VerbOptions

NOT_REPEATED = ("overwrite",)


def command_line(verb: str, options: VerbOptions) -> str:
    """Return the command with the options that were given, except those that would start anew."""
    words = list[str]()
    for name in sorted(options.given_names - set(NOT_REPEATED)):
        value: Any = reduce(getattr, name.split("."), options)
        text = value if isinstance(value, str) else json.dumps(value)
        words += [f"--{name.rstrip('_')}", *([] if value is True else [text])]
    paths = getattr(options, "paths", ())
    if any(path.startswith("-") for path in paths):
        return shlex.join(["myllm", verb, *words, "--", *paths])
    return shlex.join(["myllm", verb, *paths, *words])
