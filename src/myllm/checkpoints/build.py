"""Build a model around the tensors of a file: no random initialisation, no copies, no more memory than the file."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from myllm.config import CaptionerConfig
from myllm.errors import CheckpointError
from myllm.model.backbones import create_backbone
from myllm.model.vision_gpt2 import VisionGPT2

# Tied tensors: the name that files may leave out, and the name under which they hold the tensor.
TIED = {"decoder.lm_head.weight": "decoder.transformer.wte.weight"}
BACKBONE = "encoder.backbone."
FACTORIES = (
    torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.linspace, torch.arange, torch.eye,
)
# Allowed in addition, because a model also makes masks, position grids and one empty image.
EXTRA_ELEMENTS, EXTRA_TENSORS = 8_000_000, 2_000


def build_model(config: CaptionerConfig, tensors: Mapping[str, Tensor]) -> VisionGPT2:
    """Return the model that `config` describes, in eval mode, with `tensors` themselves as its float32 weights.

    Raises CheckpointError if the configuration describes other tensors than these, before memory is taken for them,
    and if a weight is NaN or infinite.
    """
    tensors = {**{tied: tensors[name] for tied, name in TIED.items() if name in tensors}, **tensors}
    vision = replace(config.vision, pretrained=False, weights=None)  # downloads nothing
    without_weights = replace(config, vision=vision, text=replace(config.text, pretrained=False))
    with _NoInitialisation(tensors.values()):
        # VisionGPT2 runs its backbone once, which takes long for a hostile geometry: so check the backbone first
        backbone = {BACKBONE + name: value for name, value in create_backbone(vision).state_dict().items()}
        _check_shapes(backbone, {name: value for name, value in tensors.items() if name.startswith(BACKBONE)})
        model = VisionGPT2(without_weights)
    declared = model.state_dict()
    _check_shapes(declared, tensors)
    state = {name: tensors[name].to(value.dtype) for name, value in declared.items()}
    for tied, name in TIED.items():
        if state[tied].data_ptr() != state[name].data_ptr() and not torch.equal(state[tied], state[name]):
            raise CheckpointError(f"{tied} differs from {name}; in this model they are one tensor")
        state[tied] = state[name]
    for name, value in state.items():
        if not is_finite(value):
            raise CheckpointError(
                f"{name} holds NaN or infinite values: training diverged or the file was damaged; take an earlier "
                "checkpoint"
            )
    model.load_state_dict(state, assign=True)
    model.decoder.lm_head.weight = model.decoder.transformer.wte.weight  # load_state_dict untied them
    model.config = config
    return model.eval()


def _check_shapes(declared: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError, naming one tensor, if `tensors` differ from `declared` in names or shapes."""
    for name in sorted(declared.keys() ^ tensors.keys()):
        problem = "its configuration declares no" if name in tensors else "its weights lack the"
        raise CheckpointError(f"{problem} tensor {name}; configuration and weights belong to different models")
    for name, value in tensors.items():
        is_plain = value.layout is torch.strided and value.device.type == "cpu"
        if not is_plain or value.is_quantized or value.is_complex():
            raise CheckpointError(f"{name} is sparse, quantized or complex; expected a plain tensor of numbers")
        if value.shape != declared[name].shape:
            raise CheckpointError(
                f"{name} has shape {tuple(value.shape)}, its configuration declares {tuple(declared[name].shape)}; "
                "configuration and weights belong to different models"
            )


def is_finite(value: Tensor) -> bool:
    """Return whether a tensor holds neither NaN nor infinity."""
    if not value.is_floating_point():
        return True
    # a sum is one pass without extra memory; it may overflow for large finite numbers
    return bool(value.sum().isfinite()) or bool(value.isfinite().all())


class _NoInitialisation(TorchFunctionMode):
    """Leaves new parameters uninitialised, and limits their memory to about the memory of a file's tensors."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        # bytes stored, not elements declared: a tensor may repeat one number a billion times
        storages = [value.untyped_storage() for value in tensors]
        self.elements = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()) + EXTRA_ELEMENTS
        self.tensors = 4 * len(storages) + EXTRA_TENSORS

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in FACTORIES:
            self.elements -= func(*args, **(kwargs | {"device": "meta"})).numel()
            self.tensors -= 1
            if self.elements < 0 or self.tensors < 0:
                raise CheckpointError("its configuration describes a model that is larger than its weights")
        # torch.nn.init passes its tensor by keyword
        target = args[0] if args else kwargs.get("tensor")
        name = func.__name__
        is_in_place = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
        return target if isinstance(target, nn.Parameter) and is_in_place else func(*args, **kwargs)
