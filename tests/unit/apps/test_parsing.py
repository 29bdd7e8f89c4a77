"""Command lines and YAML files to options: what overrides what, and errors that name the option and its line."""

from pathlib import Path
from typing import Any

import pytest

from myllm.apps.caption_options import CaptionOptions
from myllm.apps.cli import main
from myllm.apps.options import EvaluateOptions, ScenesOptions, TrainOptions, VerbOptions
from myllm.apps.parsing import parse
from myllm.apps.serve_options import ServeOptions
from myllm.config import DecodeConfig
from myllm.errors import ConfigError
from myllm.presets import PRESETS

Capture = pytest.CaptureFixture[str]


def train(*words: str, **defaults: Any) -> TrainOptions:
    return parse("myllm train", TrainOptions, words, defaults)


def caption(*words: str) -> CaptionOptions:
    return parse("myllm caption", CaptionOptions, words)


@pytest.fixture
def yaml_file(tmp_path: Path) -> Path:
    return tmp_path / "a.yaml"


@pytest.mark.parametrize(
    "words", [["--batch-size", "3"], ["--batch_size=3"], ["--batch-size=3"], ["--batch_size", "3"]]
)
def test_an_option_may_have_dashes_and_an_equals_sign(words: list[str]) -> None:
    assert train(*words).batch_size == 3


@pytest.mark.parametrize(("words", "value"), [
    ([], False), (["--quiet"], True), (["--quiet=true"], True), (["--quiet", "true"], True),
    (["--quiet", "false"], False),
])
def test_a_flag_may_have_a_value(words: list[str], value: bool) -> None:
    assert train(*words, "--lr", "1").quiet is value


def test_a_negative_number_is_a_value() -> None:
    assert caption("a.png", "--decode.length_penalty", "-1").decode.length_penalty == -1


@pytest.mark.parametrize("words", [
    ["a.png", "b.png", "--json"], ["--json", "a.png", "b.png"], ["a.png", "--json", "b.png"],
    ["--json", "--", "a.png", "b.png"],
])
def test_paths_may_be_anywhere(words: list[str]) -> None:
    assert caption(*words).paths == ("a.png", "b.png")


def test_words_after_two_dashes_are_paths_as_they_are() -> None:
    assert caption("--json", "--", "--my-pic.jpg", "--").paths == ("--my-pic.jpg", "--")


@pytest.mark.parametrize("words", [
    ["--decode.beams=4", "--decode.prefix", "a photo"], ["--decode", "{beams: 4, prefix: a photo}"],
    ["--decode={beams: 4}", "--decode.prefix=a photo"],
])
def test_a_group_may_be_given_together(words: list[str]) -> None:
    assert caption("a.png", *words).decode_changes == {"beams": 4, "prefix": "a photo"}


def test_a_group_may_be_read_from_a_file(yaml_file: Path) -> None:
    yaml_file.write_text("beams: 4\n")
    assert caption("a.png", "--decode", str(yaml_file)).decode_changes == {"beams": 4}


def test_a_group_may_be_a_text_longer_than_a_file_name_can_be() -> None:
    words = ("dog",) * 100
    assert caption("a.png", "--decode", f"{{bad_words: [{', '.join(words)}]}}").decode.bad_words == words


