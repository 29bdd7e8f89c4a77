import torch
from torch.nn.functional import scaled_dot_product_attention

from myllm.training.cpu_attention import CpuAttention


def test_cpu_attention_under_autocast_is_in_fp32() -> None:
    query, key, value = torch.randn(3, 1, 2, 5, 32)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    with torch.autocast("cpu", torch.bfloat16), CpuAttention():
        attended = scaled_dot_product_attention(query.bfloat16(), key, value, mask)
    assert attended.dtype == torch.float32
    torch.testing.assert_close(attended, scaled_dot_product_attention(query.bfloat16().float(), key, value, mask))


def test_cpu_attention_leaves_fp32_training_as_it_is() -> None:
    query, key, value = torch.randn(3, 1, 2, 5, 32, dtype=torch.float64)
    with CpuAttention():
        assert scaled_dot_product_attention(query, key, value).dtype == torch.float64
