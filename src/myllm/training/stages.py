"""Stages of unfreezing: new parameters learn first, because gradients through random weights spoil pretrained ones."""

from myllm.model.backbones import last_layers
from myllm.model.lora import adapted_layers
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.training_config import TrainConfig


def stage_of(epoch: int, config: TrainConfig) -> str:
    """Return the stage of an epoch (from 0): one stage for each epoch, and the last one for all later epochs."""
    return config.stages[min(epoch, len(config.stages) - 1)]


def set_stage(model: VisionGPT2, stage: str, config: TrainConfig) -> None:
    """Set `requires_grad` so that only the stage's parameters train.

    new: cross-attention, the projection to the decoder's width, and all parts without pretrained weights;
    text: the decoder too; all: the backbone too, if it is not frozen. With adapters, only adapters train in each stage.
    """
    is_text_new = not (config.text.pretrained or config.base)
    is_vision_new = not (config.vision.pretrained or config.vision.weights or config.base)
    last = None if config.vision_layers is None else last_layers(model.encoder.backbone, config.vision_layers)
    for name, parameter in model.named_parameters():
        if config.lora.rank:
            trains = ".lora_" in name
        elif name.startswith("encoder."):
            is_last = last is None or name.removeprefix("encoder.backbone.") in last
            trains = not config.vision.frozen and (stage == "all" or is_vision_new) and is_last
        elif is_cross_attention(name):
            trains = True
        else:
            trains = stage != "new" or is_text_new
        parameter.requires_grad_(trains)


def is_cross_attention(name: str) -> bool:
    """Return whether a parameter of the model belongs to cross-attention or to the projection to its width."""
    return any(part in name for part in ("crossattention", "ln_cross_attn", "enc_to_dec_proj"))


def set_train_mode(model: VisionGPT2) -> None:
    """Set training mode, except for parts of the backbone whose weights do not train.

    These have no dropout, and their batch statistics stay. Adapters in them are in training mode.
    """
    model.train()
    for module in model.encoder.modules():
        weights = [parameter for name, parameter in module.named_parameters() if ".lora_" not in name]
        if weights and not any(weight.requires_grad for weight in weights):
            module.eval()
    for _, layer in adapted_layers(model.encoder):
        layer.train()
