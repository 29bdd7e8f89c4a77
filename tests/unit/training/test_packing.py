"""Packed captions, compared with each caption on its own."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from myllm.model.vision_gpt2 import VisionGPT2
from myllm.training.packing import Packed, pack

CPU = torch.device("cpu")
LENGTHS = st.integers(1, 3).flatmap(
    lambda count: st.lists(st.lists(st.integers(0, 23), min_size=count, max_size=count), min_size=1, max_size=4)
).filter(lambda lengths: any(map(any, lengths)))


@given(LENGTHS)
def test_packed_sequences_hold_every_token_once_in_order(lengths: list[list[int]]) -> None:
    packed = Packed(torch.tensor(lengths), CPU)
    assert packed.position.tolist() == [token for row in lengths for length in row for token in range(length)]
    rows = torch.arange(1, len(packed.position) + 1)[:, None]
    for sequences in (packed.captions, packed.images):
        assert torch.equal(sequences.join(sequences.split(rows)), rows)
        assert [number for number in sequences.split(rows).flatten().tolist() if number] == rows.flatten().tolist()


@given(LENGTHS)
def test_packed_images_hold_the_tokens_of_their_captions(lengths: list[list[int]]) -> None:
    packed = Packed(torch.tensor(lengths), CPU)
    images = packed.images.split(torch.ones(len(packed.position), 1)).squeeze(2)
    assert images.tolist() == [[1] * sum(row) + [0] * (images.shape[1] - sum(row)) for row in lengths]


@given(LENGTHS)
def test_packed_tokens_see_their_caption_up_to_themselves(lengths: list[list[int]]) -> None:
    packed = Packed(torch.tensor(lengths), CPU)
    seen = packed.visible[:, 0].sum(-1).flatten()[packed.captions.index]
    assert seen.tolist() == [token + 1 for row in lengths for length in row for token in range(length)]


@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=30), width=st.integers(9, 20))
def test_pack_lets_no_caption_cross_the_end_of_a_pack(lengths: list[int], width: int) -> None:
    places, count = pack(lengths, width)
    taken = [place + token for place, length in zip(places.tolist(), lengths, strict=True) for token in range(length)]
    assert len(set(taken)) == sum(lengths) and max(taken, default=-1) < count * width
    for place, length in zip(places.tolist(), lengths, strict=True):
        assert place % width + length <= width


@pytest.mark.slow
@torch.inference_mode()
@given(lengths=LENGTHS)
def test_packed_hidden_states_equal_those_of_each_caption(
    tiny_model: Callable[..., VisionGPT2], lengths: list[list[int]]
) -> None:
    model, generator = tiny_model(), torch.Generator().manual_seed(sum(map(sum, lengths)))
    image = model.encode(torch.randn(len(lengths), 3, 64, 64, generator=generator))
    captions = [[torch.randint(61, (length,), generator=generator) for length in row] for row in lengths]
    tokens = torch.cat([caption for row in captions for caption in row])
    logits = model.decoder.lm_head(model.decoder.hidden(tokens, Packed(torch.tensor(lengths), CPU), image))
    alone = [
        model.decode(caption[None, None], image.select(torch.tensor([number])))[0, 0]
        for number, row in enumerate(captions) for caption in row if len(caption)
    ]
    torch.testing.assert_close(logits, torch.cat(alone), rtol=0, atol=1e-4)
