import pytest
import torch

from myllm.model.kv_cache import ImageKV, SelfKV, causal_mask


def cache_of(rows: int) -> SelfKV:
    return SelfKV(2, rows, 3, 5, 4, like=torch.empty(0, dtype=torch.float64))


def test_a_position_sees_the_past_and_itself_and_nothing_later() -> None:
    mask = causal_mask(queries=3, past=2, device=torch.device("cpu"))
    assert mask.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_appended_positions_come_back_in_their_order() -> None:
    cache, parts = cache_of(2), torch.randn(2, 2, 3, 5, 4, dtype=torch.float64).split([2, 1, 2], dim=3)
    for at, (first, second) in enumerate(parts):
        for layer, part in ((0, first), (1, second)):
            key, value = cache.append(layer, part, -part)
            expected = torch.cat([one[layer] for one in parts[: at + 1]], dim=2)
            assert torch.equal(key, expected) and torch.equal(value, -expected)
        cache.advance(first.shape[2])
    assert cache.length == 5


def test_the_cache_has_the_type_of_the_weights() -> None:
    assert cache_of(1).keys.dtype == torch.float64


@pytest.mark.parametrize("rows", [[2, 0, 2, 2], [1, 0], [2, 1, 0], [0, 1, 2]])
def test_selected_captions_are_moved_repeated_or_left_out(rows: list[int]) -> None:
    cache, past = cache_of(3), torch.randn(2, 3, 3, 2, 4, dtype=torch.float64)
    for layer in range(2):
        cache.append(layer, past[layer], -past[layer])
    cache.advance(2)
    cache.select(torch.tensor(rows))
    newest = torch.randn(len(rows), 3, 1, 4, dtype=torch.float64)
    for layer in range(2):
        key, value = cache.append(layer, newest, newest)
        assert torch.equal(key, torch.cat([past[layer][rows], newest], dim=2))
        assert torch.equal(value, torch.cat([-past[layer][rows], newest], dim=2))


def test_selected_images_are_copies_of_those_rows_in_every_block() -> None:
    pairs = tuple((torch.randn(3, 2, 4, 5), torch.randn(3, 2, 4, 5)) for _ in range(2))
    selected = ImageKV(pairs).select(torch.tensor([2, 2, 0]))
    for (key, value), (old_key, old_value) in zip(selected.layers, pairs, strict=True):
        assert torch.equal(key, old_key[[2, 2, 0]]) and torch.equal(value, old_value[[2, 2, 0]])
