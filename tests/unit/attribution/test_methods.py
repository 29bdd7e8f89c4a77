import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from timm.utils import AttentionExtract
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from myllm.attribution.methods import (
    DEFAULT_METHOD,
    METHODS,
    PIXEL_METHODS,
    AttentionWeights,
    attention_with_weights,
    attribution_maps,
    encoder_rollout,
    logprobs_and_attention,
)
from myllm.config import CaptionerConfig, GPTConfig, VisionConfig
from myllm.errors import ConfigError
from myllm.model.kv_cache import ImageKV
from myllm.model.vision_gpt2 import VisionGPT2

Tiny = Callable[..., VisionGPT2]
GENERATOR = torch.Generator().manual_seed(0)
IMAGE = torch.randn(3, 64, 64, generator=GENERATOR)
TOKENS = torch.tensor([7, 5, 11, 30, 2])


def other_backbone(name: str, mode: Any = "last", **geometry: Any) -> VisionGPT2:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = VisionConfig(name, pretrained=False, image_size=64, geometry=geometry)
        text = GPTConfig(vocab_size=61, n_positions=24, n_layer=2, n_head=4, n_embd=32)
        model = VisionGPT2(CaptionerConfig(vision, text, mode)).eval()
        for parameter in model.decoder.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        return model


@pytest.fixture(scope="module")
def convolutional() -> VisionGPT2:
    return other_backbone("tf_efficientnet_lite0")


@pytest.fixture(scope="module")
def with_class_token() -> VisionGPT2:
    """Two blocks, 4 x 4 cells and a class token before them."""
    return other_backbone("vit_tiny_patch16_224", "layerwise", depth=2, embed_dim=32, num_heads=4)


@pytest.mark.parametrize("options", [
    {}, {"is_causal": True}, {"scale": 0.3}, {"attn_mask": torch.ones(5, 5, dtype=torch.bool).tril()},
    {"attn_mask": torch.randn(5, 5, generator=GENERATOR)},
])
def test_attention_with_weights_equals_torch(options: dict[str, Any]) -> None:
    query, key, value = torch.randn(3, 2, 4, 5, 8, generator=GENERATOR)
    attended, weights = attention_with_weights(query, key, value, **options)
    torch.testing.assert_close(attended, scaled_dot_product_attention(query, key, value, **options))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 5))


def test_attention_weights_captures_only_its_own_thread() -> None:
    query = torch.randn(1, 2, 3, 8, generator=GENERATOR)
    with AttentionWeights() as captured:
        other = threading.Thread(target=scaled_dot_product_attention, args=(query, query, query))
        other.start()
        other.join()
        assert captured.weights == []
        scaled_dot_product_attention(query, query, query)
    scaled_dot_product_attention(query, query, query)
    assert len(captured.weights) == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", ["last", "layerwise"])
