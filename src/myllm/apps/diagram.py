"""`myllm diagram`: the architecture of a preset as a picture."""

from dataclasses import replace
from pathlib import Path

from myllm.apps.options import DiagramOptions
from myllm.config import CaptionerConfig
from myllm.evaluation.diagram import draw_architecture
from myllm.presets import preset_config


def diagram(options: DiagramOptions) -> int:
    """Draw the architecture into `out`. Raises ConfigError for an unknown preset."""
    draw_architecture(captioner_config(options.preset), Path(options.out))
    print(f"Wrote {options.out}")
    return 0


def captioner_config(preset: str) -> CaptionerConfig:
    """Return the architecture of a preset, with the maximum vocabulary of its tokenizer."""
    config = preset_config(preset)
    text = config.text if config.text.pretrained else replace(config.text, vocab_size=config.captions.vocab_size)
    return replace(config.captioner, text=text)
