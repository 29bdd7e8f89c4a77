"""Device and precision selection, and the number of loader processes. torch is imported when a function needs it."""

import os
import re
from functools import cache
from time import perf_counter
from typing import TYPE_CHECKING, Any

from myllm.errors import ConfigError

if TYPE_CHECKING:
    import torch


def choose_device(name: str) -> "torch.device":
    """Return the device for `auto`, `cpu`, `cuda`, `cuda:1` or `mps`; `auto` is a GPU if there is one.

    Raises ConfigError for another name, and for a device that this machine lacks.
    """
    import torch

    if re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name) is None:
        raise ConfigError(f"devices {name!r}: expected auto, cpu, cuda, cuda:NUMBER or mps")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if gpus else "mps" if has_mps else "cpu"
    if (name.startswith("cuda") and not gpus) or (name == "mps" and not has_mps):
        raise ConfigError(f"devices {name}: this machine has no usable GPU; take --devices cpu or auto")
    number = int(name.partition(":")[2] or 0)
    if number >= max(gpus, 1):
        raise ConfigError(f"devices {name}: this machine has {gpus} GPUs, numbered from 0")
    return torch.device(name)


def choose_precision(name: str, device: "torch.device", is_frozen: bool) -> str:
    """Return fp32, bf16 or fp16 for training; `auto` is bf16 where it is faster.

    is_frozen: whether the backbone does not train; if it does, a CPU computes its convolutions more slowly in bf16.
    Raises ConfigError for fp16 on a CPU.
    """
    import torch

    if name == "fp16" and device.type == "cpu":
        raise ConfigError("precision fp16: a CPU does not train in it; take fp32 or bf16")
    if name != "auto":
        return name
    if device.type == "cpu":
        return "bf16" if is_frozen and multiplies_faster_in_bf16() else "fp32"
    # Emulated bf16 (T4, V100) counts as supported by default, and is slower than fp32.
    is_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if is_bf16 else "fp32"


@cache
def multiplies_faster_in_bf16() -> bool:
    """Return whether this CPU multiplies matrices at least twice as fast in bf16 as in fp32, by a short measurement.

    Its flags do not say: AMX is ten times as fast, AVX512-BF16 on AMD Zen 5 four times, on Intel half as fast.
    """
    import torch

    seconds: dict[torch.dtype, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(512, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
        times = []
        for _ in range(5):
            start = perf_counter()
            a @ b
            times.append(perf_counter() - start)
        seconds[dtype] = min(times)
    return seconds[torch.bfloat16] < seconds[torch.float32] / 2


def count_cores() -> int:
    """Return the number of processor cores that this process may use."""
    # Python 3.13 has os.process_cpu_count
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """Return how many processes should load pictures: a core for each that training leaves free, at least 1, at most 8.

    Processes that torchrun started on this machine share its cores.
    """
    return min(max(count_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1, 1), 8)


def autocast(precision: str, device: "torch.device") -> Any:
    """Return the context in which a forward pass computes in `precision` (fp32, bf16 or fp16)."""
    import torch

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")
