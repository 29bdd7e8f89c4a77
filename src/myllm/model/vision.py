"""The image encoder: a timm backbone whose output is a sequence of image tokens."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from myllm.config import VisionConfig
from myllm.errors import ConfigError
from myllm.model.backbones import as_tokens, create_backbone, has_token_blocks, preprocess_config, token_grid


class ImageEncoder(nn.Module):
    """A timm backbone that turns pictures into image tokens.

    Vision transformers give their tokens, prefix tokens (class, registers, distillation) included; convolutional and
    hierarchical backbones give their last feature map, a token a place.
    """

    def __init__(self, config: VisionConfig, depth: int | None = None) -> None:
        """depth: how many decoder blocks read, each from the encoder block of its own depth, picked evenly where the
        depths differ; None: one reading, of the last normalised output.

        Raises ConfigError for an unknown backbone, a size it can't take, or one without blocks of tokens where
        `depth` is given; CheckpointError for weights that are missing or of another backbone.
        """
        super().__init__()
        self.backbone = create_backbone(config)
        self.indices: tuple[int, ...] | None = None
        if depth is not None:
            if not has_token_blocks(self.backbone):
                raise ConfigError(
                    f"vision.name {config.name} has no blocks of tokens of one width, which mode layerwise reads; "
                    "take --mode last"
                )
            self.indices = pick_evenly(len(self.backbone.blocks), depth)
        self.preprocess = preprocess_config(self.backbone, config)
        # what a picture becomes, asked of the model itself: its attributes differ from family to family
        was_training = self.training
        try:
            # on a device without numbers, as only the shape is asked for
            tensors = (*self.named_parameters(), *self.named_buffers())
            shapes = {name: value.to("meta") for name, value in tensors}
            with torch.no_grad():
                picture = torch.zeros(1, 3, *self.preprocess.image_size, device="meta")
                probe = functional_call(self.eval(), shapes, picture)[0]
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"vision.image_size {config.image_size}: {config.name} does not take it ({error}); "
                "leave it out for the backbone's own size"
            ) from error
        self.train(was_training)
        self.n_tokens, self.width = probe.shape[1:]
        self.grid: tuple[int, int] = token_grid(self.backbone, self.n_tokens)
        """Rows and columns of places in the picture; prefix tokens come before them."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W), normalised by `preprocess` -> image tokens (B, S, C), one tensor for each reading."""
        images = images.contiguous(memory_format=torch.channels_last)  # which convolutions compute faster in
        if self.indices is None:
            return (as_tokens(self.backbone.forward_features(images), self.backbone),)
        distinct = sorted(set(self.indices))
        outputs = self.backbone.forward_intermediates(
            images, indices=distinct, return_prefix_tokens=True, norm=False, output_fmt="NLC", intermediates_only=True
        )
        # a backbone without prefix tokens gives tensors instead of pairs
        tokens = [torch.cat([out[1], out[0]], dim=1) if isinstance(out, tuple) else out for out in outputs]
        return tuple(tokens[distinct.index(index)] for index in self.indices)


def pick_evenly(blocks: int, depth: int) -> tuple[int, ...]:
    """The encoder block that each of `depth` decoder blocks reads, of `blocks`: the last reads the last."""
    return tuple(-(-(layer + 1) * blocks // depth) - 1 for layer in range(depth))
