"""The command line: one verb a job. Reads options without torch, so that help is instant."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from myllm.apps.startup import without_garbage_collection
from myllm.config import VERSION, TrainConfig, nearest
from myllm.errors import ConfigError, MyLLMError
from myllm.presets import PRESETS

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Verb:
    """What a verb does, and where: `run` and `options` are 'module:name', imported when the verb is used."""

    summary: str
    run: str
    options: str
    paths: str | None = None
    """Help for the positional paths, where the verb takes any."""


VERBS: Mapping[str, Verb] = {
    "demo": Verb("draw scenes, train on them, judge, report", "myllm.apps.demo:demo", "myllm.apps.options:DemoOptions"),
    "scenes": Verb("write drawn pictures with captions", "myllm.apps.demo:scenes", "myllm.apps.options:ScenesOptions"),
    "train": Verb("train a captioner, or resume", "myllm.apps.train:train", "myllm.apps.options:RunOptions"),
    "caption": Verb(
        "caption pictures and folders", "myllm.apps.caption:caption", "myllm.apps.options:CaptionOptions",
        "Pictures, folders and globs to caption.",
    ),
    "evaluate": Verb(
        "caption a split and score it", "myllm.apps.evaluate:evaluate_split", "myllm.apps.options:EvaluateOptions"
    ),
    "score": Verb("score anyone's captions", "myllm.apps.score:score", "myllm.apps.options:ScoreOptions"),
    "compare": Verb(
        "put two captioners side by side", "myllm.apps.compare:compare_two", "myllm.apps.options:CompareOptions",
        "The two: models, or files of captions.",
    ),
    "import": Verb(
        "turn another program's captioner into one of ours", "myllm.apps.convert:import_model",
        "myllm.apps.options:ImportOptions", "The other captioner: a folder, a file, or a hub id as user/name.",
    ),
    "pull": Verb(
        "get a captioner from a hub", "myllm.apps.convert:import_model", "myllm.apps.options:ImportOptions",
        "Its id: user/name, or user/name@revision.",
    ),
    "push": Verb(
        "put a captioner on a hub", "myllm.apps.convert:push_model", "myllm.apps.options:PushOptions",
        "The captioner, and the repository: user/name.",
    ),
    "export": Verb(
        "write a captioner in another program's form", "myllm.apps.convert:export_model",
        "myllm.apps.options:ExportOptions", "The captioner: captioner.pt, or the folder that holds it.",
    ),
    "average": Verb(
        "average captioners' weights", "myllm.apps.average:average_models", "myllm.apps.options:AverageOptions",
        "The captioners: captioner.pt, or folders that hold one.",
    ),
    "info": Verb(
        "tell what is in a captioner", "myllm.apps.info:info", "myllm.apps.options:InfoOptions", "Captioners to open."
    ),
    "diagram": Verb("draw the architecture", "myllm.apps.diagram:diagram", "myllm.apps.options:DiagramOptions"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `myllm ARGUMENTS...`. Returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return DONE if words else WRONG_USAGE
    if words[0] == "--version":
        print(f"myllm {VERSION}")
        return DONE
    return main_verb(words[0], words[1:])


def main_verb(name: str, words: Sequence[str]) -> int:
    """Run one verb; what a user can cause is told in a line on standard error, and in the exit code."""
    try:
        if name not in VERBS:
            raise ConfigError(f"unknown verb {name!r}{nearest(name, VERBS)}. The verbs: {', '.join(VERBS)}")
        return run_verb(name, words)
    except ConfigError as error:
        print(f"myllm: {error}", file=sys.stderr)
        return WRONG_USAGE
    except MyLLMError as error:
        print(f"myllm: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("myllm: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `myllm caption ... | head` is no failure
        sys.stderr.close()
        return DONE
    except SystemExit as finished:  # the parser's own --help
        return DONE if finished.code is None else int(finished.code)


def run_verb(name: str, words: Sequence[str]) -> int:
    """Parse a verb's words and run it. Raises ConfigError for wrong usage, MyLLMError for what fails."""
    verb = VERBS[name]
    parsed, instances, given = parse(name, words)
    run: Callable[..., int] = _imported(verb.run)
    if name == "train":
        return run(instances[TrainConfig], instances[_imported(verb.options)], given_names(words))
    options = instances[_imported(verb.options)]
    if verb.paths is not None:
        return run(parsed.paths, options, given)
    return run(options, given) if name == "evaluate" else run(options)


