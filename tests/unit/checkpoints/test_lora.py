"""Adapter folders: written and read again, on the captioner that they were trained on and no other."""

import json
import resource
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from myllm.caption import Caption
from myllm.checkpoints import lora, native
from myllm.checkpoints.formats import load
from myllm.checkpoints.native import Checkpoint
from myllm.config import CaptionsConfig, DecodeConfig, LoraConfig
from myllm.errors import CheckpointError, ConfigError, MyLLMError
from myllm.inference.captioner import Captioner
from myllm.model.lora import adapted_layers, add_adapters
from myllm.model.weight_files import weights_hash

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
TOKENS = torch.tensor([[[0, 5, 7], [0, 9, 2]]] * 2)
LAYER = "base_model.model.decoder.transformer.h.0.mlp.c_fc"
OPTIONS = {
    "captions": CaptionsConfig(lowercase=False), "decode": DecodeConfig(beams=2, max_new_tokens=5),
    "provenance": {"data": {"folder": "birds"}},
}


@pytest.fixture
def base(tiny_checkpoint: Checkpoint, tmp_path: Path) -> Path:
    native.save(tiny_checkpoint, tmp_path / "base/captioner.pt")
    return tmp_path / "base"


def trained(base: Path, out: Path, seed: int = 0, **options: Any) -> Tensor:
    """Write adapters with random values, as if trained, and return the logits of their model."""
    checkpoint, config = load(base), LoraConfig(rank=3, alpha=5.0, targets=("c_attn", "c_fc"))
    base_hash = weights_hash(checkpoint.model)
    torch.manual_seed(seed)
    add_adapters(checkpoint.model, config)
    for _, layer in adapted_layers(checkpoint.model):
        nn.init.normal_(layer.lora_B.weight, std=0.2)
    lora.save(replace(checkpoint, **(OPTIONS | options)), config, str(base), base_hash, out)
    return logits(checkpoint)


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    trained(base, tmp_path / "run/adapter")
    return tmp_path / "run/adapter"


@torch.no_grad()
def logits(checkpoint: Checkpoint | Captioner) -> Tensor:
    return checkpoint.model(IMAGES, TOKENS)


def tokens_of(captions: Sequence[Caption]) -> list[list[int]]:
    return [list(caption.tokens) for caption in captions]


