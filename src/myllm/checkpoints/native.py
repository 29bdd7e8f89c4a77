"""Our own checkpoints: weights, configuration, tokenizer, preprocessing and decoding defaults.

Two formats hold the same parts: a file, captioner.pt, and a folder of safetensors and JSON that others can read.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from myllm.caption import Calibration
from myllm.checkpoints import checks
from myllm.checkpoints.build import TIED, build_model, is_finite
from myllm.checkpoints.card import model_card
from myllm.config import FORMAT_VERSION, CaptionerConfig, CaptionsConfig, DecodeConfig, PreprocessConfig
from myllm.decoding.retrieval import CaptionIndex
from myllm.errors import CheckpointError, ConfigError, reason
from myllm.files import atomic_folder, atomic_write, json_text, read_json, write_json
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.model.weight_files import read_content, read_tensors, write_tensors

FORMAT = "myllm-captioner"
FILE_NAME = "captioner.pt"
TENSORS_NAME, CONFIG_NAME, TOKENIZER_NAME = "model.safetensors", "config.json", "tokenizer.json"
INDEX_NAME = "index.safetensors"
FILE_PARTS = ("tokenizer", "model", "index")  # stored in files of their own in a folder; config.json holds the others
CALIBRATION = "calibration"
EXPECTED = (
    f"expected a {FILE_NAME} or the run folder that holds it, or a folder of {TENSORS_NAME}, {CONFIG_NAME} and "
    f"{TOKENIZER_NAME}"
)


@dataclass(frozen=True)
class Checkpoint:
    """A model with everything that captioning needs, and a record of how it was made."""

    model: VisionGPT2
    tokenizer: Tokenizer
    preprocess: PreprocessConfig
    captions: CaptionsConfig = field(default_factory=CaptionsConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    provenance: dict[str, Any] = field(default_factory=dict)
    """How it was made: data, metrics, seed; "notes" are messages for its users."""
    calibration: Calibration | None = None
    """Makes confidence an estimate of correctness; None if the captioner was never calibrated."""
    index: CaptionIndex | None = None
    """Captions of its training pictures, for `decode.rank_by` retrieval."""


def without_index(checkpoint: Checkpoint) -> Checkpoint:
    """Return the captioner without its index of training pictures; it then ranks captions by score."""
    return replace(checkpoint, index=None, decode=checkpoint.decode.without_retrieval())


def save(checkpoint: Checkpoint, path: Path, dtype: torch.dtype | None = None) -> None:
    """Write captioner.pt atomically: an existing file is replaced only by a complete one.

    dtype: torch.bfloat16 or torch.float16 halves the file; weights are float32 again when loaded.
    """
    tensors = _tensors_to_store(checkpoint.model, dtype)
    tensors |= {tied: tensors[name] for tied, name in TIED.items()}
    content = {**_metadata(checkpoint), "tokenizer": checkpoint.tokenizer.to_str(), "model": tensors}
    if checkpoint.index is not None:
        content["index"] = index_tensors(checkpoint.index)
    with atomic_write(path) as file:
        torch.save(content, file)


def save_folder(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write model.safetensors, config.json, tokenizer.json and a model card, README.md; dtype as in `save`.

    The folder gets its name only when it is complete. Raises ConfigError if `folder` exists.
    """
    tensors = _tensors_to_store(checkpoint.model, dtype)
    with atomic_folder(folder) as out:
        write_json(_metadata(checkpoint), out / CONFIG_NAME)
        (out / TOKENIZER_NAME).write_text(checkpoint.tokenizer.to_str(pretty=True), encoding="utf-8")
        parts = checkpoint.model, checkpoint.decode, checkpoint.provenance, folder.name, checkpoint.calibration
        (out / "README.md").write_text(model_card(*parts), encoding="utf-8")
        write_tensors(tensors, out / TENSORS_NAME)
        if checkpoint.index is not None:
            write_tensors(index_tensors(checkpoint.index), out / INDEX_NAME)


def write_calibration(calibration: Calibration, path: Path) -> Path:
    """Replace only the calibration in a file or folder, atomically, and return the path of the changed file.

    Raises CheckpointError if there is no checkpoint.
    """
    return _replace_part(CALIBRATION, calibration.as_json(), path)


def write_decode(decode: DecodeConfig, path: Path) -> None:
    """Replace only the decoding defaults in a file or folder, atomically. Raises CheckpointError."""
    _replace_part("decode", asdict(decode), path)


def _replace_part(name: str, part: dict[str, Any], path: Path) -> Path:
    location = locate(path)
    content = read(location)
    file_path = location / CONFIG_NAME if location.is_dir() else location
    if content.get(name) == part:
        return file_path
    content[name] = part
    with atomic_write(file_path) as file:
        if location.is_dir():
            file.write(json_text({name: content[name] for name in content if name not in FILE_PARTS}).encode())
        else:
            torch.save(content, file)
    return file_path


def load(path: Path) -> Checkpoint:
    """Open a captioner.pt, the run folder that holds one, or a folder that `save_folder` wrote.

    float32 tensors are mapped, not read into memory, so never write into an open file: replace it.
    Raises CheckpointError if the file is missing or damaged, has a newer format, is from another program, would run
    code when loaded, or has parts that do not fit together.
    """
    location = locate(path)
    content = read(location)
    try:
        return _assemble(content)
    except CheckpointError as error:
        raise CheckpointError(f"{location}: {error}") from error
    except Exception as error:  # an edited file can raise anything, and tokenizers raises bare Exception
        raise CheckpointError(f"{location}: its parts do not fit together ({reason(error)}); was it edited?") from error


