"""Packed captions, compared with each caption on its own."""

from collections.abc import Callable

import torch
from hypothesis import given
from hypothesis import strategies as st

from myllm.model.vision_gpt2 import VisionGPT2
from myllm.training.packing import Packed

CPU = torch.device("cpu")
LENGTHS = st.integers(1, 3).flatmap(
    lambda captions: st.lists(st.lists(st.integers(0, 8), min_size=captions, max_size=captions), min_size=1, max_size=4)
).filter(lambda lengths: any(map(any, lengths)))


@given(LENGTHS)
def test_packed_places_hold_every_token_once_in_order(lengths: list[list[int]]) -> None:
    packed = Packed.of(torch.tensor(lengths), CPU)
    assert packed.position.tolist() == [token for row in lengths for length in row for token in range(length)]
    rows = torch.arange(1, len(packed.position) + 1)[:, None]
    for image, row in zip(packed.by_image(rows)[..., 0].tolist(), lengths, strict=True):
        assert image[sum(row) :] == [0] * (max(map(sum, lengths)) - sum(row))
    assert torch.equal(packed.rows(packed.by_image(rows)), rows)


@given(LENGTHS)
def test_packed_tokens_see_their_caption_up_to_themselves(lengths: list[list[int]]) -> None:
    packed = Packed.of(torch.tensor(lengths), CPU)
    for visible, row in zip(packed.visible[:, 0], lengths, strict=True):
        blocks = [torch.ones(length, length, dtype=torch.bool).tril() for length in row]
        assert torch.equal(visible[: sum(row), : sum(row)], torch.block_diag(*blocks).bool())


@torch.inference_mode()
@given(lengths=LENGTHS)
def test_packed_hidden_states_equal_those_of_each_caption(
    tiny_model: Callable[..., VisionGPT2], lengths: list[list[int]]
) -> None:
    model, generator = tiny_model(), torch.Generator().manual_seed(sum(map(sum, lengths)))
    image = model.encode(torch.randn(len(lengths), 3, 64, 64, generator=generator))
    captions = [[torch.randint(61, (length,), generator=generator) for length in row] for row in lengths]
    tokens = torch.cat([caption for row in captions for caption in row])
    logits = model.decoder.lm_head(model.decoder.hidden(tokens, Packed.of(torch.tensor(lengths), CPU), image))
    alone = [
        model.decode(caption[None, None], image.select(torch.tensor([number])))[0, 0]
        for number, row in enumerate(captions) for caption in row if len(caption)
    ]
    torch.testing.assert_close(logits, torch.cat(alone), rtol=0, atol=1e-4)
