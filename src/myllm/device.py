"""Device and precision selection. torch is imported when a function needs it."""

from typing import TYPE_CHECKING, Any

from myllm.errors import ConfigError

if TYPE_CHECKING:
    import torch


def choose_device(name: str) -> "torch.device":
    """Return the device for `auto`, `cpu` or `cuda`; `auto` is a GPU if there is one.

    Raises ConfigError for another name, and for `cuda` on a machine without a usable GPU.
    """
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"devices {name!r}: expected auto, cpu or cuda")
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise ConfigError("devices cuda: this machine has no usable GPU; take --devices cpu or auto")
    return torch.device("cuda" if name != "cpu" and has_gpu else "cpu")


def choose_precision(name: str, device: "torch.device") -> str:
    """Return fp32, bf16 or fp16; `auto` is bf16 on a GPU with bf16 units and fp32 elsewhere.

    Raises ConfigError for fp16 on a CPU.
    """
    import torch

    if name == "fp16" and device.type == "cpu":
        raise ConfigError("precision fp16: a CPU does not train in it; take fp32 or bf16")
    if name != "auto":
        return name
    # Emulated bf16 (T4, V100) counts as supported by default, and is slower than fp32.
    is_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if is_bf16 else "fp32"


def autocast(precision: str, device: "torch.device") -> Any:
    """Return the context in which a forward pass computes in `precision` (fp32, bf16 or fp16)."""
    import torch

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")
