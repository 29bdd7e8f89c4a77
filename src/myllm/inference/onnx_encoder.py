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

from myllm.device import count_cores
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
        self.encoder, self._making, self._lone = encoder, Lock(), Lock()
        self._sessions: dict[int, _Session | None] = {}
        """By number of threads; None if it cannot be written as ONNX."""

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return image tokens (B, S, C) of images (B, 3, H, W), one tensor for each output of the backbone."""
        # one picture by itself gets all cores, unless another one has them already
        is_lone = len(images) == 1 and self._lone.acquire(blocking=False)
        try:
            session = self._session(max(torch.get_num_threads(), count_cores() if is_lone else 1))
            return self.encoder(images) if session is None else session(images)
        finally:
            if is_lone:
                self._lone.release()

    def _session(self, threads: int) -> "_Session | None":
        """Return the backbone in ONNX Runtime, made at the first call; None if it cannot be written as ONNX."""
        with self._making:
            if threads not in self._sessions:
                try:
                    self._sessions[threads] = _Session(self._graph, threads)
                except Exception:  # tracing and ONNX Runtime can raise anything; torch computes the same features
                    self._sessions[threads] = None
            return self._sessions[threads]

    @cached_property
    def _graph(self) -> bytes:
        """The traced backbone."""
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
        finally:
            logging.disable(logging.NOTSET)
        return bytes(file.getvalue())


class _Session:
    """ONNX Runtime with so many threads."""

    def __init__(self, graph: bytes, threads: int) -> None:
        self.threads, options = threads, onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # otherwise its threads keep the cores busy for a while, and torch's threads wait for them
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        # a picture for each thread: more at once are no faster, and need more memory
        parts = [self._session.run(None, {"pixel_values": part.numpy()}) for part in images.split(self.threads)]
        return tuple(torch.cat([torch.from_numpy(part) for part in output]) for output in zip(*parts, strict=True))
