import pytest
import torch

from myllm.checkpoints.onnx_graph import BLOCK, rounded


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_is_off_by_half_a_step_at_most(bits: int) -> None:
    weight = torch.randn(5, 70, generator=torch.Generator().manual_seed(0))
    values, units = rounded(weight, bits)
    assert values.shape == (5, 3, BLOCK * bits // 8)
    if bits == 4:  # ONNX says that the first of two stands in the lower half
        values = torch.stack([values & 15, values >> 4], dim=-1).flatten(-2)
    restored = ((values.float() - 2 ** (bits - 1)) * units[..., None]).flatten(1)
    assert ((restored[:, :70] - weight).abs() <= 0.5001 * units.repeat_interleave(BLOCK, 1)[:, :70]).all()
    assert not restored[:, 70:].any()