def parse(name: str, words: Sequence[str]) -> tuple[Any, dict[type, Any], dict[str, Any]]:
    """The words of a verb as a parsed namespace, an instance of each options class, and the decoding options given.

    Raises ConfigError for wrong usage.
    """
    from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

    verb = VERBS[name]
    words = _spelled_out(words, _fields_of(name))
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    usage = f"myllm {name}{' PATH...' if verb.paths else ''} [options]\n\n{_imported(verb.options).__doc__}"
    parser = ArgumentParser(prog=f"myllm {name}", usage=usage, exit_on_error=False, allow_abbrev=False)
    if verb.paths is not None:
        parser.add_argument("paths", nargs="+", help=verb.paths)
    classes: list[type] = [_imported(verb.options)]
    if name == "train":
        parser.add_argument("--config", action="config", help="A YAML file of options; what is given beside it wins.")
        parser.add_argument("--preset", choices=list(PRESETS), help="Options to begin from; all others win over it.")
        classes.append(TrainConfig)
    for one in classes:
        parser.add_class_arguments(one)
    if name == "train":
        check_yaml(_config_files(words), _known_keys(parser))
        parser.set_defaults(_flatten(PRESETS.get(given_value(words, "preset") or "", {})))
    try:
        parsed = parser.parse_args(words)
    except ArgumentError as error:
        raise ConfigError(_readable(str(error), words, name)) from error
    instances = {one: one(**_values(one, parser.instantiate(parsed))) for one in classes}
    decode = {word.removeprefix("--decode.").split("=")[0] for word in words if word.startswith("--decode.")}
    return parsed, instances, {key: parsed.decode[key] for key in decode}


def given_names(words: Sequence[str]) -> frozenset[str]:
    """Return the dotted names of the options that are given on the command line or in YAML files."""
    import yaml

    spelled = _spelled_out(words, {})
    names = [word[2:].partition("=")[0] for word in spelled if word.startswith("--")]
    for path in _config_files(spelled):
        names += [name for name, _ in _keys(yaml.compose(path.read_text(encoding="utf-8")), "")]
    return frozenset(names)


def _values(one: type, namespace: Any) -> dict[str, Any]:
    return {field: namespace[field] for field in one.__dataclass_fields__}  # type: ignore[attr-defined]


def _spelled_out(words: Sequence[str], fields: Mapping[str, Any]) -> list[str]:
    """The words as the parser takes them: `-` in an option's name is `_`, and a bare --resume is --resume=true."""
    spelled = []
    for word, after in pairwise([*words, ""]):
        if re.match(r"--[a-z]", word):
            option, equals, value = word[2:].partition("=")
            option = option.replace("-", "_")
            is_bare_flag = fields.get(option) is bool and not equals and after.lower() not in ("true", "false")
            word = f"--{option}=true" if is_bare_flag else f"--{option}{equals}{value}"
        spelled.append(word)
    return spelled


def option_values(words: Sequence[str], option: str) -> list[str]:
    """The values of an option in the words, as --option VALUE or --option=VALUE."""
    values = [word.partition("=")[2] for word in words if word.startswith(f"{option}=")]
    return values + [after for word, after in pairwise(words) if word == option]


def _config_files(words: Sequence[str]) -> list[Path]:
    return [Path(value) for value in option_values(words, "--config")]


def given_value(words: Sequence[str], option: str) -> str | None:
    """What the command line, or else a configuration file, gives an option."""
    import yaml

    values = option_values(words, f"--{option}")
    for path in _config_files(words):
        with suppress(OSError, UnicodeDecodeError, yaml.YAMLError):  # `check_yaml` tells
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            if isinstance(content, dict) and content.get(option):
                values.append(str(content[option]))
    return values[0] if values else None


