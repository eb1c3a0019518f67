"""Generalised advantages against the sums of the paper, in Python floats."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from prefloop.algorithms.gae import generalised_advantages

LENGTHS = [6, 1, 4, 2]


@pytest.fixture(params=[0, 1, 2])
def world(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, values and mask; what stands at padding is poison."""
    generator = torch.Generator().manual_seed(request.param)
    mask = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
    rewards, values = (torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    return rewards.masked_fill(~mask, 1e6), values.masked_fill(~mask, -1e6), mask


def summed(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Eq. 16 as it stands: A_t = Σ_l (γλ)^l δ_{t+l}, the state after the last action being worth 0."""
    length = len(rewards)
    deltas = [rewards[t] + gamma * (values[t + 1] if t + 1 < length else 0.0) - values[t] for t in range(length)]
    return [sum((gamma * lam) ** (u - t) * deltas[u] for u in range(t, length)) for t in range(length)]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (0.99, 1.0), (1.0, 0.0), (0.7, 0.0)])
def test_line_10_advantages_are_the_discounted_sum_of_deltas(
    world: tuple[Tensor, Tensor, Tensor], gamma: float, lam: float
) -> None:
    rewards, values, mask = world
    advantages, returns = generalised_advantages(rewards, values, mask, gamma, lam)
    for b, length in enumerate(LENGTHS):
        expected = summed(rewards[b, :length].tolist(), values[b, :length].tolist(), gamma, lam)
        for t in range(length):
            assert advantages[b, t].item() == pytest.approx(expected[t], abs=1e-12)
            assert returns[b, t].item() == pytest.approx(expected[t] + values[b, t].item(), abs=1e-12)
        assert advantages[b, length:].tolist() == [0.0] * (6 - length)
        assert returns[b, length:].tolist() == [0.0] * (6 - length)


def test_line_10_padding_takes_no_part_even_when_it_is_nan(world: tuple[Tensor, Tensor, Tensor]) -> None:
    rewards, values, mask = world
    clean = generalised_advantages(rewards, values, mask, 1.0, 0.95)
    dirty = generalised_advantages(
        rewards.masked_fill(~mask, math.nan), values.masked_fill(~mask, math.inf), mask, 1.0, 0.95
    )
    assert torch.equal(clean[0], dirty[0])
    assert torch.equal(clean[1], dirty[1])


def test_line_10_lambda_one_is_return_minus_value(world: tuple[Tensor, Tensor, Tensor]) -> None:
    rewards, values, mask = world
    _, returns = generalised_advantages(rewards, values, mask, 1.0, 1.0)
    for b, length in enumerate(LENGTHS):
        to_go = [sum(rewards[b, t:length].tolist()) for t in range(length)]
        assert returns[b, :length].tolist() == pytest.approx(to_go, abs=1e-12)


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_line_08_the_state_after_the_last_token_is_worth_nothing(lam: float) -> None:
    """A critic that says 0.7 everywhere, a score of 0.7 at the end: only a terminal value other than 0 shows."""
    rewards, values = torch.zeros(1, 4, dtype=torch.float64), torch.full((1, 4), 0.7, dtype=torch.float64)
    rewards[0, 3] = 0.7
    advantages, returns = generalised_advantages(rewards, values, torch.ones(1, 4, dtype=torch.bool), 1.0, lam)
    assert advantages[0].tolist() == pytest.approx([0.0] * 4, abs=1e-15)
    assert returns[0].tolist() == pytest.approx([0.7] * 4)


def test_line_10_a_constant_critic_leaves_the_score_decaying_by_lambda() -> None:
    rewards = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    advantages, _ = generalised_advantages(
        rewards, torch.zeros_like(rewards), torch.ones(1, 3, dtype=torch.bool), 1.0, 0.95
    )
    assert advantages[0].tolist() == pytest.approx([0.95**2, 0.95, 1.0])
