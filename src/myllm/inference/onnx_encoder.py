"""A backbone in ONNX Runtime: on a CPU it computes convolutions much faster than torch does."""

from functools import cached_property

import onnxruntime
import torch
from torch import Tensor

from myllm.export.onnx_export import trace
from myllm.model.vision import ImageEncoder


class OnnxEncoder:
    """Computes what the encoder computes, up to rounding."""

    def __init__(self, encoder: ImageEncoder, name: str) -> None:
        self.encoder, self.name = encoder, name

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return image tokens (B, S, C) of images (B, 3, H, W), one tensor for each output of the backbone."""
        if self._session is None:
            return self.encoder(images)
        outputs = self._session.run(None, {"pixel_values": images.numpy()})
        return tuple(map(torch.from_numpy, outputs))

    @cached_property
    def _session(self) -> onnxruntime.InferenceSession | None:
        """The traced backbone, made when the first picture is computed; None if it cannot be written as ONNX."""
        names = [f"features.{number}" for number in range(len(self.encoder.indices or [0]))]
        try:
            proto = trace(self.encoder, self.encoder.preprocess.image_size, names, self.name)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception:  # tracing and ONNX Runtime can raise anything; torch computes the same features
            return None
