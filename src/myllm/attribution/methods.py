"""Where a captioner looks for each token: read from attention, from gradients, or by covering parts of the picture.

No hooks: attention weights are captured with a TorchFunctionMode, which is local to its thread.
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

OCCLUSION_BATCH = 32
Method = Callable[[VisionGPT2, Tensor, Tensor], Tensor]
"""Maps model, image (1, 3, H, W) and tokens (T + 1,), the begin token first, to (L, T, S): how much each of L decoder
blocks looked at each of S image tokens for each of T tokens. L is 1 for methods that do not separate blocks."""


def attribution_maps(
    model: VisionGPT2, image: Tensor, tokens: Tensor, method: str | None = None, block: int | None = None
) -> Tensor:
    """Return a heat map on the image grid for each token: (T, rows, columns), float32 on the CPU.

    Each map sums to one, or is zero if no cell supports the token.

    image:  (3, H, W), preprocessed.
    tokens: (T + 1,) int64, the begin token and the T tokens of a caption.
    method: a key of METHODS; DEFAULT_METHOD if None.
    block:  use only this decoder block; None for the mean of all.

    Raises ConfigError for an unknown method or block.
    """
    method = method or DEFAULT_METHOD
    if method not in METHODS:
        raise ConfigError(f"method {method!r} is unknown; known are {', '.join(METHODS)}")
    rows, columns = model.encoder.grid
    if len(tokens) < 2:
        return torch.zeros(0, rows, columns)
    # tensors made in inference mode cannot have gradients, so they are cloned outside it
    with torch.inference_mode(False), torch.no_grad():
        maps = METHODS[method](model, image[None].clone(), tokens.clone())  # (L, T, S)
    blocks = len(model.decoder.blocks)
    if block is not None and (len(maps) != blocks or not 0 <= block < blocks):
        known = f"0 to {blocks - 1}" if len(maps) == blocks else "none, as it covers all blocks together"
        raise ConfigError(f"block {block}: method {method} has {known}")
    selected = maps.mean(0) if block is None else maps[block]
    has_mirrored = model.encoder.mirrored and selected.shape[1] == model.encoder.n_tokens
    # prefix tokens (class, registers) come first and have no position in the picture
    *mirrored, cells = (
        part[:, -rows * columns :].unflatten(1, (rows, columns)) for part in selected.chunk(1 + has_mirrored, 1)
    )
    return normalize_maps(sum((part.flip(-1) for part in mirrored), start=cells).float().cpu())


def normalize_maps(maps: Tensor) -> Tensor:
    """Scale non-negative maps (..., H, W) so that each sums to one; a map of zeros stays zero."""
    return maps / maps.sum((-2, -1), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


class AttentionWeights(TorchFunctionMode):
    """Context that keeps the weights (N, n_head, T, S) of each attention that its thread computes, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        output, weights = attention_with_weights(*args, **kwargs)
        self.weights.append(weights)
        return output


