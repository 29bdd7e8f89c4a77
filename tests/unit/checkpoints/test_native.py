import errno
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from myllm.captioner import Captioner
from myllm.checkpoints import native
from myllm.checkpoints.native import Checkpoint
from myllm.errors import CheckpointError, MyLLMError

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
TOKENS = torch.tensor([[[0, 5, 7], [0, 9, 2]]] * 2)


def rewritten(path: Path, **parts: Any) -> Path:
    """The file with some of its parts replaced."""
    content = torch.load(path, weights_only=True)
    torch.save(content | parts, path)
    return path


@torch.inference_mode()
def test_what_comes_back_gives_the_same_logits(tiny_checkpoint: Checkpoint, tiny_captioner_file: Path) -> None:
    loaded = native.load(tiny_captioner_file)
    assert torch.equal(loaded.model(IMAGES, TOKENS), tiny_checkpoint.model(IMAGES, TOKENS))


def test_what_comes_back_writes_the_same_captions(tiny_checkpoint: Checkpoint, tiny_captioner_file: Path) -> None:
    before = Captioner(tiny_checkpoint, torch.device("cpu")).caption_batch(IMAGES, beams=3)
    after = Captioner.load(tiny_captioner_file).caption_batch(IMAGES, beams=3)
    assert [one.text for one in after] == [one.text for one in before]
    assert [one.alternatives for one in after] == [one.alternatives for one in before]


def test_everything_beside_the_weights_comes_back_too(tiny_checkpoint: Checkpoint, tiny_captioner_file: Path) -> None:
    loaded = native.load(tiny_captioner_file)
    for name in ("preprocess", "captions", "decode", "provenance"):
        assert getattr(loaded, name) == getattr(tiny_checkpoint, name), name
    assert loaded.tokenizer.to_str() == tiny_checkpoint.tokenizer.to_str()
    assert loaded.model.config == tiny_checkpoint.model.config
    assert not loaded.model.training


def test_a_pretrained_backbone_and_text_are_not_fetched_again(tiny_captioner_file: Path) -> None:
    config = torch.load(tiny_captioner_file, weights_only=True)["config"]
    config["vision"] |= {"pretrained": True, "weights": "/no/longer/there.safetensors"}
    config["text"] |= {"pretrained": True}
    loaded = native.load(rewritten(tiny_captioner_file, config=config))
    assert asdict(loaded.model.config) == config


def test_a_file_saved_again_is_the_same(tiny_captioner_file: Path, tmp_path: Path) -> None:
    native.save(native.load(tiny_captioner_file), tmp_path / "again.pt")
    first, second = (torch.load(path, weights_only=True) for path in (tiny_captioner_file, tmp_path / "again.pt"))
    weights = first.pop("model"), second.pop("model")
    assert first == second and weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_model_may_be_saved_over_the_file_it_was_read_from(tiny_captioner_file: Path) -> None:
    loaded = native.load(tiny_captioner_file)
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    native.save(loaded, tiny_captioner_file)
    after = native.load(tiny_captioner_file).model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_folder_stands_for_the_file_in_it(tiny_captioner_file: Path) -> None:
    assert native.load(tiny_captioner_file.parent).provenance == native.load(tiny_captioner_file).provenance


@pytest.mark.parametrize("name", ["captioner", "none.pt"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "captioner").mkdir()
    with pytest.raises(CheckpointError, match=r"no such file; expected a captioner.pt or the run folder"):
        native.load(tmp_path / name)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_hostile_pickle_is_refused_and_not_run(
    tiny_captioner_file: Path, hostile: Callable[[Path], object], is_zip: bool
) -> None:
    was_run = tiny_captioner_file.parent / "was-run"
    content = torch.load(tiny_captioner_file, weights_only=True) | {"provenance": hostile(was_run)}
    torch.save(content, tiny_captioner_file, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CheckpointError, match="refused: .*could run code" if is_zip else "no checkpoint at all"):
        native.load(tiny_captioner_file)
    assert not was_run.exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_a_file_cut_short_is_refused(tiny_captioner_file: Path, share: float) -> None:
    content = tiny_captioner_file.read_bytes()
    tiny_captioner_file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"captioner.pt: damaged or cut short.*take another copy"):
        native.load(tiny_captioner_file)


@pytest.mark.parametrize("content", [b"not a checkpoint", b"\x80\x02}q\x00.", b"PK\x03\x04"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "captioner.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"captioner.pt: (damaged|refused|a PyTorch file)"):
        native.load(tmp_path)


@pytest.mark.parametrize("content", [{"weight": torch.ones(2)}, [1, 2], torch.ones(2), {"format": "other"}])
def test_a_pytorch_file_that_is_not_ours_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "captioner.pt")
    with pytest.raises(CheckpointError, match="a PyTorch file, but not a captioner of myllm"):
        native.load(tmp_path)


def test_a_newer_format_asks_for_a_newer_myllm(tiny_captioner_file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"format version 99, this myllm reads up to \d+; upgrade myllm"):
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
def test_parts_that_do_not_fit_are_refused(tiny_captioner_file: Path, part: str, content: object) -> None:
    with pytest.raises(CheckpointError, match="captioner.pt"):
        native.load(rewritten(tiny_captioner_file, **{part: content}))


@pytest.mark.parametrize("part", ["format_version", "config", "model", "tokenizer", "preprocess", "decode"])
def test_a_missing_part_is_refused(tiny_captioner_file: Path, part: str) -> None:
    content = torch.load(tiny_captioner_file, weights_only=True)
    del content[part]
    torch.save(content, tiny_captioner_file)
    with pytest.raises(CheckpointError, match="captioner.pt"):
        native.load(tiny_captioner_file)


def test_a_full_disk_leaves_the_last_good_file(
    tiny_checkpoint: Checkpoint, tiny_captioner_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = tiny_captioner_file.read_bytes()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(MyLLMError, match=r"No space left on device; what was there before is still there. Make room"):
        native.save(replace(tiny_checkpoint, provenance={}), tiny_captioner_file)
    assert tiny_captioner_file.read_bytes() == before
    assert list(tiny_captioner_file.parent.iterdir()) == [tiny_captioner_file]


def test_a_disk_that_fills_up_while_tensors_are_written_leaves_the_last_good_file(
    tiny_checkpoint: Checkpoint, tiny_captioner_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, fdopen = tiny_captioner_file.read_bytes(), os.fdopen
    monkeypatch.setattr("os.fdopen", lambda handle, mode: (os.close(handle), fdopen(os.open("/dev/full", 1), mode))[1])
    with pytest.raises(MyLLMError, match="No space left on device|cannot write"):
        native.save(tiny_checkpoint, tiny_captioner_file)
    assert tiny_captioner_file.read_bytes() == before
    assert list(tiny_captioner_file.parent.iterdir()) == [tiny_captioner_file]
