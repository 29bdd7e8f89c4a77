import errno
import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer

from myllm.caption import Calibration
from myllm.checkpoints import hf_gpt2, native
from myllm.checkpoints.native import Checkpoint
from myllm.config import FORMAT_VERSION, DecodeConfig
from myllm.errors import CheckpointError, ConfigError, MyLLMError
from myllm.inference.captioner import Captioner

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
TOKENS = torch.tensor([[[0, 5, 7], [0, 9, 2]]] * 2)
FIXTURES = Path(__file__).parents[2] / "fixtures"
Saver = Callable[..., None]
FORMATS = pytest.mark.parametrize("save", [native.save, native.save_folder])


def rewritten(path: Path, **parts: Any) -> Path:
    """The file with some of its parts replaced."""
    content = torch.load(path, weights_only=True)
    torch.save(content | parts, path)
    return path


@torch.inference_mode()
def test_loaded_captioner_gives_the_same_logits(tiny_checkpoint: Checkpoint, tiny_captioner_file: Path) -> None:
    loaded = native.load(tiny_captioner_file)
    assert torch.equal(loaded.model(IMAGES, TOKENS), tiny_checkpoint.model(IMAGES, TOKENS))


def test_loaded_captioner_writes_the_same_captions(tiny_checkpoint: Checkpoint, tiny_captioner_file: Path) -> None:
    before = Captioner(tiny_checkpoint, torch.device("cpu")).caption_batch(IMAGES, beams=3)
    after = Captioner.load(tiny_captioner_file).caption_batch(IMAGES, beams=3)
    assert [caption.text for caption in after] == [caption.text for caption in before]
    assert [caption.alternatives for caption in after] == [caption.alternatives for caption in before]


def test_options_tokenizer_and_provenance_are_loaded(tiny_checkpoint: Checkpoint, tiny_captioner_file: Path) -> None:
    loaded = native.load(tiny_captioner_file)
    for name in ("preprocess", "captions", "decode", "provenance"):
        assert getattr(loaded, name) == getattr(tiny_checkpoint, name), name
    assert loaded.tokenizer.to_str() == tiny_checkpoint.tokenizer.to_str()
    assert loaded.model.config == tiny_checkpoint.model.config
    assert not loaded.model.training


def test_loading_fetches_no_pretrained_weights(tiny_captioner_file: Path) -> None:
    config = torch.load(tiny_captioner_file, weights_only=True)["config"]
    config["vision"] |= {"pretrained": True, "weights": "/no/longer/there.safetensors"}
    config["text"] |= {"pretrained": True}
    loaded = native.load(rewritten(tiny_captioner_file, config=config))
    assert asdict(loaded.model.config) == config


def test_loaded_captioner_saved_again_is_the_same_file(tiny_captioner_file: Path, tmp_path: Path) -> None:
    native.save(native.load(tiny_captioner_file), tmp_path / "again.pt")
    first, second = (torch.load(path, weights_only=True) for path in (tiny_captioner_file, tmp_path / "again.pt"))
    weights = first.pop("model"), second.pop("model")
    assert first == second and weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_captioner_is_saved_over_the_file_it_was_loaded_from(tiny_captioner_file: Path) -> None:
    loaded = native.load(tiny_captioner_file)
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    native.save(loaded, tiny_captioner_file)
    after = native.load(tiny_captioner_file).model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_run_folder_opens_as_the_file_in_it(tiny_captioner_file: Path) -> None:
    assert native.load(tiny_captioner_file.parent).provenance == native.load(tiny_captioner_file).provenance


@pytest.mark.parametrize("name", ["captioner", "none.pt"])
def test_missing_captioner_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "captioner").mkdir()
    with pytest.raises(CheckpointError, match=r"no such file; expected a captioner.pt or the run folder"):
        native.load(tmp_path / name)


@pytest.mark.parametrize("is_zip", [True, False])
def test_hostile_pickle_is_refused_and_not_run(
    tiny_captioner_file: Path, hostile: Callable[[Path], object], is_zip: bool
) -> None:
    was_run = tiny_captioner_file.parent / "was-run"
    content = torch.load(tiny_captioner_file, weights_only=True) | {"provenance": hostile(was_run)}
    torch.save(content, tiny_captioner_file, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CheckpointError, match="refused: .*could run code"):
        native.load(tiny_captioner_file)
    assert not was_run.exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_file_cut_short_is_refused(tiny_captioner_file: Path, share: float) -> None:
    content = tiny_captioner_file.read_bytes()
    tiny_captioner_file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"captioner.pt: damaged, cut short.*take another copy"):
        native.load(tiny_captioner_file)


