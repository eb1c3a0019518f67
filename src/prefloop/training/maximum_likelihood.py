"""Next-token training, the loss on chosen tokens only: pretraining and supervised fine-tuning."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from prefloop.algorithms.likelihood import token_log_probs
from prefloop.chat import Rendered
from prefloop.config import Optimisation
from prefloop.models.forward import (
    arrange,
    head_logits,
    in_parts,
    micro_batches,
    predicting_states,
    score_responses,
    token_parts,
)
from prefloop.training.loop import Log, Loss, Metrics, Optimiser, fitted, is_checkpoint, shuffled_batches

AT_ONCE = 10_000
"""Held-out sequences in memory; there may be any number."""


def fit(
    model: Any,
    sequences: Sequence[Rendered],
    heldout: Sequence[Rendered],
    config: Optimisation,
    *,
    batch_size: int,
    steps: int,
    seed: int,
    log: Log,
) -> Metrics:
    """Minimise −log π(token) over the masked-in tokens; ``model`` is changed in place.

    Returns:
        ``eval_loss``: mean over the held-out tokens, nats; NaN is never returned: without held-out data the key
        is absent.
    """
    started, tokens, config = time.perf_counter(), 0, fitted(config, model)
    optimiser = Optimiser(model.parameters(), config, steps)
    result: Metrics = {}
    model.train()
    torch.manual_seed(seed)  # dropout
    for step, batch in enumerate(shuffled_batches(sequences, batch_size, steps, seed), start=1):
        groups = [[batch[i] for i in rows] for rows in micro_batches(batch, config.micro_batch_tokens, model)]
        count = sum(sequence.response_tokens for sequence in batch)
        tokens += count
        line = optimiser.step(groups, _negative_log_likelihood(model), count)
        if heldout and is_checkpoint(step, steps):
            result = {"eval_loss": heldout_loss(model, heldout, config.micro_batch_tokens)}
            line |= result
        log(
            {
                "step": step,
                "progress": step / steps,
                **line,
                "tokens": tokens,
                "seconds": time.perf_counter() - started,
            }
        )
    model.eval()
    return result


def heldout_loss(model: Any, sequences: Sequence[Rendered], max_tokens: int) -> float:
    """Mean −log π over all masked-in tokens of held-out sequences, nats."""
    training = model.training
    model.eval()
    parts = (sequences[start : start + AT_ONCE] for start in range(0, len(sequences), AT_ONCE))
    log_probs = torch.cat([torch.cat(score_responses(model, part, max_tokens)) for part in parts])
    model.train(training)
    return float(-log_probs.double().mean())


def _negative_log_likelihood(model: Any) -> Callable[[list[Rendered]], Iterator[Loss]]:
    def loss(sequences: list[Rendered]) -> Iterator[Loss]:
        batch = arrange(sequences, model)
        states = predicting_states(model, batch)

        def of(part: Tensor, place: slice) -> Loss:
            return -token_log_probs(head_logits(model, part), batch.targets[place]), {}

        return in_parts(states, token_parts(model, len(states)), of)

    return loss
