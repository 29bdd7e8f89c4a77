import pytest
import torch

from myllm.model.kv_cache import ImageKV, SelfKV


def empty_cache(rows: int) -> SelfKV:
    return SelfKV(2, rows, 3, 5, 4, like=torch.empty(0, dtype=torch.float64))


def test_self_kv_append_returns_all_positions_in_order() -> None:
    cache, chunks = empty_cache(2), torch.randn(2, 2, 3, 5, 4, dtype=torch.float64).split([2, 1, 2], dim=3)
    for count, chunk in enumerate(chunks, start=1):
        for layer in range(2):
            key, value = cache.layer(layer).append(chunk[layer], -chunk[layer])
            expected = torch.cat([earlier[layer] for earlier in chunks[:count]], dim=2)
            assert torch.equal(key, expected) and torch.equal(value, -expected)
        cache.length += chunk.shape[3]
    assert cache.length == 5


def test_self_kv_has_the_dtype_of_the_weights() -> None:
    assert empty_cache(1).keys.dtype == torch.float64


@pytest.mark.parametrize("rows", [[2, 0, 2, 2], [1, 0], [2, 1, 0], [0, 1, 2]])
def test_self_kv_select_moves_repeats_and_drops_captions(rows: list[int]) -> None:
    cache, past = empty_cache(3), torch.randn(2, 3, 3, 2, 4, dtype=torch.float64)
    for layer in range(2):
        cache.layer(layer).append(past[layer], -past[layer])
    cache.length = 2
    cache.select(torch.tensor(rows))
    newest = torch.randn(len(rows), 3, 1, 4, dtype=torch.float64)
    for layer in range(2):
        key, value = cache.layer(layer).append(newest, newest)
        assert torch.equal(key, torch.cat([past[layer][rows], newest], dim=2))
        assert torch.equal(value, torch.cat([-past[layer][rows], newest], dim=2))


def test_image_kv_select_copies_the_rows_of_every_block() -> None:
    pairs = tuple((torch.randn(3, 2, 4, 5), torch.randn(3, 2, 4, 5)) for _ in range(2))
    selected = ImageKV(pairs).select(torch.tensor([2, 2, 0]))
    assert selected.batch_size == 3 and selected.device == torch.device("cpu")
    for (key, value), (old_key, old_value) in zip(selected.layers, pairs, strict=True):
        assert torch.equal(key, old_key[[2, 2, 0]]) and torch.equal(value, old_value[[2, 2, 0]])


def test_under_autocast_the_cache_has_its_dtype_so_that_attention_converts_nothing() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert SelfKV(1, 2, 3, 4, 5, like=torch.empty(0)).keys.dtype == torch.bfloat16
    assert SelfKV(1, 2, 3, 4, 5, like=torch.empty(0)).keys.dtype == torch.float32