@pytest.mark.parametrize("content", [b"not a checkpoint", b"\x80\x02}q\x00.", b"PK\x03\x04"])
def test_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "captioner.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"captioner.pt: (damaged|refused|not a captioner)"):
        native.load(tmp_path)


@pytest.mark.parametrize("content", [{"weight": torch.ones(2)}, [1, 2], torch.ones(2), {"format": "other"}])
def test_pytorch_file_of_another_program_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "captioner.pt")
    with pytest.raises(CheckpointError, match="not a captioner of myllm; another program wrote it"):
        native.load(tmp_path)


def test_newer_format_names_the_command_that_upgrades(tiny_captioner_file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"format version 99, this .* upgrade.* myllm-captioner"):
        native.load(rewritten(tiny_captioner_file, format_version=99))


@pytest.mark.parametrize(
    ("part", "content"),
    [
        ("config", {"vision": {}, "text": {}}),
        ("config", {"vision": {"colour": 3}, "text": {}, "mode": "last"}),
        ("config", {"vision": {"name": "test_vit"}, "text": {"n_embd": 30, "n_head": 4}, "mode": "last"}),
        ("config", None),
        ("model", {}),
        ("tokenizer", "{"),
        ("preprocess", {"image_size": 3, "colour": 1}),
        ("preprocess", None),
        ("decode", {"beams": 0}),
        ("decode", {"beams": "many"}),
        ("format_version", "new"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(tiny_captioner_file: Path, part: str, content: object) -> None:
    with pytest.raises(CheckpointError, match="captioner.pt"):
        native.load(rewritten(tiny_captioner_file, **{part: content}))


@pytest.mark.parametrize("part", ["format_version", "config", "model", "tokenizer", "preprocess", "decode"])
def test_file_without_a_part_is_refused(tiny_captioner_file: Path, part: str) -> None:
    content = torch.load(tiny_captioner_file, weights_only=True)
    del content[part]
    torch.save(content, tiny_captioner_file)
    with pytest.raises(CheckpointError, match="captioner.pt"):
        native.load(tiny_captioner_file)


def test_full_disk_leaves_the_previous_file(
    tiny_checkpoint: Checkpoint, tiny_captioner_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = tiny_captioner_file.read_bytes()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(MyLLMError, match=r"No space left on device; the previous content is kept. Make room"):
        native.save(replace(tiny_checkpoint, provenance={}), tiny_captioner_file)
    assert tiny_captioner_file.read_bytes() == before
    assert list(tiny_captioner_file.parent.iterdir()) == [tiny_captioner_file]


def test_disk_that_fills_up_during_writing_leaves_the_previous_file(
    tiny_checkpoint: Checkpoint, tiny_captioner_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, fdopen = tiny_captioner_file.read_bytes(), os.fdopen
    monkeypatch.setattr("os.fdopen", lambda handle, mode: (os.close(handle), fdopen(os.open("/dev/full", 1), mode))[1])
    with pytest.raises(MyLLMError, match="No space left on device|cannot write"):
        native.save(tiny_checkpoint, tiny_captioner_file)
    assert tiny_captioner_file.read_bytes() == before
    assert list(tiny_captioner_file.parent.iterdir()) == [tiny_captioner_file]


@FORMATS
@torch.inference_mode()
def test_both_formats_load_the_same_model(tiny_checkpoint: Checkpoint, tmp_path: Path, save: Saver) -> None:
    save(tiny_checkpoint, tmp_path / "model")
    loaded = native.load(tmp_path / "model")
    assert torch.equal(loaded.model(IMAGES, TOKENS), tiny_checkpoint.model(IMAGES, TOKENS))
    for name in ("preprocess", "captions", "decode", "provenance"):
        assert getattr(loaded, name) == getattr(tiny_checkpoint, name), name
    assert loaded.tokenizer.to_str() == tiny_checkpoint.tokenizer.to_str()
    assert loaded.model.config == tiny_checkpoint.model.config


@FORMATS
def test_loaded_model_is_tied_and_trainable(tiny_checkpoint: Checkpoint, tmp_path: Path, save: Saver) -> None:
    save(tiny_checkpoint, tmp_path / "model")
    model = native.load(tmp_path / "model").model
    assert model.decoder.lm_head.weight is model.decoder.transformer.wte.weight
    assert all(parameter.requires_grad for parameter in model.parameters())
    names = [name for name, _ in tiny_checkpoint.model.named_parameters()]
    assert [name for name, _ in model.named_parameters()] == names
    before = (tmp_path / "model").read_bytes() if save is native.save else None
    model.train()(IMAGES, TOKENS).square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    after = native.load(tmp_path / "model").model.decoder.lm_head.weight
    assert torch.equal(after, tiny_checkpoint.model.decoder.lm_head.weight)  # training writes into no file
    assert not torch.equal(after, model.decoder.lm_head.weight)
    assert before is None or (tmp_path / "model").read_bytes() == before


def test_loading_draws_no_random_numbers(tiny_captioner_file: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    native.load(tiny_captioner_file)
    assert torch.equal(torch.rand(3), expected)


@FORMATS
@pytest.mark.parametrize(("dtype", "bits"), [(torch.bfloat16, 8), (torch.float16, 11)])
def test_half_precision_halves_the_file_and_loads_as_float32(
    tiny_checkpoint: Checkpoint, tmp_path: Path, save: Saver, dtype: torch.dtype, bits: int
) -> None:
    for name, stored_dtype in {"whole": None, "half": dtype}.items():
        save(tiny_checkpoint, tmp_path / name, stored_dtype)
    files = [path / "model.safetensors" if path.is_dir() else path for path in (tmp_path / "half", tmp_path / "whole")]
    assert files[0].stat().st_size < 0.56 * files[1].stat().st_size
    state, whole = native.load(tmp_path / "half").model.state_dict(), tiny_checkpoint.model.state_dict()
    for name, value in whole.items():
        assert state[name].dtype == value.dtype
        torch.testing.assert_close(state[name], value, rtol=2.0**-bits, atol=1e-7)


def test_numbers_too_large_for_half_precision_are_refused(tiny_captioner_file: Path, tmp_path: Path) -> None:
    checkpoint = native.load(tiny_captioner_file)
    with torch.no_grad():
        checkpoint.model.decoder.transformer.wpe.weight[0, 0] = 1e6
    with pytest.raises(ConfigError, match="wpe.weight has numbers too large for torch.float16; take torch.bfloat16"):
        native.save(checkpoint, tmp_path / "half.pt", torch.float16)
    with pytest.raises(ConfigError, match="dtype torch.int8: a captioner is stored in"):
        native.save_folder(checkpoint, tmp_path / "int8", torch.int8)
    assert not (tmp_path / "half.pt").exists() and not (tmp_path / "int8").exists()


def test_folder_holds_each_tensor_once_and_readable_json(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    native.save_folder(tiny_checkpoint, tmp_path / "model")
    names = {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    assert {path.name for path in (tmp_path / "model").iterdir()} == names
    tensors = load_file(tmp_path / "model/model.safetensors")
    assert tiny_checkpoint.model.state_dict().keys() - tensors.keys() == {"decoder.lm_head.weight"}
    facts = json.loads((tmp_path / "model/config.json").read_text())
    assert facts["format_version"] == FORMAT_VERSION
    assert facts["config"]["text"]["n_layer"] == 2


def test_folder_opens_by_the_path_of_its_tensors(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    native.save_folder(tiny_checkpoint, tmp_path / "model")
    assert native.load(tmp_path / "model/model.safetensors").provenance == tiny_checkpoint.provenance


def test_save_folder_refuses_an_existing_folder(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ConfigError, match="model is there already; give another name"):
        native.save_folder(tiny_checkpoint, tmp_path / "model")
    assert list((tmp_path / "model").iterdir()) == []


@pytest.mark.parametrize("write", [native.save_folder, hf_gpt2.to_folder])
def test_full_disk_leaves_no_folder(
    tiny_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Checkpoint, Path], None],
) -> None:
    def full(_: object, path: Path, metadata: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("myllm.model.weight_files.save_file", full)
    with pytest.raises(MyLLMError, match=r"cannot write .*model: I/O error: No space left on device.*Make room"):
        write(tiny_checkpoint, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_folder_with_two_models_is_refused_unless_one_is_named(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    native.save_folder(tiny_checkpoint, folder)
    native.save(tiny_checkpoint, folder / "captioner.pt")
    with pytest.raises(CheckpointError, match=r"holds two models, captioner.pt and model.safetensors; give .* or "):
        native.load(folder)
    for name in ("captioner.pt", "model.safetensors"):
        native.load(folder / name)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_folder_without_a_part_names_it(tiny_checkpoint: Checkpoint, tmp_path: Path, name: str) -> None:
    native.save_folder(tiny_checkpoint, tmp_path / "model")
    (tmp_path / "model" / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: no such file; expected a captioner.pt .* or a folder of"):
        native.load(tmp_path / "model")


def test_folder_of_another_program_is_refused(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    native.save_folder(tiny_checkpoint, tmp_path / "model")
    (tmp_path / "model/config.json").write_text('{"model_type": "vision-encoder-decoder"}')
    with pytest.raises(CheckpointError, match="config.json: not the configuration of a captioner of myllm"):
        native.load(tmp_path / "model")


def test_tokenizer_larger_than_the_embedding_is_refused(tiny_captioner_file: Path) -> None:
    tokenizer = Tokenizer.from_str(torch.load(tiny_captioner_file, weights_only=True)["tokenizer"])
    tokenizer.add_tokens(["platypus"])
    with pytest.raises(CheckpointError, match=r"has tokens up to number \d+, but the embedding has \d+ rows"):
        native.load(rewritten(tiny_captioner_file, tokenizer=tokenizer.to_str()))


def test_head_that_differs_from_the_embedding_is_refused(tiny_captioner_file: Path) -> None:
    state = torch.load(tiny_captioner_file, weights_only=True)["model"]
    state["decoder.lm_head.weight"] = state["decoder.lm_head.weight"] + 1
    with pytest.raises(CheckpointError, match="lm_head.weight differs from decoder.transformer.wte.weight"):
        native.load(rewritten(tiny_captioner_file, model=state))


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("captioner-v*")), ids=lambda path: path.name)
@torch.inference_mode()
def test_fixtures_of_every_format_version_compute_the_same_logits(path: Path) -> None:
    loaded = native.load(path)
    picture = torch.linspace(-1, 1, 3 * 160 * 160).reshape(1, 3, 160, 160)
    logits = loaded.model(picture, torch.tensor([[[0, 5, 70, 7]]]))[0, 0, -1, :8]
    torch.testing.assert_close(logits, torch.tensor(loaded.provenance["logits"]), rtol=1e-4, atol=1e-4)
    assert loaded.decode.beams == 2 and not loaded.captions.lowercase


@FORMATS
def test_options_under_their_old_names_are_read(tiny_checkpoint: Checkpoint, tmp_path: Path, save: Saver) -> None:
    """`decode.contrast` of earlier versions is `decode.contrastive_weight`, in the record of a calibration too."""
    calibration = Calibration(0.5, 2.0, 1.5, calibrated_on={"decode": {"contrastive_weight": 0.25}})
    provenance = {"figures": {"decode": {"contrastive_weight": 0.5, "beams": 3}}}
    checkpoint = replace(tiny_checkpoint, calibration=calibration, provenance=provenance)
    save(checkpoint, tmp_path / "model")
    old = {
        "decode": {"contrast": 0.75, "beams": 2}, "provenance": {"figures": {"decode": {"contrast": 0.5, "beams": 3}}},
        "calibration": calibration.as_json() | {"calibrated_on": {"decode": {"contrast": 0.25}}},
    }
    if save is native.save:
        rewritten(tmp_path / "model", **old)
    else:
        config = tmp_path / "model/config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | old))
    loaded = native.load(tmp_path / "model")
    assert loaded.decode == DecodeConfig(contrastive_weight=0.75, beams=2)
    assert loaded.provenance == provenance and loaded.calibration == calibration


def test_current_format_version_has_fixtures() -> None:
    for name in (f"captioner-v{FORMAT_VERSION}.pt", f"captioner-v{FORMAT_VERSION}/model.safetensors"):
        assert (FIXTURES / name).is_file(), "write it by tests/fixtures/make_captioner.py"
