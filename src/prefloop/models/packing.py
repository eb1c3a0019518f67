"""Sequences end to end in one row: no padding, no cross-talk, and a prompt is read once for all its answers.

A row is a series of *stems*. A stem is a prompt and the answers that branch off it: each answer's tokens see the
prompt and what came before in that answer, and nothing else; their positions go on where the prompt ends. A sequence
that shares nothing is a stem without branches. That is a change of layout, not of the function: every token has the
state that it would have in a sequence of its own [Krell et al. 2021; Wang & Hegde 2024].

Only attention looks beyond a token, so it alone has to know the layout. transformers lets it be replaced; whether an
architecture hands everything over to it is measured, once a model (`longest_packed`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from prefloop.models.attention import LONGEST, written_out

NAME = "prefloop_packed"


@dataclass(frozen=True)
class Stem:
    """Lengths of a prompt and of the answers that follow it in the row."""

    prompt: int
    branches: tuple[int, ...] = ()


@dataclass(frozen=True)
class Bucket:
    """Parts of a row whose attention is one call: n of them, padded to L, each with the M places that it may see."""

    queries: Int[Tensor, "n L"]
    keys: Int[Tensor, "n M"]
    mask: Bool[Tensor, "n 1 L M"] | None
    """None for plain causal attention of a part to itself."""

    @cached_property
    def hidden(self) -> Float[Tensor, "#n L M"]:
        """Minus infinity where a query may not look, else 0."""
        if self.mask is None:
            return _later(self.queries.shape[1])
        mask = self.mask[:, 0]
        return torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf)


def _later(length: int) -> Float[Tensor, "1 L L"]:
    """Minus infinity where a query would look at what comes after it, else 0."""
    return torch.full((1, length, length), -torch.inf).triu_(1)


@dataclass(frozen=True)
class Layout:
    """How attention reads a row."""

    stems: tuple[Stem, ...]
    buckets: tuple[Bucket, ...]
    order: Int[Tensor, " T"]
    """Of each token, its place among the buckets' results."""


WASTE = 1.3
"""A bucket's longest part is at most this many times its shortest, and a little more: a call costs some padding."""


def grain(count: int) -> int:
    """What a number of rows should be a multiple of: eight numbers remain from one power of two to the next.

    For every shape that it has not seen, a processor's library writes code for bfloat16, and keeps it.
    """
    return 2 ** max(0, count.bit_length() - 4)


def few(count: int) -> int:
    """``count``, or the next number above it that is one of few."""
    return count + -count % grain(count)


def lay_out(stems: Sequence[Stem], device: torch.device, filler: int = 0) -> Layout:
    """The layout of a row of these stems, and of ``filler`` tokens behind them that are nobody's: they attend to
    nothing."""
    parts: list[_Part] = []
    at = 0
    for stem in stems:
        parts.append(_Part(at, stem.prompt))
        start, at = at, at + stem.prompt
        for length in stem.branches:
            parts.append(_Part(at, length, start, stem.prompt))
            at += length
    buckets, order, done = list[Bucket](), [0] * at, 0
    for group in _similar(parts):
        longest = few(max(part.length for part in group))
        buckets.append(_bucket(group, longest, device))
        for row, part in enumerate(group):
            places = range(done + row * longest, done + row * longest + part.length)
            order[part.start : part.start + part.length] = places
        done += len(group) * longest
    return Layout(tuple(stems), tuple(buckets), torch.tensor(order + [0] * filler, device=device))


class _Part(NamedTuple):
    start: int
    length: int
    prompt: int = 0
    """Where the prompt that it sees begins, and how long that is."""
    seen: int = 0


def _similar(parts: Sequence[_Part]) -> Iterator[Sequence[_Part]]:
    """Groups of parts of about the same length that see about as much; as many as a power of two."""
    parts = sorted(parts, key=lambda one: (one.seen > 0, one.seen + one.length, one.length))
    while parts:
        count = 2 ** (_alike(parts).bit_length() - 1)
        yield parts[:count]
        parts = parts[count:]


def _alike(parts: Sequence[_Part]) -> int:
    """How many of them, from the first on, could be in one call with it."""
    first = parts[0]
    most = WASTE * (first.seen + first.length) + 8
    fitting = takewhile(lambda one: one.seen + one.length <= most and bool(one.seen) == bool(first.seen), parts)
    return sum(1 for _ in fitting)


def _bucket(group: Sequence[_Part], longest: int, device: torch.device) -> Bucket:
    start, length, prompt, seen = torch.tensor(group, device=device).T[..., None]
    steps = torch.arange(longest, device=device)
    # Beyond a part's end stands its last token again: its results are not read.
    queries = start + torch.minimum(steps, length - 1)
    if not any(part.seen for part in group):
        return Bucket(queries, queries, None)
    before = torch.arange(few(max(part.seen for part in group)), device=device)
    keys = torch.cat([prompt + torch.minimum(before, seen - 1), queries], dim=1)
    sees_prompt = (before < seen)[:, None].expand(-1, longest, -1)
    sees_own = (steps <= steps[:, None]).expand(len(group), -1, -1)
    return Bucket(queries, keys, torch.cat([sees_prompt, sees_own], dim=2)[:, None])


