"""What a captioner looked at for each token: read from its attention, from its gradients, or by covering places.

Nothing is hung on the model and its forward is as ever: attention weights are seen through a mode of this thread alone.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from myllm.errors import ConfigError
from myllm.model.kv_cache import ImageKV
from myllm.model.vision_gpt2 import VisionGPT2

AT_ONCE = 32  # covered pictures
Method = Callable[[VisionGPT2, Tensor, Tensor], Tensor]
"""Model, picture (1, 3, H, W), tokens (T + 1,) with the begin first -> (L, T, S): what each decoder block looked at,
among S image tokens, to say each of the T that follow the begin; or one map for all blocks, (1, T, S)."""


def attribution_maps(
    model: VisionGPT2, image: Tensor, tokens: Tensor, method: str | None = None, block: int | None = None
) -> Tensor:
    """Where the model looked to say each token.

    image: (3, H, W), preprocessed. tokens: (T + 1,) int64, the begin of a caption and its T tokens.
    method: one of METHODS, DEFAULT where not given. block: this decoder block alone, else the mean of all.
    Returns (T, rows, columns) of the image grid, float32 on the CPU; a map sums to one, or is zero if nothing counted.
    Raises ConfigError for an unknown method, or a block that there is not.
    """
    method = method or DEFAULT
    if method not in METHODS:
        raise ConfigError(f"method {method!r} is unknown; known are {', '.join(METHODS)}")
    rows, columns = model.encoder.grid
    if len(tokens) < 2:
        return torch.zeros(0, rows, columns)
    # gradients are wanted wherever this is called from, and a tensor of inference mode has none
    with torch.inference_mode(False), torch.no_grad():
        looked = METHODS[method](model, image[None].clone(), tokens.clone())
    blocks = len(model.decoder.blocks)
    if block is not None and (len(looked) != blocks or not 0 <= block < blocks):
        known = f"0 to {blocks - 1}" if len(looked) == blocks else "none: it tells of all blocks together"
        raise ConfigError(f"block {block}: method {method} has {known}")
    looked = looked.mean(0) if block is None else looked[block]
    # prefix tokens (class, registers) are no place in the picture
    return normalize_maps(looked[:, -rows * columns :].unflatten(1, (rows, columns)).float().cpu())


def normalize_maps(maps: Tensor) -> Tensor:
    """(..., H, W), none below zero -> each as parts of one; a map of zeros stays as it is."""
    return maps / maps.sum((-2, -1), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


class AttentionWeights(TorchFunctionMode):
    """Within it every attention of this thread is computed in the open, and its weights (N, n_head, T, S) are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        attended, weights = attention_with_weights(*args, **(kwargs or {}))
        self.kept.append(weights)
        return attended


