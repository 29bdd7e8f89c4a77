"""Every form that a captioner comes and goes in; a new one is a module of its own and a line here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from myllm.checkpoints import hf_gpt2, hf_vision_encoder_decoder, hub, lora, native, original
from myllm.checkpoints.checks import is_onnx_export
from myllm.checkpoints.lora import Adapter
from myllm.checkpoints.native import Checkpoint
from myllm.errors import CheckpointError
from myllm.model.weight_files import read_tensors, weights_hash


@dataclass(frozen=True)
class Format:
    """One form."""

    name: str
    """As a sentence calls it."""
    holds: Callable[[Path], bool]
    """Whether this path looks like it, by the names of files and of tensors alone."""
    read: Callable[[Path], Checkpoint]


def _is_bare(path: Path) -> bool:
    try:
        return original.recognises(read_tensors(_file(path))) is not None
    except CheckpointError:  # our own reader says more
        return False


def _read_bare(path: Path) -> Checkpoint:
    return original.from_state(read_tensors(_file(path)), path)


def _refuse_export(path: Path) -> Checkpoint:
    raise CheckpointError(
        f"{path}: an ONNX export, made to be run: its weights are bound into its graphs. `myllm caption` and "
        "`myllm evaluate` take it, and myllm.inference.onnx_captioner; for all else take what it was exported from"
    )


def _file(path: Path) -> Path:
    return path / native.FILE_NAME if path.is_dir() else path


def _read_merged(path: Path) -> Checkpoint:
    adapter = lora.read(path)
    try:
        if adapter.base is None:
            raise CheckpointError("it names none")
        base = load_base(adapter.base)
    except CheckpointError as error:
        raise CheckpointError(
            f"{adapter.folder}: the captioner that this adapter was trained on was not opened: {error}. "
            "Give that captioner by --model, and this folder by --adapter"
        ) from error
    lora.check_fits(adapter, base.model, adapter.base, weights_hash(base.model))
    return lora.merged(adapter, base)


ADAPTER = Format("a low-rank adapter on a captioner", lora.matches, _read_merged)
OURS = Format("a captioner of myllm", lambda path: True, native.load)
# tried in this order; what is none of the others is read as our own, whose reader says what is wrong with it
READERS = (
    Format("an ONNX export", is_onnx_export, _refuse_export),
    ADAPTER,
    Format(
        "a VisionEncoderDecoder folder of transformers",
        hf_vision_encoder_decoder.matches,
        hf_vision_encoder_decoder.from_folder,
    ),
    Format("a bare state dict of the seed, or of a relative of it", _is_bare, _read_bare),
    OURS,
)
WRITERS: Mapping[str, Callable[[Checkpoint, Path], None]] = {
    "safetensors": native.save_folder,
    "hf": hf_vision_encoder_decoder.to_folder,
    "gpt2": hf_gpt2.to_folder,
}


def recognise(source: str | Path) -> tuple[Format, Path]:
    """The form that a file, a folder or a hub repository is in, and where it lies on this machine.

    Raises CheckpointError where there is none.
    """
    path = _here(source)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder; expected a captioner.pt, or the folder that holds it")
    return next(one for one in READERS if one.holds(path)), path


def _here(source: str | Path) -> Path:
    return hub.download(str(source)) if hub.is_id(str(source)) else Path(source)


def load(source: str | Path) -> Checkpoint:
    """A captioner in any form. Raises CheckpointError."""
    form, path = recognise(source)
    return form.read(path)


def load_base(source: str | Path) -> Checkpoint:
    """A captioner that adapters can stand on: in any form but on an adapter itself. Raises CheckpointError."""
    form, path = recognise(source)
    if form is ADAPTER:
        raise CheckpointError(
            f"{path} is an adapter itself; merge it with its captioner by `myllm import {path} --out merged.pt` first"
        )
    return form.read(path)


def load_adapters(sources: Mapping[str, str | Path], base: Checkpoint, name: str) -> dict[str, Adapter]:
    """Adapters that fit the captioner `base`, which was opened as `name`. Raises CheckpointError."""
    adapters = {key: lora.read(_here(source)) for key, source in sources.items()}
    base_hash = weights_hash(base.model) if adapters else ""
    for adapter in adapters.values():
        lora.check_fits(adapter, base.model, name, base_hash)
    return adapters
