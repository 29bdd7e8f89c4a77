"""The image encoder: a timm backbone whose output is a sequence of image tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from myllm.config import VisionConfig
from myllm.model import backbones


class ImageEncoder(nn.Module):
    """A timm backbone that turns pictures into image tokens.

    Vision transformers return their tokens, prefix tokens (class, registers, distillation) first; convolutional and
    hierarchical backbones return the cells of their last feature map, with `feature_maps` also the means of finer maps
    over these cells. If `mirrored`, the tokens of the mirrored picture come before those of the picture.
    """

    def __init__(self, config: VisionConfig, depth: int | None = None) -> None:
        """depth: number of decoder blocks that each read an encoder block, as `pick_evenly` assigns them; None means
        that all read the last normalised output.

        Raises ConfigError for an unknown backbone, a size it does not take, or one without token blocks if `depth` is
        given; CheckpointError for weights that are missing or belong to another backbone.
        """
        super().__init__()
        self.backbone = backbones.create_backbone(config)
        self.indices: tuple[int, ...] | None = None
        if depth is not None:
            backbones.check_token_blocks(self.backbone, config.name)
            self.indices = pick_evenly(len(self.backbone.blocks), depth)
        self.finer = backbones.finer_maps(self.backbone, config, depth) if config.feature_maps > 1 else {}
        """Index and channels of each finer feature map, the coarsest first."""
        self.preprocess = backbones.preprocess_config(self.backbone, config)
        self.mirrored = config.mirrored
        self.n_tokens, self.width = backbones.probe_output(self, self.preprocess.image_size, config)
        self.grid: tuple[int, int] = backbones.token_grid(self.backbone, self.n_tokens // (1 + self.mirrored))
        """Rows and columns of the last rows * columns image tokens; prefix tokens come before these."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Normalised images (B, 3, H, W) -> image tokens (B, S, width): one tensor, or one for each decoder block."""
        if self.mirrored:
            images = torch.stack([images.flip(-1), images], 1).flatten(0, 1)
        images = images.contiguous(memory_format=torch.channels_last)  # convolutions are faster in it
        tokens = self._tokens(images)
        return tuple(part.unflatten(0, (-1, 2)).flatten(1, 2) for part in tokens) if self.mirrored else tokens

    def _tokens(self, images: Tensor) -> tuple[Tensor, ...]:
        if self.finer:
            return (self._all_maps(images),)
        if self.indices is None:
            return (backbones.as_tokens(self.backbone.forward_features(images), self.backbone),)
        distinct = sorted(set(self.indices))
        outputs = self.backbone.forward_intermediates(
            images, indices=distinct, return_prefix_tokens=True, norm=False, output_fmt="NLC", intermediates_only=True
        )
        # timm returns (tokens, prefix tokens), or only tokens of a backbone without prefix tokens
        tokens = [torch.cat([out[1], out[0]], dim=1) if isinstance(out, tuple) else out for out in outputs]
        return tuple(tokens[distinct.index(index)] for index in self.indices)

    def _all_maps(self, images: Tensor) -> Tensor:
        """Return tokens (B, S, width) of the last feature map, followed by the finer ones."""
        last, maps = self.backbone.forward_intermediates(images, indices=sorted(self.finer))
        parts = [backbones.as_tokens(last, self.backbone)]
        for finer, channels in zip(reversed(maps), self.finer.values(), strict=True):
            while finer.shape[-1] > last.shape[-1]:
                finer = F.avg_pool2d(finer, 3, stride=2, padding=1, count_include_pad=False)
            # their values are up to twenty times as large as those of the last map
            parts.append(0.5 * F.layer_norm(backbones.as_tokens(finer, self.backbone), [channels]))
        return torch.cat(parts, dim=-1)


def pick_evenly(blocks: int, depth: int) -> tuple[int, ...]:
    """Return the encoder block, of `blocks`, that each of `depth` decoder blocks reads; the last reads the last."""
    return tuple(-(-(layer + 1) * blocks // depth) - 1 for layer in range(depth))