def attention_with_weights(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the output of torch's scaled_dot_product_attention, without dropout, and its weights (..., T, S)."""
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = scores.softmax(-1)
    return weights @ value, weights


def logprobs_and_attention(model: VisionGPT2, image: ImageKV, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return log-probabilities (B, T) of the tokens after the begin token, and the cross-attention weights
    (B, n_head, T, S) of each decoder block."""
    with AttentionWeights() as attentions:
        logits = model.decode(tokens[:-1].expand(image.batch_size, 1, -1), image)[:, 0]
    targets = tokens[1:, None].expand(image.batch_size, -1, 1)
    # each block computes self-attention, then cross-attention
    return logits.log_softmax(-1).gather(-1, targets)[..., 0], attentions.weights[1::2]


def attention(model: VisionGPT2, image: Tensor, tokens: Tensor) -> Tensor:
    """Cross-attention, mean over heads, at the position that predicts the token: the one before it."""
    weights = logprobs_and_attention(model, model.encode(image), tokens)[1]
    return torch.stack([block_weights[0].mean(0) for block_weights in weights])


def rollout(model: VisionGPT2, image: Tensor, tokens: Tensor) -> Tensor:
    """Attention, traced back through the encoder's own attention (Abnar & Zuidema 2020); see `encoder_rollout`."""
    return attention(model, image, tokens) @ encoder_rollout(model, image)


def encoder_rollout(model: VisionGPT2, image: Tensor) -> Tensor:
    """Return (L, S, S): how much of each image position is in each image token that a decoder block reads.

    Rows sum to one. Each encoder block mixes half of a token with half of the tokens it attends to. For backbones other
    than plain vision transformers, such as convolutional ones, this is the identity.
    """
    encoder, depth = model.encoder, len(model.decoder.blocks)
    identity = torch.eye(encoder.n_tokens, device=image.device)
    with AttentionWeights() as attentions:
        encoder(image)
    products = [identity]
    for weights in attentions.weights:
        if (len(weights) * weights.shape[2], len(weights) * weights.shape[3]) != identity.shape:
            return identity.expand(depth, -1, -1)
        mixed = torch.block_diag(*weights.mean(1))  # the picture and its mirror image are apart
        products.append((identity + mixed) / 2 @ products[-1])
    readings = [len(products) - 2] * depth if encoder.indices is None else encoder.indices
    return torch.stack([products[index + 1] for index in readings])


def norm(model: VisionGPT2, image: Tensor, tokens: Tensor) -> Tensor:
    """Length of the vector that each image token adds to the text, not only its weight (Kobayashi et al. 2020)."""
    kv, maps = model.encode(image), []
    for weights, (_, value), block in zip(
        logprobs_and_attention(model, kv, tokens)[1], kv.layers, model.decoder.blocks, strict=True
    ):
        output = block.crossattention.c_proj.weight.unflatten(1, (block.crossattention.n_head, -1))
        projected = torch.einsum("hsd,chd->hsc", value[0], output)
        maps.append(torch.einsum("hts,hsc->tsc", weights[0], projected).norm(dim=-1))
    return torch.stack(maps)


def gradient(model: VisionGPT2, image: Tensor, tokens: Tensor) -> Tensor:
    """Attention times its gradient of the token's log-probability, the positive part, mean over heads.

    That is how Chefer et al. (2021) weight the attention of each block.
    """
    # keys that require gradients give the attention weights gradients, even if the model is frozen
    kv = ImageKV(tuple((key.requires_grad_(), value) for key, value in model.encode(image).layers))
    maps = []
    with torch.enable_grad():
        logprobs, weights = logprobs_and_attention(model, kv, tokens)
        for index, logprob in enumerate(logprobs[0]):
            slopes = torch.autograd.grad(logprob, weights, retain_graph=True)
            products = [weight * slope for weight, slope in zip(weights, slopes, strict=True)]
            maps.append(torch.stack([product[0, :, index].relu().mean(0).detach() for product in products]))
    return torch.stack(maps, dim=1)


def hires_cam(model: VisionGPT2, image: Tensor, tokens: Tensor) -> Tensor:
    """Image tokens times their gradient of the token's log-probability, the positive part (Draelos & Carin 2020)."""
    return _weighted_features(model, image, tokens, lambda feature, slope: feature * slope)


def grad_cam(model: VisionGPT2, image: Tensor, tokens: Tensor) -> Tensor:
    """Image tokens, each channel times its mean gradient, the positive part (Selvaraju et al. 2017)."""
    return _weighted_features(model, image, tokens, lambda feature, slope: feature * slope.mean(0))


def _weighted_features(
    model: VisionGPT2, image: Tensor, tokens: Tensor, weigh: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    features = tuple(feature.clone().requires_grad_() for feature in model.encoder(image))
    with torch.enable_grad():
        logprobs, _ = logprobs_and_attention(model, model.image_kv(model.image_tokens(features)), tokens)
        gradients = [torch.autograd.grad(logprob, features, retain_graph=True) for logprob in logprobs[0]]
    weighted = [
        torch.stack([weigh(feature[0], slope[0]).sum(-1) for feature, slope in zip(features, slopes, strict=True)])
        for slopes in gradients
    ]
    return torch.stack(weighted).sum(1)[None].relu().detach()


def input_gradient(model: VisionGPT2, image: Tensor, tokens: Tensor) -> Tensor:
    """Absolute value of pixels times their gradient of the token's log-probability, summed over each grid cell."""
    with torch.enable_grad():
        logprobs, _ = logprobs_and_attention(model, model.encode(image.requires_grad_()), tokens)
        slopes = [torch.autograd.grad(logprob, image, retain_graph=True)[0] for logprob in logprobs[0]]
    saliency = torch.cat([(image * slope).sum(1, keepdim=True).abs() for slope in slopes])  # (T, 1, H, W)
    return F.adaptive_avg_pool2d(saliency, model.encoder.grid).flatten(1)[None].detach()


def occlusion(model: VisionGPT2, image: Tensor, tokens: Tensor) -> Tensor:
    """Fall of the log-probability when a grid cell is covered with the mean colour (Zeiler & Fergus 2014)."""
    rows, columns = model.encoder.grid
    height, width = image.shape[2:]
    row = torch.arange(height, device=image.device) * rows // height
    column = torch.arange(width, device=image.device) * columns // width
    cell = row[:, None] * columns + column  # (H, W), the index of each pixel's cell
    uncovered = logprobs_and_attention(model, model.encode(image), tokens)[0]
    covered = [
        logprobs_and_attention(model, model.encode(image.where(cell != cells[:, None, None, None], 0.0)), tokens)[0]
        for cells in torch.arange(rows * columns, device=image.device).split(OCCLUSION_BATCH)
    ]
    return (uncovered - torch.cat(covered)).relu().T[None]


METHODS: dict[str, Method] = {
    "attention": attention, "rollout": rollout, "norm": norm, "gradient": gradient, "hires-cam": hires_cam,
    "grad-cam": grad_cam, "input-gradient": input_gradient, "occlusion": occlusion,
}
DEFAULT_METHOD = "gradient"
PIXEL_METHODS = ("input-gradient", "occlusion")
"""Methods whose maps show pixels; maps of the others show image tokens, each of which sees its receptive field."""
