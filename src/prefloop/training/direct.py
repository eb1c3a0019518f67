"""DPO and its family [Rafailov et al. 2023]: train the policy on comparisons directly, without a reward model.

The losses are in :mod:`prefloop.algorithms.dpo`; this loop is the same for all of them. What differs is the quantity
of an answer that is compared: for DPO, IPO and KTO its log-ratio to the reference, summed over its tokens; for ORPO
and SimPO its log-probability, the mean over its tokens, and they need no reference.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from prefloop.algorithms.dpo import (
    dpo_loss,
    ipo_loss,
    kto_loss,
    kto_reference_point,
    orpo_loss,
    pair_stats,
    simpo_loss,
)
from prefloop.algorithms.likelihood import sequence_sums, token_log_probs
from prefloop.chat import Rendered
from prefloop.config import DirectConfig, DPOConfig, IPOConfig, KTOConfig, ORPOConfig, SimPOConfig
from prefloop.models.forward import (
    arrange,
    head_logits,
    in_parts,
    predicting_states,
    score_responses,
    whole_parts,
)
from prefloop.models.quickest import in_one_precision
from prefloop.policy import Policy
from prefloop.training.comparisons import (
    Each,
    Pairs,
    PreferenceGroup,
    flatten,
    group_micro_batches,
    in_memory,
    with_mismatched,
)
from prefloop.training.loop import Log, Loss, Metrics, Optimiser, fitted, is_checkpoint, shuffled_batches, steps_in

WITH_REFERENCE = (DPOConfig, IPOConfig, KTOConfig)


@in_one_precision
def train_direct(
    policy: Policy,
    groups: Sequence[PreferenceGroup],
    heldout: Sequence[PreferenceGroup],
    config: DirectConfig,
    seed: int,
    log: Log,
) -> Metrics:
    """Train ``policy`` in place with the loss that ``config`` belongs to; as it comes in, it is the reference.

    The reference is read once, before training: no second model is kept.

    Returns:
        ``eval_loss`` and ``eval_accuracy`` where there are held-out comparisons.
    """
    if not groups:
        raise ValueError("there are no comparisons to learn from. Import some, or let answers be judged first")
    model, started, config = policy.model, time.perf_counter(), fitted(config, policy.model)
    model.eval()
    if isinstance(config, KTOConfig):
        groups, heldout = with_mismatched(groups), with_mismatched(heldout)
    if isinstance(config, WITH_REFERENCE):
        groups, heldout = (with_reference(model, part, config) for part in (groups, heldout))
    steps = steps_in(len(groups), config.batch_size, config.epochs)
    optimiser = Optimiser(model.parameters(), config, steps)
    point = torch.zeros((), device=model.device)

    def loss(batch: list[PreferenceGroup]) -> Iterator[Loss]:
        return preference_losses(model, batch, config, point)

    result: Metrics = {}
    for step, batch in enumerate(shuffled_batches(groups, config.batch_size, steps, seed), start=1):
        if isinstance(config, KTOConfig):
            point = _reference_point(model, batch, config)
        micro = group_micro_batches(batch, config.micro_batch_tokens, model)
        line = optimiser.step(micro, loss, sum(group.votes for group in batch))
        if isinstance(config, KTOConfig):
            line["reference_point"] = float(point)
        if heldout and is_checkpoint(step, steps):
            result = heldout_figures(model, heldout, config)
            line |= result
        log({"step": step, "progress": step / steps, **line, "seconds": time.perf_counter() - started})
    return result


def preference_losses(
    model: Any, groups: Sequence[PreferenceGroup], config: DirectConfig, point: Float[Tensor, ""]
) -> Iterator[Loss]:
    """Part by part, the loss of every pair (KTO: of every answer), to be divided by the number of votes.

    A part is whole groups: what an answer costs is known when all of its tokens are.
    """
    answers = [list(group.sequences) for group in groups]
    tokens = [sum(one.response_tokens for one in part) for part in answers]
    batch = arrange([one for part in answers for one in part], model)
    parts = whole_parts(model, tokens)

    def of(states: Tensor, place: slice) -> Loss:
        number = starts.index(place.start)
        log_probs = token_log_probs(head_logits(model, states), batch.targets[place])
        return _part_losses([groups[i] for i in parts[number]], log_probs, config, point)

    counts = [sum(tokens[i] for i in part) for part in parts]
    starts = list(accumulate(counts, initial=0))
    return in_parts(predicting_states(model, batch), counts, of)


def _part_losses(
    groups: Sequence[PreferenceGroup],
    log_probs: Float[Tensor, " n"],
    config: DirectConfig,
    point: Float[Tensor, ""],
) -> Loss:
    """The losses of some groups, given the log-probabilities of their response tokens, end to end."""
    sequences, pairs = flatten(groups, log_probs.device)
    values = _values(log_probs, sequences, groups, config)
    first, second = values[pairs.first], values[pairs.second]
    wins, losses = pairs.wins, pairs.losses
    match config:
        case DPOConfig():
            found, stats = dpo_loss(first - second, wins, losses, config.beta, config.label_smoothing)
        case IPOConfig():
            found, stats = ipo_loss(first - second, wins, losses, config.beta)
        case ORPOConfig():
            found, stats = orpo_loss(first, second, wins, losses, config.weight)
        case SimPOConfig():
            found, stats = simpo_loss(first - second, wins, losses, config.beta, config.margin)
        case KTOConfig():
            desirable, undesirable = _votes_by_answer(pairs, len(sequences))
            weights = config.desirable_weight, config.undesirable_weight
            # A vote says something about two answers: the mean over both is what one vote costs.
            found = kto_loss(values, point, desirable, undesirable, config.beta, *weights) / 2
            stats = pair_stats(config.beta * (first - second), wins, losses)
        case _:
            raise TypeError(f"no loss belongs to {type(config).__name__}")
    # Apart, not as a difference: both falling is the known failure of these methods.
    stats["chosen_logp"] = (wins * first + losses * second).detach()
    stats["rejected_logp"] = (wins * second + losses * first).detach()
    return found, stats


def _values(
    log_probs: Float[Tensor, " n"],
    sequences: Sequence[Rendered],
    groups: Sequence[PreferenceGroup],
    config: DirectConfig,
) -> Float[Tensor, " B"]:
    """What is compared: an answer's log-ratio to the reference, or its mean log-probability."""
    lengths = torch.tensor([sequence.response_tokens for sequence in sequences], device=log_probs.device)
    rows = torch.arange(len(sequences), device=log_probs.device).repeat_interleave(lengths)
    sums = sequence_sums(log_probs, rows, len(sequences))
    if isinstance(config, WITH_REFERENCE):
        return sums - torch.cat([group.ref_log_probs for group in groups if group.ref_log_probs is not None])
    return sums / lengths


