from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from myllm.model.kv_cache import ImageKV
from myllm.model.vision_gpt2 import VisionGPT2

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


def test_groups_equal_separate_calls(model: VisionGPT2) -> None:
    together = model(IMAGES, TOKENS)
    assert together.shape == (2, 3, LENGTH, VOCAB)
    for image in range(2):
        for caption in range(3):
            alone = model(IMAGES[image, None], TOKENS[image, None, caption, None])
            assert_close(together[image, caption], alone[0, 0])


def test_the_three_steps_taken_alone_equal_forward(model: VisionGPT2) -> None:
    features = model.encoder(IMAGES)
    assert_close(model.decode(TOKENS, model.image_kv(model.image_tokens(features))), model(IMAGES, TOKENS))


@given(cuts=st.lists(st.integers(1, LENGTH - 1), unique=True).map(sorted))
def test_cached_steps_of_any_length_equal_the_full_pass(model: VisionGPT2, cuts: list[int]) -> None:
    with torch.inference_mode():
        image, cache = model.encode(IMAGES), model.decoder.new_cache(rows=6)
        logits = [model.decode(chunk, image, cache) for chunk in TOKENS.tensor_split(cuts, dim=2)]
        assert_close(torch.cat(logits, dim=2), model(IMAGES, TOKENS))


@given(place=st.integers(1, LENGTH - 1), rest=st.lists(st.integers(0, VOCAB - 1), min_size=LENGTH, max_size=LENGTH))
def test_later_tokens_change_no_earlier_logit(model: VisionGPT2, place: int, rest: list[int]) -> None:
    changed = TOKENS.clone()
    changed[..., place:] = torch.tensor(rest[place:])
    with torch.inference_mode():
        assert_close(model(IMAGES, changed)[:, :, :place], model(IMAGES, TOKENS)[:, :, :place])


@given(caption=st.integers(0, 2), text=st.lists(st.integers(0, VOCAB - 1), min_size=LENGTH, max_size=LENGTH))
def test_another_caption_of_the_picture_changes_nothing(model: VisionGPT2, caption: int, text: list[int]) -> None:
    changed, others = TOKENS.clone(), [other for other in range(3) if other != caption]
    changed[:, caption] = torch.tensor(text)
    with torch.inference_mode():
        assert_close(model(IMAGES, changed)[:, others], model(IMAGES, TOKENS)[:, others])


@given(seed=st.integers(0, 2**32), scale=st.floats(0.1, 10))
def test_another_picture_of_the_batch_changes_nothing(model: VisionGPT2, seed: int, scale: float) -> None:
    changed = IMAGES.clone()
    changed[1] = scale * torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        assert_close(model(changed, TOKENS)[0], model(IMAGES, TOKENS)[0])


def test_the_picture_changes_every_logit(model: VisionGPT2) -> None:
    difference = (model(IMAGES, TOKENS) - model(IMAGES.flip(0), TOKENS)).abs()
    assert (difference.amax(-1) > 1e-3).all()


def test_selected_images_decode_as_themselves(model: VisionGPT2) -> None:
    image = model.encode(IMAGES).select(torch.tensor([1, 1, 0]))
    assert_close(model.decode(TOKENS[[1, 1, 0]], image), model(IMAGES, TOKENS)[[1, 1, 0]])


def test_a_reordered_cache_goes_on_as_the_captions_it_came_from(model: VisionGPT2) -> None:
    rows = torch.tensor([2, 0, 0, 5, 4, 4])  # of 2 x 3 captions
    image, cache = model.encode(IMAGES), model.decoder.new_cache(rows=6)
    model.decode(TOKENS[..., :6], image, cache)
    cache.select(rows)
    moved = torch.cat([TOKENS.flatten(0, 1)[rows, :6].view(2, 3, 6), TOKENS[..., 6:]], dim=-1)
    assert_close(model.decode(TOKENS[..., 6:], image, cache), model(IMAGES, moved)[:, :, 6:])


def test_two_requests_share_no_state(model: VisionGPT2) -> None:
    image, caches = model.encode(IMAGES), [model.decoder.new_cache(rows=6) for _ in range(2)]
    texts = (TOKENS, TOKENS.flip(-1))
    steps = [[model.decode(text[..., at, None], image, cache) for text, cache in zip(texts, caches, strict=True)]
             for at in range(LENGTH)]
    for text, logits in zip(texts, zip(*steps, strict=True), strict=True):
        assert_close(torch.cat(logits, dim=2), model(IMAGES, text))


@pytest.mark.parametrize(("mode", "readings"), [("last", 1), ("layerwise", 2)])
def test_each_block_reads_what_its_mode_says(tiny_model: Callable[..., VisionGPT2], mode: str, readings: int) -> None:
    model = tiny_model(mode)
    tokens = model.image_tokens(model.encoder(IMAGES))
    assert len(tokens) == readings
    other = torch.randn_like(tokens[0])
    changed = model.image_kv((*tokens[:-1], other))  # what the last block reads, or all where there is one
    same = model.image_kv(tokens)
    is_same = [torch.equal(a[0], b[0]) for a, b in zip(changed.layers, same.layers, strict=True)]
    assert is_same == ([False, False] if mode == "last" else [True, False])


def test_equal_widths_need_no_projection(tiny_model: Callable[..., VisionGPT2]) -> None:
    names = {name.split(".")[0] for name, _ in tiny_model(n_embd=128).named_parameters()}
    assert names == {"encoder", "decoder"}
    assert "enc_to_dec_proj" in {name.split(".")[0] for name, _ in tiny_model().named_parameters()}


def test_any_backbone_of_feature_maps_is_captioned(tiny_model: Callable[..., VisionGPT2]) -> None:
    config = tiny_model().config
    vision = replace(config.vision, name="test_efficientnet", image_size=64)
    model = VisionGPT2(replace(config, vision=vision)).eval()
    image = model.encode(IMAGES)
    assert isinstance(image, ImageKV) and image.layers[0][0].shape[2] == model.encoder.n_tokens
    assert model.decode(TOKENS, image).shape == (2, 3, LENGTH, VOCAB)
