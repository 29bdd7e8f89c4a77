from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from myllm.checkpoints.hf_gpt2 import decoder_config
from myllm.config import VisionConfig
from myllm.files import write_json
from myllm.model.gpt import GPT
from myllm.model.gpt2_weights import transpose_conv1d
from myllm.model.kv_cache import ImageKV
from myllm.model.vision import ImageEncoder
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.model.weight_files import write_tensors

VOCAB, LENGTH = 61, 10
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(2, 3, 64, 64, generator=GENERATOR)
TOKENS = torch.randint(VOCAB, (2, 3, LENGTH), generator=GENERATOR)


@pytest.fixture(scope="module", params=["last", "layerwise"])
def model(request: pytest.FixtureRequest, tiny_model: Callable[..., VisionGPT2]) -> VisionGPT2:
    return tiny_model(request.param)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def assert_close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=1e-4)


def test_vision_gpt2_groups_equal_separate_calls(model: VisionGPT2) -> None:
    together = model(IMAGES, TOKENS)
    assert together.shape == (2, 3, LENGTH, VOCAB)
    for image in range(2):
        for caption in range(3):
            alone = model(IMAGES[image, None], TOKENS[image, None, caption, None])
            assert_close(together[image, caption], alone[0, 0])


@pytest.mark.parametrize("name", ["vit_mini_conv8_64", "test_efficientnet"])
def test_a_mirrored_encoder_returns_the_tokens_of_the_mirrored_picture_and_then_those_of_the_picture(name: str) -> None:
    config = VisionConfig(name, pretrained=False, image_size=64)
    plain, mirrored = (ImageEncoder(replace(config, mirrored=value)).eval() for value in (False, True))
    mirrored.load_state_dict(plain.state_dict())
    (tokens,) = mirrored(IMAGES)
    assert tokens.shape[1] == mirrored.n_tokens == 2 * plain.n_tokens and mirrored.grid == plain.grid
    assert_close(tokens, torch.cat([plain(IMAGES.flip(-1))[0], plain(IMAGES)[0]], 1))


def test_vision_gpt2_parts_called_in_turn_equal_forward(model: VisionGPT2) -> None:
    features = model.encoder(IMAGES)
    assert_close(model.decode(TOKENS, model.image_kv(model.image_tokens(features))), model(IMAGES, TOKENS))


@given(cuts=st.lists(st.integers(1, LENGTH - 1), unique=True).map(sorted))
def test_vision_gpt2_cached_steps_equal_the_full_pass(model: VisionGPT2, cuts: list[int]) -> None:
    with torch.inference_mode():
        image, cache = model.encode(IMAGES), model.decoder.new_cache(rows=6)
        logits = [model.decode(chunk, image, cache) for chunk in TOKENS.tensor_split(cuts, dim=2)]
        assert_close(torch.cat(logits, dim=2), model(IMAGES, TOKENS))


@given(start=st.integers(1, LENGTH - 1), rest=st.lists(st.integers(0, VOCAB - 1), min_size=LENGTH, max_size=LENGTH))
def test_vision_gpt2_logits_do_not_depend_on_later_tokens(model: VisionGPT2, start: int, rest: list[int]) -> None:
    changed = TOKENS.clone()
    changed[..., start:] = torch.tensor(rest[start:])
    with torch.inference_mode():
        assert_close(model(IMAGES, changed)[:, :, :start], model(IMAGES, TOKENS)[:, :, :start])


@given(caption=st.integers(0, 2), text=st.lists(st.integers(0, VOCAB - 1), min_size=LENGTH, max_size=LENGTH))
def test_vision_gpt2_captions_of_an_image_are_independent(model: VisionGPT2, caption: int, text: list[int]) -> None:
    changed, others = TOKENS.clone(), [other for other in range(3) if other != caption]
    changed[:, caption] = torch.tensor(text)
    with torch.inference_mode():
        assert_close(model(IMAGES, changed)[:, others], model(IMAGES, TOKENS)[:, others])


@given(seed=st.integers(0, 2**32), scale=st.floats(0.1, 10))
def test_vision_gpt2_images_of_a_batch_are_independent(model: VisionGPT2, seed: int, scale: float) -> None:
    changed = IMAGES.clone()
    changed[1] = scale * torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        assert_close(model(changed, TOKENS)[0], model(IMAGES, TOKENS)[0])


