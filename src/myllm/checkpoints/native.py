"""captioner.pt: weights, configuration, tokenizer, preprocessing and decoding defaults in one plain dictionary."""

import pickle
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from myllm.config import (
    FORMAT_VERSION,
    CaptionerConfig,
    CaptionsConfig,
    DecodeConfig,
    GPTConfig,
    PreprocessConfig,
    VisionConfig,
)
from myllm.errors import CheckpointError, reason
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.runtime import atomic_write

FORMAT = "myllm-captioner"
FILE_NAME = "captioner.pt"


@dataclass(frozen=True)
class Checkpoint:
    """What is needed to caption, and where it came from."""

    model: VisionGPT2
    tokenizer: Tokenizer
    preprocess: PreprocessConfig
    captions: CaptionsConfig = field(default_factory=CaptionsConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    provenance: dict[str, Any] = field(default_factory=dict)


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write atomically: what was there stays until the new file is whole."""
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "config": asdict(checkpoint.model.config),
        "tokenizer": checkpoint.tokenizer.to_str(),
        "preprocess": asdict(checkpoint.preprocess),
        "captions": asdict(checkpoint.captions),
        "decode": asdict(checkpoint.decode),
        "provenance": checkpoint.provenance,
        "model": checkpoint.model.state_dict(),
    }
    with atomic_write(path) as file:
        torch.save(content, file)


def load(path: Path) -> Checkpoint:
    """Open a captioner.pt, or the folder that holds one.

    Raises CheckpointError where it is missing, damaged, of a newer format, not ours, or asks to run code.
    """
    if path.is_dir():
        path = path / FILE_NAME
    content = read(path)
    try:
        facts = content["config"]
        config = CaptionerConfig(VisionConfig(**facts["vision"]), GPTConfig(**facts["text"]), facts["mode"])
        # its own weights follow, so none are fetched
        bare = replace(
            config,
            vision=replace(config.vision, pretrained=False, weights=None),
            text=replace(config.text, pretrained=False),
        )
        model = VisionGPT2(bare)
        model.load_state_dict(content["model"])
        model.config = config
        return Checkpoint(
            model.eval(),
            Tokenizer.from_str(content["tokenizer"]),
            PreprocessConfig(**{key: _tuples(value) for key, value in content["preprocess"].items()}),
            CaptionsConfig(**content["captions"]),
            DecodeConfig(**content["decode"]),
            content["provenance"],
        )
    except Exception as error:  # an edited file can raise anything, and tokenizers raises bare Exception
        raise CheckpointError(f"{path}: its parts do not fit together ({error}); was it edited?") from error


def read(path: Path) -> dict[str, Any]:
    """The dictionary in a file of ours, checked for format and version; tensors stay on disk until used."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a captioner.pt or the run folder that holds it")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused: it holds more than tensors and plain values, and opening it could run code. "
            "Only files written by myllm, or converted by `myllm import`, are opened"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: damaged or cut short, or no checkpoint at all ({reason(error)}); "
            "take another copy, or last.pt of the same run"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: a PyTorch file, but not a captioner of myllm")
    version = content.get("format_version")
    if not isinstance(version, int):
        raise CheckpointError(f"{path}: format version {version!r} is no number; was it edited?")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {version}, this myllm reads up to {FORMAT_VERSION}; "
            "upgrade myllm (pip install --upgrade myllm)"
        )
    return content


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) and not isinstance(value, Tensor) else value
