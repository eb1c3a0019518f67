"""Which precision a model is trained in: the quicker one, by a measurement of the model's own pass."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

from prefloop.algorithms.likelihood import token_log_probs
from prefloop.chat import Rendered
from prefloop.models.forward import arrange, context_of, head_logits, predicting_states
from prefloop.models.precision import computing_in, is_chosen, settled

P = ParamSpec("P")
T = TypeVar("T")
Trained = TypeVar("Trained")

WORTH_IT = 1.25
"""bfloat16 is chosen where it is this many times as quick, so that noise does not choose otherwise the next time."""
TOKENS = 512
"""Of the pass that is measured. In shorter ones the weights' casts, which all tokens share, hide what is gained."""
CLEAR = 1.4
"""So far from `WORTH_IT` one repeat is enough."""
REPEATS = 6
PATIENCE = 3.0
"""Seconds after which fewer repeats are enough."""
_measured: dict[tuple[Any, ...], torch.dtype] = {}


def in_one_precision(train: Callable[Concatenate[Trained, P], T]) -> Callable[Concatenate[Trained, P], T]:
    """For a function that trains what it is given first: all its passes are in one precision, the quickest unless
    something was chosen."""

    @wraps(train)
    def in_it(trained: Trained, /, *args: P.args, **options: P.kwargs) -> T:
        model = trained.model  # type: ignore[attr-defined]
        with settled(torch.float32 if is_chosen() else quickest(model)):
            return train(trained, *args, **options)

    return in_it


def quickest(model: Any) -> torch.dtype:
    """The precision in which this machine trains such a model quickest, measured once a process."""
    shape = shape_of(model)
    if shape not in _measured:
        _measured[shape] = _measure(model)
    return _measured[shape]


def shape_of(model: Any) -> tuple[Any, ...]:
    """What models have in common that cost the same on one device."""
    config, weights = model.config.get_text_config(), sum(one.numel() for one in model.parameters())
    return (config.model_type, config.hidden_size, config.num_hidden_layers, weights, model.device.type)


def _measure(model: Any) -> torch.dtype:
    if model.dtype != torch.float32:  # as it is meant to be, and there is no float32 to choose
        return torch.float32
    if model.device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if _units() < WORTH_IT:  # the model need not be asked
        return torch.float32
    with torch.random.fork_rng():  # dropout
        try:
            gain = _gain(_pass(model))
        except RuntimeError:  # an operation that has no bfloat16
            return torch.float32
        finally:
            model.zero_grad(set_to_none=True)
    return torch.bfloat16 if gain > WORTH_IT else torch.float32


def _units() -> float:
    """How many times as quick this processor multiplies in bfloat16: below 1 where it has no units for that."""
    factor = torch.ones(768, 768)
    return _ratio(lambda dtype: factor.to(dtype) @ factor.to(dtype))


def _pass(model: Any) -> Callable[[], torch.Tensor]:
    """The loss of a few sequences."""
    length, words = min(64, context_of(model)), model.get_input_embeddings().num_embeddings
    ids = [place % words for place in range(length)]
    batch = arrange([Rendered(ids, [False] + [True] * (length - 1))] * (TOKENS // length), model)

    def loss() -> torch.Tensor:
        states = predicting_states(model, batch)
        if model.get_output_embeddings() is None:  # a classifier
            return states.sum()
        return -token_log_probs(head_logits(model, states), batch.targets).sum()

    return loss


def _gain(loss: Callable[[], torch.Tensor]) -> float:
    """How many times as quick a pass, forwards and backwards, is in bfloat16."""

    def both_ways(dtype: torch.dtype) -> None:
        with computing_in("bfloat16" if dtype == torch.bfloat16 else "float32"):
            loss().backward()

    return _ratio(both_ways)


def _ratio(work: Callable[[torch.dtype], object]) -> float:
    """Seconds in float32 by seconds in bfloat16: the best of several each, in turn, once bfloat16's code is written.

    Seconds of one thread's own work: what else the machine does at the time must not choose.
    """
    best = {torch.float32: math.inf, torch.bfloat16: math.inf}
    threads, begun = torch.get_num_threads(), time.perf_counter()
    torch.set_num_threads(1)
    try:
        work(torch.bfloat16)
        for _ in range(REPEATS):
            for dtype in best:
                started = time.process_time()
                work(dtype)
                best[dtype] = min(best[dtype], time.process_time() - started)
            ratio = best[torch.float32] / best[torch.bfloat16]
            if not WORTH_IT / CLEAR < ratio < WORTH_IT * CLEAR or time.perf_counter() - begun > PATIENCE:
                break
    finally:
        torch.set_num_threads(threads)
    return ratio
