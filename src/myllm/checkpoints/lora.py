"""Low-rank adapters in PEFT's form: a folder of adapter_config.json and adapter_model.safetensors, read and written.

What PEFT has no place for (which weights it was trained on, decoding defaults, where it came from) stands in the header
of the tensors: PEFT warns of names in its configuration that it does not know, and so weights and figures are replaced
as one.
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

from myllm.checkpoints import hub, native
from myllm.checkpoints.build import is_finite
from myllm.checkpoints.checks import dataclass_from_dict
from myllm.checkpoints.native import Checkpoint
from myllm.config import CaptionsConfig, DecodeConfig, LoraConfig, nearest
from myllm.errors import CheckpointError, reason
from myllm.files import atomic_write, json_text, read_json
from myllm.model.lora import LowRank, adapted_layers, linear_layers, merge
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.model.weight_files import read_tensors

FOLDER = "adapter"
CONFIG_NAME, TENSORS_NAME = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
NOTES = "myllm"
NO_HASH = "the adapter does not say which weights it was trained on; on others than those it spoils the captions"
# what PEFT's configuration may say of them; the first is taken where it says nothing
PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}
# what would make them compute something else
UNSUPPORTED = (
    "alora_invocation_tokens", "alpha_pattern", "arrow_config", "kasa_config", "layer_replication", "lora_bias",
    "modules_to_save", "monteclora_config", "target_parameters", "trainable_token_indices", "use_bdlora", "use_dora",
    "use_qalora",
)


@dataclass(frozen=True)
class Adapter:
    """The low-rank terms of some layers of a captioner, and which captioner that is."""

    folder: Path
    layers: Mapping[str, LowRank]
    """By the layer's name."""
    base: str | None
    """Where the captioner was that it was trained on: a path, or a hub id."""
    base_hash: str | None = None
    """Of that captioner's weights; None where PEFT wrote the adapter."""
    captions: CaptionsConfig | None = None
    decode: DecodeConfig | None = None
    provenance: dict[str, Any] = field(default_factory=dict)


def save(checkpoint: Checkpoint, config: LoraConfig, base: str, base_hash: str, folder: Path) -> None:
    """Write the adapters of a model that is being trained; its other weights, those of `base`, are left out.

    An adapter that is in the folder already is replaced as a whole.
    """
    layers = dict(adapted_layers(checkpoint.model))
    facts = {
        "peft_type": "LORA", "task_type": None, "inference_mode": True,
        "base_model_name_or_path": base if hub.is_id(base) else str(Path(base).resolve()),
        "r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout,
        "target_modules": list(layers), "bias": "none", "fan_in_fan_out": False,
    }
    tensors = {
        f"{PREFIX}{name}.{part}.weight": getattr(layer, part).weight.detach().cpu().contiguous()
        for name, layer in layers.items()
        for part in ("lora_A", "lora_B")
    }
    notes = {
        "base_hash": base_hash, "captions": asdict(checkpoint.captions), "decode": asdict(checkpoint.decode),
        "provenance": checkpoint.provenance,
    }
    with atomic_write(folder / CONFIG_NAME) as file:
        file.write(json_text(facts).encode())
    with atomic_write(folder / TENSORS_NAME) as file:
        file.write(tensors_to_bytes(tensors, {"format": "pt", NOTES: json_text(notes)}))


def locate(path: Path) -> Path | None:
    """The adapter's folder that `path` stands for: itself, or a run folder's; None where it is neither."""
    is_captioner = (path / native.FILE_NAME).exists() or (path / native.TENSORS_NAME).exists()
    folders = (path,) if is_captioner else (path, path / FOLDER)
    return next((folder for folder in folders if (folder / CONFIG_NAME).is_file()), None)


def matches(path: Path) -> bool:
    return locate(path) is not None


def read(path: Path) -> Adapter:
    """An adapter of ours or of PEFT's, in the folder that `locate` finds.

    Raises CheckpointError where it is missing or damaged, or where it would compute something else here.
    """
    folder = locate(path)
    if folder is None:
        raise CheckpointError(
            f"{path}: no adapter; expected a folder of {CONFIG_NAME} and {TENSORS_NAME}, or the run folder around it"
        )
    facts, tensors = read_json(folder / CONFIG_NAME), read_tensors(folder / TENSORS_NAME)
    try:
        layers = _layers(tensors, facts)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    base = facts.get("base_model_name_or_path")
    try:
        return Adapter(folder, layers, str(base) if base else None, **_notes(folder / TENSORS_NAME))
    except Exception as error:  # an edited file can raise anything
        raise CheckpointError(f"{folder / TENSORS_NAME}: its notes cannot be read ({reason(error)})") from error