def check_yaml(paths: Sequence[Path], known: Sequence[str]) -> None:
    """Raises ConfigError for a configuration file that is missing, no YAML, or has an unknown name: with its line."""
    import yaml

    for path in paths:
        try:
            root = yaml.compose(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--config {path}: cannot be read ({error})") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"--config {path}: no YAML: {' '.join(str(error).split())}") from error
        if root is not None and not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"--config {path}, line 1: expected options as `name: value`, one a line")
        for key, line in _keys(root, ""):
            if key not in known and not any(one.startswith(f"{key}.") for one in known):
                raise ConfigError(f"{path}, line {line}: unknown option {key!r}{nearest(key, known)}")


def _keys(node: Any, prefix: str) -> list[tuple[str, int]]:
    """Dotted names of a YAML mapping with their lines."""
    import yaml

    found = []
    for key, value in node.value if node is not None else ():
        name = prefix + key.value.replace("-", "_")
        found.append((name, key.start_mark.line + 1))
        if isinstance(value, yaml.MappingNode):
            found += _keys(value, f"{name}.")
    return found


def _known_keys(parser: "ArgumentParser") -> list[str]:
    return [action.dest for action in parser._actions if action.dest not in ("help", "config")]


def _flatten(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'text': {'n_layer': 2}} -> {'text.n_layer': 2}."""
    flat: dict[str, Any] = {}
    for key, value in options.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _readable(message: str, words: Sequence[str], name: str) -> str:
    """An error of the parser in our words: which option, what was found, and where in a file."""
    message = " ".join(message.split())
    message = re.sub(r"<class '(\w+)'>", r"\1", message)
    key = re.search(r'key "([\w.]+)"', message)
    if key is not None:
        message = re.sub(r'^.*?key "[\w.]+":? ?', f"{key[1]}: ", message)
        value = re.search(r"(?:Got|Given) value: (.*)", message)
        if value is not None and key[1] in _fields_of(name):
            message = f"{key[1]} is {value[1]!r}; expected {_told_type(_fields_of(name)[key[1]])}"
        for path in _config_files(words):
            import yaml

            lines = dict(_keys(yaml.compose(path.read_text(encoding="utf-8")), ""))
            if key[1] in lines and not option_values(words, f"--{key[1]}"):
                message = f"{path}, line {lines[key[1]]}: {message}"
    unknown = re.search(r"unrecognized arguments: (--[\w.]+)", message, re.IGNORECASE)
    if unknown is not None:
        of_files = ["config", "preset"] if name == "train" else []
        known = [f"--{one}" for one in [*_fields_of(name), *of_files]]
        message = f"unknown option {unknown[1]}{nearest(unknown[1], known)}"
    return f"{message}{'' if message.endswith('?') else '.'} See `myllm {name} --help`"


def _told_type(one: Any) -> str:
    """What may be given for a field of this type, in words."""
    if get_origin(one) is Literal:
        return f"one of {', '.join(map(str, get_args(one)))}"
    if get_origin(one) is tuple:
        return "a list, like [new, all]; a word that YAML reads otherwise, as 'on' or '3', in quotes of its own"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return " or ".join(words.get(part, str(part)) for part in (get_args(one) or (one,)))


def _fields_of(name: str) -> dict[str, Any]:
    """Dotted names of a verb's options with their types."""

    def types(one: Any, prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for field in fields(one):
            own = prefix + field.name
            found |= types(field.type, f"{own}.") if is_dataclass(field.type) else {own: field.type}
        return found

    own = types(_imported(VERBS[name].options))
    return own | types(TrainConfig) if name == "train" else own


def _imported(place: str) -> Any:
    module, _, name = place.partition(":")
    with without_garbage_collection():
        return getattr(import_module(module), name)


def _overview() -> str:
    rows = "\n".join(f"  {name:<10} {verb.summary}" for name, verb in VERBS.items())
    return (
        f"myllm {VERSION}: pictures in, captions out.\n\nusage: myllm VERB [options]\n\n{rows}\n\n"
        "`myllm VERB --help` tells its options. New here? `myllm demo` trains a captioner before your eyes."
    )