_layout: ContextVar[Layout | None] = ContextVar("layout")
_nearest: ContextVar[list[int]] = ContextVar("nearest")
"""Takes the windows of layers that do not see everything before a token."""


class CannotPackError(Exception):
    """This architecture's attention does more than the packed one can."""


About = TypeVar("About")


@contextmanager
def attending_by(model: Any, name: str, variable: ContextVar[About], about: About) -> Iterator[None]:
    """Within it the model's attention is the function that is registered under this name, and ``variable`` tells it
    what it should know."""
    config = model.base_model.config
    before, config._attn_implementation = config._attn_implementation, name
    token = variable.set(about)
    try:
        yield
    finally:
        variable.reset(token)
        config._attn_implementation = before


def packed(model: Any, layout: Layout | None) -> AbstractContextManager[None]:
    """Within it the model's attention reads one row of this layout; without a layout, rows of one sequence each."""
    return attending_by(model, NAME, _layout, layout)


def attention(
    _module: Any,
    query: Float[Tensor, "R H T d"],
    key: Float[Tensor, "R h T d"],
    value: Float[Tensor, "R h T e"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Float[Tensor, "R T H e"], None]:
    """Causal attention, stem by stem."""
    beyond = (more.get(name) for name in ("softcap", "position_bias", "s_aux"))
    if attention_mask is not None or any(one is not None for one in beyond):
        raise CannotPackError
    grouped, dtype = query.shape[1] != key.shape[1], value.dtype
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    slow = dtype == torch.bfloat16 and value.device.type == "cpu"

    def attend(q: Tensor, k: Tensor, v: Tensor, bucket: Bucket | None = None) -> Tensor:
        if slow and not dropout and k.shape[2] <= LONGEST:
            hidden = bucket.hidden if bucket else _later(k.shape[2])
            return written_out(q.to(dtype), k.to(dtype), v, hidden, scale)
        mask = bucket.mask if bucket else None
        q, k, v = (part.to(torch.float32 if slow else dtype) for part in (q, k, v))
        return F.scaled_dot_product_attention(
            q, k, v, mask, dropout, is_causal=mask is None, scale=scale, enable_gqa=grouped
        ).to(dtype)

    with torch.autocast(value.device.type, enabled=False):
        if (layout := _layout.get()) is None:
            return attend(query, key, value).transpose(1, 2), None
        rows = [part[0].transpose(0, 1) for part in (query, key, value)]
        found = []
        for bucket in layout.buckets:
            places = (bucket.queries, bucket.keys, bucket.keys)
            q, k, v = (
                row.index_select(0, at.flatten()).unflatten(0, at.shape).transpose(1, 2)
                for row, at in zip(rows, places, strict=True)
            )
            found.append(attend(q, k, v, bucket).transpose(1, 2).flatten(0, 1))
        return torch.cat(found).index_select(0, layout.order)[None], None


def _mask(*, local_size: int | None = None, **_: Any) -> None:
    """No mask: the layout says who sees whom. Notes how far a layer sees, where that is not everything."""
    if local_size is not None and (windows := _nearest.get(None)) is not None:
        windows.append(local_size)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, _mask)

_measured: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def longest_packed(model: Any) -> int:
    """The longest sequence that may be packed, in tokens; 0 where the architecture cannot be packed.

    Measured on a stem with two branches and a sequence beside it, when the model is first asked about.
    """
    if model not in _measured:
        training = model.training
        _measured[model] = _measure(model.eval())  # dropout would pass for cross-talk
        model.train(training)
    return _measured[model]


@torch.no_grad()
def _measure(model: Any) -> int:
    vocabulary, device = model.get_input_embeddings().num_embeddings, model.device
    ids = torch.tensor([1 + 37 * place % (vocabulary - 1) for place in range(11)], device=device)
    alone = [ids[:5], torch.cat([ids[:3], ids[5:8]]), ids[8:]]
    row, layout = ids, lay_out((Stem(3, (2, 3)), Stem(3)), device)
    positions = torch.tensor([0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 2], device=device)
    windows: list[int] = []
    token = _nearest.set(windows)
    try:
        with packed(model, layout):
            states = _states(model, row, positions)
    except Exception:  # an architecture's own code may raise anything
        return 0
    finally:
        _nearest.reset(token)
    expected = torch.cat([_states(model, ids[:5]), _states(model, alone[1])[3:], _states(model, alone[2])])
    if not bool((states - expected).abs().max() <= 1e-2 * expected.std(correction=0)):
        return 0
    return min(windows, default=2**31)


def _states(model: Any, ids: Tensor, positions: Tensor | None = None) -> Tensor:
    where = {} if positions is None else {"position_ids": positions[None]}
    states: Tensor = model.base_model(input_ids=ids[None], use_cache=False, **where).last_hidden_state[0]
    return states
