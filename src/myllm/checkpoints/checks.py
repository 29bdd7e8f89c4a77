"""Checks of what a file holds before it is used. No torch: exports are opened without it."""

import math
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from PIL import Image
from tokenizers import Tokenizer

from myllm.config import RENAMED_OPTIONS, CaptionerConfig, CaptionsConfig, DecodeConfig, PreprocessConfig
from myllm.data.images import Preprocess
from myllm.errors import CheckpointError, install_command

Options = TypeVar("Options")
# what each dataclass is called on the command line and in messages
GROUPS: Mapping[type, str] = {
    CaptionerConfig: "", PreprocessConfig: "preprocess.", CaptionsConfig: "captions.", DecodeConfig: "decode.",
}
TYPE_NAMES = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null",
    dict: "names and values",
}
MAX_RESIZED_SIDE = 4096  # pixels; a few lines of JSON could otherwise make each picture take gigabytes
MAX_METADATA_SIZE = 4_000_000  # values and characters
UPGRADE = install_command("--upgrade", "myllm-captioner")


def is_onnx_export(path: Path) -> bool:
    """Return whether a folder holds ONNX graphs of a captioner, and no weights that could be opened instead."""
    weights = ("captioner.pt", "model*.safetensors", "pytorch_model*.bin")
    return any((path / "onnx").glob("encoder_model*.onnx")) and not any(any(path.glob(name)) for name in weights)


def dataclass_from_dict(kind: type[Options], values: Mapping[str, Any], group: str | None = None) -> Options:
    """Return the configuration of class `kind` that a file holds; what is left out gets its default.

    group: what stands before each option's name in messages, such as "text.".
    Raises CheckpointError for an unknown option and for a value of another type, and ConfigError as the class does.
    """
    group = GROUPS.get(kind, "") if group is None else group
    types = get_type_hints(kind)
    options: dict[str, Any] = {}
    for name, value in with_current_names(values, group).items():
        if name not in types:
            raise CheckpointError(
                f"{group}{name} is unknown; if a newer myllm wrote the file, upgrade: {UPGRADE}"
            )
        expected = types[name]
        if is_dataclass(expected) and isinstance(expected, type) and isinstance(value, Mapping):
            value = dataclass_from_dict(expected, value, f"{group}{name}.")
        elif not has_type(value, expected):
            raise CheckpointError(f"{group}{name} is {value!r:.100}; expected {describe_type(expected)}")
        options[name] = tuple(value) if isinstance(value, list) else value
    return kind(**options)


def with_current_names(values: Mapping[str, Any], group: str = "") -> dict[str, Any]:
    """Return nested options with their names of today; files of earlier versions hold older names."""
    names = {name: RENAMED_OPTIONS.get(f"{group}{name}", "").removeprefix(group) or name for name in values}
    return {
        names[name]: with_current_names(value, f"{name}.") if isinstance(value, Mapping) else value
        for name, value in values.items()
    }


def has_type(value: object, expected: Any) -> bool:
    """Return whether a value read from JSON or a pickle has an annotated type; a list may stand for a tuple."""
    origin, arguments = get_origin(expected), get_args(expected)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin in (Union, UnionType):
        return any(has_type(value, argument) for argument in arguments)
    if origin is tuple:  # JSON has only lists
        if not isinstance(value, list | tuple):
            return False
        item_types = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return len(value) == len(item_types) and all(map(has_type, value, item_types))
    if isinstance(value, bool):
        return expected is bool
    return isinstance(value, int | float if expected is float else origin or expected)


def describe_type(expected: Any) -> str:
    """Return a type's name for messages."""
    origin, arguments = get_origin(expected), get_args(expected)
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin in (Union, UnionType):
        return " or ".join(map(describe_type, arguments))
    if origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f" of {len(arguments)}"
        return f"a list{count}, each {describe_type(arguments[0])}"
    return TYPE_NAMES.get(origin or expected, str(expected))


def check_preprocess(preprocess: PreprocessConfig, encoder_size: tuple[int, ...]) -> None:
    """Raise CheckpointError if pictures cannot become the encoder's input this way, or only at a great cost.

    encoder_size: (height, width) in pixels.
    """
    if preprocess.image_size != encoder_size:
        raise CheckpointError(f"preprocess.image_size is {preprocess.image_size}, the encoder takes {encoder_size}")
    if not 0.1 <= preprocess.crop_pct <= 10:
        raise CheckpointError(f"preprocess.crop_pct is {preprocess.crop_pct}; expected 0.1 to 1, or up to 10 to pad")
    resized = max(encoder_size) / preprocess.crop_pct
    if resized > MAX_RESIZED_SIDE:
        raise CheckpointError(f"preprocess resizes to {resized:,.0f} pixels a side; at most {MAX_RESIZED_SIDE:,}")
    if not all(map(math.isfinite, (*preprocess.mean, *preprocess.std))) or min(map(abs, preprocess.std)) == 0:
        raise CheckpointError(
            f"preprocess.mean and std are {preprocess.mean} and {preprocess.std}; expected finite numbers, std not 0"
        )
    Preprocess(preprocess)(Image.new("RGB", (8, 8)))  # fails for an unknown interpolation or crop mode


def check_size(metadata: object) -> None:
    """Raise CheckpointError if metadata would be enormous once written out.

    A pickle may hold one list many times within itself, so that a small file stands for billions of values.
    """
    size, pending = 0, [metadata]
    while pending:
        value = pending.pop()
        size += 1 + (len(value) if isinstance(value, str | bytes) else 0)
        if size > MAX_METADATA_SIZE:
            raise CheckpointError(f"its metadata have more than {MAX_METADATA_SIZE:,} values and characters")
        if isinstance(value, Mapping):
            pending += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            pending += value


def check_tokenizer(tokenizer: Tokenizer, rows: int, table: str = "the embedding") -> None:
    """Raise CheckpointError if the tokenizer has tokens for which `table`, of so many rows, has none."""
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest >= rows:
        raise CheckpointError(
            f"the tokenizer has tokens up to number {highest}, {table} {rows} rows; they belong to different models: "
            "put the tokenizer that the weights were trained with next to them"
        )
