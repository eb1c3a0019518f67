"""Rewards of tokens, the clipped losses: cases by hand, slow loops, finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from prefloop.algorithms.ppo import explained_variance, policy_loss, token_rewards, value_loss

D = torch.float64


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=D)


def finite_difference(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-6) -> Tensor:
    """Central differences of a sum of ``function`` in each coordinate."""
    slopes = []
    for i in range(len(at)):
        shift = torch.zeros_like(at)
        shift[i] = step
        slopes.append((function(at + shift).sum() - function(at - shift).sum()) / (2 * step))
    return torch.stack(slopes)


def gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    at = at.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(function(at).sum(), at)
    return slopes


def test_line_08_score_sits_on_the_last_real_token() -> None:
    kl = tensor(1, 2, 3, 4, 5, 6).reshape(2, 3)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    found = token_rewards(tensor(10, 20), kl, mask, kl_coef=0.1)
    expected = [[-0.1, -0.2, -0.3 + 10], [-0.4 + 20, 0.0, 0.0]]
    assert found.tolist() == [pytest.approx(row) for row in expected]


def test_line_08_rewards_leave_padding_at_zero_whatever_the_kl_says_there() -> None:
    kl = torch.tensor([[1.0, math.nan], [math.inf, 5.0]])
    mask = torch.tensor([[True, False], [True, True]])
    kl[1, 0] = 2.0
    found = token_rewards(torch.tensor([1.0, 1.0]), kl, mask, kl_coef=0.5)
    assert found.tolist() == [[0.5, 0.0], [-1.0, -1.5]]


EPSILON = 0.2


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "moves", "clipped"),
    [
        (1.0, 2.0, -2.0, True, 0.0),
        (1.5, 2.0, -2.4, False, 1.0),  # better already: no reason to go on
        (0.5, 2.0, -1.0, True, 0.0),  # worse than before: come back, whatever the distance
        (1.0, -2.0, 2.0, True, 0.0),
        (1.5, -2.0, 3.0, True, 0.0),  # a bad action became likelier: the full loss
        (0.5, -2.0, 1.6, False, 1.0),  # a bad action is rare enough
        (1.1, 2.0, -2.2, True, 0.0),
        (0.9, -2.0, 1.8, True, 0.0),
    ],
)
def test_line_12_policy_loss_takes_the_worse_of_clipped_and_unclipped(
    ratio: float, advantage: float, loss: float, moves: bool, clipped: float
) -> None:
    old = tensor(-1.3)
    log_probs = (old + math.log(ratio)).requires_grad_()
    found, stats = policy_loss(log_probs, old, tensor(advantage), EPSILON)
    assert found.item() == pytest.approx(loss)
    assert stats["clip_fraction"].tolist() == [clipped]
    (slope,) = torch.autograd.grad(found.sum(), log_probs)
    assert slope.item() == pytest.approx(-advantage * ratio if moves else 0.0)


def test_line_12_policy_loss_agrees_with_a_slow_loop_and_finite_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    log_probs, old, advantages = (torch.randn(64, generator=generator, dtype=D) * s for s in (0.4, 0.4, 2.0))
    found, _ = policy_loss(log_probs, old, advantages, EPSILON)
    for new, before, advantage, loss in zip(log_probs, old, advantages, found, strict=True):
        ratio = math.exp(new - before)
        bounded = min(max(ratio, 1 - EPSILON), 1 + EPSILON)
        assert loss.item() == pytest.approx(max(-advantage * ratio, -advantage * bounded))

    def loss_at(at: Tensor) -> Tensor:
        return policy_loss(at, old, advantages, EPSILON)[0]

    torch.testing.assert_close(gradient(loss_at, log_probs), finite_difference(loss_at, log_probs), atol=1e-7, rtol=0)


def test_line_12_the_first_gradient_is_the_policy_gradient() -> None:
    """At ρ = 1 the slope in log π is −A: likelier where the advantage is positive."""
    log_probs, advantages = tensor(-1, -2, -3), tensor(0.5, -0.25, 2)
    slope = gradient(lambda at: policy_loss(at, log_probs, advantages, EPSILON)[0], log_probs)
    assert slope.tolist() == pytest.approx([-0.5, 0.25, -2.0])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "moves"),
    [
        (10.0, -2.0, 6.0, False),  # a bad action ten times likelier: bounded by −cA
        (2.0, -2.0, 4.0, True),  # below the bound: the full loss
        (10.0, 2.0, -2.4, False),  # a good action: as without
        (0.5, -2.0, 1.6, False),
    ],
)
def test_line_12_dual_clip_bounds_the_loss_of_a_bad_action(
    ratio: float, advantage: float, loss: float, moves: bool
) -> None:
    old = tensor(-5.0)
    log_probs = old + math.log(ratio)
    found, _ = policy_loss(log_probs, old, tensor(advantage), EPSILON, dual_clip=3.0)
    assert found.item() == pytest.approx(loss)
    slope = gradient(lambda at: policy_loss(at, old, tensor(advantage), EPSILON, dual_clip=3.0)[0], log_probs)
    assert slope.item() == pytest.approx(-advantage * ratio if moves else 0.0)


def test_line_18_approximate_kl_is_k3_of_the_old_policy() -> None:
    log_probs, old = tensor(-1.0, -2.0), tensor(-1.5, -1.0)
    _, stats = policy_loss(log_probs, old, tensor(1.0, 1.0), EPSILON)
    expected = [math.exp(0.5) - 1 - 0.5, math.exp(-1.0) - 1 + 1.0]
    assert stats["approx_kl"].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "target", "loss", "moves"),
    [
        (1.1, 2.0, 0.5 * 0.9**2, True),  # within ε: plain
        (1.5, 2.0, 0.5 * 0.8**2, False),  # went past ε towards the target: the clipped one is worse
        (1.5, 0.0, 0.5 * 1.5**2, True),  # went away from the target: the full error
        (0.5, 0.0, 0.5 * 0.8**2, False),
        (0.5, 2.0, 0.5 * 1.5**2, True),
    ],
)
def test_line_13_value_loss_takes_the_worse_of_clipped_and_unclipped(
    value: float, target: float, loss: float, moves: bool
) -> None:
    old, returns = tensor(1.0), tensor(target)
    assert value_loss(tensor(value), old, returns, EPSILON).item() == pytest.approx(loss)
    slope = gradient(lambda at: value_loss(at, old, returns, EPSILON), tensor(value))
    assert slope.item() == pytest.approx(value - target if moves else 0.0)


def test_line_13_value_loss_agrees_with_a_slow_loop_and_finite_differences() -> None:
    generator = torch.Generator().manual_seed(2)
    values, old, returns = (torch.randn(64, generator=generator, dtype=D) for _ in range(3))
    found = value_loss(values, old, returns, EPSILON)
    for value, before, target, loss in zip(values.tolist(), old.tolist(), returns.tolist(), found, strict=True):
        bounded = before + min(max(value - before, -EPSILON), EPSILON)
        assert loss.item() == pytest.approx(0.5 * max((value - target) ** 2, (bounded - target) ** 2))

    def loss_at(at: Tensor) -> Tensor:
        return value_loss(at, old, returns, EPSILON)

    torch.testing.assert_close(gradient(loss_at, values), finite_difference(loss_at, values), atol=1e-7, rtol=0)


def test_line_18_explained_variance_of_perfect_constant_and_inverse_critics() -> None:
    returns = tensor(1, 2, 3, 6)
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(returns + 5, returns) == pytest.approx(1.0)  # a constant error explains all variance
    assert explained_variance(torch.zeros(4, dtype=D), returns) == 0.0
    assert explained_variance(-returns, returns) == pytest.approx(-3.0)
    assert explained_variance(returns, torch.ones(4, dtype=D)) == 0.0
