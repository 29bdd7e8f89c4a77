"""Stages of unfreezing: what is new learns first, so that it does not drag what was pretrained along while random."""

from myllm.config import TrainConfig
from myllm.model.vision_gpt2 import VisionGPT2


def stage_of(epoch: int, config: TrainConfig) -> str:
    """One stage an epoch, the last one goes on."""
    return config.stages[min(epoch, len(config.stages) - 1)]


def set_stage(model: VisionGPT2, stage: str, config: TrainConfig) -> None:
    """Let the stage's parameters train, and no others.

    new: cross-attention, the projection between the widths, and whatever did not start from pretrained weights;
    text: and the decoder; all: and the backbone, if it isn't frozen.
    """
    is_text_new = not config.text.pretrained
    is_vision_new = not (config.vision.pretrained or config.vision.weights)
    for name, parameter in model.named_parameters():
        if name.startswith("encoder."):
            trains = not config.vision.frozen and (stage == "all" or is_vision_new)
        elif "crossattention" in name or "ln_cross_attn" in name or name.startswith("enc_to_dec_proj"):
            trains = True
        else:
            trains = stage != "new" or is_text_new
        parameter.requires_grad_(trains)


def set_train_mode(model: VisionGPT2) -> None:
    """Training mode, but for a backbone that does not train: its dropout is off and its batch statistics stay."""
    model.train()
    if not any(parameter.requires_grad for parameter in model.encoder.parameters()):
        model.encoder.eval()
