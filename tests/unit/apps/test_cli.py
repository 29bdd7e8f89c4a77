"""The verbs of the command line, their help, and the one line that any error becomes."""

from collections.abc import Callable

import pytest

from myllm.apps.cli import TRAIN_PACKAGES, VERBS, exit_code, main
from myllm.errors import CheckpointError, ConfigError
from myllm.presets import PRESETS

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]])
def test_help_lists_every_verb(words: list[str], capsys: Capture) -> None:
    assert main(words) == 0
    output = capsys.readouterr().out
    assert all(f"\n  {verb} " in output for verb in VERBS)


def test_without_words_help_is_printed_and_it_is_wrong_usage(capsys: Capture) -> None:
    assert main([]) == 2
    assert "usage: myllm VERB" in capsys.readouterr().out


def test_help_of_a_group_lists_its_verbs_only(capsys: Capture) -> None:
    assert (main(["data", "--help"]), main(["data"])) == (0, 2)
    output = capsys.readouterr().out
    assert output.count("\n  data split ") == 2 and "\n  train " not in output


def test_an_unknown_verb_of_a_group_is_wrong_usage(capsys: Capture) -> None:
    assert main(["data", "splits"]) == 2
    assert "unknown verb 'data splits'" in (message := capsys.readouterr().err) and "did you mean data split" in message


def test_version_is_that_of_the_package(capsys: Capture) -> None:
    import myllm

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"myllm {myllm.__version__}\n"


@pytest.mark.parametrize("verb", list(VERBS))
def test_help_of_a_verb_lists_its_options_but_no_renamed_one(verb: str, capsys: Capture) -> None:
    assert main([*verb.split(), "--help"]) == 0
    output = capsys.readouterr().out
    assert output.startswith(f"usage: myllm {verb}")
    assert any(option in output for option in ("--out", "--json", "--quiet"))
    for old in ("--decode.contrast ", "--presence", *(["--clip"] if verb == "train" else [])):
        assert old not in output
    for word in ("--given_names", "Literal[", "default: null", "default: )"):
        assert word not in output


def test_help_has_the_docstring_of_each_option(capsys: Capture) -> None:
    main(["train", "--help"])
    output = " ".join(capsys.readouterr().out.split())
    for text in (
        "Peak learning rate.",
        "Name of a timm model.",
        "Number of beams in beam search; 1 is greedy decoding.",
        "Softmax temperature for sampling: below 1 sharpens the distribution, above 1 flattens it.",
        "Resume the run in --out from its last.pt, with the options that it began with.",
        "Replace existing results in --out.",
        "(default: c_attn,q_attn,c_proj,c_fc)",
    ):
        assert text in output


@pytest.mark.parametrize("verb", ["train", "diagram"])
def test_help_names_every_preset(verb: str, capsys: Capture) -> None:
    main([verb, "--help"])
    output = " ".join(capsys.readouterr().out.split())
    assert f"{', '.join([*PRESETS][:-1])} or {[*PRESETS][-1]}." in output


def raising(error: BaseException) -> Callable[[], int]:
    def run() -> int:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("beams is 0"), 2, "beams is 0"),
        (CheckpointError("x.pt: damaged"), 1, "x.pt: damaged"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "out.jsonl"), 1, "out.jsonl: No space left on device"),
        (ModuleNotFoundError("No module named 'timm.data'", name="timm.data"), 1, "this needs timm, which is not"),
        (CheckpointError("\x1b[31mred"), 1, r"\x1b[31mred"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    error: BaseException, code: int, message: str, capsys: Capture
) -> None:
    assert exit_code(raising(error)) == code
    errors = capsys.readouterr().err
    assert errors.startswith(f"myllm: {message}") and errors.count("\n") == 1


def test_a_missing_training_package_is_named_with_the_command_that_installs_it(capsys: Capture) -> None:
    exit_code(raising(ModuleNotFoundError("No module named 'torch'", name="torch")))
    assert f"-m pip install {' '.join(TRAIN_PACKAGES)}`" in capsys.readouterr().err


def test_a_missing_module_of_the_package_itself_is_a_bug_and_is_raised() -> None:
    with pytest.raises(ModuleNotFoundError):
        exit_code(raising(ModuleNotFoundError("No module named 'myllm.gone'", name="myllm.gone")))
