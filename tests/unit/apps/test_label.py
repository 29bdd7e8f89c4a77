"""The command that resumes `myllm label`."""

import shlex

import pytest

from myllm.apps.label import command_line
from myllm.apps.options import LabelOptions
from myllm.apps.parsing import parse


@pytest.mark.parametrize("path", ["pics", "a b.png", "--my-pic.jpg", "-"])
def test_the_command_that_resumes_gives_the_same_options(path: str) -> None:
    words = ["--teacher", "http://localhost:8000/v1", "--out", "out file.jsonl", "--n=2", "--quiet", "--", path]
    options = parse("myllm label", LabelOptions, words)
    program, verb, *again = shlex.split(command_line(options))
    assert (program, verb) == ("myllm", "label")
    assert parse("myllm label", LabelOptions, again) == options