@pytest.mark.parametrize("words", [[], ["--preset=scenes", "--lora.targets=a,b", "--decode.prefix=on"]])
def test_a_printed_configuration_can_be_read(words: list[str], yaml_file: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        train(*words, "--print_config")
    yaml_file.write_text(capsys.readouterr().out)
    assert train("--config", str(yaml_file)).config == train(*words).config


def test_a_printed_configuration_has_no_paths(yaml_file: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        caption("a.png", "--batch_size=3", "--print_config")
    yaml_file.write_text(capsys.readouterr().out)
    assert caption("b.png", "--config", str(yaml_file)).batch_size == 3


def test_decode_changes_are_the_options_given_even_at_their_default() -> None:
    options = caption("a.png", "--decode.beams=1", "--batch_size=9")
    assert options.decode_changes == {"beams": 1} and options.decode == DecodeConfig()


@pytest.mark.parametrize("value", ["[cat, hot dog]", "cat,hot dog", '["cat", "hot dog"]'])
def test_a_list_needs_no_brackets(value: str) -> None:
    assert caption("a.png", f"--decode.bad_words={value}").decode.bad_words == ("cat", "hot dog")


def test_yaml_is_overridden_by_the_command_line_in_any_order(yaml_file: Path) -> None:
    yaml_file.write_text(
        "epochs: 3\nlr: 1e-3\ntext:\n  n-layer: 2\nvision: {geometry: {embed_dim: 192}}\nstages: [text]\n"
    )
    for words in (["--config", str(yaml_file), "--epochs=5"], ["--epochs=5", f"--config={yaml_file}"]):
        options = train(*words)
        assert (options.epochs, options.lr, options.text.n_layer) == (5, 1e-3, 2)
        assert options.vision.geometry == {"embed_dim": 192} and options.stages == ("text",)


def test_a_preset_is_overridden_by_yaml_and_yaml_may_name_it(yaml_file: Path) -> None:
    yaml_file.write_text("preset: scenes\nlr: 0.5\n")
    options = train("--config", str(yaml_file))
    assert options.lr == 0.5 and options.text.n_layer == PRESETS["scenes"]["text"]["n_layer"]


def test_defaults_are_overridden_by_everything(yaml_file: Path) -> None:
    yaml_file.write_text("out: there\n")
    options = train("--config", str(yaml_file), preset="scenes", out="here", data="mine")
    assert (options.out, options.data, options.lr) == ("there", "mine", PRESETS["scenes"]["lr"])
    assert train("--preset=photos", preset="scenes").lr == PRESETS["photos"]["lr"]


def test_text_in_yaml_is_taken_as_it_is_written(yaml_file: Path) -> None:
    yaml_file.write_text("decode:\n  prefix: on\n  regex: '5'\n  stop_strings: ['on', '3', a b]\nmax_steps: null\n")
    options = train("--config", str(yaml_file))
    assert (options.decode.prefix, options.decode.regex) == ("on", "5")
    assert options.decode.stop_strings == ("on", "3", "a b") and options.max_steps is None


@pytest.mark.parametrize("content", ["", "# only a comment\n", "text: {}\n"])
def test_yaml_without_options_changes_nothing(yaml_file: Path, content: str) -> None:
    yaml_file.write_text(content)
    assert train("--config", str(yaml_file)).config == train().config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lr: 1\ntext:\n  n_head: 2\n  n_layrs: 3\n", r"a.yaml, line 4: unknown option 'text.n_layrs'; did you mean"),
        ("config: null\n", r"a.yaml, line 1: unknown option 'config'"),
        ("epochs: 1\n\n# a comment\nzz: 2\n", r"a.yaml, line 4: unknown option 'zz'$"),
        ("epochs: {\n", r"--config .*a.yaml: not YAML: "),
        ("[]\n", r"a.yaml, line 1: expected options as `name: value`"),
        ("only words\n", r"a.yaml, line 1: expected options as `name: value`"),
        (b"epochs: \xff\n", r"--config .*a.yaml: cannot be read"),
        ("epochs: 1\ntext: 5\n", r"a.yaml, line 2: text is a group: expected options as `name: value`"),
        ("lr: null\n", r"a.yaml, line 1: lr is null; expected a number"),
        ("lr:\n", r"a.yaml, line 1: lr is null; expected a number"),
        ("data: null\n", r"a.yaml, line 1: data is null; expected text"),
        ("? [a]\n: 3\n", r"a.yaml, line 1: unknown option"),
        ("lr: 1\n\nepochs: many\n", r"a.yaml, line 3: epochs is 'many'; expected a whole number"),
        ("lr: 1\nseed: 99999999999999999999999\n", r"a.yaml, line 2: seed is 99999999999999999999999; it must be at"),
        ("lr: .nan\n", r"a.yaml, line 1: lr is nan; it must be above 0"),
        ("lr: 1\nbatch-size: many\n", r"a.yaml, line 2: batch_size is 'many'; expected a whole number"),
        ("text: &t {n_layer: *t}\n", r"a.yaml"),
    ],
)
def test_a_yaml_fault_is_reported_with_file_and_line(yaml_file: Path, content: str | bytes, message: str) -> None:
    yaml_file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message):
        train("--config", str(yaml_file))


