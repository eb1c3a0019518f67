"""The cache of a batch of rows that are decoded together, and what stands in it.

A row's tokens take the last columns of the cache; the columns before them are masked out. All rows grow by a column
at a time. Newcomers are read in a pass of their own and put below the rows that are there, so that they end with the
same column, whatever the length of their prompt. Columns that all rows have masked out are dropped then.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from prefloop.models.packing import few, longest_packed
from prefloop.models.precision import autocast, computed_in
from prefloop.rollout.attention import attending, columns_read, spans_of

ROOM = 64
"""Columns that a cache has to spare at least, once it has been moved."""
PASS = 8192
"""Tokens of a pass over prompts, padding included: what a pass needs for a moment grows with them."""


class Roomy(DynamicLayer):
    """Keys and values of one attention layer, with room behind them, so that a token more is no copy of them all.
    What stands in the room is 0.

    Of a sliding window it keeps what has left the window, too: the model's mask hides it. So all layers have the same
    columns.
    """

    keys: Float[Tensor, "B h C d"]
    values: Float[Tensor, "B h C e"]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append columns; all there are now, with some of the room behind them where attention hides that.

        Keys are kept in the values' type: in bfloat16, rotated keys come in float32, and the products that read them
        would cast all of them at every token.
        """
        key_states = key_states.to(value_states.dtype)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._hold(key_states, value_states, key_states.shape[2])
            return self.keys, self.values
        used, count = self.keys.shape[2], key_states.shape[2]
        if used + count > self._kept[0].shape[2]:
            self._hold(_moved(self.keys, used + count), _moved(self.values, used + count), used)
        for kept, new in zip(self._kept, (key_states, value_states), strict=True):
            kept[:, :, used : used + count] = new
        self._hold(*self._kept, used + count)
        shown = columns_read(used + count)
        return self._kept[0][:, :, :shown], self._kept[1][:, :, :shown]

    def choose(self, rows: Int[Tensor, " n"], first: int, newcomers: Roomy | None = None) -> None:
        """These rows from the ``first`` column on; below them newcomers, whose last column is the same."""
        if not self.is_initialized:
            return
        keys, values = (newcomers.keys, newcomers.values) if newcomers else (self.keys[:0], self.values[:0])
        keys = _chosen(self.keys[:, :, first:], rows, keys)
        self._hold(keys, _chosen(self.values[:, :, first:], rows, values), self.keys.shape[2] - first)

    def reorder_cache(self, beam_idx: Int[Tensor, " n"]) -> None:
        """Choose and repeat rows."""
        self.choose(beam_idx, 0)

    def _hold(self, keys: Tensor, values: Tensor, used: int) -> None:
        """Buffers whose first ``used`` columns mean something."""
        self._kept = (keys, values)
        self.keys, self.values = keys[:, :, :used], values[:, :, :used]


