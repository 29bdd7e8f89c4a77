from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from myllm.apps.cli import main
from myllm.apps.diagram import captioner_config, diagram
from myllm.apps.options import DiagramOptions
from myllm.config import CaptionerConfig, GPTConfig, VisionConfig
from myllm.errors import ConfigError
from myllm.evaluation.diagram import draw_architecture
from myllm.presets import PRESETS

DOCS = Path(__file__).parents[3] / "docs"


def draw_svg(folder: Path, config: CaptionerConfig) -> str:
    draw_architecture(config, folder / "diagram.svg")
    return (folder / "diagram.svg").read_text(encoding="utf-8")


def test_diagram_command_draws_the_committed_diagram(tmp_path: Path) -> None:
    assert main(["diagram", "--preset", "vit-gpt2", "--out", str(tmp_path / "fresh.svg")]) == 0
    fresh = (tmp_path / "fresh.svg").read_text(encoding="utf-8")
    committed = (DOCS / "architecture.svg").read_text(encoding="utf-8")
    assert fresh == committed, "docs/architecture.svg was drawn by other code or another matplotlib; run `make docs`"


def test_diagram_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("first.png", "second.png"):
        diagram(DiagramOptions(out=str(tmp_path / name)))
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    assert (tmp_path / "first.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "other",
    [
        CaptionerConfig(mode="last"),
        CaptionerConfig(text=GPTConfig(n_layer=3)),
        CaptionerConfig(text=GPTConfig(n_head=16)),
        CaptionerConfig(text=GPTConfig(vocab_size=400)),
        CaptionerConfig(VisionConfig(name="vit_small_patch16_224")),
        CaptionerConfig(VisionConfig(image_size=384)),
        CaptionerConfig(VisionConfig(frozen=True)),
    ],
    ids=["mode", "n_layer", "n_head", "vocab_size", "backbone", "image_size", "frozen"],
)
def test_diagram_changes_with_the_configuration(tmp_path: Path, other: CaptionerConfig) -> None:
    assert draw_svg(tmp_path, other) != draw_svg(tmp_path, CaptionerConfig())


def test_diagram_does_not_change_with_dropout(tmp_path: Path) -> None:
    config = CaptionerConfig()
    assert draw_svg(tmp_path, replace(config, text=GPTConfig(dropout=0.3))) == draw_svg(tmp_path, config)


@pytest.mark.parametrize("n_layer", [1, 6, 48])
@pytest.mark.parametrize("mode", ["layerwise", "last"])
def test_diagram_of_any_depth(
    tmp_path: Path, n_layer: int, mode: Literal["layerwise", "last"]
) -> None:
    draw_architecture(CaptionerConfig(text=GPTConfig(n_layer=n_layer), mode=mode), tmp_path / "any.svg")
    assert (tmp_path / "any.svg").stat().st_size > 10_000


@pytest.mark.parametrize("preset", PRESETS)
def test_diagram_of_a_preset_has_its_configuration(preset: str) -> None:
    config, options = captioner_config(preset), PRESETS[preset]
    assert config.mode == options["mode"]
    assert config.vision.name == options["vision"]["name"]
    assert config.text.n_layer == options["text"].get("n_layer", GPTConfig.n_layer)
    assert config.text.vocab_size == options.get("captions", {}).get("vocab_size", GPTConfig.vocab_size)


@pytest.mark.parametrize("name", ["architecture.pdf", "architecture"])
def test_diagram_with_an_unknown_suffix_is_refused_before_writing(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"\.svg or \.png"):
        draw_architecture(CaptionerConfig(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_diagram_of_an_unknown_preset_names_the_presets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagram", "--preset", "vit-gpt", "--out", str(tmp_path / "a.svg")]) == 2
    message = capsys.readouterr().err
    assert "unknown preset 'vit-gpt'; expected one of" in message and "did you mean vit-gpt2" in message
    assert all(preset in message for preset in PRESETS)
