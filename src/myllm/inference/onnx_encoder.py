"""A backbone in ONNX Runtime: on a CPU it computes convolutions much faster than torch does."""

import io
import logging
import warnings
from functools import cached_property
from threading import Lock
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from myllm.model.vision import ImageEncoder

OPSET = 17


def is_faster_in_onnx(encoder: ImageEncoder) -> bool:
    """Return whether it has batch normalisation, which ONNX Runtime folds into convolutions."""
    return any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())


class OnnxEncoder:
    """Computes the same as the encoder, up to rounding; a picture's features do not depend on its batch.

    Its weights are those at the first call. Threads may share it.
    """

    def __init__(self, encoder: ImageEncoder) -> None:
        self.encoder, self._lock = encoder, Lock()

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return image tokens (B, S, C) of images (B, 3, H, W), one tensor for each output of the backbone."""
        with self._lock:
            session = self._session
        if session is None:
            return self.encoder(images)
        outputs = session.run(None, {"pixel_values": images.numpy()})
        return tuple(map(torch.from_numpy, outputs))

    @cached_property
    def _session(self) -> onnxruntime.InferenceSession | None:
        """The traced backbone, made when the first picture is computed; None if it cannot be written as ONNX."""
        names = [f"features.{number}" for number in range(len(self.encoder.indices or [0]))]
        images = torch.zeros(2, 3, *self.encoder.preprocess.image_size)
        file: Any = io.BytesIO()  # which the exporter's types do not allow
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # this exporter is deprecated, but takes 0.5 s instead of 9 s
                logging.disable(logging.WARNING)
                torch.onnx.export(
                    self.encoder, (images,), file, input_names=["pixel_values"], output_names=names,
                    dynamic_axes={name: {0: "B"} for name in ("pixel_values", *names)}, opset_version=OPSET,
                    dynamo=False,
                )
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            # otherwise its threads keep the cores busy for a while, and torch's threads wait for them
            options.add_session_config_entry("session.force_spinning_stop", "1")
            return onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
        except Exception:  # tracing and ONNX Runtime can raise anything; torch computes the same features
            return None
        finally:
            logging.disable(logging.NOTSET)