def _votes_by_answer(pairs: Pairs, answers: int) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Votes for and against each answer."""
    ends = torch.cat([pairs.first, pairs.second])
    return (
        pairs.wins.new_zeros(answers).index_add(0, ends, torch.cat([pairs.wins, pairs.losses])),
        pairs.wins.new_zeros(answers).index_add(0, ends, torch.cat([pairs.losses, pairs.wins])),
    )


def with_reference(model: Any, groups: Sequence[PreferenceGroup], config: DirectConfig) -> Sequence[PreferenceGroup]:
    """The groups with log π_ref of each answer, from one pass over all of them."""
    if not groups:
        return groups
    parts, ends = list[Tensor](), array("q", [0])
    for part in in_memory(groups):
        sequences = list[Rendered]()
        for group in part:
            sequences += group.all_sequences
            ends.append(ends[-1] + len(group.all_sequences))
        parts.append(_sums(model, sequences, config))
    values = torch.cat(parts)
    return Each(len(groups), lambda number: _with_reference(groups[number], values[ends[number] : ends[number + 1]]))


def _with_reference(group: PreferenceGroup, values: Float[Tensor, " n"]) -> PreferenceGroup:
    """``values``: of all sequences of the group."""
    return replace(
        group,
        ref_log_probs=values[: len(group.sequences)],
        ref_mismatched=values[-1] if group.mismatched else None,
    )


def _sums(model: Any, sequences: Sequence[Rendered], config: DirectConfig) -> Float[Tensor, " B"]:
    """log π of each answer."""
    return torch.stack([values.sum() for values in score_responses(model, sequences, config.micro_batch_tokens)])


@torch.no_grad()
def _reference_point(model: Any, groups: Sequence[PreferenceGroup], config: KTOConfig) -> Float[Tensor, ""]:
    """KTO's z, of the whole optimiser step, so that micro-batches change nothing."""
    sums, ref = list[Tensor](), list[Tensor]()
    for part in in_memory(groups):
        sums.append(_sums(model, [group.mismatched for group in part if group.mismatched is not None], config))
        ref += [group.ref_mismatched for group in part if group.ref_mismatched is not None]
    return kto_reference_point(torch.cat(sums) - torch.stack(ref))


@torch.no_grad()
def heldout_figures(model: Any, groups: Sequence[PreferenceGroup], config: DirectConfig) -> Metrics:
    point = torch.zeros((), device=model.device)
    if isinstance(config, KTOConfig):
        point = _reference_point(model, groups, config)
    sums, votes = {"eval_loss": 0.0, "eval_accuracy": 0.0}, 0.0
    for part in in_memory(groups):
        votes += sum(group.votes for group in part)
        for batch in group_micro_batches(part, config.micro_batch_tokens, model):
            for losses, stats in preference_losses(model, batch, config, point):
                sums["eval_loss"] += float(losses.sum())
                sums["eval_accuracy"] += float(stats["accuracy"].sum())
    return {name: value / votes for name, value in sums.items()}
