"""Words of a command line, and YAML files of options, to the options of a verb; errors name the option and its line."""

import json
import re
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, get_args, get_origin

from myllm.apps.options import VerbOptions
from myllm.config import RENAMED_OPTIONS, TrainConfig, nearest
from myllm.errors import ConfigError, reason
from myllm.option_checks import describe_type
from myllm.presets import PRESETS

if TYPE_CHECKING:
    import yaml
    from jsonargparse import ArgumentParser

Options = TypeVar("Options", bound=VerbOptions)
NOT_OPTIONS = ("given_names", "paths")
OF_THE_PARSER = ("help", "print_config")


class GivenOption(NamedTuple):
    """An option that was given: its dotted name, its value as text, and where it stands if in a file."""

    name: str
    value: str
    source: str = ""


@dataclass(frozen=True)
class Schema:
    """The names and types of a verb's options."""

    types: Mapping[str, Any]
    """Type of each option by its dotted name, like decode.beams."""
    groups: frozenset[str]
    """Names that stand for several options, like decode."""

    @classmethod
    def of(cls, kind: type) -> "Schema":
        types, groups = dict[str, Any](), set[str]()

        def add(part: Any, prefix: str) -> None:
            for option in fields(part):
                name = prefix + option.name
                if is_dataclass(option.type):
                    groups.add(name)
                    add(option.type, f"{name}.")
                elif name not in NOT_OPTIONS:
                    types[name] = option.type

        add(kind, "")
        return cls(types, frozenset(groups))

    def current_name(self, name: str, source: str = "") -> str:
        """Return the name of an option with `_` for `-`, and the new name of a renamed one.

        Raises ConfigError for an unknown option.
        """
        name = name.replace("-", "_")
        new = RENAMED_OPTIONS.get(name)
        if new in self.types and name not in self.types:
            print(f"myllm: option {name} is now called {new}", file=sys.stderr)
            return str(new)
        if name not in self.types and name not in self.groups and name != "config":
            known = [*self.types, "config"]
            if source:
                raise ConfigError(f"{source}unknown option {name!r}{nearest(name, known)}")
            raise ConfigError(f"unknown option --{name}{nearest(f'--{name}', [f'--{option}' for option in known])}")
        return name


def parse(
    program: str, kind: type[Options], words: Sequence[str], defaults: Mapping[str, Any] | None = None
) -> Options:
    """Return the options that the words of a command line give.

    program: the command before the words, for messages. defaults: values of options that are not given, by name.
    Raises ConfigError for wrong usage.
    """
    from jsonargparse import ArgumentError

    schema = Schema.of(kind)
    options, paths, parser_words = read_words(words, schema)
    if not parser_words:
        _check_required(kind, paths, options)
    try:
        parser = _parser(program, kind)
        parser.set_defaults(_defaults(kind, options, defaults or {}))
        arguments = [*parser_words, *(f"--{option.name}={option.value}" for option in options)]
        parsed = parser.instantiate(parser.parse_args(arguments))
        values = {option.name: parsed[option.name] for option in fields(kind) if option.name not in NOT_OPTIONS}
        values |= {"paths": tuple(paths)} if _takes_paths(kind) else {}
        return kind(**values, given_names=frozenset(option.name for option in options))
    except ArgumentError as error:
        message = _type_error(str(error), options, schema)
        raise ConfigError(f"{message}. See `{program} --help`") from error
    except ConfigError as error:
        raise ConfigError(_with_source(str(error), options)) from error


def read_words(words: Sequence[str], schema: Schema) -> tuple[list[GivenOption], list[str], list[str]]:
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
        if word == "-h" or word.removeprefix("--").partition("=")[0] in OF_THE_PARSER:
            parser_words.append(word)
        elif not _is_option(word):
            paths.append(word)
        else:
            name, equals, value = word[2:].partition("=")
            name = schema.current_name(name)
            if not equals:
                value = _next_value(name, rest, schema)
            if name == "config":
                from_files += read_yaml(Path(value), schema)
            elif name in schema.groups:
                options += _read_group(name, value, schema)
            else:
                is_bare_list = get_origin(schema.types[name]) is tuple and not value.startswith("[")
                options.append(GivenOption(name, f"[{value}]" if is_bare_list else value))
    return from_files + options, paths, parser_words


def _is_option(word: str) -> bool:
    return re.match(r"--[a-z]", word) is not None


def _next_value(name: str, rest: deque[str], schema: Schema) -> str:
    if schema.types.get(name) is bool:
        return rest.popleft() if rest and rest[0].lower() in ("true", "false") else "true"
    if not rest or _is_option(rest[0]):
        raise ConfigError(f"--{name} needs a value")
    return rest.popleft()


