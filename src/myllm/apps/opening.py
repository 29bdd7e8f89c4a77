"""Open a captioner in any form. Imports no more than that needs, because `myllm caption` is to start fast."""

from pathlib import Path

from myllm.apps.startup import without_garbage_collection
from myllm.caption import CaptionerProtocol
from myllm.checkpoints.checks import is_onnx_export
from myllm.errors import ConfigError
from myllm.inference.onnx_captioner import OnnxCaptioner


def open_captioner(
    model: str, devices: str, precision: str, adapter: str | None = None, threads: int | None = None
) -> CaptionerProtocol:
    """Open a captioner in any form, with an adapter if one is named. Raises CheckpointError or ConfigError.

    threads: number of threads that compute a batch on a CPU; by default all cores.
    """
    if not is_onnx_export(Path(model)):
        with without_garbage_collection():
            import torch  # an export does not need it

            from myllm.inference.captioner import Captioner

        if threads is not None:
            torch.set_num_threads(threads)
        captioner = Captioner.load(model, devices, precision, {adapter: adapter} if adapter else {})
        captioner.use_adapter(adapter)
        return captioner
    export = OnnxCaptioner.load(model, threads)
    if adapter or devices == "cuda" or precision not in ("auto", export.precision):
        raise ConfigError(
            f"--model {model} is an ONNX export in {export.precision} for the CPU; leave out --devices, --precision "
            "and --adapter, or use the captioner that was exported"
        )
    return export
