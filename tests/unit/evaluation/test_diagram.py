"""The architecture as a picture: it is the committed one, and it shows what the configuration says."""

from dataclasses import replace
from pathlib import Path

import pytest

from myllm.apps.cli import main
from myllm.apps.diagram import captioner_config, diagram
from myllm.apps.options import DiagramOptions
from myllm.config import CaptionerConfig, GPTConfig, VisionConfig
from myllm.errors import ConfigError
from myllm.evaluation.diagram import draw_architecture
from myllm.presets import PRESETS

DOCS = Path(__file__).parents[3] / "docs"


def drawn(folder: Path, config: CaptionerConfig) -> str:
    draw_architecture(config, folder / "drawn.svg")
    return (folder / "drawn.svg").read_text(encoding="utf-8")


def test_the_committed_diagram_is_what_the_command_draws(tmp_path: Path) -> None:
    assert main(["diagram", "--preset", "vit-gpt2", "--out", str(tmp_path / "fresh.svg")]) == 0
    fresh = (tmp_path / "fresh.svg").read_text(encoding="utf-8")
    committed = (DOCS / "architecture.svg").read_text(encoding="utf-8")
    assert fresh == committed, "docs/architecture.svg is of other code or another matplotlib; run `make docs`"


def test_a_diagram_is_the_same_to_the_byte_each_time(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        diagram(DiagramOptions(out=str(tmp_path / name)))
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


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
def test_another_configuration_is_another_picture(tmp_path: Path, other: CaptionerConfig) -> None:
    assert drawn(tmp_path, other) != drawn(tmp_path, CaptionerConfig())


def test_what_is_not_drawn_changes_nothing(tmp_path: Path) -> None:
    config = CaptionerConfig()
    assert drawn(tmp_path, replace(config, text=GPTConfig(dropout=0.3))) == drawn(tmp_path, config)


@pytest.mark.parametrize("n_layer", [1, 6, 48])
@pytest.mark.parametrize("mode", ["layerwise", "last"])
def test_any_depth_can_be_drawn(tmp_path: Path, n_layer: int, mode: str) -> None:
    draw_architecture(CaptionerConfig(text=GPTConfig(n_layer=n_layer), mode=mode), tmp_path / "any.svg")  # type: ignore[arg-type]
    assert (tmp_path / "any.svg").stat().st_size > 10_000


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_drawn_as_it_is_configured(preset: str) -> None:
    config, options = captioner_config(preset), PRESETS[preset]
    assert config.mode == options["mode"]
    assert config.vision.name == options["vision"]["name"]
    assert config.text.n_layer == options["text"].get("n_layer", GPTConfig.n_layer)
    assert config.text.vocab_size == options.get("captions", {}).get("vocab_size", GPTConfig.vocab_size)


@pytest.mark.parametrize("name", ["architecture.pdf", "architecture"])
def test_an_unknown_suffix_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"\.svg or \.png"):
        draw_architecture(CaptionerConfig(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_an_unknown_preset_names_the_presets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagram", "--preset", "vit-gpt", "--out", str(tmp_path / "a.svg")]) == 2
    told = capsys.readouterr().err
    assert "unknown preset 'vit-gpt'; expected one of" in told and "did you mean vit-gpt2" in told
    assert all(preset in told for preset in PRESETS)
