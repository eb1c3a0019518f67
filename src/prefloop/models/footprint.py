"""The memory that training a model takes: what a pass keeps for its backward pass, and how many tokens fit.

What is kept is counted, not estimated from the architecture: a pass of a few sequences is run, and every storage that
autograd holds on to is added up. That works on a model without storage, too (torch's fake tensors), so a model that
does not fit this machine can be counted on it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefloop.chat import Rendered
from prefloop.models.forward import context_of, pack
from prefloop.models.packing import packed
from prefloop.models.precision import autocast, computed_in
from prefloop.models.quickest import shape_of

SHARE = 0.25
"""Of the memory, for what a pass keeps. The rest is for weights, gradients, Adam's state and other models."""
AMPLE = 2**28
"""Bytes that a pass keeps on a processor at most: passes that kept more were hardly quicker."""
LEAST, MOST = 512, 4096
"""Tokens of a pass. Twice as many were no quicker, and kept twice as much."""
LENGTH = 64
"""Of the sequences that are counted, on average."""
WEIGHT_BYTES = 4
"""Of each weight: float32, whatever is computed in."""
TRAINED_BYTES = 4 * WEIGHT_BYTES
"""Of each weight that is trained: its gradient and Adam's two moments are as large."""


@dataclass(frozen=True)
class Kept:
    """Bytes that a pass keeps for its backward pass; weights and the head's logits are not among them."""

    per_token: float
    fixed: float
    """However many tokens there are: the weights' casts to bfloat16."""

    def bytes(self, tokens: float) -> float:
        """Of a pass over these many tokens."""
        return self.fixed + tokens * self.per_token


def kept(model: Any, length: int = LENGTH) -> Kept:
    """What a pass over packed sequences of about ``length`` tokens keeps, in the precision chosen here.

    Two passes are run, forwards only, of four sequences and of eight.
    """
    length = max(4, min(length, context_of(model) * 4 // 5))
    few, many = (sequences_around(model, length, count) for count in (4, 8))
    training = model.training
    model.train()  # dropout keeps its masks
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            (less, tokens), (more, later) = _bytes_kept(model, few), _bytes_kept(model, many)
    finally:
        model.train(training)
    per_token = (more - less) / (later - tokens)
    return Kept(per_token, max(0.0, less - tokens * per_token))


def sequences_around(model: Any, length: int, count: int) -> list[Rendered]:
    """A few lengths around ``length``, as real sequences have; no two begin alike. The second half is trained on."""
    words = model.get_input_embeddings().num_embeddings
    made = []
    for row in range(count):
        own = length * (3, 4, 5, 4)[row % 4] // 4
        ids = [(37 * row + place) % words for place in range(own)]
        made.append(Rendered(ids, [place >= own // 2 for place in range(own)]))
    return made


def _bytes_kept(model: Any, sequences: list[Rendered]) -> tuple[int, int]:
    """Of how many tokens, too: padding counts where the architecture cannot be packed."""
    try:
        return _noted(model, lambda: _packed_states(model, sequences)), sum(map(len, sequences))
    except Exception:  # an architecture's own code may raise anything
        padded = len(sequences) * max(map(len, sequences))
        return _noted(model, lambda: _padded_states(model, sequences)), padded


def _noted(model: Any, read: Callable[[], Tensor]) -> int:
    """Every storage once; those of parameters and buffers are there anyway."""
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    found: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> None:
        # Nothing goes backwards. A tensor handed over to the graph that it is a result of would never be freed.
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            found[storage._cdata] = storage

    with torch.autograd.graph.saved_tensors_hooks(note, lambda nothing: nothing), autocast(model):
        states = read()
    assert states.requires_grad, "nothing is trained"
    return sum(storage.nbytes() for storage in found.values())


def _packed_states(model: Any, sequences: list[Rendered]) -> Tensor:
    batch = pack(sequences, model.device)
    with packed(model, batch.layout):
        return _read(model, batch.ids, position_ids=batch.positions)


def _padded_states(model: Any, sequences: list[Rendered]) -> Tensor:
    longest = max(map(len, sequences))
    return _read(model, torch.tensor([(one.ids * 2)[:longest] for one in sequences], device=model.device))


def _read(model: Any, ids: Tensor, **more: Tensor | None) -> Tensor:
    states: Tensor = model.base_model(input_ids=ids, use_cache=False, **more).last_hidden_state
    return states


_budgets: dict[tuple[Any, ...], int] = {}
_found: ContextVar[set[int] | None] = ContextVar("found", default=None)


def token_budget(model: Any) -> int:
    """Tokens of a micro-batch: as many as keep what there is room for, of few numbers.

    Measured once a process for each shape of model and precision.
    """
    shape = (*shape_of(model), computed_in())
    if shape not in _budgets:
        _budgets[shape] = budget_in(room_on(model.device, memory_of(model.device)), kept(model))
    if (noted := _found.get()) is not None:
        noted.add(_budgets[shape])
    return _budgets[shape]


def room_on(device: torch.device, memory: float) -> float:
    """Bytes that a pass may keep, of so much memory in all."""
    return min(SHARE * memory, AMPLE) if device.type == "cpu" else SHARE * memory


def budget_in(room: float, kept: Kept) -> int:
    """The largest power of two from `LEAST` to `MOST` that keeps ``room`` bytes at most."""
    fitting = max(1, int(room / max(1.0, kept.per_token)))
    return min(MOST, max(LEAST, 2 ** (fitting.bit_length() - 1)))


def memory_of(device: torch.device) -> int:
    """Bytes that the device has in all, whatever is in use: the same on every run."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def hand_back() -> None:
    """Give memory that is free back to the system.

    glibc keeps it in pieces, and a phase of training rarely fits into what the one before it has left.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim:
        trim(0)


@contextmanager
def noting_budgets() -> Iterator[set[int]]:
    """Takes the tokens of a micro-batch that were found within it."""
    found: set[int] = set()
    token = _found.set(found)
    try:
        yield found
    finally:
        _found.reset(token)
