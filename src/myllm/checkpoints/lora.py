"""Low-rank adapters in PEFT's format: a folder of adapter_config.json and adapter_model.safetensors.

PEFT has no fields for the hash of the base's weights, decoding defaults and provenance. They are in the header of the
tensors, because PEFT warns of unknown options in its configuration, and because one file is replaced as a whole.
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from myllm.checkpoints import native
from myllm.checkpoints.build import is_finite
from myllm.checkpoints.checks import dataclass_from_dict, with_current_names
from myllm.checkpoints.native import Checkpoint, without_index
from myllm.config import CaptionsConfig, DecodeConfig, LoraConfig, nearest
from myllm.errors import CheckpointError, reason
from myllm.files import atomic_write, json_text, read_json
from myllm.hub import is_id
from myllm.model.lora import LowRank, adapted_layers, linear_layers
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.model.weight_files import read_tensors
from myllm.option_checks import has_type

FOLDER = "adapter"
CONFIG_NAME, TENSORS_NAME = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
METADATA_KEY = "myllm"
NO_HASH = "the adapter does not record which weights it was trained on; with other weights, captions are worse"
# Supported values in PEFT's configuration; the first is PEFT's default.
SUPPORTED_VALUES: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}
# Options that make PEFT compute something else than W + scale * B A.
UNSUPPORTED = (
    "alora_invocation_tokens", "alpha_pattern", "arrow_config", "kasa_config", "layer_replication", "lora_bias",
    "modules_to_save", "monteclora_config", "target_parameters", "trainable_token_indices", "use_bdlora", "use_dora",
    "use_qalora",
)


@dataclass(frozen=True)
class Adapter:
    """Low-rank terms of a captioner's layers, and the captioner that they were trained on."""

    folder: Path
    layers: Mapping[str, LowRank]
    """By the layer's name."""
    base: str | None
    """Path or hub id of the captioner that it was trained on."""
    base_hash: str | None = None
    """`weights_hash` of that captioner; None if PEFT wrote the adapter."""
    captions: CaptionsConfig | None = None
    decode: DecodeConfig | None = None
    provenance: dict[str, Any] = field(default_factory=dict)


def save(checkpoint: Checkpoint, config: LoraConfig, base: str, base_hash: str, folder: Path) -> None:
    """Write the adapters of a model in training, without the weights of its base.

    base: path or hub id of the captioner that is adapted. Files that exist in `folder` are replaced atomically.
    """
    layers = dict(adapted_layers(checkpoint.model))
    peft_config = {
        "peft_type": "LORA", "task_type": None, "inference_mode": True,
        "base_model_name_or_path": base if is_id(base) else str(Path(base).resolve()),
        "r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout,
        "target_modules": list(layers), "bias": "none", "fan_in_fan_out": False,
    }
    tensors = {
        f"{PREFIX}{name}.{part}.weight": getattr(layer, part).weight.detach().cpu().contiguous()
        for name, layer in layers.items() for part in ("lora_A", "lora_B")
    }
    metadata = {
        "base_hash": base_hash, "captions": asdict(checkpoint.captions), "decode": asdict(checkpoint.decode),
        "provenance": checkpoint.provenance,
    }
    with atomic_write(folder / CONFIG_NAME) as file:
        file.write(json_text(peft_config).encode())
    _write_tensors(tensors, metadata, folder / TENSORS_NAME)


def write_decode(decode: DecodeConfig, folder: Path) -> None:
    """Replace only the decoding defaults of an adapter that `save` wrote, atomically."""
    path = folder / TENSORS_NAME
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()[METADATA_KEY])
    _write_tensors(read_tensors(path), metadata | {"decode": asdict(decode)}, path)


def _write_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], path: Path) -> None:
    with atomic_write(path) as file:
        file.write(tensors_to_bytes(dict(tensors), {"format": "pt", METADATA_KEY: json_text(metadata)}))


def locate(path: Path) -> Path | None:
    """Return the adapter's folder: `path` itself or `adapter` in a run folder; None if there is no adapter."""
    is_captioner = (path / native.FILE_NAME).exists() or (path / native.TENSORS_NAME).exists()
    folders = (path,) if is_captioner else (path, path / FOLDER)
    return next((folder for folder in folders if (folder / CONFIG_NAME).is_file()), None)


