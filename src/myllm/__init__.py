"""MyLLM: train, judge and run image captioners. Importing it is instant: each name is loaded when it is first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from myllm.config import VERSION as __version__
from myllm.config import CaptionerConfig, DecodeConfig, GPTConfig, VisionConfig
from myllm.errors import CheckpointError, ConfigError, DataError, MyLLMError

if TYPE_CHECKING:
    from myllm.caption import Caption
    from myllm.checkpoints.formats import load as load_checkpoint
    from myllm.checkpoints.native import Checkpoint
    from myllm.checkpoints.native import save as save_checkpoint
    from myllm.checkpoints.native import save_folder as save_checkpoint_folder
    from myllm.evaluation.heatmaps import draw_words, overlay
    from myllm.inference.captioner import Captioner
    from myllm.inference.onnx_captioner import OnnxCaptioner
    from myllm.metrics.score import score_captions
    from myllm.model.gpt import GPT
    from myllm.model.vision_gpt2 import VisionGPT2

_LAZY = {
    "Caption": "myllm.caption.Caption",
    "Captioner": "myllm.inference.captioner.Captioner",
    "Checkpoint": "myllm.checkpoints.native.Checkpoint",
    "GPT": "myllm.model.gpt.GPT",
    "OnnxCaptioner": "myllm.inference.onnx_captioner.OnnxCaptioner",
    "VisionGPT2": "myllm.model.vision_gpt2.VisionGPT2",
    "draw_words": "myllm.evaluation.heatmaps.draw_words",
    "load_checkpoint": "myllm.checkpoints.formats.load",
    "overlay": "myllm.evaluation.heatmaps.overlay",
    "save_checkpoint": "myllm.checkpoints.native.save",
    "save_checkpoint_folder": "myllm.checkpoints.native.save_folder",
    "score_captions": "myllm.metrics.score.score_captions",
}
__all__ = [
    "GPT", "Caption", "Captioner", "CaptionerConfig", "Checkpoint", "CheckpointError", "ConfigError", "DataError",
    "DecodeConfig", "GPTConfig", "MyLLMError", "OnnxCaptioner", "VisionConfig", "VisionGPT2", "__version__",
    "draw_words", "load_checkpoint", "overlay", "save_checkpoint", "save_checkpoint_folder", "score_captions",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'myllm' has no attribute {name!r}")
    module, _, attribute = _LAZY[name].rpartition(".")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__
