"""One query in 16 bits on a CPU: the same as in float32, whatever is hidden and however many parts the keys are read in."""

import pytest
import torch
from torch import Tensor, nn

from qwen_vl.modeling import attention
from qwen_vl.modeling.attention import attend

HEADS, LENGTH, DIM = 3, 300, 16


def numbers(rows: int, length: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(rows, HEADS, length, DIM, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["none", "rule", "added"])
@pytest.mark.parametrize("part", [1, 2**20])
def test_one_query_in_16_bits(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, kind: str, part: int) -> None:
    monkeypatch.setattr(attention, "PART_NUMBERS", part)  # 1: parts of 64 positions
    query, key, value = numbers(2, 1, 1, dtype), numbers(2, LENGTH, 2, dtype), numbers(2, LENGTH, 3, dtype)
    is_seen = (torch.arange(LENGTH) < torch.tensor([[LENGTH], [70]]))[:, None, None]
    added = torch.zeros(is_seen.shape, dtype=dtype).masked_fill(~is_seen, float("-inf"))
    mask = {"none": None, "rule": is_seen, "added": added}[kind]
    found, weights = attend(nn.Module(), "sdpa", query, key, value, mask, 0.25)
    exact = nn.functional.scaled_dot_product_attention(
        query.float(), key.float(), value.float(), None if kind == "none" else is_seen.expand(2, 1, 1, LENGTH), scale=0.25
    )
    assert weights is None and found.dtype == dtype and found.shape == (2, 1, HEADS, DIM)
    torch.testing.assert_close(found, exact.transpose(1, 2).to(dtype))