def test_attribution_maps_sum_to_one_and_leave_the_model_unchanged(
    tiny_model: Tiny, mode: str, method: str
) -> None:
    model = tiny_model(mode)
    before = model(IMAGE[None], TOKENS[None, None])
    with torch.inference_mode():  # as a server may
        maps = attribution_maps(model, IMAGE, TOKENS, method)
    assert maps.shape == (4, 8, 8) and not maps.requires_grad and (maps >= 0).all()
    is_positive = maps.flatten(1).any(-1)  # a map is zero if every cell makes its token less likely
    torch.testing.assert_close(maps.sum((1, 2)), is_positive.float())
    assert is_positive.all() or "-cam" in method
    assert torch.equal(model(IMAGE[None], TOKENS[None, None]), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("method", METHODS)
def test_attribution_maps_of_convolutional_backbones_and_class_tokens(
    convolutional: VisionGPT2, with_class_token: VisionGPT2, method: str
) -> None:
    for model, grid in ((convolutional, (2, 2)), (with_class_token, (4, 4))):
        maps = attribution_maps(model, IMAGE, TOKENS, method)
        assert maps.shape == (4, *grid) and (maps >= 0).all() and maps.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_attribution_maps_do_not_depend_on_frozen_weights(tiny_model: Tiny, method: str) -> None:
    model, frozen = tiny_model(), tiny_model().requires_grad_(False)
    torch.testing.assert_close(
        attribution_maps(frozen, IMAGE, TOKENS, method), attribution_maps(model, IMAGE, TOKENS, method)
    )


@pytest.mark.parametrize("method", METHODS)
def test_attribution_maps_do_not_depend_on_later_tokens(tiny_model: Tiny, method: str) -> None:
    model = tiny_model()
    torch.testing.assert_close(
        attribution_maps(model, IMAGE, TOKENS[:3], method),
        attribution_maps(model, IMAGE, TOKENS, method)[:2],
        rtol=0,
        atol=1e-5,
    )


def test_attention_map_of_a_token_is_that_of_the_position_before_it(tiny_model: Tiny) -> None:
    """The token itself does not change where the model looked before choosing it; the token before it does."""
    model, other_last, other_previous = tiny_model(), TOKENS.clone(), TOKENS.clone()
    other_last[-1], other_previous[-2] = 19, 19
    expected, same, different = (
        attribution_maps(model, IMAGE, tokens, "attention")[-1] for tokens in (TOKENS, other_last, other_previous)
    )
    assert torch.equal(same, expected) and not torch.allclose(different, expected)


def with_one_visible_cell(model: VisionGPT2, cell: int) -> VisionGPT2:
    """Change the keys so that a query attends either to this cell only or to all the others."""
    encode = model.encode

    def encode_one_cell(images: Tensor) -> ImageKV:
        kv = encode(images)
        for key, _ in kv.layers:
            key[:, :, torch.arange(64) != cell] = 0
            key[:, :, cell] *= 1e4
        return kv

    model.encode = encode_one_cell  # type: ignore[method-assign,assignment]
    return model


@pytest.mark.parametrize("mode", ["last", "layerwise"])
@pytest.mark.parametrize("method", METHODS)
def test_maps_of_a_mirrored_encoder_are_those_of_both_pictures(method: str, mode: str) -> None:
    model = other_backbone("vit_tiny_patch16_224", mode, depth=2, embed_dim=32, num_heads=4)
    mirrored = VisionGPT2(replace(model.config, vision=replace(model.config.vision, mirrored=True))).eval()
    mirrored.load_state_dict(model.state_dict())
    symmetric = (IMAGE + IMAGE.flip(-1)) / 2
    once, twice = (attribution_maps(captioner, symmetric, TOKENS, method) for captioner in (model, mirrored))
    if method not in PIXEL_METHODS:  # of a symmetric picture, both halves of the tokens are equal
        torch.testing.assert_close(twice, (once + once.flip(-1)) / 2, rtol=1e-3, atol=1e-4)
    left, right = (attribution_maps(mirrored, image, TOKENS, method) for image in (IMAGE, IMAGE.flip(-1)))
    torch.testing.assert_close(left, right.flip(-1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["attention", "norm"])
def test_attention_map_lies_on_the_only_visible_cell(tiny_model: Tiny, method: str) -> None:
    maps = attribution_maps(with_one_visible_cell(tiny_model(), 8 * 2 + 5), IMAGE, TOKENS, method)
    assert maps.flatten(1).argmax(-1).tolist() == [8 * 2 + 5] * 4


def test_attribution_maps_default_to_the_mean_of_all_blocks(tiny_model: Tiny) -> None:
    model = tiny_model()
    blocks = torch.stack([attribution_maps(model, IMAGE, TOKENS, "attention", block) for block in (0, 1)])
    assert not torch.allclose(blocks[0], blocks[1])
    torch.testing.assert_close(blocks.mean(0), attribution_maps(model, IMAGE, TOKENS, "attention"))


class ChangedWeight(AttentionWeights):
    """Adds `change` to one attention weight of the attention `number`, counted from 0."""

    def __init__(self, number: int, index: tuple[int, ...], change: float) -> None:
        super().__init__()
        self.number, self.index, self.change = number, index, change

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        weights = attention_with_weights(*args, **(kwargs or {}))[1].clone()
        if len(self.weights) == self.number:
            weights[self.index] += self.change
        self.weights.append(weights)
        return weights @ args[2]


@torch.no_grad()
@pytest.mark.parametrize(("block", "position", "cell"), [(0, 1, 9), (1, 3, 40), (1, 0, 63)])
def test_gradient_map_equals_finite_differences_of_attention_weights(
    tiny_model: Tiny, block: int, position: int, cell: int
) -> None:
    model, image, step = tiny_model().double(), IMAGE.double(), 1e-5
    kv = model.encode(image[None])

    def logprob(head: int, change: float) -> float:
        # each block computes self-attention, then cross-attention
        with ChangedWeight(2 * block + 1, (0, head, position, cell), change):
            logits = model.decode(TOKENS[None, None, :-1], kv)
        return float(logits[0, 0, position].log_softmax(-1)[TOKENS[position + 1]])

    slopes = [(logprob(head, step) - logprob(head, -step)) / (2 * step) for head in range(4)]
    weights = logprobs_and_attention(model, kv, TOKENS)[1][block][0, :, position, cell]
    expected = sum(max(0.0, float(weight) * slope) for weight, slope in zip(weights, slopes, strict=True)) / 4
    maps = METHODS["gradient"](model, image[None].clone(), TOKENS)
    assert float(maps[block, position, cell]) == pytest.approx(expected, rel=1e-4, abs=1e-12)
    assert (maps > 0).float().mean() > 0.3


@torch.no_grad()
@pytest.mark.parametrize("cell", [0, 27])
def test_hires_cam_map_equals_finite_differences_of_image_tokens(tiny_model: Tiny, cell: int) -> None:
    model, image, step = tiny_model().double(), IMAGE.double(), 1e-5
    features = model.encoder(image[None])[0]

    def logprobs(factor: float) -> Tensor:
        scaled = features.clone()
        scaled[0, cell] *= factor
        return logprobs_and_attention(model, model.image_kv(model.image_tokens((scaled,))), TOKENS)[0][0]

    expected = ((logprobs(1 + step) - logprobs(1 - step)) / (2 * step)).relu()
    maps = METHODS["hires-cam"](model, image[None].clone(), TOKENS)
    torch.testing.assert_close(maps[0, :, cell], expected, rtol=1e-4, atol=1e-10)


@torch.no_grad()
def test_occlusion_map_is_the_logprob_lost_by_covering_a_cell(tiny_model: Tiny) -> None:
    model, covered = tiny_model(), IMAGE.clone()
    covered[:, 16:24, 40:48] = 0  # column 5 of row 2
    logprobs = [model(image[None], TOKENS[None, None, :-1])[0, 0].log_softmax(-1) for image in (IMAGE, covered)]
    expected = (logprobs[0] - logprobs[1])[torch.arange(4), TOKENS[1:]].relu()
    maps = METHODS["occlusion"](model, IMAGE[None], TOKENS)[0, :, 8 * 2 + 5]
    torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("mode", ["last", "layerwise"])
@torch.no_grad()
def test_encoder_rollout_equals_the_product_of_timms_attention_maps(mode: str) -> None:
    model = other_backbone("vit_tiny_patch16_224", mode, depth=3, embed_dim=32, num_heads=4)
    backbone = model.encoder.backbone
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    rolled_out = encoder_rollout(model, IMAGE[None])
    for block in backbone.blocks:
        block.attn.fused_attn = False  # timm reads only unfused attention
    attentions = AttentionExtract(backbone, method="hook")(IMAGE[None])
    products = [torch.eye(17)]
    for weights in attentions.values():
        products.append((0.5 * torch.eye(17) + 0.5 * weights[0].mean(0)) @ products[-1])
    expected = [products[3], products[3]] if mode == "last" else [products[2], products[3]]
    torch.testing.assert_close(rolled_out, torch.stack(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rolled_out.sum(-1), torch.ones(2, 17))


def test_rollout_of_a_convolutional_backbone_equals_attention(convolutional: VisionGPT2) -> None:
    maps = [attribution_maps(convolutional, IMAGE, TOKENS, method) for method in ("attention", "rollout")]
    assert torch.equal(*maps)


def test_attribution_maps_of_no_tokens_are_empty(tiny_model: Tiny) -> None:
    assert attribution_maps(tiny_model(), IMAGE, TOKENS[:1]).shape == (0, 8, 8)


@pytest.mark.parametrize(("options", "message"), [
    ({"method": "lime"}, "method 'lime' is unknown; known are attention, rollout"),
    ({"method": "attention", "block": 2}, "block 2: method attention has 0 to 1"),
    ({"method": "occlusion", "block": 0}, "block 0: method occlusion has none, as it covers all blocks together"),
])
def test_attribution_maps_refuse_unknown_options(tiny_model: Tiny, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        attribution_maps(tiny_model(), IMAGE, TOKENS, **options)


def test_default_is_one_of_the_methods() -> None:
    assert DEFAULT_METHOD in METHODS
