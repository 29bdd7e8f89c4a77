from pathlib import Path

import pytest

from myllm.apps.cli import VERBS, check_yaml, given_value, main, option_values
from myllm.errors import ConfigError

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]])
def test_help_lists_every_verb(words: list[str], capsys: Capture) -> None:
    assert main(words) == 0
    told = capsys.readouterr().out
    assert all(f"\n  {verb} " in told for verb in VERBS)


def test_without_words_the_verbs_are_told_and_it_is_wrong_usage(capsys: Capture) -> None:
    assert main([]) == 2
    assert "usage: myllm VERB" in capsys.readouterr().out


def test_version_is_the_packages(capsys: Capture) -> None:
    import myllm

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"myllm {myllm.__version__}\n"


@pytest.mark.parametrize("verb", list(VERBS))
def test_each_verb_tells_its_options(verb: str, capsys: Capture) -> None:
    assert main([verb, "--help"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"usage: myllm {verb}") and any(option in told for option in ("--out", "--json", "--quiet"))


def test_help_holds_the_text_under_each_option(capsys: Capture) -> None:
    main(["train", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    for text in (
        "Peak learning rate.",
        "Name of a timm model.",
        "Beams kept in search; 1 is greedy.",
        "Go on with the run",
    ):
        assert text in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "unknown verb 'trian'; did you mean train?"),
        (["train", "--batchsize=3"], "unknown option --batchsize; did you mean --batch_size"),
        (["train", "--text.layers=3"], "unknown option --text.layers; did you mean --text.n_layer"),
        (["train", "--epoch=3"], "unknown option --epoch"),  # no abbreviations: scripts would break with a new option
        (["scenes", "--out=x", "--cuont=3"], "unknown option --cuont; did you mean --count"),
        (["train", "--epochs=many"], "epochs is 'many'; expected a whole number."),
        (["train", "--mode=both"], "mode is 'both'; expected one of layerwise, last."),
        (["caption"], "paths"),
        (["evaluate"], "data"),
        (["caption", "x.png", "--decode.beams=0"], "decode.beams is 0; it must be above 0"),
        (["caption", "x.png", "--decode.beam=4"], "unknown option --decode.beam; did you mean --decode.beams"),
        (["diagram", "--preset=mine"], "mine"),
    ],
)
def test_wrong_usage_is_one_line_with_the_nearest_right_one(words: list[str], message: str, capsys: Capture) -> None:
    assert main(words) == 2
    told = capsys.readouterr().err
    assert message in told and told.startswith("myllm: ") and told.count("\n") == 1, told


def test_values_are_found_in_both_spellings() -> None:
    assert option_values(["--a", "1", "--b=2", "--a=3"], "--a") == ["3", "1"]
    assert option_values(["--ab=1"], "--a") == []


def test_a_value_is_the_command_lines_then_the_files(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("out: there\nepochs: 3\n")
    words = ["--config", str(tmp_path / "a.yaml")]
    assert given_value(words, "out") == "there"
    assert given_value([*words, "--out", "here"], "out") == "here"
    assert given_value(words, "data") is None
    assert given_value([f"--config={tmp_path}/nowhere.yaml"], "out") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1\nb:\n  c: 2\n  d: 3\n", r"a.yaml, line 4: unknown option 'b.d'; did you mean b.c\?"),
        ("a: 1\n\n# so\nzz: 2\n", r"a.yaml, line 4: unknown option 'zz'$"),
        ("a: {\n", r"--config .*a.yaml: no YAML: .* line 2"),
        ("[]\n", r"--config .*a.yaml, line 1: expected options as `name: value`"),
        (b"a: \xff\n", r"--config .*a.yaml: cannot be read"),
    ],
)
def test_a_yaml_fault_is_told_with_file_and_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message):
        check_yaml([path], ["a", "b.c"])


@pytest.mark.parametrize("content", ["", "# nothing\n", "a: 1\nb:\n  c: 2\n", "b: {}\n"])
def test_right_yaml_passes(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.yaml").write_text(content)
    check_yaml([tmp_path / "a.yaml"], ["a", "b.c"])


@pytest.mark.parametrize("flag", [["--quiet"], ["--quiet=true"], ["--quiet", "true"]])
def test_a_flag_may_stand_bare_or_with_its_value(tmp_path: Path, flag: list[str], capsys: Capture) -> None:
    assert main(["scenes", *flag, "--out", str(tmp_path / "data"), "--count", "20"]) == 0
    assert (tmp_path / "data/results.csv").is_file()