def read(path: Path) -> Adapter:
    """Open an adapter that we or PEFT wrote; path: as `locate` takes it.

    Raises CheckpointError if it is missing or damaged, or would compute something else here than in PEFT.
    """
    folder = locate(path)
    if folder is None:
        raise CheckpointError(
            f"{path}: no adapter; expected a folder of {CONFIG_NAME} and {TENSORS_NAME}, or the run folder around it"
        )
    config, tensors = read_json(folder / CONFIG_NAME), read_tensors(folder / TENSORS_NAME)
    try:
        base = str(config.get("base_model_name_or_path") or "") or None
        return Adapter(folder, _layers(tensors, config), base, **_metadata(folder / TENSORS_NAME))
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    except Exception as error:  # an edited file can raise anything
        raise CheckpointError(f"{folder / TENSORS_NAME}: its metadata cannot be read ({reason(error)})") from error


def _layers(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, LowRank]:
    """Return PEFT's tensors by layer. Raises CheckpointError unless they are W + scale * B A of linear layers."""
    for name, allowed in SUPPORTED_VALUES.items():
        if config.get(name, allowed[0]) not in allowed:
            raise CheckpointError(f"{name} is {config[name]!r:.100}; supported is {' or '.join(map(str, allowed))}")
    for name in UNSUPPORTED:
        if config.get(name):
            raise CheckpointError(f"{name} is {config[name]!r:.100}, which is not supported; train without it")
    alpha: Any = config.get("lora_alpha")
    if not has_type(alpha, float) or not math.isfinite(alpha):
        raise CheckpointError(f"lora_alpha is {alpha!r:.100}; expected a number")
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, value in tensors.items():
        layer, _, part = name.removeprefix(PREFIX).rpartition(".")[0].rpartition(".")
        if part not in ("lora_A", "lora_B") or not name.endswith(".weight") or value.dim() != 2:
            raise CheckpointError(f"{name} {tuple(value.shape)} does not belong to an adapter of a linear layer")
        if not value.is_floating_point() or not is_finite(value):
            raise CheckpointError(f"{name} holds NaN, infinite or integer values; take another copy of the adapter")
        parts[layer][part] = value
    layers = {}
    for layer, pair in parts.items():
        if len(pair) != 2 or pair["lora_A"].shape[0] != pair["lora_B"].shape[1]:
            shapes = {part: tuple(value.shape) for part, value in pair.items()}
            raise CheckpointError(f"{layer} has {shapes}; expected lora_A (rank, in) and lora_B (out, rank)")
        rank = max(1, pair["lora_A"].shape[0])
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        layers[layer] = LowRank(pair["lora_A"], pair["lora_B"], scale)
    return layers


def _metadata(path: Path) -> dict[str, Any]:
    """Return the fields of `Adapter` that `save` wrote into the tensors' header; none for a file of PEFT's."""
    with safe_open(path, "pt") as file:
        metadata = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
    if not metadata:
        return {}
    return {
        "base_hash": str(metadata["base_hash"]),
        "captions": dataclass_from_dict(CaptionsConfig, metadata["captions"]),
        "decode": dataclass_from_dict(DecodeConfig, metadata["decode"]),
        "provenance": with_current_names(metadata["provenance"]),
    }


def check_fits(adapter: Adapter, model: VisionGPT2, base: str, base_hash: str) -> None:
    """Raise CheckpointError if an adapter was trained on other weights than the model's, or on layers that it lacks.

    base: the model's name for messages. base_hash: its `weights_hash`.
    """
    if adapter.base_hash not in (None, base_hash):
        raise CheckpointError(
            f"{adapter.folder}: was trained on {adapter.base} with weights of hash {adapter.base_hash}; those of "
            f"{base} have {base_hash}. Give the captioner that it was trained on"
        )
    layers = linear_layers(model)
    for name, term in adapter.layers.items():
        if name not in layers:
            raise CheckpointError(f"{adapter.folder}: {base} has no linear layer {name}{nearest(name, layers)}")
        shape, expected = (term.b.shape[0], term.a.shape[1]), tuple(layers[name].weight.shape)
        if shape != expected:
            raise CheckpointError(f"{adapter.folder}: {name} has shape {shape}; expected {expected}, as in {base}")


def with_options(adapter: Adapter, base: Checkpoint) -> Checkpoint:
    """Return the base with the adapter's decoding defaults and provenance if it has them.

    It has no calibration and no index: they are those of the base's captions.
    """
    notes = {} if adapter.base_hash else {"notes": [NO_HASH]}
    provenance = {"base": adapter.base, **adapter.provenance, **notes}
    base = without_index(base)
    captions, decode = adapter.captions or base.captions, adapter.decode or base.decode
    return replace(base, captions=captions, decode=decode, provenance=provenance, calibration=None)
