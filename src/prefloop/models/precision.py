"""The precision that models compute in: float32, or bfloat16 where this machine is quicker with it.

Weights and the optimiser's state stay in float32, and so do attention's scores on a processor, log-probabilities,
losses and values: what is computed in bfloat16 are the products of the model's layers and of its head (autocast).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Literal

import torch

# What a processor's library writes for each shape in bfloat16 is half a megabyte of code. It keeps 1,024 of them, and
# torch's layer above it as many again. Read when the first one is written; who set these knows better.
os.environ.setdefault("LRU_CACHE_CAPACITY", "1")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")

Precision = Literal["auto", "float32", "bfloat16"]
_chosen: ContextVar[torch.dtype | None] = ContextVar("chosen", default=None)


_used: ContextVar[set[str] | None] = ContextVar("used", default=None)


@contextmanager
def computing_in(precision: Precision) -> Iterator[None]:
    """Within it models compute in this precision; with ``auto``, each training in the one that is quickest for it."""
    known = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
    if precision not in known:
        raise ValueError(f"unknown precision {precision!r}; expected one of {', '.join(known)}")
    token = _chosen.set(known[precision])
    try:
        yield
    finally:
        _chosen.reset(token)


def computed_in() -> torch.dtype:
    """The precision that models compute in here: float32 unless something was chosen."""
    return _chosen.get() or torch.float32


@contextmanager
def noting_precision() -> Iterator[set[str]]:
    """Takes the names of the precisions that models are trained in within it."""
    names: set[str] = set()
    token = _used.set(names)
    try:
        yield names
    finally:
        _used.reset(token)


@contextmanager
def settled(dtype: torch.dtype) -> Iterator[None]:
    """Within it models compute in what was chosen before, or else in ``dtype``."""
    token = _chosen.set(_chosen.get() or dtype)
    if (used := _used.get()) is not None:
        used.add(str(computed_in()).removeprefix("torch."))
    try:
        yield
    finally:
        _chosen.reset(token)


def is_chosen() -> bool:
    """Whether somebody has said what to compute in."""
    return _chosen.get() is not None


def autocast(model: Any) -> AbstractContextManager[Any]:
    """For a pass of a model."""
    if computed_in() == torch.float32:
        return nullcontext()
    return torch.autocast(model.device.type, dtype=computed_in())
