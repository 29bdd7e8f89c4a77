"""MyLLM: train, judge and run image captioners. No torch is imported until a name that needs it is used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from myllm.config import VERSION as __version__
from myllm.config import CaptionerConfig, DecodeConfig, GPTConfig, VisionConfig

_HOMES = {
    "Captioner": "myllm.inference.captioner",
    "VisionGPT2": "myllm.model.vision_gpt2",
    "GPT": "myllm.model.gpt",
}
__all__ = [
    "GPT", "Captioner", "CaptionerConfig", "DecodeConfig", "GPTConfig", "VisionConfig", "VisionGPT2", "__version__",
]

if TYPE_CHECKING:
    from myllm.inference.captioner import Captioner
    from myllm.model.gpt import GPT
    from myllm.model.vision_gpt2 import VisionGPT2


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'myllm' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
