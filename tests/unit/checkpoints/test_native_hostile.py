"""Hostile and damaged files: refused by name, quickly, and without being run."""

import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from myllm.checkpoints import formats, native
from myllm.checkpoints.native import Checkpoint
from myllm.errors import CheckpointError

pytestmark = pytest.mark.timeout(300)
FIXTURES = Path(__file__).parents[2] / "fixtures"
SMALL = FIXTURES / "captioner-v1.pt", FIXTURES / "captioner-v1"
BILLION = 10**9


@pytest.fixture
def folder(tiny_checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A folder of `tiny_checkpoint`, free to damage."""
    native.save_folder(tiny_checkpoint, tmp_path / "folder")
    return tmp_path / "folder"


def edited(folder: Path, *keys: str, value: Any) -> Path:
    """The folder with one value of its config.json replaced."""
    config = json.loads((folder / "config.json").read_text())
    inner = config
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("header", "length"),
    [
        (b"{}", 2 * 1024**3),
        (b"{}", 2**63),
        (b"[" * 100_000, None),
        (b'{"a":' * 100_000, None),
        (b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}', None),
        (b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}', None),
        (b'{"w": {"dtype": "F32", "shape": [4294967296, 4294967296, 4], "data_offsets": [0, 16]}}', None),
        (
            b'{"v": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},'
            b'"w": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}',
            None,
        ),
        (b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [1000000, 1000008]}}', None),
        (b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}', None),
    ],
)
def test_hostile_safetensors_header_is_refused(folder: Path, header: bytes, length: int | None) -> None:
    content = struct.pack("<Q", len(header) if length is None else length) + header + bytes(16)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="model.safetensors: damaged, cut short, or not a file of weights"):
        formats.load(folder)


@pytest.mark.parametrize("opening", ["[", '{"config":'])
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_deeply_nested_json_is_refused(folder: Path, opening: str, file: str) -> None:
    (folder / file).write_text(opening * 100_000)
    with pytest.raises(CheckpointError, match=str(folder)):
        formats.load(folder)


def test_deeply_nested_provenance_is_refused(tiny_captioner_file: Path) -> None:
    content = torch.load(tiny_captioner_file, weights_only=True)
    torch.save(content | {"provenance": {"note": "HERE"}}, tiny_captioner_file)
    with zipfile.ZipFile(tiny_captioner_file) as source:
        parts = {name: source.read(name) for name in source.namelist()}
    pickle_name = next(name for name in parts if name.endswith("data.pkl"))
    # an unpickler reads lists in lists more deeply than any pickler writes them
    text, lists = b"X\x04\x00\x00\x00HERE", b"]" * 100_000 + b"a" * 99_999
    assert parts[pickle_name].count(text) == 1
    with zipfile.ZipFile(tiny_captioner_file, "w") as target:
        for name, part in (parts | {pickle_name: parts[pickle_name].replace(text, lists)}).items():
            target.writestr(name, part)
    with pytest.raises(CheckpointError, match="captioner.pt"):
        formats.load(tiny_captioner_file)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("config", "text", "n_embd"), 4 * BILLION),
        (("config", "text", "n_layer"), BILLION),
        (("config", "text", "n_positions"), 10**12),
        (("config", "text", "n_positions"), 10**30),
        (("config", "vision", "image_size"), BILLION),
        (("config", "vision", "image_size"), 4096),
        (("config", "vision", "geometry"), {"embed_dim": 4 * BILLION}),
        (("config", "vision", "geometry"), {"depth": BILLION}),
        (("config", "vision", "geometry"), {"depth": BILLION, "embed_dim": 4}),
        (("config", "vision", "geometry"), {"mlp_ratio": 1e12}),
        (("config", "vision", "geometry"), {"num_classes": 10**12}),
        (("config", "vision", "name"), "vit_giant_patch14_224"),
        (("config", "vision", "name"), "vit_base_patch16_224"),
        (("preprocess", "image_size"), [BILLION, BILLION]),
        (("preprocess", "crop_pct"), 1e-9),
    ],
)
def test_configuration_larger_than_the_weights_is_refused(
    folder: Path, keys: tuple[str, ...], value: object
) -> None:
    with pytest.raises(CheckpointError, match=str(folder)):
        formats.load(edited(folder, *keys, value=value))


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("config", "text", "n_head"), 4.0),
        (("config", "text", "n_head"), True),
        (("config", "text", "gelu"), "swish"),
        (("config", "text", "dropout"), "none"),
        (("config", "vision", "image_size"), "64"),
        (("config", "vision", "geometry"), [1]),
        (("config", "vision", "name"), None),
        (("preprocess", "image_size"), [64.0, 64.0]),
        (("preprocess", "image_size"), [-5, -5]),
        (("preprocess", "std"), [0.5, 0.5, 0.0]),
        (("preprocess", "mean"), 3),
        (("preprocess", "mean"), [0.5]),
        (("preprocess", "std"), ["a", "b", "c"]),
        (("preprocess", "interpolation"), "none"),
        (("captions", "lowercase"), "no"),
        (("captions", "image_column"), 3),
        (("decode", "beams"), 2.0),
        (("decode", "prefix"), None),
        (("decode", "stop_strings"), {"a": 1}),
        (("config", "mode"), "both"),
        (("config", "text"), [1]),
        (("provenance",), "mine"),
    ],
)
def test_option_of_another_type_is_refused_by_name_when_opened(
    folder: Path, keys: tuple[str, ...], value: object
) -> None:
    with pytest.raises(CheckpointError, match=rf"{folder}: .*\b{keys[-1]}\b"):
        formats.load(edited(folder, *keys, value=value))


def doubled(depth: int) -> list[Any]:
    """A list of 2 ** depth items that takes a few bytes: each list holds the one before twice."""
    items: list[Any] = ["a"]
    for _ in range(depth):
        items = [items, items]
    return items


@pytest.mark.parametrize(
    "keys",
    [("provenance", "note"), ("calibration",), ("config", "vision", "geometry", "depth"), ("decode", "bad_words")],
)
def test_lists_that_share_themselves_are_refused(tiny_captioner_file: Path, keys: tuple[str, ...]) -> None:
    content = torch.load(tiny_captioner_file, weights_only=True)
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = doubled(34)
    before = tiny_captioner_file.stat().st_size
    torch.save(content, tiny_captioner_file)
    assert tiny_captioner_file.stat().st_size < before + 2_000
    with pytest.raises(CheckpointError, match=r"captioner.pt: its metadata have more than 4,000,000 values"):
        formats.load(tiny_captioner_file)


def test_list_that_holds_itself_is_refused(tiny_captioner_file: Path) -> None:
    items: list[Any] = []
    items.append(items)
    content = torch.load(tiny_captioner_file, weights_only=True)
    torch.save(content | {"provenance": {"note": items}}, tiny_captioner_file)
    with pytest.raises(CheckpointError, match=r"captioner.pt: its metadata have more than"):
        formats.load(tiny_captioner_file)


def test_compressed_file_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "captioner.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("captioner/data.pkl", bytes(10**8))
    with pytest.raises(CheckpointError, match="captioner.pt: refused: its parts are compressed"):
        formats.load(tmp_path)


def test_expanded_tensor_does_not_justify_more_memory(tiny_captioner_file: Path) -> None:
    content = torch.load(tiny_captioner_file, weights_only=True)
    content["config"]["text"] |= {"n_positions": BILLION}
    content["model"]["decoder.transformer.wpe.weight"] = torch.zeros(1).expand(BILLION, 32)
    torch.save(content, tiny_captioner_file)
    with pytest.raises(CheckpointError, match="larger than its weights"):
        formats.load(tiny_captioner_file)


@pytest.mark.parametrize("name", ["checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"])
def test_geometry_that_names_other_files_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=f"vision.geometry must not set {name}"):
        formats.load(edited(folder, "config", "vision", "geometry", value={name: "/etc/passwd"}))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_link_out_of_the_folder_is_refused(folder: Path, name: str) -> None:
    shutil.move(folder / name, folder.parent / name)
    (folder / name).symlink_to(folder.parent / name)
    with pytest.raises(CheckpointError, match=rf"{name}: refused: it is a link to .*, outside its folder; copy"):
        formats.load(folder)


def test_links_within_the_folder_and_the_hub_cache_are_followed(folder: Path) -> None:
    os.rename(folder / "config.json", folder / "real.json")
    (folder / "config.json").symlink_to("real.json")
    formats.load(folder)
    snapshot = folder.parent / "models--a--b/snapshots/0123"
    blobs = snapshot.parents[1] / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in folder.iterdir():
        shutil.copy(file.resolve(), blobs / f"blob-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/blob-{file.name}")
    formats.load(snapshot)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_bare_pickle_that_runs_code_is_refused_and_not_run(
    tmp_path: Path, hostile: Callable[[Path], object], protocol: int
) -> None:
    (tmp_path / "captioner.pt").write_bytes(pickle.dumps(hostile(tmp_path / "was-run"), protocol))
    with pytest.raises(CheckpointError, match="captioner.pt"):
        formats.load(tmp_path)
    assert not (tmp_path / "was-run").exists()


def test_pickle_named_safetensors_is_refused_and_not_run(
    folder: Path, hostile: Callable[[Path], object]
) -> None:
    torch.save({"w": hostile(folder / "was-run")}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="model.safetensors: damaged"):
        formats.load(folder)
    assert not (folder / "was-run").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_or_infinite_weights_are_named(folder: Path, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["decoder.transformer.h.1.ln_1.bias"][3] = value
    save_file(tensors, folder / "changed")
    os.replace(folder / "changed", folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"decoder.transformer.h.1.ln_1.bias holds NaN or infinite values"):
        formats.load(folder)


def test_large_finite_weights_are_accepted(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["decoder.transformer.h.1.ln_1.bias"][:] = 3e38  # their sum is not
    save_file(tensors, folder / "changed")
    os.replace(folder / "changed", folder / "model.safetensors")
    formats.load(folder)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_sparse_tensor_is_refused(tiny_captioner_file: Path) -> None:
    content = torch.load(tiny_captioner_file, weights_only=True)
    content["model"]["decoder.transformer.wpe.weight"] = torch.zeros(24, 32).to_sparse()
    torch.save(content, tiny_captioner_file)
    with pytest.raises(CheckpointError, match="captioner.pt"):
        formats.load(tiny_captioner_file)


def loads_or_is_refused(path: Path) -> None:
    try:
        formats.load(path)
    except CheckpointError as error:
        assert str(path.parent) in str(error)


BYTE_CHANGES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8)
UNCHECKED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
mutations = settings(max_examples=200, suppress_health_check=UNCHECKED, deadline=None)


def changed(content: bytes, changes: list[tuple[float, int]], within: int | None = None) -> bytes:
    """The bytes with some of the first `within` replaced."""
    damaged = bytearray(content)
    for position, byte in changes:
        damaged[int(position * (within or len(damaged)))] = byte
    return bytes(damaged)


@pytest.mark.slow
@mutations
@given(BYTE_CHANGES, st.booleans())
def test_file_with_changed_bytes_loads_or_is_refused(
    tmp_path: Path, changes: list[tuple[float, int]], near_the_start: bool
) -> None:
    # the pickle with all instructions comes first, then the numbers
    content = SMALL[0].read_bytes()
    (tmp_path / "captioner.pt").write_bytes(changed(content, changes, 20_000 if near_the_start else None))
    loads_or_is_refused(tmp_path / "captioner.pt")


@pytest.mark.slow
@mutations
@given(st.sampled_from(["model.safetensors", "config.json", "tokenizer.json"]), BYTE_CHANGES, st.booleans())
def test_folder_with_changed_bytes_loads_or_is_refused(
    tmp_path: Path, name: str, changes: list[tuple[float, int]], near_the_start: bool
) -> None:
    target = tmp_path / "folder"
    shutil.copytree(SMALL[1], target, dirs_exist_ok=True)
    content = (SMALL[1] / name).read_bytes()
    (target / name).write_bytes(changed(content, changes, min(len(content), 1_500) if near_the_start else None))
    loads_or_is_refused(target)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100, 5_000])
def test_safetensors_cut_short_is_refused(folder: Path, size: int) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:size])
    with pytest.raises(CheckpointError, match="model.safetensors: damaged, cut short"):
        formats.load(folder)
