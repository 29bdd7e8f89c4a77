"""What files hold, checked before it is believed. No torch: exports are opened without it too."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer

from myllm.config import CaptionsConfig, DecodeConfig, PreprocessConfig
from myllm.errors import CheckpointError

Options = TypeVar("Options", PreprocessConfig, CaptionsConfig, DecodeConfig)
# what a file may hold where an option's default is of the type on the left; JSON knows no tuples
KINDS: Mapping[type, Any] = {bool: bool, int: int, float: int | float, str: str, tuple: list | tuple}


def is_onnx_export(path: Path) -> bool:
    """Whether this looks like a folder that `myllm export --to onnx` wrote."""
    return any((path / "onnx").glob("encoder_model*.onnx"))


def dataclass_from_dict(kind: type[Options], values: Mapping[str, Any]) -> Options:
    """The options that a file holds. Raises CheckpointError for one of another kind than its default is."""
    for name, default in asdict(kind()).items():
        value = values.get(name, default)
        # early_stopping is a truth or a word, checked by its own class, and where the default is none, nothing is known
        if name != "early_stopping" and default is not None and not isinstance(value, KINDS[type(default)]):
            raise CheckpointError(f"{name} is {value!r}; expected something like {default!r}")
    given: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return kind(**given)


def check_tokenizer(tokenizer: Tokenizer, rows: int, table: str = "the embedding") -> None:
    """Raises CheckpointError where it has tokens that the model's table has no row for."""
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest >= rows:
        raise CheckpointError(
            f"the tokenizer has tokens up to number {highest}, {table} {rows} rows; they are "
            "not of one model: put the tokenizer beside the weights that they were trained with"
        )
