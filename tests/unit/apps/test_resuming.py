"""The command that resumes a run."""

import shlex

import pytest

from myllm.apps.caption_options import CaptionOptions
from myllm.apps.options import LabelOptions
from myllm.apps.parsing import parse
from myllm.apps.resuming import command_line

CASES = {
    "label": (LabelOptions, ["--teacher", "http://localhost:8000/v1", "--n=2"]),
    "caption": (CaptionOptions, ["--decode.bad_words=[a, b c]", "--from=l.txt", "--fields=score", "--decode.beams=3"]),
}


@pytest.mark.parametrize("path", ["pics", "a b.png", "--my-pic.jpg", "-"])
@pytest.mark.parametrize("verb", CASES)
def test_the_command_that_resumes_gives_the_same_options(verb: str, path: str) -> None:
    kind, words = CASES[verb]
    options = parse(f"myllm {verb}", kind, [*words, "--out", "out file.jsonl", "--quiet", "--", path])
    program, same_verb, *again = shlex.split(command_line(verb, options))
    assert (program, same_verb) == ("myllm", verb)
    assert parse(f"myllm {verb}", kind, again) == options
