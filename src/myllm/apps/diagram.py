"""`myllm diagram`: the architecture of a preset as a picture."""

from pathlib import Path

from myllm.apps.options import DiagramOptions
from myllm.config import CaptionerConfig, CaptionsConfig, GPTConfig, VisionConfig
from myllm.evaluation.diagram import draw_architecture
from myllm.presets import PRESETS


def diagram(options: DiagramOptions) -> int:
    """Draw the architecture into `out`. Raises ConfigError for an unknown preset."""
    draw_architecture(captioner_config(options.preset), Path(options.out))
    print(f"Wrote {options.out}")
    return 0


def captioner_config(preset: str) -> CaptionerConfig:
    """Return the architecture of a preset, with the maximum vocabulary of its tokenizer."""
    options = PRESETS[preset]
    text = dict(options["text"])
    if not text.get("pretrained"):
        text["vocab_size"] = CaptionsConfig(**options.get("captions", {})).vocab_size
    return CaptionerConfig(VisionConfig(**options["vision"]), GPTConfig(**text), options["mode"])
