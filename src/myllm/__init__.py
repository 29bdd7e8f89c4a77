"""MyLLM: train, judge and run image captioners. No torch is imported until a name that needs it is used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Captioner": "myllm.captioner",
    "VisionGPT2": "myllm.model.vision_gpt2",
    "GPT": "myllm.model.gpt",
    "CaptionerConfig": "myllm.config",
    "GPTConfig": "myllm.config",
    "VisionConfig": "myllm.config",
    "DecodeConfig": "myllm.config",
}
__all__ = ["GPT", "Captioner", "CaptionerConfig", "DecodeConfig", "GPTConfig", "VisionConfig", "VisionGPT2"]

if TYPE_CHECKING:
    from myllm.captioner import Captioner
    from myllm.config import CaptionerConfig, DecodeConfig, GPTConfig, VisionConfig
    from myllm.model.gpt import GPT
    from myllm.model.vision_gpt2 import VisionGPT2


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'myllm' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
