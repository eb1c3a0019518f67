"""Attention in bfloat16 on a processor, from products that its units are made for.

torch's own kernel takes six times as long backwards in bfloat16 as in float32, and leaves the units idle in both.
Written out, attention keeps a table of queries × keys for each layer until the backward pass: less than everything
else that a layer keeps, up to a few hundred tokens. The formula is that of Vaswani et al. 2017, eq. 1.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

LONGEST = 512
"""Keys of a query at most. Beyond, the table is too large to pay."""
TABLE = 2**22
"""Scores that are worked on at once, about: more do not stay in a processor's cache."""


def written_out(
    query: Float[Tensor, "n H L d"],
    key: Float[Tensor, "n h M d"],
    value: Float[Tensor, "n h M e"],
    hidden: Float[Tensor, "#n L M"],
    scale: float,
) -> Float[Tensor, "n H L e"]:
    """softmax(scale · Q Kᵀ + hidden) V; scores and softmax in float32, the products around them in the inputs' type.

    Args:
        hidden: minus infinity where a query may not look, else 0; one mask for all n, or one for each.
    """
    most = max(1, TABLE // (query[0, ..., 0].numel() * key.shape[2]))
    if len(query) > most:
        masks = hidden.expand(len(query), -1, -1).split(most)
        parts = zip(query.split(most), key.split(most), value.split(most), masks, strict=True)
        return torch.cat([written_out(*part, scale) for part in parts])
    # The H/h queries that share a key are rows of one product, so no key is repeated.
    rows = query.reshape(key.shape[0] * key.shape[1], -1, query.shape[3])
    found: Tensor = _WrittenOut.apply(rows, key.flatten(0, 1), value.flatten(0, 1), hidden, scale)
    return found.view(*query.shape[:3], -1)


class _WrittenOut(torch.autograd.Function):
    """What is kept are the weights in the inputs' type: scores in float32 live for a moment."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, scale: float) -> Tensor:
        scores = torch.bmm(query.float() * scale, key.float().transpose(1, 2))
        # A row is a part, a key's head, one of the queries that share it, a place: of these the mask knows two.
        scores.view(len(hidden), -1, *hidden.shape[1:]).add_(hidden[:, None])
        weights = scores.softmax(2).to(value.dtype)
        ctx.save_for_backward(query, key, value, weights)
        ctx.scale = scale
        return torch.bmm(weights, value)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights = ctx.saved_tensors
        to_weights = torch.bmm(slope, value.transpose(1, 2))
        to_scores = torch._softmax_backward_data(to_weights, weights, 2, weights.dtype).mul_(ctx.scale)
        return (
            torch.bmm(to_scores, key),
            # Turned over, for the processor's library copies what comes transposed: better a query than a table.
            torch.bmm(query.transpose(1, 2), to_scores).transpose(1, 2),
            torch.bmm(slope.transpose(1, 2), weights).transpose(1, 2),
            None,
            None,
        )
