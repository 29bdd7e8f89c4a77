"""Stages of unfreezing: what is new learns first, so that it does not drag what was pretrained along while random."""

from myllm.config import TrainConfig
from myllm.model.lora import adapted_layers
from myllm.model.vision_gpt2 import VisionGPT2


def stage_of(epoch: int, config: TrainConfig) -> str:
    """One stage an epoch, the last one goes on."""
    return config.stages[min(epoch, len(config.stages) - 1)]


def set_stage(model: VisionGPT2, stage: str, config: TrainConfig) -> None:
    """Let the stage's parameters train, and no others.

    new: cross-attention, the projection between the widths, and whatever did not start from pretrained weights;
    text: and the decoder; all: and the backbone, if it isn't frozen. Where there are adapters, they alone train.
    """
    is_text_new = not (config.text.pretrained or config.base)
    is_vision_new = not (config.vision.pretrained or config.vision.weights or config.base)
    for name, parameter in model.named_parameters():
        if config.lora.rank:
            trains = ".lora_" in name
        elif name.startswith("encoder."):
            trains = not config.vision.frozen and (stage == "all" or is_vision_new)
        elif "crossattention" in name or "ln_cross_attn" in name or name.startswith("enc_to_dec_proj"):
            trains = True
        else:
            trains = stage != "new" or is_text_new
        parameter.requires_grad_(trains)


def set_train_mode(model: VisionGPT2) -> None:
    """Training mode, but for a backbone whose own weights don't train: dropout is off and batch statistics stay."""
    model.train()
    if not any(one.requires_grad for name, one in model.encoder.named_parameters() if ".lora_" not in name):
        model.encoder.eval()
        for _, layer in adapted_layers(model.encoder):
            layer.train()
