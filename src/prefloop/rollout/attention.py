"""Attention of one new token a row over the rows' caches, which begin at different columns.

Rows come in the order of their first columns. Those side by side share a *span*: none of them looks at columns
before the span's first. Without spans, each row would pay for as many columns as the oldest row has. transformers
lets attention be replaced; for which architectures that is right is what `models.packing.longest_packed` measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from prefloop.models.packing import attending_by, few

NAME = "prefloop_spans"
LEAST, APART, STEP = 16, 32, 8
"""Rows of a span, and columns from the first of one span to the first of the next, at least: each span costs its
calls, in every layer. Spans begin at multiples of ``LEAST`` rows and ``STEP`` columns: see `models.packing.grain`."""


@dataclass(frozen=True)
class Span:
    """Rows side by side, and what hides the columns before each row's own."""

    rows: slice
    first: int
    hidden: Float[Tensor, "n 1 1 C"]
    """0 or minus infinity, of the columns from ``first`` on. Those that are to come are hidden, see `show`."""

    def show(self, column: int) -> None:
        """From now on that column is there."""
        self.hidden[..., column - self.first] = 0


_spans: ContextVar[Sequence[Span]] = ContextVar("spans")


def columns_read(used: int) -> int:
    """How many columns of a cache attention is handed: while it is this one, one of few numbers."""
    return few(used) if _spans.get(()) else used


def spans_of(starts: Sequence[int], used: int, columns: int) -> list[Span]:
    """Of rows that begin at these columns of a cache with ``used`` columns, for as long as it has no more than
    ``columns``."""
    cuts = [0]
    for row, start in enumerate(starts):
        if row % LEAST == 0 and start - starts[cuts[-1]] >= APART:
            cuts.append(row)
    return [_span(starts, *ends, used, columns) for ends in pairwise([*cuts, len(starts)])]


def _span(starts: Sequence[int], begin: int, end: int, used: int, columns: int) -> Span:
    own = torch.tensor(starts[begin:end])
    first = int(own.min()) // STEP * STEP
    hidden = torch.zeros(end - begin, 1, 1, few(columns) - first)
    column = torch.arange(first, few(columns))
    hidden.masked_fill_(((column < own[:, None]) | (column >= used))[:, None, None], -torch.inf)
    return Span(slice(begin, end), first, hidden)


def attending(model: Any, spans: Sequence[Span]) -> AbstractContextManager[None]:
    """Within it the model reads one token of each row."""
    return attending_by(model, NAME, _spans, spans)


def attention(
    _module: Any,
    query: Float[Tensor, "B H 1 d"],
    key: Float[Tensor, "B h C d"],
    value: Float[Tensor, "B h C e"],
    _attention_mask: Tensor | None,
    dropout: float = 0.0,  # noqa: ARG001 (part of transformers' call; nothing is dropped here)
    scaling: float | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "B 1 H e"], None]:
    """Span by span. The H/h queries that share a key are the rows of one product, so no key is repeated."""
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    queries = (query * scale).view(len(query), key.shape[1], -1, query.shape[3])
    found = []
    for span in _spans.get():
        keys, values = key[span.rows, :, span.first :], value[span.rows, :, span.first :]
        scores = _scores(queries[span.rows], keys).float()
        scores += span.hidden[..., : keys.shape[2]]
        found.append(_product(scores.softmax(3).to(values.dtype), values))
    return torch.cat(found).reshape(len(query), 1, query.shape[1], -1), None


def _scores(queries: Float[Tensor, "n h g d"], keys: Float[Tensor, "n h C d"]) -> Float[Tensor, "n h g C"]:
    if keys.dtype == torch.bfloat16:  # turned over, for the processor's library would copy the keys to transpose them
        return _product(keys, queries.transpose(2, 3)).transpose(2, 3)
    return _product(queries, keys.transpose(2, 3))


def _product(left: Float[Tensor, "B h g a"], right: Float[Tensor, "B h a b"]) -> Float[Tensor, "B h g b"]:
    return torch.bmm(left.flatten(0, 1), right.flatten(0, 1)).unflatten(0, left.shape[:2])


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, lambda **_: None)
