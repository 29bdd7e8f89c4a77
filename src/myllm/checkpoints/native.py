"""Our own checkpoints: weights, configuration, tokenizer, preprocessing and decoding defaults.

Two forms of the same parts: a file, captioner.pt, and a folder of safetensors and JSON that others can read too.
"""

import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from myllm.caption import Calibration
from myllm.checkpoints.build import TIED, build_model
from myllm.checkpoints.card import model_card
from myllm.checkpoints.checks import check_tokenizer, dataclass_from_dict
from myllm.config import (
    FORMAT_VERSION,
    CaptionerConfig,
    CaptionsConfig,
    DecodeConfig,
    GPTConfig,
    PreprocessConfig,
    VisionConfig,
)
from myllm.data.images import Preprocess
from myllm.errors import CheckpointError, ConfigError, reason
from myllm.files import atomic_folder, atomic_write, json_text, read_json, write_json
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.model.weight_files import read_tensors, refuse_compressed, write_tensors

FORMAT = "myllm-captioner"
FILE_NAME = "captioner.pt"
TENSORS_NAME, CONFIG_NAME, TOKENIZER_NAME = "model.safetensors", "config.json", "tokenizer.json"
BESIDE = ("tokenizer", "model")  # the parts of a folder that are not in its configuration
CALIBRATION = "calibration"
EXPECTED = (
    f"expected a {FILE_NAME} or the run folder that holds it, or a folder of {TENSORS_NAME}, {CONFIG_NAME} and "
    f"{TOKENIZER_NAME}"
)


