"""Checks of a file's contents before they are used. No torch: exports are opened without it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from PIL import Image
from tokenizers import Tokenizer

from myllm import config
from myllm.config import RENAMED_OPTIONS, PreprocessConfig
from myllm.data.images import Preprocess
from myllm.errors import CheckpointError, ConfigError, install_command
from myllm.training_config import SelfCriticalConfig, TrainConfig

Options = TypeVar("Options")
# prefix of each class's options on the command line
GROUPS: Mapping[type, str] = {
    config.CaptionerConfig: "", config.VisionConfig: "vision.", config.GPTConfig: "text.",
    config.PreprocessConfig: "preprocess.", config.CaptionsConfig: "captions.", config.DecodeConfig: "decode.",
    config.LoraConfig: "lora.", SelfCriticalConfig: "self_critical.", TrainConfig: "",
}
MAX_RESIZED_SIDE = 4096  # pixels; without a limit, a few lines of JSON could make a picture take gigabytes
MAX_METADATA_SIZE = 4_000_000  # values and characters
UPGRADE = install_command("--upgrade", "myllm-captioner")


def is_onnx_export(path: Path) -> bool:
    """Return whether a folder holds ONNX graphs of a captioner, and no weights that could be opened instead."""
    weights = ("captioner.pt", "model*.safetensors", "pytorch_model*.bin")
    return any((path / "onnx").glob("encoder_model*.onnx")) and not any(any(path.glob(name)) for name in weights)


def dataclass_from_dict(kind: type[Options], values: Mapping[str, Any]) -> Options:
    """Return the configuration of class `kind` that a file holds; missing options get their defaults.

    Raises CheckpointError for an unknown option, and for a value of another type or out of range.
    """
    group, types, options = GROUPS[kind], get_type_hints(kind), dict[str, Any]()
    for name, value in with_current_names(values, group).items():
        if name not in types:
            raise CheckpointError(f"{group}{name} is unknown; if a newer myllm wrote the file, upgrade: {UPGRADE}")
        if types[name] in GROUPS and isinstance(value, Mapping):
            value = dataclass_from_dict(types[name], value)
        options[name] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**options)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def with_current_names(values: Any, group: str = "") -> Any:
    """Return nested options under their current names; files of earlier versions hold older ones.

    group: the prefix of the options' names in RENAMED_OPTIONS, such as "decode.".
    """
    if not isinstance(values, Mapping):
        return values
    names = {name: RENAMED_OPTIONS.get(f"{group}{name}", "").removeprefix(group) or name for name in values}
    return {names[name]: with_current_names(value, f"{name}.") for name, value in values.items()}


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
    Preprocess(preprocess)(Image.new("RGB", (8, 8)))  # fails for an unknown interpolation


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
    """Raise CheckpointError if a token of the tokenizer has no row in `table`, which has `rows` of them."""
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest >= rows:
        raise CheckpointError(
            f"the tokenizer has tokens up to number {highest}, but {table} has {rows} rows; they belong to different "
            "models: put the tokenizer that the weights were trained with next to them"
        )
