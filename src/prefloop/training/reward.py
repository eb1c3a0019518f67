"""A reward model from comparisons [Stiennon et al. 2020; Ouyang et al. 2022, eq. 1], or several as an ensemble."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch

from prefloop.algorithms.preference import bradley_terry_loss, centring_penalty, plackett_luce_loss
from prefloop.config import RewardConfig, ScoreConfig
from prefloop.models.forward import arrange
from prefloop.models.heads import RewardEnsemble, RewardModel
from prefloop.models.quickest import in_one_precision
from prefloop.policy import Policy
from prefloop.seeds import derive
from prefloop.training.comparisons import (
    PreferenceGroup,
    flatten,
    flatten_choices,
    group_micro_batches,
    in_memory,
    with_choices,
    with_margins,
)
from prefloop.training.encoding import KeptGroups
from prefloop.training.loop import Log, Loss, Metrics, Optimiser, fitted, is_checkpoint, shuffled_batches, steps_in

SHIFT_PROMPTS = 64
"""Prompts whose answers say where 0 is, at most."""


def make_reward(
    policy: Policy,
    groups: Sequence[PreferenceGroup],
    heldout: Sequence[PreferenceGroup],
    config: ScoreConfig,
    seed: int,
    log: Log,
    criteria: Mapping[str, float] | None = None,
) -> RewardModel:
    """A trained reward model with the policy's trunk; an ensemble where ``config`` asks for one.

    Members have a trunk each. They differ by their first head and the order of the data; the first is what the same
    seed gives without the others. Their lines of metrics come one member after the other, the steps counting on.
    """
    members: list[RewardModel] = []
    size = config.ensemble if isinstance(config, RewardConfig) else 1
    lines = 0

    def log_member(metrics: Metrics) -> None:
        nonlocal lines
        lines += 1
        number = len(members)
        log({**metrics, "step": lines, "progress": (number + metrics["progress"]) / size, "member": number + 1})

    for number in range(size):
        own = derive(seed, "member", number) if number else seed
        model = RewardModel.from_policy(policy.model, policy.tokenizer, own, criteria)
        train_reward(model, groups, heldout, config, own, log_member if size > 1 else log)
        members.append(model)
    if isinstance(config, RewardConfig) and size > 1:
        return RewardEnsemble(members, config.pessimism)
    return members[0]


@in_one_precision
def train_reward(
    reward: RewardModel,
    groups: Sequence[PreferenceGroup],
    heldout: Sequence[PreferenceGroup],
    config: ScoreConfig,
    seed: int,
    log: Log,
) -> None:
    """Train ``reward`` in place, then shift its scores so that the judged training answers have mean 0.

    Of more than `SHIFT_PROMPTS` prompts some are taken for that, evenly, so that it costs no pass over all of them.
    """
    if not groups:
        raise ValueError("there are no comparisons to learn from. Import some, or let answers be judged first")
    config, groups = fitted(config, reward.model), _prepared(groups, config)
    model, started = reward.model, time.perf_counter()
    steps = steps_in(len(groups), config.batch_size, config.epochs)
    optimiser = Optimiser(model.parameters(), config, steps)

    def loss(batch: list[PreferenceGroup]) -> list[Loss]:
        return [_losses(reward, batch, config)]

    model.train()
    torch.manual_seed(seed)  # dropout
    for step, batch in enumerate(shuffled_batches(groups, config.batch_size, steps, seed), start=1):
        micro = group_micro_batches(batch, config.micro_batch_tokens, model)
        line = optimiser.step(micro, loss, sum(_count(group, config) for group in batch))
        if heldout and is_checkpoint(step, steps):
            line |= heldout_figures(reward, heldout, config.micro_batch_tokens, config.random_answers)
        log({"step": step, "progress": step / steps, **line, "seconds": time.perf_counter() - started})
    model.eval()
    answers, _ = flatten(groups[:: -(-len(groups) // SHIFT_PROMPTS)], model.device)
    scores = reward.criterion_scores(answers, config.micro_batch_tokens)
    reward.shift_scores(*(-float(column.mean()) for column in scores.T))


def _prepared(groups: Sequence[PreferenceGroup], config: ScoreConfig) -> Sequence[PreferenceGroup]:
    """The groups with what the loss needs besides votes."""
    outright = _has_margins(groups)
    if config.loss == "plackett-luce":
        if outright:
            raise ValueError('margins are of pairs; loss = "plackett-luce" has none. Use "bradley-terry"')
        return with_choices(groups)
    return with_margins(groups, config.margin) if config.margin or outright else groups


def _has_margins(groups: Sequence[PreferenceGroup]) -> bool:
    """Whether a ranking says by how much the best should lead."""
    if isinstance(groups, KeptGroups):
        return groups.outright
    return any(ranking.margin for group in groups for ranking in group.rankings)


def _count(group: PreferenceGroup, config: ScoreConfig) -> float:
    """What the sum of the losses is divided by: votes, or choices. For two answers they are the same."""
    if config.loss == "plackett-luce":
        return sum(weight for _, _, weight in group.choices)
    return group.votes


def _losses(reward: RewardModel, batch: list[PreferenceGroup], config: ScoreConfig) -> Loss:
    """The loss of every pair or choice, to be divided by their count, with the centring of every pair."""
    sequences, pairs = flatten(batch, reward.device)
    scores = reward.criterion_batch(arrange(sequences, *(one.model for one in reward.members))).flatten()
    first, second = scores[pairs.first], scores[pairs.second]
    centring = config.centre_coef * centring_penalty(first, second)
    if config.loss == "plackett-luce":
        made = flatten_choices(batch, reward.device)
        losses, stats = plackett_luce_loss(
            scores[made.places], made.shown, made.chosen, made.weights, config.random_answers
        )
        return torch.cat([losses, centring]), stats
    losses, stats = bradley_terry_loss(first - second, pairs.wins, pairs.losses, pairs.margin, config.random_answers)
    return losses + centring, stats


@torch.no_grad()
def heldout_figures(
    reward: RewardModel, groups: Sequence[PreferenceGroup], max_tokens: int, random_answers: float = 0.0
) -> dict[str, float]:
    """``eval_loss`` and ``eval_accuracy`` over the votes of held-out groups, whatever loss is trained on."""
    training = reward.model.training
    reward.model.eval()
    sums = {"eval_loss": 0.0, "eval_accuracy": 0.0}
    votes = 0.0
    for part in in_memory(groups):
        sequences, pairs = flatten(part, reward.device)
        scores = reward.criterion_scores(sequences, max_tokens).flatten()
        losses, stats = bradley_terry_loss(
            scores[pairs.first] - scores[pairs.second], pairs.wins, pairs.losses, random_answers=random_answers
        )
        votes += float((pairs.wins + pairs.losses).sum())
        sums["eval_loss"] += float(losses.sum())
        sums["eval_accuracy"] += float(stats["accuracy"].sum())
    reward.model.train(training)
    return {name: value / votes for name, value in sums.items()}
