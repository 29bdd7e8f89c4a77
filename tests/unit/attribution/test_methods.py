import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.utils import AttentionExtract
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from myllm.attribution.methods import (
    DEFAULT,
    METHODS,
    AttentionWeights,
    attention_with_weights,
    attribution_maps,
    logprobs_and_attention,
    mixed_places,
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
    """Two blocks, 4 x 4 places and a class token before them."""
    return other_backbone("vit_tiny_patch16_224", "layerwise", depth=2, embed_dim=32, num_heads=4)


@pytest.mark.parametrize("options", [
    {}, {"is_causal": True}, {"scale": 0.3}, {"attn_mask": torch.ones(5, 5, dtype=torch.bool).tril()},
    {"attn_mask": torch.randn(5, 5, generator=GENERATOR)},
])
def test_attention_in_the_open_is_torchs(options: dict[str, Any]) -> None:
    query, key, value = torch.randn(3, 2, 4, 5, 8, generator=GENERATOR)
    attended, weights = attention_with_weights(query, key, value, **options)
    torch.testing.assert_close(attended, scaled_dot_product_attention(query, key, value, **options))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 5))


def test_weights_are_kept_of_this_thread_alone() -> None:
    query = torch.randn(1, 2, 3, 8, generator=GENERATOR)
    with AttentionWeights() as seen:
        other = threading.Thread(target=scaled_dot_product_attention, args=(query, query, query))
        other.start()
        other.join()
        assert seen.kept == []
        scaled_dot_product_attention(query, query, query)
    scaled_dot_product_attention(query, query, query)
    assert len(seen.kept) == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", ["last", "layerwise"])