def locate(path: Path) -> Path:
    """Return the captioner.pt, or the folder of safetensors, that `path` names.

    Raises CheckpointError if a folder holds both.
    """
    if path.name == TENSORS_NAME and path.is_file():
        return path.parent
    file, tensors = path / FILE_NAME, path / TENSORS_NAME
    if file.exists() and tensors.exists():
        raise CheckpointError(f"{path} holds two models, {FILE_NAME} and {TENSORS_NAME}; give {file} or {tensors}")
    return tensors.parent if tensors.exists() else file if path.is_dir() else path


def read(location: Path) -> dict[str, Any]:
    """Return {name: part} of a checkpoint, unchecked; tensors stay on disk until they are used.

    location: as `locate` returns it. Raises CheckpointError if it cannot be read, or is of another format or version.
    """
    content = _read_folder(location) if location.is_dir() else _read_file(location)
    version = content.get("format_version")
    if not isinstance(version, int):
        raise CheckpointError(f"{location}: format version {version!r:.100} is not a number; was the file edited?")
    if version > FORMAT_VERSION:
        upgrade = f"this myllm reads up to {FORMAT_VERSION}; upgrade myllm: {checks.UPGRADE}"
        raise CheckpointError(f"{location}: format version {version}, {upgrade}")
    return content


def _read_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; {EXPECTED}")
    content = read_content(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a captioner of myllm; another program wrote it")
    return content


def _read_folder(folder: Path) -> dict[str, Any]:
    home = folder.resolve()
    # a folder in Hugging Face's cache holds links to files in `blobs`
    homes = (home, home.parents[1] / "blobs") if home.parent.name == "snapshots" else (home,)
    index = folder / INDEX_NAME
    names = (TENSORS_NAME, CONFIG_NAME, TOKENIZER_NAME, *([INDEX_NAME] if index.exists() else []))
    for file in (folder / name for name in names):
        if not file.is_file():
            raise CheckpointError(f"{file}: no such file; {EXPECTED}")
        if file.resolve().parent not in homes:
            raise CheckpointError(
                f"{file}: refused: it is a link to {file.resolve()}, outside its folder; copy the file itself into the "
                "folder"
            )
    content = read_json(folder / CONFIG_NAME)
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{folder / CONFIG_NAME}: not the configuration of a captioner of myllm")
    try:
        tokenizer = (folder / TOKENIZER_NAME).read_bytes().decode(errors="replace")
    except OSError as error:
        raise CheckpointError(f"{folder / TOKENIZER_NAME}: cannot be read ({reason(error)})") from error
    more = {"index": read_tensors(index)} if index.exists() else {}
    return content | {"tokenizer": tokenizer, "model": read_tensors(folder / TENSORS_NAME), **more}


def _assemble(content: Mapping[str, Any]) -> Checkpoint:
    """Check the parts of a file and return their checkpoint."""
    checks.check_size([value for name, value in content.items() if name not in FILE_PARTS])
    provenance, calibration = content["provenance"], content.get(CALIBRATION)
    if not isinstance(provenance, dict):
        raise CheckpointError(f"provenance is a {type(provenance).__name__}; expected names and values")
    json_text({"provenance": provenance, CALIBRATION: calibration})  # fails if it is nested too deeply to be saved
    parts = {name: content["config"][name] for name in ("vision", "text", "mode")}
    config = checks.dataclass_from_dict(CaptionerConfig, parts)
    tokenizer = Tokenizer.from_str(content["tokenizer"])
    checks.check_tokenizer(tokenizer, config.text.vocab_size)
    preprocess = checks.dataclass_from_dict(PreprocessConfig, content["preprocess"])
    captions = checks.dataclass_from_dict(CaptionsConfig, content["captions"])
    decode = checks.dataclass_from_dict(DecodeConfig, content["decode"])
    model = build_model(config, content["model"])
    checks.check_preprocess(preprocess, model.encoder.preprocess.image_size)
    return Checkpoint(
        model, tokenizer, preprocess, captions, decode, checks.with_current_names(provenance),
        None if calibration is None else Calibration.from_json(checks.with_current_names(calibration)),
        read_index(content["index"]) if "index" in content else None,
    )


def index_tensors(index: CaptionIndex) -> dict[str, Tensor]:
    """Return the arrays of an index as tensors, by name."""
    return {name: torch.from_numpy(array) for name, array in index.as_arrays().items()}


def read_index(tensors: Mapping[str, Tensor]) -> CaptionIndex:
    """Return the index whose tensors were saved. Raises CheckpointError if they do not fit together."""
    try:
        return CaptionIndex.from_arrays({name: tensor.numpy() for name, tensor in tensors.items()})
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"its captions of training pictures are damaged ({reason(error)})") from error


def _metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return all parts except the tensors and the tokenizer."""
    options = {name: asdict(getattr(checkpoint, name)) for name in ("preprocess", "captions", "decode")}
    calibration = {} if checkpoint.calibration is None else {CALIBRATION: checkpoint.calibration.as_json()}
    return {
        "format": FORMAT, "format_version": FORMAT_VERSION, "config": asdict(checkpoint.model.config), **options,
        "provenance": checkpoint.provenance, **calibration,
    }


def _tensors_to_store(model: VisionGPT2, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return the model's tensors, tied ones once. Raises ConfigError if one does not fit into `dtype`."""
    if dtype not in (None, torch.bfloat16, torch.float16):
        raise ConfigError(f"dtype {dtype}: a captioner is stored in torch.bfloat16, torch.float16, or as it is (None)")
    tensors = {name: value.detach() for name, value in model.state_dict().items() if name not in TIED}
    for name, value in tensors.items():
        if dtype is not None and value.is_floating_point():
            tensors[name] = value.to(dtype)
            if not is_finite(tensors[name]):
                raise ConfigError(f"{name} has numbers too large for {dtype}; take torch.bfloat16, or None")
    return tensors
