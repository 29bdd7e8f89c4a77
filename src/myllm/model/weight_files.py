"""Read and write tensors: safetensors or PyTorch files, one file or shards. No file is ever run as code."""

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

# Hugging Face's names, in the order in which they are preferred.
NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def read_content(path: Path) -> Any:
    """Return the content of a safetensors or PyTorch file; tensors stay on disk until they are used.

    Raises CheckpointError if the file is missing, damaged or compressed, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            _refuse_compressed(path)
        return torch.load(path, "cpu", weights_only=True, mmap=is_zip)  # torch's older format cannot be mapped
    except CheckpointError:
        raise
    except Exception as error:  # damaged bytes are read as instructions, which can fail in any way
        problem = f"damaged, cut short, or not a file of weights ({reason(error)})"
        if isinstance(error, pickle.UnpicklingError):
            problem = "refused: damaged, or it holds more than tensors and plain values, and opening it could run code"
        raise CheckpointError(f"{path}: {problem}; take another copy") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a file, or of a folder with weights under one of Hugging Face's names; shards are joined.

    Raises CheckpointError as `read_content`, if there are no tensors, and if an index of shards names files elsewhere.
    """
    if path.is_dir():
        file = next((path / name for name in NAMES if (path / name).is_file()), None)
        if file is None:
            raise CheckpointError(f"{path}: no weights in this folder; looked for {', '.join(NAMES)}")
        path = file
    if path.suffix == ".json":
        return _read_shards(path)
    content = read_content(path)
    for wrapper in ("state_dict", "model"):
        content = content.get(wrapper, content) if isinstance(content, Mapping) else {}
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors")
    return tensors


def _read_shards(index: Path) -> dict[str, Tensor]:
    """Return the tensors of all shards that an index file lists."""
    file_of = read_json(index).get("weight_map")
    if not isinstance(file_of, dict) or not file_of:
        raise CheckpointError(f"{index}: lists no shards; expected a weight_map from tensor names to files")
    tensors: dict[str, Tensor] = {}
    for name in sorted({str(name) for name in file_of.values()}):
        shard = index.parent / name
        if name != shard.name or name.endswith(".json"):
            raise CheckpointError(f"{index}: refused: shard {name!r} is not a file of the same folder")
        if not shard.is_file():
            raise CheckpointError(f"{index}: shard {name} is missing; copy it into the folder")
        tensors |= read_tensors(shard)
    missing = sorted(file_of.keys() - tensors.keys())
    if missing:
        raise CheckpointError(f"{index}: no shard holds {missing[0]} ({len(missing)} missing tensors in all)")
    return tensors


def _refuse_compressed(path: Path) -> None:
    """Raise CheckpointError for compressed parts: a few bytes can expand to more than memory holds."""
    with zipfile.ZipFile(path) as archive:
        if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
            raise CheckpointError(f"{path}: refused: its parts are compressed; take the file as torch.save wrote it")


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters; tied weights count once, buffers do not count."""
    return sum(parameter.numel() for parameter in module.parameters())


def weights_hash(module: nn.Module) -> str:
    """Return a hash (16 hex digits) of a module's tensors and their names."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        if tensor.dim():
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file. Raises OSError if the disk is full or not writable."""
    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata={"format": "pt"})
    except SafetensorError as error:  # its message wraps the disk's
        raise OSError(reason(error)) from error