def test_each_map_is_shares_of_the_grid_and_the_model_stays_as_it_was(
    tiny_model: Tiny, mode: str, method: str
) -> None:
    model = tiny_model(mode)
    before = model(IMAGE[None], TOKENS[None, None])
    with torch.inference_mode():  # where a server may call from
        maps = attribution_maps(model, IMAGE, TOKENS, method)
    assert maps.shape == (4, 8, 8) and not maps.requires_grad and (maps >= 0).all()
    counted = maps.flatten(1).any(-1)  # where every place counts against a token, nothing is left to show
    torch.testing.assert_close(maps.sum((1, 2)), counted.float())
    assert counted.all() or "-cam" in method
    assert torch.equal(model(IMAGE[None], TOKENS[None, None]), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("method", METHODS)
def test_convolutional_backbones_and_class_tokens_are_looked_through_too(
    convolutional: VisionGPT2, with_class_token: VisionGPT2, method: str
) -> None:
    for model, grid in ((convolutional, (2, 2)), (with_class_token, (4, 4))):
        maps = attribution_maps(model, IMAGE, TOKENS, method)
        assert maps.shape == (4, *grid) and (maps >= 0).all() and maps.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_frozen_weights_are_looked_through_as_others(tiny_model: Tiny, method: str) -> None:
    model, frozen = tiny_model(), tiny_model().requires_grad_(False)
    torch.testing.assert_close(
        attribution_maps(frozen, IMAGE, TOKENS, method), attribution_maps(model, IMAGE, TOKENS, method)
    )


@pytest.mark.parametrize("method", METHODS)
def test_what_is_said_later_changes_no_earlier_map(tiny_model: Tiny, method: str) -> None:
    model = tiny_model()
    torch.testing.assert_close(
        attribution_maps(model, IMAGE, TOKENS[:3], method),
        attribution_maps(model, IMAGE, TOKENS, method)[:2],
        rtol=0,
        atol=1e-5,
    )


def test_a_token_is_said_by_the_position_before_it(tiny_model: Tiny) -> None:
    """Which token it is does not change where the model looked before it was chosen; the token before does."""
    model, last, before = tiny_model(), TOKENS.clone(), TOKENS.clone()
    last[-1], before[-2] = 19, 19
    maps, of_last, of_before = (
        attribution_maps(model, IMAGE, tokens, "attention")[-1] for tokens in (TOKENS, last, before)
    )
    assert torch.equal(of_last, maps) and not torch.allclose(of_before, maps)


def marked(model: VisionGPT2, place: int) -> VisionGPT2:
    """Keys answer to one place alone, so that a query sees that place and nothing else, or all but it."""
    encode = model.encode

    def of_one_place(images: Tensor) -> ImageKV:
        kv = encode(images)
        for key, _ in kv.layers:
            key[:, :, torch.arange(64) != place] = 0
            key[:, :, place] *= 1e4
        return kv

    model.encode = of_one_place  # type: ignore[method-assign,assignment]
    return model


@pytest.mark.parametrize("method", ["attention", "norm"])
def test_attention_lies_where_a_picture_must_be_to_be_read(tiny_model: Tiny, method: str) -> None:
    maps = attribution_maps(marked(tiny_model(), 8 * 2 + 5), IMAGE, TOKENS, method)
    assert maps.flatten(1).argmax(-1).tolist() == [8 * 2 + 5] * 4


def test_the_mean_of_all_blocks_is_the_default_and_each_can_be_asked_for(tiny_model: Tiny) -> None:
    model = tiny_model()
    alone = torch.stack([attribution_maps(model, IMAGE, TOKENS, "attention", block) for block in (0, 1)])
    assert not torch.allclose(alone[0], alone[1])
    torch.testing.assert_close(alone.mean(0), attribution_maps(model, IMAGE, TOKENS, "attention"))


class Nudged(AttentionWeights):
    """Adds `by` to one attention weight of one attention, counted from the first."""

    def __init__(self, number: int, place: tuple[int, ...], by: float) -> None:
        super().__init__()
        self.number, self.place, self.by = number, place, by

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        weights = attention_with_weights(*args, **(kwargs or {}))[1].clone()
        if len(self.kept) == self.number:
            weights[self.place] += self.by
        self.kept.append(weights)
        return weights @ args[2]


@torch.no_grad()
@pytest.mark.parametrize(("block", "at", "place"), [(0, 1, 9), (1, 3, 40), (1, 0, 63)])
def test_gradients_agree_with_weights_that_are_nudged(tiny_model: Tiny, block: int, at: int, place: int) -> None:
    model, image, step = tiny_model().double(), IMAGE.double(), 1e-5
    kv = model.encode(image[None])

    def logprob(head: int, by: float) -> float:
        # its self-attentions stand before and between the cross-attentions
        with Nudged(2 * block + 1, (0, head, at, place), by):
            logits = model.decode(TOKENS[None, None, :-1], kv)
        return float(logits[0, 0, at].log_softmax(-1)[TOKENS[at + 1]])

    slopes = [(logprob(head, step) - logprob(head, -step)) / (2 * step) for head in range(4)]
    weights = logprobs_and_attention(model, kv, TOKENS)[1][block][0, :, at, place]
    expected = sum(max(0.0, float(weight) * slope) for weight, slope in zip(weights, slopes, strict=True)) / 4
    found = METHODS["gradient"](model, image[None].clone(), TOKENS)
    assert float(found[block, at, place]) == pytest.approx(expected, rel=1e-4, abs=1e-12)
    assert (found > 0).float().mean() > 0.3


@torch.no_grad()
@pytest.mark.parametrize("place", [0, 27])
def test_hires_cam_agrees_with_image_tokens_that_are_scaled(tiny_model: Tiny, place: int) -> None:
    model, image, step = tiny_model().double(), IMAGE.double(), 1e-5
    features = model.encoder(image[None])[0]

    def logprobs(factor: float) -> Tensor:
        scaled = features.clone()
        scaled[0, place] *= factor
        return logprobs_and_attention(model, model.image_kv(model.image_tokens((scaled,))), TOKENS)[0][0]

    expected = ((logprobs(1 + step) - logprobs(1 - step)) / (2 * step)).relu()
    found = METHODS["hires-cam"](model, image[None].clone(), TOKENS)
    torch.testing.assert_close(found[0, :, place], expected, rtol=1e-4, atol=1e-10)


@torch.no_grad()
def test_occlusion_is_what_is_lost_where_a_place_is_covered(tiny_model: Tiny) -> None:
    model, covered = tiny_model(), IMAGE.clone()
    covered[:, 16:24, 40:48] = 0  # place 5 of row 2
    said = [model(one[None], TOKENS[None, None, :-1])[0, 0].log_softmax(-1) for one in (IMAGE, covered)]
    lost = (said[0] - said[1])[torch.arange(4), TOKENS[1:]].relu()
    found = METHODS["occlusion"](model, IMAGE[None], TOKENS)[0, :, 8 * 2 + 5]
    torch.testing.assert_close(found, lost, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("mode", ["last", "layerwise"])
@torch.no_grad()
def test_rollout_is_the_product_of_what_timm_says_its_blocks_attend_to(mode: str) -> None:
    model = other_backbone("vit_tiny_patch16_224", mode, depth=3, embed_dim=32, num_heads=4)
    backbone = model.encoder.backbone
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    mixed = mixed_places(model, IMAGE[None])
    for block in backbone.blocks:
        block.attn.fused_attn = False  # only then timm can tell
    told = AttentionExtract(backbone, method="hook")(IMAGE[None])
    products = [torch.eye(17)]
    for weights in told.values():
        products.append((0.5 * torch.eye(17) + 0.5 * weights[0].mean(0)) @ products[-1])
    expected = [products[3], products[3]] if mode == "last" else [products[2], products[3]]
    torch.testing.assert_close(mixed, torch.stack(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed.sum(-1), torch.ones(2, 17))


def test_a_convolutional_backbone_mixes_nothing_that_rollout_could_tell(convolutional: VisionGPT2) -> None:
    maps = [attribution_maps(convolutional, IMAGE, TOKENS, method) for method in ("attention", "rollout")]
    assert torch.equal(*maps)


def test_no_tokens_have_no_maps(tiny_model: Tiny) -> None:
    assert attribution_maps(tiny_model(), IMAGE, TOKENS[:1]).shape == (0, 8, 8)


@pytest.mark.parametrize(("options", "message"), [
    ({"method": "lime"}, "method 'lime' is unknown; known are attention, rollout"),
    ({"method": "attention", "block": 2}, "block 2: method attention has 0 to 1"),
    ({"method": "occlusion", "block": 0}, "block 0: method occlusion has none: it tells of all blocks together"),
])
def test_what_cannot_be_told_is_refused(tiny_model: Tiny, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        attribution_maps(tiny_model(), IMAGE, TOKENS, **options)


def test_the_default_is_one_of_the_methods() -> None:
    assert DEFAULT in METHODS
