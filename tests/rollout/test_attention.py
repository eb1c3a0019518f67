"""Attention of one new token a row over its span of the cache, against the formula."""

from __future__ import annotations

import pytest
import torch

from prefloop.rollout.attention import _spans, attention, spans_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "groups"), [(4, 1), (2, 3), (1, 8)])
def test_a_row_sees_its_own_columns(dtype: torch.dtype, heads: int, groups: int) -> None:
    """Rows of two spans, in a cache with room for more columns than there are."""
    starts = [0] * 16 + [3] * 16 + [40] * 16
    used, room, width = 61, 80, 8
    draw = torch.Generator().manual_seed(heads)
    keys, values = (torch.randn(48, heads, room, width, generator=draw).to(dtype) for _ in "kv")
    query = torch.randn(48, heads * groups, 1, width, generator=draw).to(dtype)
    spans = spans_of(starts, used, room)
    assert len(spans) == 2
    token = _spans.set(spans)
    try:
        found, _ = attention(None, query, keys[:, :, :used], values[:, :, :used], None)
    finally:
        _spans.reset(token)
    for row, start in enumerate(starts):
        for head in range(heads * groups):
            key, value = (part[row, head // groups, start:used].double() for part in (keys, values))
            weights = (key @ query[row, head, 0].double() * width**-0.5).softmax(0)
            error = (found[row, 0, head].double() - weights @ value).abs().max()
            assert error < (1e-5 if dtype == torch.float32 else 0.05)
