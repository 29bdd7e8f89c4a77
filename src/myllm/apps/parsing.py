"""Command lines and YAML files to the options of a verb; errors name the option, and the line in its file."""

import json
import os
import re
import sys
from argparse import Action
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from keyword import iskeyword
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from myllm.apps.options import VerbOptions
from myllm.config import RENAMED_OPTIONS, nearest
from myllm.errors import ConfigError, reason
from myllm.files import read_bytes
from myllm.option_checks import describe_type
from myllm.presets import PRESETS
from myllm.training_config import TrainConfig

Options = TypeVar("Options", bound=VerbOptions)
MAX_YAML_BYTES = 2**24
NOT_OPTIONS = ("given_names", "paths")
PARSER_OPTIONS = ("help", "print_config")
REPEATED = ("data", "references", "model")  # several times on one command line, they are several values


class GivenOption(NamedTuple):
    """An option that was given: its dotted name, its value as text, and "FILE, line 3: " if it is from a file."""

    name: str
    value: str
    source: str = ""


def parse(
    program: str, kind: type[Options], words: Sequence[str], defaults: Mapping[str, Any] | None = None
) -> Options:
    """Return the options that the words of a command line give.

    program: the command before the words, for messages. defaults: values of options that are not given.
    Raises ConfigError for wrong usage.
    """
    types, defaults = types_of_options(kind), defaults or {}
    options, paths, parser_words = read_words(words, types)
    given_options = {option.name: option for option in options}  # the last of each name
    if not parser_words:
        _check_required(kind, paths, given_options)
    try:
        parser = _parser(program, kind)
        preset = given_options["preset"].value if "preset" in given_options else defaults.get("preset")
        if preset not in (None, "null") and issubclass(kind, TrainConfig):
            defaults = {**PRESETS[str(preset)], **defaults}
        parser.set_defaults(dict(defaults))
        arguments = [*parser_words, *(f"--{option.name}={option.value}" for option in options)]
        parsed = parser.instantiate(parser.parse_args(arguments))
        values = {name: parsed[name] for name in types if "." not in name}
        values |= {"paths": tuple(paths)} if hasattr(kind, "paths") else {}
        return kind(**values, given_names=frozenset(given_options))
    except ArgumentError as error:
        match = re.search(r'key "([\w.]+)"', str(error))
        message = " ".join(str(error).split())
        if match is not None and match[1] in given_options:
            name, value, source = given_options[match[1]]
            message = f"{source}{name} is {value!r}; expected {describe_type(types[name])}"
        raise ConfigError(f"{message}. See `{program} --help`") from error
    except ConfigError as error:  # of a check of the values: "decode.beams is 0; it must be above 0"
        name = str(error).removeprefix("--").partition(" is ")[0]
        raise ConfigError(f"{given_options[name].source if name in given_options else ''}{error}") from error


def types_of_options(kind: Any, prefix: str = "") -> dict[str, Any]:
    """Return the type of each option by its dotted name, like decode.beams; a group, like decode, is a dataclass."""
    types: dict[str, Any] = {}
    for name, option_type in get_type_hints(kind).items():
        if name not in NOT_OPTIONS:
            types[prefix + name] = option_type
            if is_dataclass(option_type):
                types |= types_of_options(option_type, f"{prefix}{name}.")
    return types


def current_name(name: str, types: Mapping[str, Any], source: str = "") -> str:
    """Return the name of an option with `_` for `-`, and the new name of a renamed one.

    Raises ConfigError for an unknown option.
    """
    name = name.replace("-", "_")
    name = f"{name}_" if iskeyword(name) else name
    new = RENAMED_OPTIONS.get(name, "")
    if new in types and name not in types:
        print(f"myllm: option {name} is now called {new}", file=sys.stderr)
        return new
    if name not in types:
        dashes, known = ("", types) if source else ("--", [*types, "config"])
        hint = nearest(f"{dashes}{name}", [f"{dashes}{option}" for option in known])
        raise ConfigError(f"{source}unknown option {repr(name) if source else f'--{name}'}{hint}")
    return name


def read_words(words: Sequence[str], types: Mapping[str, Any]) -> tuple[list[GivenOption], list[str], list[str]]:
    """Split a command line into the options given, the positional words, and words like --help for the parser.

    The options of --config files come first, so that those of the command line override them. Raises ConfigError.
    """
    from_files, options, paths, parser_words = list[GivenOption](), list[GivenOption](), list[str](), list[str]()
    rest = deque(words)
    while rest:
        word = rest.popleft()
        if word == "--":
            paths += rest
            break
        if word == "-h" or word.removeprefix("--").partition("=")[0] in PARSER_OPTIONS:
            parser_words.append(word)
        elif not _is_option(word):
            paths.append(word)
        else:
            name, equals, value = word[2:].partition("=")
            name = name if name == "config" else current_name(name, types)
            if not equals:
                value = _next_value(name, rest, types)
            if name == "config":
                from_files += read_yaml(name, value, types)
            elif is_dataclass(types[name]):
                options += read_yaml(name, value, types)
            else:
                is_bare_list = get_origin(types[name]) is tuple and not value.startswith("[")
                value = '"*"' if is_bare_list and value == "*" else value  # which would begin an alias in YAML
                options.append(GivenOption(name, f"[{value}]" if is_bare_list else value))
    return from_files + _join_repeated(options, types), paths, parser_words


def _join_repeated(options: list[GivenOption], types: Mapping[str, Any]) -> list[GivenOption]:
    """Join the values of `REPEATED` options that may be lists into one list each."""
    for name in REPEATED:
        values = [option.value for option in options if option.name == name]
        if len(values) > 1 and any(get_origin(kind) is tuple for kind in get_args(types.get(name))):
            others = [option for option in options if option.name != name]
            options = [*others, GivenOption(name, json.dumps(values))]
    return options