def drop_metadata(adapter: Path) -> None:
    """Rewrite an adapter as PEFT writes it, without our metadata."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(tensors, adapter / "adapter_model.safetensors", {"format": "pt"})


def test_adapter_opens_as_its_base_with_the_adapter_merged(base: Path, tmp_path: Path) -> None:
    expected = trained(base, tmp_path / "run/adapter")
    for path in (tmp_path / "run/adapter", tmp_path / "run"):
        opened = load(path)
        torch.testing.assert_close(logits(opened), expected, atol=1e-5, rtol=1e-5)
        assert {name: getattr(opened, name) for name in ("captions", "decode")} == {
            name: OPTIONS[name] for name in ("captions", "decode")
        }
        assert opened.provenance == {"base": str(base), "data": {"folder": "birds"}}


def test_adapter_folder_is_small_and_holds_no_base_weights(base: Path, adapter: Path) -> None:
    assert sorted(path.name for path in adapter.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert (adapter / "adapter_model.safetensors").stat().st_size < (base / "captioner.pt").stat().st_size / 10
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        assert all(".lora_" in name for name in file.keys())  # noqa: SIM118


def test_merged_captioner_needs_neither_adapter_nor_base(base: Path, adapter: Path, tmp_path: Path) -> None:
    opened = load(adapter)
    expected = logits(opened)
    native.save(opened, tmp_path / "merged.pt")
    shutil.rmtree(base)
    shutil.rmtree(adapter)
    assert torch.equal(logits(load(tmp_path / "merged.pt")), expected)


def test_adapter_fits_its_base_in_another_format(base: Path, adapter: Path, tmp_path: Path) -> None:
    native.save_folder(load(base), tmp_path / "folder")
    captioner = Captioner.load(tmp_path / "folder", "cpu", adapters={"birds": adapter})
    captioner.use_adapter("birds")
    assert torch.equal(logits(captioner), logits(load(adapter)))


def test_adapter_on_other_weights_is_refused_with_both_hashes(
    base: Path, adapter: Path, tiny_checkpoint: Checkpoint, tiny_model: Callable[..., nn.Module], tmp_path: Path
) -> None:
    text, before = tiny_checkpoint.model.config.text, weights_hash(load(base).model)
    other = tiny_model(seed=1, vocab_size=text.vocab_size)
    native.save(replace(tiny_checkpoint, model=other), tmp_path / "other.pt")
    message = f"was trained on {base} with weights of hash {before}; those of .*other.pt have {weights_hash(other)}"
    with pytest.raises(CheckpointError, match=message):
        Captioner.load(tmp_path / "other.pt", adapters={"birds": adapter})
    shutil.copy(tmp_path / "other.pt", base / "captioner.pt")
    with pytest.raises(CheckpointError, match=f"was trained on {base}"):
        load(adapter)


def test_adapter_without_hash_opens_with_a_note(base: Path, adapter: Path) -> None:
    expected = logits(load(adapter))
    drop_metadata(adapter)
    opened = load(adapter)
    assert torch.equal(logits(opened), expected)
    assert opened.provenance == {"base": str(base), "notes": [lora.NO_HASH]}
    assert (opened.decode, opened.captions) == (load(base).decode, load(base).captions)


def test_adapter_whose_base_has_moved_names_the_options_that_help(base: Path, adapter: Path, tmp_path: Path) -> None:
    base.rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=f"{base}: no such file or folder.*by --model, and this .* by --adapter"):
        load(adapter)
    captioner = Captioner.load(tmp_path / "moved", adapters={"birds": adapter})
    assert list(captioner.adapters) == ["birds"]


def test_adapter_on_an_adapter_is_refused(adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(adapter)}))
    with pytest.raises(CheckpointError, match="is an adapter itself; merge it with its captioner by `myllm import"):
        load(adapter)


def test_folder_with_captioner_and_adapter_is_the_captioner(base: Path, adapter: Path) -> None:
    shutil.copytree(adapter, base / "adapter")
    assert lora.locate(base) is None and lora.locate(base / "adapter") == base / "adapter"


def test_write_decode_replaces_only_the_decoding_defaults(base: Path, adapter: Path) -> None:
    before = lora.read(adapter)
    lora.write_decode(DecodeConfig(beams=3), adapter)
    after = lora.read(adapter)
    assert after.decode == DecodeConfig(beams=3)
    assert (after.base_hash, after.captions, after.provenance) == (
        before.base_hash, before.captions, before.provenance
    )
    assert all(torch.equal(after.layers[name].a, term.a) for name, term in before.layers.items())


def test_full_disk_leaves_the_previous_adapter(base: Path, adapter: Path) -> None:
    expected, before = logits(load(adapter)), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, before[1]))  # enough for the configuration alone
    try:
        with pytest.raises(MyLLMError, match="cannot write .*the previous content is kept"):
            trained(base, adapter, seed=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert torch.equal(logits(load(adapter)), expected)
    assert len(list(adapter.iterdir())) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; supported is LORA"),
        ({"bias": "all"}, "bias is 'all'; supported is none"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"use_dora": True}, "use_dora is True, which is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
        ({"alpha_pattern": {"c_fc": 2}}, "alpha_pattern is"),
        ({"lora_alpha": "16"}, "lora_alpha is '16'; expected a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
    ],
)
def test_unsupported_peft_options_are_refused_by_name(adapter: Path, options: dict[str, Any], message: str) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))
    with pytest.raises(CheckpointError, match=f"{adapter}: {message}"):
        load(adapter)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_A.weight": torch.full((3, 32), torch.nan)}, "h.0.mlp.c_fc.lora_A.weight holds NaN, infinite"),
        ({"lora_A.weight": torch.ones(3, 32, dtype=torch.int64)}, "lora_A.weight holds NaN, infinite or integer"),
        ({"lora_A.weight": torch.ones(2, 32)}, r"c_fc has .*'lora_A': \(2, 32\).*; expected lora_A \(rank, in\)"),
        ({"lora_A.weight": torch.ones(3, 31)}, r"c_fc has shape \(128, 31\); expected \(128, 32\)"),
        ({"lora_A.weight": torch.ones(3, 32, 1, 1)}, "does not belong to an adapter of a linear layer"),
        ({"lora_A.weight": None}, "c_fc has {'lora_B': .*expected lora_A"),
        ({"lora_magnitude_vector": torch.ones(128)}, "c_fc.lora_magnitude_vector .* does not belong to an adapter"),
        ({"lora_B.bias": torch.ones(128, 1)}, "c_fc.lora_B.bias .* does not belong to an adapter"),
        ({"x.lora_A.weight": torch.ones(3, 32), "x.lora_B.weight": torch.ones(5, 3)}, "no linear layer .*c_fc.x"),
    ],
)
def test_tensors_that_do_not_fit_the_base_are_refused_by_name(
    adapter: Path, changes: Mapping[str, Tensor | None], message: str
) -> None:
    drop_metadata(adapter)
    tensors = load_file(adapter / "adapter_model.safetensors")
    for part, value in changes.items():
        tensors.pop(f"{LAYER}.{part}", None)
        if value is not None:
            tensors[f"{LAYER}.{part}"] = value
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load(adapter)


def test_adapter_of_the_head_is_refused(adapter: Path) -> None:
    head = {"lora_A.weight": torch.ones(3, 32), "lora_B.weight": torch.ones(269, 3)}
    save_file({f"decoder.lm_head.{part}": value for part, value in head.items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="has no linear layer decoder.lm_head"):
        load(adapter)


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        ("{", "adapter_model.safetensors: its metadata cannot be read"),
        ('{"base_hash": 0}', "adapter_model.safetensors: its metadata cannot be read"),
        ('{"base_hash": "", "captions": {}, "decode": {"beams": "x"}, "provenance": {}}', "decode.beams is 'x'"),
    ],
)
def test_adapter_with_damaged_metadata_is_refused(adapter: Path, notes: str, message: str) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file(load_file(path), path, {"myllm": notes})
    with pytest.raises(CheckpointError, match=f"{adapter}.*{message}"):
        load(adapter)


def test_adapter_reads_options_under_their_old_names(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()["myllm"])
    metadata["decode"]["contrast"] = metadata["decode"].pop("contrastive_weight") + 0.25
    metadata["provenance"] = {"search": {"decode": {"contrast": 0.5}}}
    save_file(load_file(path), path, {"myllm": json.dumps(metadata)})
    opened = load(adapter)
    assert opened.decode.contrastive_weight == 0.25
    assert opened.provenance["search"] == {"decode": {"contrastive_weight": 0.5}}


def test_adapter_with_missing_or_damaged_files_names_them(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=f"{path}: damaged"):
        load(adapter)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{path}: no such file"):
        load(adapter)
    (adapter / "adapter_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="adapter_config.json: holds a list"):
        load(adapter)


UNCHECKED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=200, suppress_health_check=UNCHECKED, deadline=None)
@given(
    st.sampled_from(["adapter_config.json", "adapter_model.safetensors"]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_adapter_with_changed_bytes_opens_or_is_refused(
    adapter: Path, name: str, changes: list[tuple[float, int]]
) -> None:
    target = shutil.copytree(adapter, adapter.parents[1] / "changed", dirs_exist_ok=True)
    content = bytearray((adapter / name).read_bytes())
    for position, byte in changes:  # near the start, where names, shapes and offsets are
        content[int(position * min(len(content), 4_000))] = byte
    (target / name).write_bytes(content)
    try:
        lora.read(target)
    except CheckpointError as error:
        assert str(target) in str(error)


def test_captioner_given_as_an_adapter_is_refused(base: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{base}: no adapter; expected a folder of adapter_config.json"):
        Captioner.load(base, adapters={"birds": base})


def test_use_adapter_switches_weights_and_restores_them_exactly(base: Path, tmp_path: Path) -> None:
    expected = {name: trained(base, tmp_path / name, seed) for seed, name in enumerate(("birds", "dogs"), 1)}
    captioner = Captioner.load(base, "cpu", adapters={name: tmp_path / name for name in expected})
    base_logits, base_captions = logits(captioner), captioner.caption_batch(IMAGES)
    for name in ("birds", "dogs", "birds"):
        captioner.use_adapter(name)
        torch.testing.assert_close(logits(captioner), expected[name], atol=1e-5, rtol=1e-5)
        assert captioner.decode == OPTIONS["decode"] and captioner.checkpoint.provenance["data"] == {"folder": "birds"}
        merged = Captioner(load(tmp_path / name), torch.device("cpu"))
        captions = captioner.caption_batch(IMAGES)
        assert tokens_of(captions) == tokens_of(merged.caption_batch(IMAGES)) != tokens_of(base_captions)
    captioner.use_adapter(None)
    assert torch.equal(logits(captioner), base_logits)
    assert tokens_of(captioner.caption_batch(IMAGES)) == tokens_of(base_captions)
    assert (captioner.decode, captioner.checkpoint.provenance) == (load(base).decode, load(base).provenance)


def test_unknown_adapter_error_lists_the_known_ones(base: Path, adapter: Path) -> None:
    captioner = Captioner.load(base, "cpu", adapters={"birds": adapter})
    with pytest.raises(ConfigError, match="adapter 'dogs' is unknown; known are birds"):
        captioner.use_adapter("dogs")