def test_vision_gpt2_logits_depend_on_the_image(model: VisionGPT2) -> None:
    difference = (model(IMAGES, TOKENS) - model(IMAGES.flip(0), TOKENS)).abs()
    assert (difference.amax(-1) > 1e-3).all()


def test_image_kv_select_decodes_like_those_images(model: VisionGPT2) -> None:
    image = model.encode(IMAGES).select(torch.tensor([1, 1, 0]))
    assert_close(model.decode(TOKENS[[1, 1, 0]], image), model(IMAGES, TOKENS)[[1, 1, 0]])


def test_self_kv_select_continues_the_selected_captions(model: VisionGPT2) -> None:
    rows = torch.tensor([2, 0, 0, 5, 4, 4])  # of 2 x 3 captions
    image, cache = model.encode(IMAGES), model.decoder.new_cache(rows=6)
    model.decode(TOKENS[..., :6], image, cache)
    cache.select(rows)
    moved = torch.cat([TOKENS.flatten(0, 1)[rows, :6].view(2, 3, 6), TOKENS[..., 6:]], dim=-1)
    assert_close(model.decode(TOKENS[..., 6:], image, cache), model(IMAGES, moved)[:, :, 6:])


def test_vision_gpt2_requests_share_no_state(model: VisionGPT2) -> None:
    image, caches = model.encode(IMAGES), [model.decoder.new_cache(rows=6) for _ in range(2)]
    texts = (TOKENS, TOKENS.flip(-1))
    steps = [[model.decode(text[..., index, None], image, cache) for text, cache in zip(texts, caches, strict=True)]
             for index in range(LENGTH)]
    for text, logits in zip(texts, zip(*steps, strict=True), strict=True):
        assert_close(torch.cat(logits, dim=2), model(IMAGES, text))


@pytest.mark.parametrize(("mode", "readings"), [("last", 1), ("layerwise", 2)])
def test_vision_gpt2_blocks_follow_the_mode(tiny_model: Callable[..., VisionGPT2], mode: str, readings: int) -> None:
    model = tiny_model(mode)
    tokens = model.image_tokens(model.encoder(IMAGES))
    assert len(tokens) == readings
    other = torch.randn_like(tokens[0])
    changed = model.image_kv((*tokens[:-1], other))
    same = model.image_kv(tokens)
    is_same = [torch.equal(a[0], b[0]) for a, b in zip(changed.layers, same.layers, strict=True)]
    assert is_same == ([False, False] if mode == "last" else [True, False])


def test_vision_gpt2_has_a_projection_only_between_different_widths(tiny_model: Callable[..., VisionGPT2]) -> None:
    names = {name.split(".")[0] for name, _ in tiny_model(n_embd=128).named_parameters()}
    assert names == {"encoder", "decoder"}
    assert "enc_to_dec_proj" in {name.split(".")[0] for name, _ in tiny_model().named_parameters()}


def test_vision_gpt2_decodes_from_a_convolutional_feature_map(tiny_model: Callable[..., VisionGPT2]) -> None:
    config = tiny_model().config
    vision = replace(config.vision, name="test_efficientnet", image_size=64)
    model = VisionGPT2(replace(config, vision=vision)).eval()
    image = model.encode(IMAGES)
    assert isinstance(image, ImageKV) and image.layers[0][0].shape[2] == model.encoder.n_tokens
    assert model.decode(TOKENS, image).shape == (2, 3, LENGTH, VOCAB)


def test_vision_gpt2_loads_pretrained_text_weights_but_not_into_cross_attention(
    tiny_model: Callable[..., VisionGPT2], tmp_path: Path
) -> None:
    config = tiny_model().config
    gpt2 = GPT(config.text)
    write_tensors(transpose_conv1d(gpt2.transformer.state_dict()), tmp_path / "model.safetensors")
    write_json(decoder_config(config.text, end=0), tmp_path / "config.json")
    torch.manual_seed(0)
    fresh = VisionGPT2(config).decoder
    torch.manual_seed(0)
    loaded = VisionGPT2(replace(config, text=replace(config.text, pretrained=str(tmp_path)))).decoder
    assert torch.equal(loaded.blocks[1].mlp.c_fc.weight, gpt2.blocks[1].mlp.c_fc.weight)
    assert torch.equal(loaded.lm_head.weight, gpt2.transformer.wte.weight)
    assert torch.equal(loaded.blocks[1].crossattention.c_attn.weight, fresh.blocks[1].crossattention.c_attn.weight)
