"""Text and JSON that any terminal can print. Imports nothing that takes time."""

import io
import json
import os
import re
import sys
from typing import Any

# control characters, marks that reverse the direction of text, and bytes of file names that are not UTF-8
UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, keep: str = "") -> str:
    """Return the text with characters that control a terminal escaped, like \\x1b; those of `keep` stay."""
    escape = "".join(sorted(set(UNPRINTABLE.findall(text)) - set(keep)))
    return text.translate({ord(character): character.encode("unicode_escape").decode() for character in escape})


def replace_unencodable() -> None:
    """Let standard output and error escape what their encoding lacks, instead of ending the program.

    What is written to a closed one (`>&-`), which Python has as None, is discarded.
    """
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115, it stays open
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_json(value: Any) -> None:
    """Print one line of JSON, in ASCII if standard output is not UTF-8."""
    is_utf8 = (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"
    # a lone surrogate, from a file name that is not UTF-8, becomes \udc.. either way, which JSON reads back
    print(json.dumps(value, ensure_ascii=not is_utf8), flush=True)