def attention_with_weights(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """torch's scaled_dot_product_attention, without dropout, and its weights (..., T, S)."""
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = scores.softmax(-1)
    return weights @ value, weights


def logprobs_and_attention(model: VisionGPT2, image: ImageKV, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Log-probabilities (B, T) of the tokens after the begin, and each block's cross-attention (B, n_head, T, S)."""
    captions = image.batch_size
    with AttentionWeights() as weights:
        logits = model.decode(tokens[:-1].expand(captions, 1, -1), image)[:, 0]
    said = tokens[1:, None].expand(captions, -1, 1)
    # each block looks at the text, then at the picture
    return logits.log_softmax(-1).gather(-1, said)[..., 0], weights.kept[1::2]


def attention(model: VisionGPT2, image: Tensor, tokens: Tensor) -> Tensor:
    """Cross-attention, mean over heads, at the position that says the token: the one before it."""
    weights = logprobs_and_attention(model, model.encode(image), tokens)[1]
    return torch.stack([own[0].mean(0) for own in weights])


def rollout(model: VisionGPT2, image: Tensor, tokens: Tensor) -> Tensor:
    """Attention, carried back to the places that the encoder's own attention mixed into each of its tokens."""
    return attention(model, image, tokens) @ mixed_places(model, image)


def mixed_places(model: VisionGPT2, image: Tensor) -> Tensor:
    """(L, S, S): how much of each place is in each image token that a decoder block reads; rows sum to one.

    Attention rollout (Abnar & Zuidema 2020): at each encoder block half a token is its own, half what it attended to.
    Backbones that are no plain vision transformer, as convolutional ones, are taken to mix nothing.
    """
    encoder, depth = model.encoder, len(model.decoder.blocks)
    own = torch.eye(encoder.n_tokens, device=image.device)
    with AttentionWeights() as weights:
        encoder(image)
    mixed = [own]
    for seen in weights.kept:
        if seen.shape[2:] != own.shape:
            return own.expand(depth, -1, -1)
        mixed.append((own + seen[0].mean(0)) / 2 @ mixed[-1])
    readings = [len(mixed) - 2] * depth if encoder.indices is None else encoder.indices
    return torch.stack([mixed[index + 1] for index in readings])


def norm(model: VisionGPT2, image: Tensor, tokens: Tensor) -> Tensor:
    """The length of what each place adds to the text, instead of its weight alone (Kobayashi et al. 2020)."""
    kv, found = model.encode(image), []
    for weights, (_, value), block in zip(
        logprobs_and_attention(model, kv, tokens)[1], kv.layers, model.decoder.blocks, strict=True
    ):
        output = block.crossattention.c_proj.weight.unflatten(1, (block.crossattention.n_head, -1))
        turned = torch.einsum("hsd,chd->hsc", value[0], output)
        found.append(torch.einsum("hts,hsc->tsc", weights[0], turned).norm(dim=-1))
    return torch.stack(found)


def gradient(model: VisionGPT2, image: Tensor, tokens: Tensor) -> Tensor:
    """Attention times its gradient of the token's log-probability, what is above zero, mean over heads.

    As Chefer et al. (2021) weigh the attention of each block.
    """
    # so that the weights have gradients where the model's own weights are frozen
    kv = ImageKV(tuple((key.requires_grad_(), value) for key, value in model.encode(image).layers))
    with torch.enable_grad():
        logprobs, weights = logprobs_and_attention(model, kv, tokens)
        slopes = [torch.autograd.grad(one, weights, retain_graph=True) for one in logprobs[0]]
    return torch.stack(
        [
            torch.stack([(own * slope)[0, :, at].relu().mean(0) for at, slope in enumerate(of_block)])
            for own, of_block in zip(weights, zip(*slopes, strict=True), strict=True)
        ]
    ).detach()


def hires_cam(model: VisionGPT2, image: Tensor, tokens: Tensor) -> Tensor:
    """Image tokens times their gradient of the token's log-probability, what is above zero (Draelos & Carin 2020)."""
    return _features_and_slopes(model, image, tokens, lambda feature, slope: feature * slope)


def grad_cam(model: VisionGPT2, image: Tensor, tokens: Tensor) -> Tensor:
    """Image tokens, each channel times its mean gradient, what is above zero (Selvaraju et al. 2017)."""
    return _features_and_slopes(model, image, tokens, lambda feature, slope: feature * slope.mean(0))


def _features_and_slopes(
    model: VisionGPT2, image: Tensor, tokens: Tensor, weigh: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    features = tuple(one.clone().requires_grad_() for one in model.encoder(image))
    with torch.enable_grad():
        logprobs, _ = logprobs_and_attention(model, model.image_kv(model.image_tokens(features)), tokens)
        slopes = [torch.autograd.grad(one, features, retain_graph=True) for one in logprobs[0]]
    weighed = [
        torch.stack([weigh(feature[0], slope[0]).sum(-1) for feature, slope in zip(features, own, strict=True)])
        for own in slopes
    ]
    return torch.stack(weighed).sum(1)[None].relu().detach()


def input_gradient(model: VisionGPT2, image: Tensor, tokens: Tensor) -> Tensor:
    """Pixels times their gradient of the token's log-probability, without sign, summed over each place's pixels."""
    with torch.enable_grad():
        logprobs, _ = logprobs_and_attention(model, model.encode(image.requires_grad_()), tokens)
        slopes = [torch.autograd.grad(one, image, retain_graph=True)[0] for one in logprobs[0]]
    told = torch.cat([(image * slope).sum(1, keepdim=True).abs() for slope in slopes])
    return F.adaptive_avg_pool2d(told, model.encoder.grid).flatten(1)[None].detach()


def occlusion(model: VisionGPT2, image: Tensor, tokens: Tensor) -> Tensor:
    """By how much the log-probability falls where a place is covered with the mean colour (Zeiler & Fergus 2014)."""
    rows, columns = model.encoder.grid
    height, width = image.shape[2:]
    row = torch.arange(height, device=image.device) * rows // height
    column = torch.arange(width, device=image.device) * columns // width
    place = row[:, None] * columns + column
    uncovered = logprobs_and_attention(model, model.encode(image), tokens)[0]
    covered = [
        logprobs_and_attention(model, model.encode(image.where(place != at[:, None, None, None], 0.0)), tokens)[0]
        for at in torch.arange(rows * columns, device=image.device).split(AT_ONCE)
    ]
    return (uncovered - torch.cat(covered)).relu().T[None]


METHODS: dict[str, Method] = {
    "attention": attention,
    "rollout": rollout,
    "norm": norm,
    "gradient": gradient,
    "hires-cam": hires_cam,
    "grad-cam": grad_cam,
    "input-gradient": input_gradient,
    "occlusion": occlusion,
}
DEFAULT = "gradient"
OF_PIXELS = ("input-gradient", "occlusion")
"""Methods that tell of the picture's own pixels by cells of the grid; the others tell of the places that see them."""
