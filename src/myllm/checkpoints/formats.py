"""All formats that a captioner is read from and written to; a new one is a module and a line in READERS or WRITERS."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from myllm.checkpoints import hf_gpt2, hub, lora, native, original
from myllm.checkpoints import hf_vision_encoder_decoder as hf
from myllm.checkpoints.checks import is_onnx_export
from myllm.checkpoints.lora import Adapter
from myllm.checkpoints.native import Checkpoint
from myllm.errors import CheckpointError
from myllm.files import read_json
from myllm.hub import is_id
from myllm.model.lora import merge
from myllm.model.weight_files import weights_hash


@dataclass(frozen=True)
class Format:
    """A format that captioners are read from."""

    name: str
    """The name that `myllm info` and `myllm import` print."""
    matches: Callable[[Path], bool]
    """Whether a path looks like this format, judged by the names of files and tensors."""
    read: Callable[[Path], Checkpoint]


def _refuse_onnx(path: Path) -> Checkpoint:
    config = path / "config.json"
    if config.is_file() and "myllm" in read_json(config):
        raise CheckpointError(
            f"{path}: an ONNX export, whose weights cannot be taken out of its graphs. `myllm caption` and `myllm "
            "evaluate` run it, and OnnxCaptioner in Python; for all else take the captioner that was exported"
        )
    raise CheckpointError(
        f"{path}: ONNX graphs of another program, which myllm neither runs nor imports; take the weights that they "
        "were exported from (model.safetensors or pytorch_model.bin with config.json)"
    )


def _read_merged(path: Path) -> Checkpoint:
    adapter = lora.read(path)
    try:
        if adapter.base is None:
            raise CheckpointError(f"{lora.CONFIG_NAME} names none")
        base = load_base(adapter.base)
    except CheckpointError as error:
        raise CheckpointError(
            f"{adapter.folder}: the captioner that this adapter was trained on could not be opened: {error}. "
            "Give that captioner by --model, and this folder by --adapter"
        ) from error
    lora.check_fits(adapter, base.model, adapter.base, weights_hash(base.model))
    merge(base.model, adapter.layers)
    return lora.with_options(adapter, base)


ADAPTER = Format("a low-rank adapter on a captioner", lambda path: lora.locate(path) is not None, _read_merged)
NATIVE = Format("a captioner of myllm", lambda path: True, native.load)
# In this order; NATIVE takes whatever no other format matches, and its errors describe the expected files.
READERS = (
    Format("an ONNX export", is_onnx_export, _refuse_onnx),
    ADAPTER,
    Format("a VisionEncoderDecoder folder of transformers", hf.matches, hf.from_folder),
    Format("a bare state dict of the original script, or of a relative of it", original.matches, original.from_file),
    NATIVE,
)
WRITERS: Mapping[str, Callable[[Checkpoint, Path], None]] = {
    "safetensors": native.save_folder, "hf": hf.to_folder, "gpt2": hf_gpt2.to_folder,
}


def find_format(source: str | Path) -> tuple[Format, Path]:
    """Return the format of a file, folder or hub repository, and its path on this machine.

    Raises CheckpointError if there is no such file, folder or repository.
    """
    path = _local_path(source)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder; expected a captioner.pt, or the folder that holds it")
    return next(reader for reader in READERS if reader.matches(path)), path


def _local_path(source: str | Path) -> Path:
    return hub.download(str(source)) if is_id(str(source)) else Path(source)


def load(source: str | Path) -> Checkpoint:
    """Open a captioner in any format. Raises CheckpointError."""
    reader, path = find_format(source)
    return reader.read(path)


def load_base(source: str | Path) -> Checkpoint:
    """Open a captioner in any format except an adapter, to train adapters on it. Raises CheckpointError."""
    reader, path = find_format(source)
    if reader is ADAPTER:
        raise CheckpointError(
            f"{path} is an adapter itself; merge it with its captioner by `myllm import {path} --out merged.pt` first"
        )
    return reader.read(path)


def load_adapters(sources: Mapping[str, str | Path], base: Checkpoint, name: str) -> dict[str, Adapter]:
    """Open adapters for the captioner `base`, called `name` in messages. Raises CheckpointError if one does not fit."""
    adapters = {key: lora.read(_local_path(source)) for key, source in sources.items()}
    base_hash = weights_hash(base.model) if adapters else ""
    for adapter in adapters.values():
        lora.check_fits(adapter, base.model, name, base_hash)
    return adapters