def _is_option(word: str) -> bool:
    return re.match(r"--[a-z]", word) is not None


def _next_value(name: str, rest: deque[str], types: Mapping[str, Any]) -> str:
    if types.get(name) is bool:
        return rest.popleft() if rest and rest[0].lower() in ("true", "false") else "true"
    if not rest or _is_option(rest[0]):
        raise ConfigError(f"--{name} needs a value")
    return rest.popleft()


def read_yaml(option: str, value: str, types: Mapping[str, Any]) -> list[GivenOption]:
    """Return the options in the file of --config, or in the file or text of a group: --decode '{beams: 4}'.

    Raises ConfigError, with the line, if the file cannot be read, is not YAML, or has an unknown option.
    """
    is_file = option == "config" or os.path.isfile(value)  # Path.is_file fails for a long text
    try:
        root = yaml.compose(read_bytes(Path(value), MAX_YAML_BYTES).decode() if is_file else value)
        if root is None and is_file:
            return []
        prefix, file = "" if option == "config" else f"{option}.", value if is_file else f"--{option}"
        return list(_options_of(root, prefix, types, file))
    except ConfigError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--{option} {value}: cannot be read ({reason(error)})") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a node that contains itself
        raise ConfigError(f"--{option} {value}: not YAML: {' '.join(str(error).split())}") from error


def _options_of(node: yaml.Node | None, prefix: str, types: Mapping[str, Any], file: str) -> Iterator[GivenOption]:
    if not isinstance(node, yaml.MappingNode):
        line = node.start_mark.line + 1 if node else 1
        group = f"{prefix[:-1]} is a group: " if prefix else ""
        raise ConfigError(f"{file}, line {line}: {group}expected options as `name: value`, one per line")
    for key, value in node.value:
        source = f"{file}, line {key.start_mark.line + 1}: "
        name = current_name(prefix + str(key.value), types, source)
        is_null = value.tag.endswith(":null")
        if is_dataclass(types[name]):
            yield from _options_of(value, f"{name}.", types, file)
        elif is_null and NoneType not in get_args(types[name]):
            raise ConfigError(f"{source}{name} is null; expected {describe_type(types[name])}")
        elif isinstance(value, yaml.ScalarNode):
            yield GivenOption(name, "null" if is_null else value.value, source)
        else:
            yield GivenOption(name, json.dumps(yaml.SafeLoader("").construct_document(value), default=str), source)


class _HelpFormatter(DefaultHelpFormatter):
    """Shows the defaults of options as they are typed, but neither Python's types nor defaults that say nothing."""

    def _get_type_str(self, action: Action) -> None:
        return None

    def _get_help_string(self, action: Action) -> str:
        default, text = action.default, super()._get_help_string(action)
        if default is False or default in (None, "", (), {}):
            return text.removesuffix(" (default: %(default)s)")
        if default is True or isinstance(default, tuple):
            return text.replace("%(default)s", "true" if default is True else ",".join(default))
        return text


def _parser(program: str, kind: type) -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    usage = f"{program} [options]\n\n{kind.__doc__}"
    if hasattr(kind, "paths"):
        paths = next(option.metadata for option in fields(kind) if option.name == "paths")
        usage = f"{program} {paths['usage']} [options]\n\n{kind.__doc__}\n\n{paths['usage']}: {paths['help']}"
    parser = ArgumentParser(
        prog=program, usage=usage, exit_on_error=False, allow_abbrev=False, formatter_class=_HelpFormatter
    )
    parser.add_argument("--config", action="config", help="YAML file of options; the command line overrides it.")
    parser.add_class_arguments(kind, skip=set(NOT_OPTIONS))
    # in help, required options come first, and those that verbs share come last
    declared = [name for part in kind.__mro__ for name in vars(part).get("__annotations__", ())]
    group = parser._action_groups[2]
    group.title = "options of this verb"
    group._group_actions.sort(key=lambda action: (not action.required, declared.index(action.dest)))
    types = types_of_options(kind)
    for action in parser._actions:
        if action.dest.endswith("_"):  # a keyword of Python, like `from`
            action.option_strings, action.metavar = [f"--{action.dest[:-1]}"], action.dest[:-1].upper()
        if action.dest == "print_config":
            action.help = "Print all options as YAML, in the form that --config reads, and exit."
        elif types.get(action.dest) is bool:
            action.metavar = "[true|false]"
        elif get_origin(types.get(action.dest)) is tuple:
            action.metavar = "ITEM,..."
        elif is_dataclass(types.get(action.dest)):
            action.help = "YAML file with options of this group, or the YAML itself, like '{name: value}'."
    return parser


def _check_required(kind: type, paths: Sequence[str], given_options: Mapping[str, GivenOption]) -> None:
    """Raise ConfigError for words or a required option that are missing, words too many, and a dash as --out."""
    if hasattr(kind, "paths") and not paths and "from_" not in given_options:
        raise ConfigError("no paths are given; expected PATH...")
    if paths and not hasattr(kind, "paths"):
        raise ConfigError(f"unexpected {paths[0]!r}; options begin with --")
    if "out" in given_options and given_options["out"].value == "-":
        raise ConfigError("--out is '-'; expected the name of a file or folder (--json prints on standard output)")
    for option in fields(kind):
        if option.default is MISSING and option.default_factory is MISSING and option.name not in given_options:
            raise ConfigError(f"--{option.name} is required")
