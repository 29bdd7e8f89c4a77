"""A captioner with one of its adapters: its weights, its options, and what computes its decoding steps."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch

from myllm.caption import Calibration
from myllm.checkpoints import lora
from myllm.checkpoints.native import Checkpoint
from myllm.config import DecodeConfig
from myllm.data.features import Encode
from myllm.decoding.retrieval import CaptionIndex
from myllm.inference.base_captioner import Once
from myllm.inference.onnx_encoder import OnnxEncoder, is_faster_in_onnx
from myllm.inference.onnx_stepper import OnnxStepper
from myllm.inference.torch_steppers import RecordedStepper
from myllm.model.lora import with_adapters
from myllm.model.vision_gpt2 import VisionGPT2


@dataclass(frozen=True)
class Variant:
    """A captioner with one of its adapters, or with none: everything that depends on the adapter."""

    adapter: str | None
    checkpoint: Checkpoint
    encoder: Once[Encode]
    """What computes the encoder's features (B, S, C) of images (B, 3, H, W), one tensor for each output."""
    stepper: Once[OnnxStepper | RecordedStepper | None]
    """What computes decoding steps faster than the model itself; None if nothing does."""

    @property
    def decode(self) -> DecodeConfig:
        """Decoding defaults."""
        return self.checkpoint.decode

    @property
    def calibration(self) -> Calibration | None:
        """What turns log-probabilities into confidence."""
        return self.checkpoint.calibration

    @property
    def index(self) -> CaptionIndex | None:
        """Captions of training pictures."""
        return self.checkpoint.index

    @property
    def n_positions(self) -> int:
        """Maximum length of a caption in tokens, begin token and prefix included."""
        return self.checkpoint.model.config.text.n_positions


def make_variant(
    name: str | None, base: Checkpoint, adapters: Mapping[str, lora.Adapter], device: torch.device, precision: str
) -> Variant:
    """Return the captioner `base` with the adapter of that name; it shares all weights that the adapter leaves as they
    are. Encoder and stepper are made when they are first needed.
    """
    checkpoint = base
    if name is not None:
        model = with_adapters(base.model, adapters[name].layers)
        checkpoint = replace(lora.with_options(adapters[name], base), model=model)
    model = checkpoint.model
    return Variant(
        name, checkpoint, Once(partial(_make_encoder, model, device)),
        Once(partial(_make_stepper, model, device, precision)),
    )


def _make_encoder(model: VisionGPT2, device: torch.device) -> Encode:
    is_onnx = device.type == "cpu" and is_faster_in_onnx(model.encoder)
    return OnnxEncoder(model.encoder) if is_onnx else model.encoder


def _make_stepper(model: VisionGPT2, device: torch.device, precision: str) -> OnnxStepper | RecordedStepper | None:
    if device.type == "cuda":
        return RecordedStepper(model)
    if device.type == "cpu":
        return OnnxStepper(model, "int8" if precision == "int8" else "fp32")
    return None
