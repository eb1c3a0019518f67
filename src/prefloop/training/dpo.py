"""DPO [Rafailov et al. 2023]: train the policy on comparisons directly, without a reward model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from prefloop.algorithms.dpo import dpo_loss
from prefloop.algorithms.likelihood import sequence_sums
from prefloop.config import DPOConfig
from prefloop.models.forward import pad, response_log_probs, score_responses
from prefloop.policy import Policy
from prefloop.training.comparisons import PreferenceGroup, flatten, group_micro_batches
from prefloop.training.loop import Log, Metrics, Optimiser, is_checkpoint, shuffled_batches, steps_in


def train_dpo(
    policy: Policy,
    groups: Sequence[PreferenceGroup],
    heldout: Sequence[PreferenceGroup],
    config: DPOConfig,
    seed: int,
    log: Log,
) -> Metrics:
    """Train ``policy`` in place; the policy as it comes in is the reference.

    The reference is read once, before training: no second model is kept.

    Returns:
        ``eval_loss`` and ``eval_accuracy`` where there are held-out comparisons.
    """
    if not groups:
        raise ValueError("there are no comparisons to learn from. Import some, or let answers be judged first")
    model, started = policy.model, time.perf_counter()
    model.eval()
    groups, heldout = (_with_reference(model, part, config) for part in (groups, heldout))
    steps = steps_in(len(groups), config.batch_size, config.epochs)
    optimiser = Optimiser(model.parameters(), config, steps)

    def loss(batch: list[PreferenceGroup]) -> tuple[Tensor, dict[str, Tensor]]:
        return _pair_losses(model, batch, config)

    result: Metrics = {}
    for step, batch in enumerate(shuffled_batches(groups, config.batch_size, steps, seed), start=1):
        micro = group_micro_batches(batch, config.micro_batch_tokens)
        line = optimiser.step(micro, loss, sum(group.votes for group in batch))
        if heldout and is_checkpoint(step, steps):
            result = _heldout_figures(model, heldout, config)
            line |= result
        log({"step": step, "progress": step / steps, **line, "seconds": time.perf_counter() - started})
    return result


def _pair_losses(
    model: Any, groups: Sequence[PreferenceGroup], config: DPOConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    sequences, pairs = flatten(groups, model.device)
    batch = pad(sequences, model.device)
    log_probs = sequence_sums(response_log_probs(model, batch), batch.rows, len(sequences))
    ratios = log_probs - torch.cat([group.ref_log_probs for group in groups if group.ref_log_probs is not None])
    first, second = ratios[pairs.first], ratios[pairs.second]
    losses, stats = dpo_loss(first - second, pairs.wins, pairs.losses, config.beta, config.label_smoothing)
    # Apart, not as a difference: both falling is DPO's known failure.
    stats["chosen_logp"] = (pairs.wins * first + pairs.losses * second).detach()
    stats["rejected_logp"] = (pairs.wins * second + pairs.losses * first).detach()
    return losses, stats


def _with_reference(model: Any, groups: Sequence[PreferenceGroup], config: DPOConfig) -> list[PreferenceGroup]:
    """The groups with log π_ref of each answer, from one pass over all of them."""
    answers = [sequence for group in groups for sequence in group.sequences]
    if not answers:
        return []
    sums = torch.stack([values.sum() for values in score_responses(model, answers, config.micro_batch_tokens)])
    parts = sums.split([len(group.sequences) for group in groups])
    return [replace(group, ref_log_probs=part) for group, part in zip(groups, parts, strict=True)]


@torch.no_grad()
def _heldout_figures(model: Any, groups: Sequence[PreferenceGroup], config: DPOConfig) -> Metrics:
    votes = sum(group.votes for group in groups)
    sums = {"eval_loss": 0.0, "eval_accuracy": 0.0}
    for batch in group_micro_batches(groups, config.micro_batch_tokens):
        losses, stats = _pair_losses(model, batch, config)
        sums["eval_loss"] += float(losses.sum())
        sums["eval_accuracy"] += float(stats["accuracy"].sum())
    return {name: value / votes for name, value in sums.items()}
