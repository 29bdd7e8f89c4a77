"""A backbone in ONNX Runtime: on a CPU it computes convolutions much faster than torch does."""

import io
import logging
import warnings
from functools import cached_property
from typing import Any
from unittest.mock import patch

import onnxruntime
import torch
from torch import Tensor, nn

from myllm.inference.onnx_sessions import Sessions, session_options
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
        self.encoder = encoder
        self._sessions = Sessions(self._make_session)

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return image tokens (B, S, C) of images (B, 3, H, W), one tensor for each output of the backbone."""
        with self._sessions.session(is_lone=len(images) == 1) as session:
            if session is None:
                return self.encoder(images)
            # a picture for each thread: more at once are no faster, and need more memory
            threads = session.get_session_options().intra_op_num_threads
            parts = [session.run(None, {"pixel_values": part.numpy()}) for part in images.split(threads)]
        return tuple(torch.cat([torch.from_numpy(part) for part in output]) for output in zip(*parts, strict=True))

    def _make_session(self, threads: int) -> onnxruntime.InferenceSession | None:
        """Return the backbone in ONNX Runtime; None if it cannot be written as ONNX."""
        try:
            return onnxruntime.InferenceSession(
                self._graph, session_options(threads), providers=["CPUExecutionProvider"]
            )
        except Exception:  # tracing and ONNX Runtime can raise anything; torch computes the same features
            return None

    @cached_property
    def _graph(self) -> bytes:
        """The traced backbone."""
        names = [f"features.{number}" for number in range(len(self.encoder.indices or [0]))]
        images = torch.zeros(2, 3, *self.encoder.preprocess.image_size)
        file: Any = io.BytesIO()  # which the exporter's types do not allow
        try:
            # torch 2.14 prints the graph of a backbone that it cannot export, thousands of lines, on standard output
            silent = patch.object(torch._C, "_jit_onnx_log")
            with torch.no_grad(), silent, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # this exporter is deprecated, but takes 0.5 s instead of 9 s
                logging.disable(logging.WARNING)
                torch.onnx.export(
                    self.encoder, (images,), file, input_names=["pixel_values"], output_names=names,
                    dynamic_axes={name: {0: "B"} for name in ("pixel_values", *names)}, opset_version=OPSET,
                    dynamo=False,
                )
        finally:
            logging.disable(logging.NOTSET)
        return bytes(file.getvalue())
