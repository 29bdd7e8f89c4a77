"""Device and precision selection. torch is imported when a function needs it."""

from typing import TYPE_CHECKING, Any

from myllm.errors import ConfigError

if TYPE_CHECKING:
    import torch


def choose_device(name: str) -> "torch.device":
    """auto takes a GPU where there is one. Raises ConfigError where one is asked for and absent."""
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"devices {name!r}: expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("devices cuda: this machine has no usable GPU; take --devices cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def choose_precision(name: str, device: "torch.device") -> str:
    """auto takes bf16 on GPUs that compute in it and fp32 elsewhere. Raises ConfigError for fp16 on a CPU."""
    import torch

    if name == "fp16" and device.type == "cpu":
        raise ConfigError("precision fp16: a CPU does not train in it; take fp32 or bf16")
    if name != "auto":
        return name
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def autocast(precision: str, device: "torch.device") -> Any:
    """The context in which a forward pass computes in `precision` (fp32, bf16 or fp16)."""
    import torch

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")
