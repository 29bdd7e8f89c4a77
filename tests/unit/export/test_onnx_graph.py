"""Quantization of weights by block and by channel, as exports and the ONNX Runtime stepper use it."""

import pytest
import torch

from myllm.export.onnx_graph import BLOCK_SIZE, quantize_by_block, quantize_by_channel


@pytest.mark.parametrize("bits", [8, 4])
def test_quantize_by_block_rounds_by_at_most_half_a_scale(bits: int) -> None:
    weight = torch.randn(5, 70, generator=torch.Generator().manual_seed(0))
    numbers, scales = quantize_by_block(weight, bits)
    assert numbers.shape == (5, 3, BLOCK_SIZE) and scales.shape == (5, 3)
    assert torch.equal(numbers, numbers.round()) and numbers.abs().amax() == 2 ** (bits - 1) - 1
    restored = (numbers * scales[..., None]).flatten(1)
    assert ((restored[:, :70] - weight).abs() <= 0.5001 * scales.repeat_interleave(BLOCK_SIZE, 1)[:, :70]).all()
    assert not restored[:, 70:].any()


@pytest.mark.parametrize("shape", [(5, 70), (5, 3, 3, 3)])
def test_quantize_by_channel_rounds_by_at_most_half_a_scale(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    numbers, scales = quantize_by_channel(weight)
    assert torch.equal(numbers, numbers.round()) and (numbers.flatten(1).abs().amax(1) == 127).all()
    assert ((numbers.flatten(1) * scales[:, None] - weight.flatten(1)).abs() <= 0.5001 * scales[:, None]).all()
