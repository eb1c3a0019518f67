"""Generalised advantage estimation [Schulman et al. 2016, eq. 11 to 16]."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def generalised_advantages(
    rewards: Float[Tensor, "B R"],
    values: Float[Tensor, "B R"],
    mask: Bool[Tensor, "B R"],
    gamma: float,
    lam: float,
) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B R"]]:
    """δ_t = r_t + γ V_{t+1} − V_t and A_t = δ_t + γλ A_{t+1}; returns = A + V.

    Args:
        rewards: r_t, for the action (token) t of the response.
        values: V_t, of the state before that action.
        mask: true for real tokens, which stand at the front of each row. The state after the last one is
            terminal, its value is 0.

    Returns:
        Advantages and returns; 0 at padded positions.
    """
    zero = values.new_zeros(())
    values, rewards = values.where(mask, zero), rewards.where(mask, zero)
    advantages = torch.zeros_like(values)
    advantage = values.new_zeros(len(values))
    next_value = values.new_zeros(len(values))
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = (delta + gamma * lam * advantage).where(mask[:, t], zero)
        advantages[:, t] = advantage
        next_value = values[:, t]
    return advantages, (advantages + values).where(mask, zero)
