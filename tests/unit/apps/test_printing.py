"""Output that a terminal, or no terminal, can take."""

import sys

import pytest

from myllm.apps.printing import print_json, replace_unencodable


def test_output_to_closed_streams_is_discarded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):  # as after >&- 2>&-
        monkeypatch.setattr(sys, name, None)
    replace_unencodable()
    print_json({"captioned": 1})
    assert sys.stdout.isatty() is False and sys.stderr.write("x") == 1