def _read_group(name: str, value: str, schema: Schema) -> list[GivenOption]:
    """Return the options of a group that are given together: --decode '{beams: 4}', or --decode FILE."""
    import yaml

    if Path(value).is_file():
        return read_yaml(Path(value), schema, name)
    try:
        root = yaml.compose(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--{name} {value}: not YAML: {' '.join(str(error).split())}") from error
    return [GivenOption(option.name, option.value) for option in _options_of(root, f"{name}.", schema, f"--{name}")]


def read_yaml(path: Path, schema: Schema, group: str = "") -> list[GivenOption]:
    """Return the options that a YAML file gives, in its order; of a file for one group, with the group in their names.

    Raises ConfigError, with the line, for a file that cannot be read, is not YAML, or has an unknown option.
    """
    import yaml

    try:
        root = yaml.compose(path.read_text(encoding="utf-8"))
        return list(_options_of(root, group and f"{group}.", schema, str(path))) if root is not None else []
    except ConfigError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: cannot be read ({error})") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a node that contains itself
        raise ConfigError(f"--config {path}: not YAML: {' '.join(reason(error).split())}") from error


def _options_of(node: "yaml.Node | None", prefix: str, schema: Schema, file: str) -> Iterator[GivenOption]:
    import yaml

    if not isinstance(node, yaml.MappingNode):
        line = node.start_mark.line + 1 if node else 1
        group = f"{prefix[:-1]} is a group: " if prefix else ""
        raise ConfigError(f"{file}, line {line}: {group}expected options as `name: value`, one per line")
    for key, value in node.value:
        source = f"{file}, line {key.start_mark.line + 1}: "
        name = schema.current_name(prefix + str(key.value), source)
        if name in schema.groups:
            yield from _options_of(value, f"{name}.", schema, file)
        elif value.tag.endswith(":null") and type(None) not in get_args(schema.types[name]):
            raise ConfigError(f"{source}{name} is null; expected {describe_type(schema.types[name])}")
        elif isinstance(value, yaml.ScalarNode):
            yield GivenOption(name, "null" if value.tag.endswith(":null") else value.value, source)
        else:
            yield GivenOption(name, json.dumps(yaml.SafeLoader("").construct_document(value), default=str), source)


def _parser(program: str, kind: type) -> "ArgumentParser":
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    usage = f"{program}{' PATH...' if _takes_paths(kind) else ''} [options]\n\n{kind.__doc__}"
    parser = ArgumentParser(prog=program, usage=usage, exit_on_error=False, allow_abbrev=False)
    if _takes_paths(kind):
        help_text = next(option.metadata["help"] for option in fields(kind) if option.name == "paths")
        parser.add_argument("PATH", nargs="*", help=help_text)
    parser.add_argument("--config", action="config", help="YAML file of options; options given next to it override it.")
    parser.add_class_arguments(kind, skip=set(NOT_OPTIONS))
    # in help, required options come first, and those that verbs share come last
    declared = [name for part in kind.__mro__ for name in vars(part).get("__annotations__", ())]
    group = parser._action_groups[2]
    group.title = "options of this verb"
    group._group_actions.sort(key=lambda action: (not action.required, declared.index(action.dest)))
    return parser


def _defaults(kind: type, options: Sequence[GivenOption], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of options that are not given: those of a preset for training, and `defaults`."""
    preset = next((option.value for option in reversed(options) if option.name == "preset"), defaults.get("preset"))
    of_preset = _flatten(PRESETS[preset]) if preset is not None and issubclass(kind, TrainConfig) else {}
    return of_preset | dict(defaults)


def _takes_paths(kind: type) -> bool:
    return any(option.name == "paths" for option in fields(kind))


def _check_required(kind: type, paths: Sequence[str], options: Sequence[GivenOption]) -> None:
    """Raise ConfigError if positional words or a required option are missing, or there are words too many."""
    if _takes_paths(kind) and not paths:
        raise ConfigError("no paths are given; expected PATH...")
    if paths and not _takes_paths(kind):
        raise ConfigError(f"unexpected {paths[0]!r}; options begin with --")
    names = {option.name for option in options}
    for option in fields(kind):
        if option.default is MISSING and option.default_factory is MISSING and option.name not in names:
            raise ConfigError(f"--{option.name} is required")


def _flatten(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'text': {'n_layer': 2}} -> {'text.n_layer': 2}."""
    flat: dict[str, Any] = {}
    for key, value in options.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _type_error(message: str, options: Sequence[GivenOption], schema: Schema) -> str:
    """Return the parser's error about a value in our words: the option, its value, what is expected."""
    key = re.search(r'key "([\w.]+)"', message)
    for option in reversed(options):
        if key is not None and option.name == key[1]:
            expected = describe_type(schema.types[option.name])
            return f"{option.source}{option.name} is {option.value!r}; expected {expected}"
    return " ".join(message.split())


def _with_source(message: str, options: Sequence[GivenOption]) -> str:
    """Return the message, with file and line if it is about an option from a file."""
    for option in reversed(options):
        if message.startswith((f"{option.name} is ", f"--{option.name} is ")):
            return option.source + message
    return message
