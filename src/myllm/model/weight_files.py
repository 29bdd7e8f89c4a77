"""Tensors in files: safetensors, PyTorch's own, one file or shards. No file is ever run as code."""

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from myllm.errors import CheckpointError, reason
from myllm.files import read_json

# the first that is there is read
NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, or of the folder that holds one under a name of Hugging Face's; shards are put together.

    Raises CheckpointError where it is missing, damaged, holds more than tensors, or points out of its folder.
    """
    if path.is_dir():
        found = next((path / name for name in NAMES if (path / name).is_file()), None)
        if found is None:
            raise CheckpointError(f"{path}: no weights in this folder; looked for {', '.join(NAMES)}")
        path = found
    if path.suffix == ".json":
        return _read_shards(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            loaded: Any = load_file(path)
        else:
            refuse_compressed(path)
            # torch's older form can't be mapped
            loaded = torch.load(path, "cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused: no file of tensors alone. It is damaged, or holds more, and opening it could run code"
        ) from error
    except CheckpointError:
        raise
    except Exception as error:  # damaged bytes are read as instructions, which can fail in any way
        raise CheckpointError(f"{path}: damaged, cut short, or no file of weights at all ({reason(error)})") from error
    for wrapper in ("state_dict", "model"):
        loaded = loaded.get(wrapper, loaded) if isinstance(loaded, Mapping) else {}
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors")
    return tensors


def _read_shards(index: Path) -> dict[str, Tensor]:
    facts = read_json(index)
    places = facts.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index}: names no shards; expected a weight_map of tensors to files")
    tensors: dict[str, Tensor] = {}
    for name in sorted({str(place) for place in places.values()}):
        shard = index.parent / name
        if name != shard.name or name.endswith(".json"):
            raise CheckpointError(f"{index}: refused: shard {name!r} is no file of the same folder")
        if not shard.is_file():
            raise CheckpointError(f"{index}: shard {name} is missing; copy it beside the index")
        tensors |= read_tensors(shard)
    missing = sorted(places.keys() - tensors.keys())
    if missing:
        raise CheckpointError(f"{index}: {len(missing)} tensors are in no shard, {missing[0]} for one")
    return tensors


def refuse_compressed(path: Path) -> None:
    """A few bytes of a compressed part can become more than memory holds; torch.save compresses nothing.

    Raises CheckpointError for a zip file with such parts.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as parts:
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts.infolist()):
            raise CheckpointError(f"{path}: refused: its parts are compressed; take the file as torch.save wrote it")


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters; tied weights count once, buffers do not count."""
    return sum(parameter.numel() for parameter in module.parameters())


def weights_hash(module: nn.Module) -> str:
    """Equal for equal weights."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        if tensor.dim():
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A file of safetensors. Raises OSError where the disk is full or can't be written to."""
    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata={"format": "pt"})
    except SafetensorError as error:  # over what the disk said
        raise OSError(reason(error)) from error