def _layers(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> dict[str, LowRank]:
    """PEFT's tensors by layer, where its configuration, `facts`, describes nothing but W + scale * B A."""
    for name, allowed in PLAIN.items():
        if facts.get(name, allowed[0]) not in allowed:
            raise CheckpointError(f"{name} is {facts[name]!r}; supported is {' or '.join(map(str, allowed))}")
    for name in UNSUPPORTED:
        if facts.get(name):
            raise CheckpointError(f"{name} is {facts[name]!r}, which is not supported; train without it")
    alpha = facts.get("lora_alpha")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise CheckpointError(f"lora_alpha is {alpha!r}; expected a number")
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, value in tensors.items():
        layer, _, part = name.removeprefix(PREFIX).rpartition(".")[0].rpartition(".")
        if part not in ("lora_A", "lora_B") or not name.endswith(".weight") or value.dim() != 2:
            raise CheckpointError(f"{name} of shape {tuple(value.shape)} is no part of an adapter of a linear layer")
        if not value.is_floating_point() or not is_finite(value):
            raise CheckpointError(f"{name} holds values that are no finite numbers, so every caption would be noise")
        parts[layer][part] = value
    layers = {}
    for layer, pair in parts.items():
        if len(pair) != 2 or pair["lora_A"].shape[0] != pair["lora_B"].shape[1]:
            found = {part: tuple(value.shape) for part, value in pair.items()}
            raise CheckpointError(f"{layer} has {found}; expected lora_A (rank, in) and lora_B (out, rank)")
        rank = max(1, pair["lora_A"].shape[0])
        scale = alpha / (math.sqrt(rank) if facts.get("use_rslora") else rank)
        layers[layer] = LowRank(pair["lora_A"], pair["lora_B"], scale)
    return layers


def _notes(path: Path) -> dict[str, Any]:
    """What `save` wrote beside the tensors, as fields of `Adapter`; nothing in a file of PEFT's."""
    with safe_open(path, "pt") as file:
        notes = json.loads((file.metadata() or {}).get(NOTES, "{}"))
    if not notes:
        return {}
    return {
        "base_hash": str(notes["base_hash"]),
        "captions": dataclass_from_dict(CaptionsConfig, notes["captions"]),
        "decode": dataclass_from_dict(DecodeConfig, notes["decode"]),
        "provenance": dict(notes["provenance"]),
    }


def check_fits(adapter: Adapter, model: VisionGPT2, base: str, base_hash: str) -> None:
    """Whether the adapter belongs on this model, the captioner `base`, whose weights have that hash.

    Raises CheckpointError where it was trained on other weights, or on layers that the model has not.
    """
    if adapter.base_hash not in (None, base_hash):
        raise CheckpointError(
            f"{adapter.folder}: was trained on {adapter.base} with weights of hash {adapter.base_hash}; those of "
            f"{base} have {base_hash}. Give the captioner that it was trained on"
        )
    own = linear_layers(model)
    for name, one in adapter.layers.items():
        if name not in own:
            raise CheckpointError(f"{adapter.folder}: {name} is no linear layer of {base}{nearest(name, own)}")
        shape, expected = (one.b.shape[0], one.a.shape[1]), tuple(own[name].weight.shape)
        if shape != expected:
            raise CheckpointError(f"{adapter.folder}: {name} is of shape {shape}; that of {base} is {expected}")


def merged(adapter: Adapter, base: Checkpoint) -> Checkpoint:
    """The base with the adapter added to its weights, in place: an ordinary captioner."""
    merge(base.model, adapter.layers)
    return with_options(adapter, base)


def with_options(adapter: Adapter, base: Checkpoint) -> Checkpoint:
    """The base with the adapter's options and provenance, as far as it has its own, and no calibration."""
    notes = {} if adapter.base_hash else {"notes": [NO_HASH]}
    return replace(
        base,
        captions=adapter.captions or base.captions,
        decode=adapter.decode or base.decode,
        provenance={"base": adapter.base, **adapter.provenance, **notes},
        calibration=None,
    )
