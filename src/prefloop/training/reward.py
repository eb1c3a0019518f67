"""A reward model from comparisons [Stiennon et al. 2020; Ouyang et al. 2022, eq. 1]."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from prefloop.algorithms.preference import bradley_terry_loss, centring_penalty
from prefloop.config import RewardConfig
from prefloop.models.forward import pad
from prefloop.models.heads import RewardModel
from prefloop.training.comparisons import PreferenceGroup, flatten, group_micro_batches
from prefloop.training.loop import Log, Optimiser, is_checkpoint, shuffled_batches, steps_in


def train_reward(
    reward: RewardModel,
    groups: Sequence[PreferenceGroup],
    heldout: Sequence[PreferenceGroup],
    config: RewardConfig,
    seed: int,
    log: Log,
) -> None:
    """Train ``reward`` in place, then shift its scores so that the judged training answers have mean 0."""
    if not groups:
        raise ValueError("there are no comparisons to learn from. Import some, or let answers be judged first")
    model, started = reward.model, time.perf_counter()
    steps = steps_in(len(groups), config.batch_size, config.epochs)
    optimiser = Optimiser(model.parameters(), config, steps)

    def loss(batch: list[PreferenceGroup]) -> tuple[Tensor, dict[str, Tensor]]:
        sequences, pairs = flatten(batch, model.device)
        scores = reward.score_batch(pad(sequences, model.device))
        first, second = scores[pairs.first], scores[pairs.second]
        losses, stats = bradley_terry_loss(first - second, pairs.wins, pairs.losses)
        return losses + config.centre_coef * centring_penalty(first, second), stats

    model.train()
    torch.manual_seed(seed)  # dropout
    for step, batch in enumerate(shuffled_batches(groups, config.batch_size, steps, seed), start=1):
        micro = group_micro_batches(batch, config.micro_batch_tokens)
        line = optimiser.step(micro, loss, sum(group.votes for group in batch))
        if heldout and is_checkpoint(step, steps):
            line |= heldout_figures(reward, heldout, config.micro_batch_tokens)
        log({"step": step, "progress": step / steps, **line, "seconds": time.perf_counter() - started})
    model.eval()
    answers, _ = flatten(groups, model.device)
    reward.shift_scores(-float(reward.score(answers, config.micro_batch_tokens).mean()))


@torch.no_grad()
def heldout_figures(reward: RewardModel, groups: Sequence[PreferenceGroup], max_tokens: int) -> dict[str, float]:
    """``eval_loss`` and ``eval_accuracy`` over the votes of held-out groups."""
    training = reward.model.training
    reward.model.eval()
    sequences, pairs = flatten(groups, reward.model.device)
    scores = reward.score(sequences, max_tokens)
    reward.model.train(training)
    losses, stats = bradley_terry_loss(scores[pairs.first] - scores[pairs.second], pairs.wins, pairs.losses)
    votes = float((pairs.wins + pairs.losses).sum())
    return {
        "eval_loss": float(losses.sum()) / votes,
        "eval_accuracy": float(stats["accuracy"].sum()) / votes,
    }