@pytest.mark.parametrize("option", ["--config", "--decode"])
def test_a_yaml_file_is_not_read_beyond_a_limit(yaml_file: Path, option: str) -> None:
    with yaml_file.open("wb") as file:
        file.truncate(2**35)  # sparse: it takes no room on the disk
    with pytest.raises(ConfigError, match=r"a.yaml: cannot be read .*larger than the limit of"):
        train(option, str(yaml_file))


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        (TrainOptions, ["--batchsize=3"], "unknown option --batchsize; did you mean --batch_size"),
        (TrainOptions, ["--text.layers=3"], "unknown option --text.layers; did you mean --text.n_layer"),
        (TrainOptions, ["--epoch=3"], "unknown option --epoch"),  # a new option could make an abbreviation ambiguous
        (TrainOptions, ["--epochs=many"], "epochs is 'many'; expected a whole number"),
        (TrainOptions, ["--mode=both"], "mode is 'both'; expected one of layerwise, last"),
        (TrainOptions, ["--lr"], "--lr needs a value"),
        (TrainOptions, ["--lr", "--epochs=3"], "--lr needs a value"),
        (TrainOptions, ["--weight_decay=-5"], "weight_decay is -5"),
        (TrainOptions, ["--preset=mine"], "preset 'mine'"),
        (TrainOptions, ["3"], "unexpected '3'; options begin with --"),
        (TrainOptions, ["--given_names=lr"], "unknown option --given_names"),
        (TrainOptions, ["--decode.stop_strings=on"], "expected a list.*in quotes"),
        (ScenesOptions, ["--out=x", "--cuont=3"], "unknown option --cuont; did you mean --count"),
        (ScenesOptions, [], "--out is required"),
        (ScenesOptions, ["--out", "-"], "--out is '-'; expected the name of a file or folder"),
        (CaptionOptions, [], r"no paths are given; expected PATH\.\.\."),
        (CaptionOptions, ["x.png", "--decode.beams=0"], "decode.beams is 0; it must be above 0"),
        (CaptionOptions, ["x.png", "--decode.beam=4"], "unknown option --decode.beam; did you mean --decode.beams"),
        (CaptionOptions, ["x.png", "--decode", "{beam: 4}"], "--decode, line 1: unknown option 'decode.beam'"),
        (CaptionOptions, ["x.png", "--decode", "{a"], "--decode {a: not YAML: "),
        (CaptionOptions, ["x.png", "--decode", "4"], "--decode, line 1: decode is a group"),
        (EvaluateOptions, [], "--data is required"),
    ],
)
def test_wrong_usage_names_the_option_and_the_nearest_right_one(
    kind: type[VerbOptions], words: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parse("myllm verb", kind, words)


@pytest.mark.parametrize("words", [["trian"], ["train", "--epoch=3"], ["caption"], ["diagram", "--preset=mine"]])
def test_wrong_usage_is_one_line_and_exit_code_2(words: list[str], capsys: Capture) -> None:
    assert main(words) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("myllm: ") and errors.count("\n") == 1


RENAMED = [("presence", "3", "word_presence_weight", 3.0), ("clip", "2", "grad_clip", 2.0)]


@pytest.mark.parametrize(("old", "value", "new", "expected"), RENAMED)
def test_a_renamed_option_works_by_its_old_name_and_names_the_new_one(
    old: str, value: str, new: str, expected: float, yaml_file: Path, capsys: Capture
) -> None:
    yaml_file.write_text(f"{old}: {value}\n")
    for words in ([f"--{old}={value}"], [f"--{old}", value], ["--config", str(yaml_file)]):
        assert getattr(train(*words), new) == expected
        assert capsys.readouterr().err == f"myllm: option {old} is now called {new}\n"


@pytest.mark.parametrize("words", [["--decode.contrast=1"], ["--decode={contrast: 1}"]])
def test_a_renamed_decoding_option_works_by_its_old_name(words: list[str]) -> None:
    assert caption("a.png", *words).decode_changes == {"contrastive_weight": 1.0}


def test_an_old_name_keeps_its_meaning_in_a_verb_that_still_has_it() -> None:
    assert parse("myllm evaluate", EvaluateOptions, ["--data=x", "--clip=transformers:x"]).clip == "transformers:x"


def test_preset_seed_is_vit_gpt2_by_its_old_name(yaml_file: Path) -> None:
    yaml_file.write_text("preset: seed\n")
    new = train("--preset=vit-gpt2").config
    assert train("--preset=seed").config == new == train("--config", str(yaml_file)).config
    assert PRESETS["seed"] == PRESETS["vit-gpt2"] and "seed" not in list(PRESETS)


@pytest.mark.parametrize("word", ["--cors=*", '--cors=["*"]'])
def test_a_star_is_a_value_of_a_list(word: str) -> None:
    assert parse("myllm serve", ServeOptions, ["--model=x", word]).cors == ("*",)


@pytest.mark.parametrize("site", [
    "https://photos.example/", "https://photos.example/a.html", "photos.example", "https://*.example", "https://A.example",
])
def test_sites_that_no_browser_names_so_are_refused(site: str) -> None:
    ServeOptions(model="x", cors=("https://photos.example:8443", "http://[::1]:3000", "null", "chrome-extension://abc"))
    with pytest.raises(ConfigError, match=r"--cors has .*; expected a site in small letters without a path"):
        ServeOptions(model="x", cors=("https://photos.example", site))