def _room(columns: int) -> int:
    return few(columns + max(ROOM, columns // 2))


def _moved(shown: Float[Tensor, "B h C d"], columns: int) -> Float[Tensor, "B h R d"]:
    """To where there is room for ``columns`` columns, and half as many again."""
    rows, heads, used, width = shown.shape
    found = shown.new_zeros(rows, heads, _room(columns), width)
    found[:, :, :used] = shown
    return found


def _chosen(
    shown: Float[Tensor, "B h C d"], rows: Int[Tensor, " n"], below: Float[Tensor, "m h c d"]
) -> Float[Tensor, "b h R d"]:
    _, heads, used, width = shown.shape
    # What is hidden counts for nothing, but must be a number.
    found = shown.new_zeros(len(rows) + len(below), heads, _room(used), width)
    torch.index_select(shown, 0, rows, out=found[: len(rows), :, :used])
    found[len(rows) :, :, used - below.shape[2] : used] = below
    return found


def _empty_cache(model: Any) -> tuple[DynamicCache, bool]:
    """And whether rows can enter it: not where a layer keeps anything but a column for each token."""
    cache = DynamicCache(config=model.config)
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
    if plain:
        cache.layers = [Roomy() for _ in cache.layers]
    return cache, plain


@contextmanager
def casting_once(model: Any) -> Iterator[None]:
    """Within it a model that computes in bfloat16 casts its weights at its first pass only, not at every token.

    torch keeps casts until the outermost autocast ends, and only of weights that are trained: frozen ones pass for
    such here. Nothing but the model computes in bfloat16. The weights may not change within.
    """
    if computed_in() == torch.float32:
        yield
        return
    frozen = [p for p in model.parameters() if p.dtype == torch.float32 and not p.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with autocast(model), torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _passes(prompts: Sequence[list[int]]) -> Iterator[Sequence[list[int]]]:
    """Prompts, longest first, that are read together: `PASS` tokens at most, or one prompt."""
    while prompts:
        count = max(1, PASS // len(prompts[0]))
        yield prompts[:count]
        prompts = prompts[count:]


class Decoder:
    """Rows and their latest hidden states (one for each row).

    ``answers`` rows for each prompt; prompts come longest first.
    """

    def __init__(self, model: Any, prompts: Sequence[list[int]], answers: int) -> None:
        self._model, device = model, model.device
        # Models without attention (Mamba) call their cache so. A state that has read the prompt holds no padding any
        # more: such a model takes an attention mask with the prompts only, and misreads a longer one.
        self._recurrent = "cache_params" in inspect.signature(model.base_model.forward).parameters
        self._cache, self.takes_newcomers = _empty_cache(model)
        prompts, *others = _passes(prompts) if self.takes_newcomers else [prompts]
        self._width = max(map(len, prompts))
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        self._starts, self._next = self._width - lengths, lengths
        """The column of each row's first token; the position of the token that it reads next."""
        self.running: Bool[Tensor, " B"] = torch.ones(len(prompts), dtype=torch.bool, device=device)
        """Whoever decodes says which rows have ended. They are read on, where they are, until others come or go."""
        self.states: Float[Tensor, "B d"]
        self._lay_out()
        ids = torch.tensor([[0] * (self._width - len(p)) + p for p in prompts], device=device)
        positions = torch.arange(self._width, device=device) - self._starts[:, None]
        self._run(ids, positions.clamp(min=0))
        if answers > 1:
            self.keep(torch.arange(len(prompts), device=device).repeat_interleave(answers))
        for more in others:
            self.enter(more, answers)

    def advance(self, tokens: Int[Tensor, " B"]) -> None:
        """Read one more token of each row."""
        self._width += 1
        if self._width > self._attention.shape[1]:
            self._lay_out()
        for span in self._spans:
            span.show(self._width - 1)
        # An ended row stays at its last position: the next might be outside the model's context.
        self._run(tokens[:, None], (self._next - (~self.running).long())[:, None])
        self._next = self._next + self.running

    def keep(self, rows: Int[Tensor, " b"]) -> None:
        """Forget all other rows. A row may come several times."""
        # Of a cache's ways to choose and repeat rows, this is the one that every kind of layer has.
        self._cache.reorder_cache(rows)  # type: ignore[arg-type]
        self._starts, self._next = self._starts[rows], self._next[rows]
        self.running, self.states = self.running[rows], self.states[rows]
        self._lay_out()

    def enter(self, prompts: Sequence[list[int]], answers: int) -> None:
        """Put rows for these prompts in the place of the rows that have ended, below the others.

        No prompt may be longer than any that came before it.
        """
        new, rows = Decoder(self._model, prompts, answers), self.running.nonzero()[:, 0]
        # Columns that no running row has a token in are dropped, as long as the newcomers have room.
        first = int(torch.cat([self._starts[rows], self._starts.new_tensor([self._width - new._width])]).min())
        assert first >= 0, "newcomers come longest first"
        layers: Any = zip(self._cache.layers, new._cache.layers, strict=True)
        for layer, other in layers:
            layer.choose(rows, first, other)
        self._width -= first
        starts, shift = self._starts[rows] - first, self._width - new._width
        self._starts = torch.cat([starts, new._starts + shift])
        self._next = torch.cat([self._next[rows], new._next])
        self.running = torch.ones_like(self._starts, dtype=torch.bool)
        self.states = torch.cat([self.states[rows], new.states])
        self._lay_out()

    def _lay_out(self) -> None:
        """The mask of what each row may see, for some columns to come, too."""
        columns = torch.arange(self._width + ROOM, device=self._starts.device)
        self._attention = (columns >= self._starts[:, None]).long()
        own = self._starts.device.type == "cpu" and len(columns) <= longest_packed(self._model)
        self._spans = spans_of(self._starts.tolist(), self._width, len(columns)) if own else []

    def _run(self, ids: Int[Tensor, "B T"], positions: Int[Tensor, "B T"]) -> None:
        inputs: dict[str, Any] = {"cache_params" if self._recurrent else "past_key_values": self._cache}
        if ids.shape[1] == self._width or not self._recurrent:
            inputs |= {"attention_mask": self._attention[:, : self._width], "position_ids": positions}
        own = attending(self._model, self._spans) if self._spans and ids.shape[1] == 1 else nullcontext()
        with autocast(self._model), own:
            states = self._model.base_model(input_ids=ids, use_cache=True, **inputs).last_hidden_state
        self.states = states[:, -1]
