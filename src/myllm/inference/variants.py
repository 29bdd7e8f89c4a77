"""A captioner's variants, one for each of its adapters: made when first used, whichever thread asks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch

from myllm.caption import Calibration
from myllm.checkpoints import lora
from myllm.checkpoints.native import Checkpoint
from myllm.config import DecodeConfig
from myllm.errors import ConfigError
from myllm.inference.base_captioner import Once
from myllm.inference.onnx_stepper import OnnxStepper
from myllm.inference.torch_steppers import RecordedStepper
from myllm.model.lora import with_adapters
from myllm.model.vision_gpt2 import VisionGPT2


@dataclass(frozen=True)
class Variant:
    """A captioner with one of its adapters, or with none: everything that depends on the adapter."""

    adapter: str | None
    checkpoint: Checkpoint
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
    def n_positions(self) -> int:
        """Maximum length of a caption in tokens, begin token and prefix included."""
        return self.checkpoint.model.config.text.n_positions


class Variants:
    """The variants of a captioner by adapter name; they share all weights that their adapters do not change."""

    def __init__(
        self, base: Checkpoint, adapters: Mapping[str, lora.Adapter], device: torch.device, precision: str
    ) -> None:
        self.base, self.adapters, self.device, self.precision = base, adapters, device, precision
        self._variants = {name: Once(partial(self._make, name)) for name in (None, *adapters)}

    def get(self, name: str | None) -> Variant:
        """Return the variant with that adapter, None for no adapter. Raises ConfigError for an unknown name."""
        if name not in self._variants:
            known = ", ".join(self.adapters) or "none, as none were given to Captioner.load"
            raise ConfigError(f"adapter {name!r} is unknown; known are {known}")
        return self._variants[name]()

    def _make(self, name: str | None) -> Variant:
        checkpoint = self.base
        if name is not None:
            adapter = self.adapters[name]
            model = with_adapters(checkpoint.model, adapter.layers)
            checkpoint = replace(lora.with_options(adapter, checkpoint), model=model)
        return Variant(name, checkpoint, Once(partial(self._make_stepper, checkpoint.model)))

    def _make_stepper(self, model: VisionGPT2) -> OnnxStepper | RecordedStepper | None:
        if self.device.type == "cuda":
            return RecordedStepper(model)
        if self.precision in ("fp32", "int8"):
            return OnnxStepper(model, "int8" if self.precision == "int8" else "fp32")
        return None
