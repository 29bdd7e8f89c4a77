"""Types and ranges of options: the checks that every configuration makes when it is created."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from myllm.errors import ConfigError

MAX_NUMBER = 2**31 - 1
MAX_SEED = 2**63 - 1
MAX_IMAGE_SIZE = 4096


def describe_type(kind: Any) -> str:
    """Return in words which values an option of this type takes, for error messages."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is tuple:
        items = get_args(kind)
        count = "" if ... in items else f" of {len(items)}"
        hint = "; put a word that YAML reads as something else, like on or 3, in quotes" if items[0] is str else ""
        return f"a list{count}, each {describe_type(items[0])}{hint}"
    words = {
        int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null", list: "a list",
    }
    if get_origin(kind) in (Union, UnionType):
        parts = map(describe_type, get_args(kind))
        return " or ".join(sorted(parts, key=lambda part: part.startswith("a list")))  # a list's hint comes last
    return words.get(kind, "options as `name: value`")


def has_type(value: Any, kind: Any) -> bool:
    """Return whether a value has an annotated type; a list may stand for a tuple, and a whole number for a float."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(has_type(value, part) for part in arguments)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is tuple:
        has_length = isinstance(value, list | tuple) and (... in arguments or len(value) == len(arguments))
        return has_length and all(has_type(item, arguments[0]) for item in value)
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    return isinstance(value, Mapping if origin is dict else origin or kind)


class Range(Enum):
    """Range of a number, for annotations of options: in words, and as a function. NaN is in none of them."""

    _value_: tuple[str, Callable[[float], bool]]
    POSITIVE = "above 0", lambda value: value > 0
    AT_LEAST_0 = "at least 0", lambda value: value >= 0
    FRACTION = "at least 0 and below 1", lambda value: 0 <= value < 1
    SHARE = "above 0 and at most 1", lambda value: 0 < value <= 1
    IMAGE_SIZE = f"above 0 and at most {MAX_IMAGE_SIZE}", lambda value: 0 < value <= MAX_IMAGE_SIZE
    BEAMS = "above 0 and at most 1000; captions rarely improve beyond 10", lambda value: 0 < value <= 1000
    SEED = f"at least 0 and at most {MAX_SEED:,}", lambda value: 0 <= value <= MAX_SEED
    # beyond these, float32 logits or a float64 power of the length overflow
    SCALE = "between 0.001 and 1000", lambda value: 0.001 <= value <= 1000
    WEIGHT = "at least 0 and at most 1000", lambda value: 0 <= value <= 1000
    MODERATE = "between -10 and 10", lambda value: -10 <= value <= 10


def check_options(config: Any, group: str = "") -> None:
    """Raise ConfigError, naming the option, for a value of another type, or outside the `Range` in its annotation.

    The range of a tuple applies to each item; None is in every range.
    """
    for option in fields(config):
        value, name = getattr(config, option.name), f"{group}{option.name}"
        kind, *ranges = get_args(option.type) if get_origin(option.type) is Annotated else (option.type,)
        if not has_type(value, kind):
            raise ConfigError(f"{name} is {value!r:.100}; expected {describe_type(kind)}")
        numbers = [number for number in (value if isinstance(value, tuple) else (value,)) if number is not None]
        for allowed in ranges:
            words, contains = allowed.value
            if not all(map(contains, numbers)):
                raise ConfigError(f"{name} is {value}; it must be {words}")
            maximum = MAX_SEED if allowed is Range.SEED else MAX_NUMBER
            if any(number > (maximum if isinstance(number, int) else sys.float_info.max) for number in numbers):
                raise ConfigError(f"{name} is {value}; it must be at most {maximum:,}")
