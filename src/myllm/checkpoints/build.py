"""A model around the tensors of a file: nothing drawn at random first, nothing copied, nothing larger than the file."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from myllm.config import CaptionerConfig
from myllm.errors import CheckpointError
from myllm.model.backbones import create_backbone
from myllm.model.vision_gpt2 import VisionGPT2

# the second name is the one that is stored where a format keeps a tensor once
TIED = {"decoder.lm_head.weight": "decoder.transformer.wte.weight"}
BACKBONE = "encoder.backbone."
FACTORIES = (
    torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.linspace, torch.arange, torch.eye,
)
# beside its weights a model makes masks, places and one empty picture: elements and tensors granted for these
MORE_ELEMENTS, MORE_TENSORS = 8_000_000, 2_000


def build_model(config: CaptionerConfig, tensors: Mapping[str, Tensor]) -> VisionGPT2:
    """The model that `config` describes, in eval mode, with `tensors` themselves as its float32 weights.

    Raises CheckpointError where the configuration describes other tensors than these, before memory is taken for them,
    and where a weight is not a finite number.
    """
    tensors = {**{tied: tensors[name] for tied, name in TIED.items() if name in tensors}, **tensors}
    # its own weights follow, so none are fetched
    vision = replace(config.vision, pretrained=False, weights=None)
    bare = replace(config, vision=vision, text=replace(config.text, pretrained=False))
    with _Unfilled(tensors.values()):
        # the whole model lets its backbone read a picture, which takes long in a hostile geometry: that is seen before
        backbone = create_backbone(vision).state_dict()
        check_shapes(
            {BACKBONE + name: value for name, value in backbone.items()},
            {name: value for name, value in tensors.items() if name.startswith(BACKBONE)},
        )
        model = VisionGPT2(bare)
    own = model.state_dict()
    check_shapes(own, tensors)
    state = {name: tensors[name].to(value.dtype) for name, value in own.items()}
    for tied, name in TIED.items():
        if state[tied].data_ptr() != state[name].data_ptr() and not torch.equal(state[tied], state[name]):
            raise CheckpointError(f"{tied} differs from {name}; in this model they are one tensor")
        state[tied] = state[name]
    for name, value in state.items():
        if not is_finite(value):
            raise CheckpointError(
                f"{name} holds values that are no finite numbers (NaN or infinity), so every caption would be noise; "
                "take an earlier checkpoint: training ran away, or the file was damaged"
            )
    model.load_state_dict(state, assign=True)
    model.decoder.lm_head.weight = model.decoder.transformer.wte.weight  # assigned one by one, they came apart
    model.config = config
    return model.eval()


def check_shapes(declared: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError, with one tensor's name, where `found` are not the tensors that are declared."""
    for name in sorted(declared.keys() ^ found.keys()):
        where = "its configuration declares no" if name in found else "its weights lack the"
        raise CheckpointError(f"{where} tensor {name}; configuration and weights are not of one model")
    for name, value in found.items():
        is_plain = value.layout is torch.strided and value.device.type == "cpu"
        if not is_plain or value.is_quantized or value.is_complex():
            raise CheckpointError(f"{name} is no plain tensor of numbers")
        if value.shape != declared[name].shape:
            raise CheckpointError(
                f"{name} has shape {tuple(value.shape)}, its configuration declares {tuple(declared[name].shape)}; "
                "configuration and weights are not of one model"
            )


def is_finite(value: Tensor) -> bool:
    """Whether it holds neither NaN nor infinity."""
    if not value.is_floating_point():
        return True
    # a sum is one pass without memory of its own; where numbers are so large that it overflows, each is asked
    return bool(value.sum().isfinite()) or bool(value.isfinite().all())


class _Unfilled(TorchFunctionMode):
    """Inside, parameters keep whatever is in their memory, and no more of it is taken than a file's tensors justify."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        # what is stored, not what is declared: a tensor may repeat one number a billion times
        storages = [value.untyped_storage() for value in tensors]
        self.elements = sum({one.data_ptr(): one.nbytes() for one in storages}.values()) + MORE_ELEMENTS
        self.tensors = 4 * len(storages) + MORE_TENSORS

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in FACTORIES:
            self.elements -= func(*args, **(kwargs | {"device": "meta"})).numel()
            self.tensors -= 1
            if self.elements < 0 or self.tensors < 0:
                raise CheckpointError("its configuration describes a model that is larger than its weights")
        # torch.nn.init hands its tensor over by name
        target = args[0] if args else kwargs.get("tensor")
        if isinstance(target, nn.Parameter) and _changes_in_place(func.__name__):
            return target
        return func(*args, **kwargs)


def _changes_in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
