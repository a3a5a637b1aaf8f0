"""Tests attention to a run that was begun before, as it is computed on a CPU."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from pipeline.model.engines.torch.attention import attend_to_earlier_and_new


@pytest.mark.parametrize(("earlier", "new"), [(1, 2), (40, 7), (3, 600), (700, 300), (100, 400), (100, 399)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_to_earlier_and_new_tokens_equals_that_with_a_mask(earlier, new, dtype):
    torch.manual_seed(0)
    query = torch.randn(1, new, 6, 32, dtype=dtype).transpose(1, 2) * 3
    key, value = (torch.randn(1, earlier + new, 2, 32, dtype=dtype).transpose(1, 2) for _ in range(2))
    mask = torch.ones(new, earlier + new, dtype=torch.bool).tril(earlier)
    expected = scaled_dot_product_attention(
        query.double(), key.double(), value.double(), attn_mask=mask, scale=0.3, enable_gqa=True
    )
    found = attend_to_earlier_and_new(query, key, value, 0.3)
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)
