"""Advantages without a critic: REINFORCE, RLOO, GRPO and REINFORCE++.

All take the per-token rewards of a rollout (:func:`prefloop.algorithms.ppo.token_rewards`) and return one advantage
for each token, 0 at padding; what follows, the clipped loss, is the same as in PPO. What differs is the baseline:

* REINFORCE: the mean of the other episodes of the batch;
* RLOO: the mean of the other answers to the same prompt;
* GRPO: the mean of all answers to the same prompt, in units of their deviation;
* REINFORCE++: the mean of the batch, in units of its deviation.

Rows lie as sampling leaves them: the K answers to a prompt are neighbours.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prefloop.algorithms.masked import masked_whiten


def rewards_to_go(
    rewards: Float[Tensor, "B R"], mask: Bool[Tensor, "B R"], gamma: float = 1.0
) -> Float[Tensor, "B R"]:
    """G_t = Σ_{s ≥ t} γ^{s−t} r_s: what an action can still change; 0 at padding."""
    zero = rewards.new_zeros(())
    rewards = rewards.where(mask, zero)
    if gamma == 1:
        return rewards.flip(1).cumsum(1).flip(1).where(mask, zero)
    result, later = torch.zeros_like(rewards), rewards.new_zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        later = rewards[:, t] + gamma * later
        result[:, t] = later
    return result.where(mask, zero)


def reinforce_advantages(
    rewards: Float[Tensor, "B R"], mask: Bool[Tensor, "B R"], gamma: float
) -> Float[Tensor, "B R"]:
    """G_t − b [Williams 1992], b the mean return G_1 of the *other* episodes, so that no reward is its own baseline.

    Raises:
        ValueError: fewer than two episodes.
    """
    if len(rewards) < 2:
        raise ValueError("REINFORCE's baseline is the mean of the other episodes; there is only one episode")
    to_go = rewards_to_go(rewards, mask, gamma)
    baseline = _mean_of_others(to_go[None, :, 0])[0]
    return (to_go - baseline[:, None]).where(mask, rewards.new_zeros(()))


def leave_one_out(scores: Float[Tensor, " B"], answers: int) -> Float[Tensor, " B"]:
    """Each score less the mean of the other K − 1 of its prompt [Kool et al. 2019].

    What all answers to a prompt have in common is no merit of any of them. The others are drawn independently, so
    the expected gradient stays as it is and only its variance falls.

    Args:
        scores: of the K answers to the first prompt, then of those to the second, …
        answers: K ≥ 2.
    """
    groups = scores.view(-1, answers)
    return (groups - _mean_of_others(groups)).flatten()


def rloo_advantages(rewards: Float[Tensor, "B R"], mask: Bool[Tensor, "B R"], answers: int) -> Float[Tensor, "B R"]:
    """REINFORCE leave-one-out: A_k = R_k − mean of R_j, j ≠ k [Kool et al. 2019; Ahmadian et al. 2024, §3.2].

    A whole answer is one action, R the sum of its rewards, so its tokens share one advantage.

    Args:
        answers: K ≥ 2, answers to each prompt.
    """
    returns = _returns_by_prompt(rewards, mask, answers)
    return _spread(leave_one_out(returns.flatten(), answers), mask)


def grpo_advantages(
    rewards: Float[Tensor, "B R"], mask: Bool[Tensor, "B R"], answers: int, scale: bool
) -> Float[Tensor, "B R"]:
    """Group-relative: A_k = (R_k − mean R) / std R over the answers to a prompt [Shao et al. 2024, §4.1.2].

    Args:
        answers: K ≥ 2, answers to each prompt.
        scale: divide by the deviation (K − 1 in its denominator). Without it a prompt whose answers hardly differ
            weighs little, and the gradient is unbiased up to a constant [Liu et al. 2025, "Dr. GRPO"].

    Returns:
        Answers that are all worth the same have advantage 0.
    """
    returns = _returns_by_prompt(rewards, mask, answers)
    advantages = returns - returns.mean(1, keepdim=True)
    if scale:
        advantages = advantages / (returns.std(1, keepdim=True) + 1e-4)
    return _spread(advantages, mask)


def reinforce_pp_advantages(
    rewards: Float[Tensor, "B R"], mask: Bool[Tensor, "B R"], gamma: float
) -> Float[Tensor, "B R"]:
    """REINFORCE++: rewards-to-go, whitened over all tokens of the batch [Hu 2025, §3]."""
    return masked_whiten(rewards_to_go(rewards, mask, gamma), mask)


def _returns_by_prompt(
    rewards: Float[Tensor, "B R"], mask: Bool[Tensor, "B R"], answers: int
) -> Float[Tensor, "G K"]:
    assert answers >= 2
    assert len(rewards) % answers == 0
    return rewards.where(mask, rewards.new_zeros(())).sum(1).view(-1, answers)


def _mean_of_others(values: Float[Tensor, "G K"]) -> Float[Tensor, "G K"]:
    count = values.shape[1]
    return (values.sum(1, keepdim=True) - values) / (count - 1)


def _spread(advantages: Float[Tensor, "*groups"], mask: Bool[Tensor, "B R"]) -> Float[Tensor, "B R"]:
    """An answer's advantage at each of its tokens."""
    return advantages.reshape(-1, 1) * mask