@dataclass(frozen=True)
class Checkpoint:
    """What is needed to caption, and where it came from."""

    model: VisionGPT2
    tokenizer: Tokenizer
    preprocess: PreprocessConfig
    captions: CaptionsConfig = field(default_factory=CaptionsConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    provenance: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None
    """What makes its captions' confidence mean something; None where it was never calibrated."""


def save(checkpoint: Checkpoint, path: Path, dtype: torch.dtype | None = None) -> None:
    """Write captioner.pt atomically: what was there stays until the new file is whole.

    dtype: torch.bfloat16 or torch.float16 halves the file; the model is float32 again when it is loaded.
    """
    tensors = _stored(checkpoint.model, dtype)
    tensors |= {tied: tensors[name] for tied, name in TIED.items()}
    content = {**_facts(checkpoint), "tokenizer": checkpoint.tokenizer.to_str(), "model": tensors}
    with atomic_write(path) as file:
        torch.save(content, file)


def save_folder(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write model.safetensors, config.json, tokenizer.json and README.md, a model card; dtype as in `save`.

    The folder appears when it is whole. Raises ConfigError where something of its name is there.
    """
    tensors = _stored(checkpoint.model, dtype)
    with atomic_folder(folder) as part:
        write_json(_facts(checkpoint), part / CONFIG_NAME)
        (part / TOKENIZER_NAME).write_text(checkpoint.tokenizer.to_str(pretty=True), encoding="utf-8")
        card = model_card(
            checkpoint.model, checkpoint.decode, checkpoint.provenance, folder.name, checkpoint.calibration
        )
        (part / "README.md").write_text(card, encoding="utf-8")
        write_tensors(tensors, part / TENSORS_NAME)


def write_calibration(calibration: Calibration, path: Path) -> Path:
    """Put it into a checkpoint in either form, whose other parts stay as they are; atomically. Returns the file.

    Raises CheckpointError where there is none.
    """
    place = locate(path)
    content = read(place) | _calibration_fact(calibration)
    file_path = place / CONFIG_NAME if place.is_dir() else place
    with atomic_write(file_path) as file:
        if place.is_dir():
            file.write(json_text({name: content[name] for name in content if name not in BESIDE}).encode())
        else:
            torch.save(content, file)
    return file_path


def load(path: Path) -> Checkpoint:
    """Open a captioner.pt, the run folder that holds one, or a folder that `save_folder` wrote.

    Tensors in float32 are not read into memory but mapped: replace such a file by another, never write into it.
    Raises CheckpointError where it is missing, damaged, of a newer format, not ours, asks to run code, or where its
    parts do not fit together.
    """
    place = locate(path)
    content = read(place)
    try:
        return _assemble(content)
    except CheckpointError as error:
        raise CheckpointError(f"{place}: {error}") from error
    except Exception as error:  # an edited file can raise anything, and tokenizers raises bare Exception
        raise CheckpointError(f"{place}: its parts do not fit together ({reason(error)}); was it edited?") from error


def locate(path: Path) -> Path:
    """The file captioner.pt, or the folder of safetensors, that `path` stands for.

    Raises CheckpointError where there are both.
    """
    if path.name == TENSORS_NAME and path.is_file():
        return path.parent
    file, tensors = path / FILE_NAME, path / TENSORS_NAME
    if file.exists() and tensors.exists():
        raise CheckpointError(
            f"{path} holds two models, {FILE_NAME} and {TENSORS_NAME}; give {file} or {tensors}, the one you mean"
        )
    return tensors.parent if tensors.exists() else file if path.is_dir() else path


def read(place: Path) -> dict[str, Any]:
    """The parts of a checkpoint that `locate` found, checked for format and version; tensors stay on disk until used.

    Raises CheckpointError.
    """
    content = _read_folder(place) if place.is_dir() else _read_file(place)
    version = content.get("format_version")
    if not isinstance(version, int):
        raise CheckpointError(f"{place}: format version {version!r} is no number; was it edited?")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{place}: format version {version}, this myllm reads up to {FORMAT_VERSION}; "
            "upgrade myllm (pip install --upgrade myllm)"
        )
    return content


def _read_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; {EXPECTED}")
    try:
        refuse_compressed(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused: it holds more than tensors and plain values, and opening it could run code. "
            "Only files written by myllm, or converted by `myllm import`, are opened"
        ) from error
    except Exception as error:  # damaged bytes are read as instructions, which can fail in any way
        raise CheckpointError(
            f"{path}: damaged or cut short, or no checkpoint at all ({reason(error)}); "
            "take another copy, or last.pt of the same run"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: a PyTorch file, but not a captioner of myllm")
    return content


def _read_folder(folder: Path) -> dict[str, Any]:
    for name in (TENSORS_NAME, CONFIG_NAME, TOKENIZER_NAME):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name}: no such file; {EXPECTED}")
        if not _is_of(folder, folder / name):
            raise CheckpointError(
                f"{folder / name}: refused: it is a link to {(folder / name).resolve()}, outside its folder; "
                "copy the file itself into the folder"
            )
    content = read_json(folder / CONFIG_NAME)
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{folder / CONFIG_NAME}: not the configuration of a captioner of myllm")
    try:
        tokenizer = (folder / TOKENIZER_NAME).read_bytes().decode(errors="replace")
    except OSError as error:
        raise CheckpointError(f"{folder / TOKENIZER_NAME}: cannot be read ({reason(error)})") from error
    return content | dict(zip(BESIDE, (tokenizer, read_tensors(folder / TENSORS_NAME)), strict=True))


def _is_of(folder: Path, file: Path) -> bool:
    """Whether a file lies in its folder, or where Hugging Face's cache keeps the files of such a one."""
    home, target = folder.resolve(), file.resolve()
    return target.parent == home or (home.parent.name == "snapshots" and target.parent == home.parent.parent / "blobs")


def _assemble(content: Mapping[str, Any]) -> Checkpoint:
    facts, provenance = content["config"], content["provenance"]
    config = CaptionerConfig(VisionConfig(**facts["vision"]), GPTConfig(**facts["text"]), facts["mode"])
    if config.mode not in ("layerwise", "last"):
        raise CheckpointError(f"mode is {config.mode!r}; expected layerwise or last")
    if not isinstance(provenance, dict):
        raise CheckpointError(f"provenance is a {type(provenance).__name__}; expected names and values")
    # what is nested too deep to be written is too deep to be shown
    json_text({"provenance": provenance, CALIBRATION: content.get(CALIBRATION)})
    tokenizer = Tokenizer.from_str(content["tokenizer"])
    check_tokenizer(tokenizer, config.text.vocab_size)
    preprocess = dataclass_from_dict(PreprocessConfig, content["preprocess"])
    captions, decode = (
        dataclass_from_dict(CaptionsConfig, content["captions"]),
        dataclass_from_dict(DecodeConfig, content["decode"]),
    )
    model = build_model(config, content["model"])
    _check_preprocess(preprocess, model.encoder.preprocess)
    calibration = None if content.get(CALIBRATION) is None else Calibration.from_json(content[CALIBRATION])
    return Checkpoint(model, tokenizer, preprocess, captions, decode, provenance, calibration)


def _check_preprocess(found: PreprocessConfig, own: PreprocessConfig) -> None:
    """Whether pictures can become the encoder's input in this way, and at a cost that a picture may have."""
    if found.image_size != own.image_size:
        raise CheckpointError(f"preprocess.image_size is {found.image_size}, the encoder takes {own.image_size}")
    if not 0.1 <= found.crop_pct <= 10:
        raise CheckpointError(f"preprocess.crop_pct is {found.crop_pct}; expected a share of the picture, 1 or less")
    if len(found.mean) != 3 or len(found.std) != 3:
        raise CheckpointError(f"preprocess.mean and std are {found.mean} and {found.std}; expected three numbers each")
    Preprocess(found)(Image.new("RGB", (8, 8)))  # whatever else is odd shows itself


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """All parts that are neither tensors nor the tokenizer."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "config": asdict(checkpoint.model.config),
        "preprocess": asdict(checkpoint.preprocess),
        "captions": asdict(checkpoint.captions),
        "decode": asdict(checkpoint.decode),
        "provenance": checkpoint.provenance,
        **_calibration_fact(checkpoint.calibration),
    }


def _calibration_fact(calibration: Calibration | None) -> dict[str, Any]:
    return {} if calibration is None else {CALIBRATION: calibration.as_json()}


def _stored(model: VisionGPT2, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The model's tensors as they are written, each of them once."""
    if dtype not in (None, torch.bfloat16, torch.float16):
        raise ConfigError(f"dtype {dtype}: a captioner is stored in torch.bfloat16, torch.float16, or as it is (None)")
    tensors = {name: value.detach() for name, value in model.state_dict().items() if name not in TIED}
    if dtype is not None:
        tensors = {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
        for name, value in tensors.items():
            if value.is_floating_point() and not value.isfinite().all():
                raise ConfigError(f"{name} has numbers too large for {dtype}; take torch.bfloat16, or None")
    return tensors
