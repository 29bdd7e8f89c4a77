from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from myllm.config import DecodeConfig, GPTConfig, VisionConfig
from myllm.errors import CheckpointError, ConfigError
from myllm.training import run_state
from myllm.training.run_state import RunState, restore_counters, resumed_config
from myllm.training_config import TrainConfig

CONTENT = {"config": {}, "tokenizer": "{}", "fingerprints": {}, "objective": {"weight": torch.arange(5000.0)}}
CONFIG = TrainConfig(
    lr=0.5, vision=VisionConfig("vit_mini_conv8_64", False, geometry={"depth": 2}), text=GPTConfig(n_layer=2),
    stages=("new", "all"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder with two saved states: step 2 in last.pt, step 1 in last.previous.pt."""
    for step in (1, 2):
        run_state.save(tmp_path, {**CONTENT, "step": step})
    return tmp_path


def damage(path: Path) -> None:
    """Change one byte of the weights, which torch.load does not notice."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)


def load(folder: Path) -> tuple[int, str]:
    content, path = run_state.load(folder)
    return content["step"], path.name


def test_run_state_keeps_the_latest_state_and_its_predecessor(folder: Path) -> None:
    assert load(folder) == (2, "last.pt")
    run_state.save(folder, {**CONTENT, "step": 3})
    assert load(folder) == (3, "last.pt")
    assert torch.load(folder / "last.previous.pt", weights_only=True)["step"] == 2


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_run_state_of_a_truncated_file_is_that_of_its_predecessor(folder: Path, share: float) -> None:
    content = (folder / "last.pt").read_bytes()
    (folder / "last.pt").write_bytes(content[: int(share * len(content))])
    assert load(folder) == (1, "last.previous.pt")


def test_run_state_of_a_missing_or_damaged_file_is_that_of_its_predecessor(folder: Path) -> None:
    damage(folder / "last.pt")
    assert load(folder) == (1, "last.previous.pt")
    (folder / "last.pt").unlink()
    assert load(folder) == (1, "last.previous.pt")


def test_run_state_refuses_two_damaged_files_and_names_both(folder: Path) -> None:
    (folder / "last.pt").write_bytes(b"")
    damage(folder / "last.previous.pt")
    with pytest.raises(CheckpointError, match=r"no run to resume: .*/last.pt: .*; .*last.previous.pt: .*is damaged"):
        run_state.load(folder)


def test_run_state_refuses_a_hostile_pickle_without_running_it(tmp_path: Path, hostile: Callable[[Path], Any]) -> None:
    torch.save({"state": hostile(tmp_path / "was-run")}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match=r"last.pt"):
        run_state.load(tmp_path)
    assert not (tmp_path / "was-run").exists()


def test_run_state_refuses_a_file_of_an_earlier_version(tmp_path: Path) -> None:
    torch.save({"state": {}, "fingerprint": "0123"}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="earlier version of MyLLM.*--base"):
        run_state.load(tmp_path)


def test_restore_counters_ignores_those_of_other_versions() -> None:
    state = RunState(3, 7, 401, 12.5, history=[{"epoch": 1, "stage": "new", "val_loss": 2.5}])
    assert restore_counters(asdict(state) | {"best": -1.25}) == state


def test_resumed_config_has_the_saved_options_and_those_given() -> None:
    given = replace(TrainConfig(), lr=0.1, epochs=20, workers=3, decode=DecodeConfig(beams=2))
    config, changes = resumed_config(asdict(CONFIG), given, {"lr", "epochs", "workers", "decode.beams"})
    assert config == replace(CONFIG, lr=0.1, epochs=20, workers=3, decode=DecodeConfig(beams=2))
    assert changes == [
        "decode.beams is 2 from here on; it was 1", "epochs is 20 from here on; it was 10",
        "lr is 0.1 from here on; it was 0.5",
    ]


def test_resumed_config_accepts_equal_options_and_those_of_an_earlier_name() -> None:
    saved = asdict(CONFIG)
    saved["clip"] = saved.pop("grad_clip")
    assert resumed_config(saved, CONFIG, {"seed", "batch_size", "text.n_layer"}) == (CONFIG, [])


@pytest.mark.parametrize("name", ["seed", "batch_size", "accumulate", "captions_per_image", "word_dropout"])
def test_resumed_config_refuses_options_that_the_finished_part_depends_on(name: str) -> None:
    value = 0.5 if name == "word_dropout" else 7
    with pytest.raises(ConfigError, match=f"--resume: {name} is {value}, and the run began with"):
        resumed_config(asdict(CONFIG), replace(CONFIG, **{name: value}), {name})


def test_resumed_config_refuses_another_precision_frozen_backbone_and_model() -> None:
    frozen = replace(CONFIG, vision=replace(CONFIG.vision, frozen=True))
    for name, config in (
        ("precision", replace(CONFIG, precision="bf16")), ("vision.frozen", frozen),
        ("augment", replace(CONFIG, augment=False)), ("text.n_layer", replace(CONFIG, text=GPTConfig(n_layer=3))),
    ):
        with pytest.raises(ConfigError, match=f"--resume: {name} is"):
            resumed_config(asdict(CONFIG), config, {name})


def test_resumed_config_follows_a_base_that_was_moved_with_the_run_and_no_other() -> None:
    saved = asdict(replace(CONFIG, out="runs/old", base="runs/old/run1/captioner.pt"))
    moved = replace(CONFIG, out="/else/new", base="/else/new/run1/captioner.pt")
    assert resumed_config(saved, moved, {"out"}) == (moved, [])
    other = replace(moved, base="/else/another/captioner.pt")
    assert resumed_config(saved, other, {"out"})[0].base == "runs/old/run1/captioner.pt"
    with pytest.raises(ConfigError, match="--resume: base is /else/another/captioner.pt, and the run began with"):
        resumed_config(saved, other, {"base"})
