"""Advantages without a critic: slow loops written from the formulas, and what each must not change with."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from prefloop.algorithms.gae import generalised_advantages
from prefloop.algorithms.moments import RunningMoments
from prefloop.algorithms.policy_gradient import (
    grpo_advantages,
    reinforce_advantages,
    reinforce_pp_advantages,
    rewards_to_go,
    rloo_advantages,
)

D = torch.float64
Rows = list[list[float]]


def batch(seed: int, count: int = 12, longest: int = 5) -> tuple[Rows, Tensor, Tensor]:
    """Rewards as lists, and padded with what must not matter."""
    generator = random.Random(seed)
    rows = [[generator.gauss(0.3, 1) for _ in range(generator.randint(1, longest))] for _ in range(count)]
    mask = torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
    rewards = torch.full((count, longest), math.nan, dtype=D)
    for i, row in enumerate(rows):
        rewards[i, : len(row)] = torch.tensor(row, dtype=D)
    return rows, rewards, mask


def padded(rows: Rows, like: Tensor) -> Tensor:
    result = torch.zeros_like(like)
    for i, row in enumerate(rows):
        result[i, : len(row)] = torch.tensor(row, dtype=D)
    return result


def to_go(row: list[float], gamma: float) -> list[float]:
    return [sum(gamma ** (s - t) * row[s] for s in range(t, len(row))) for t in range(len(row))]


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
@pytest.mark.parametrize("seed", range(3))
def test_rewards_to_go(seed: int, gamma: float) -> None:
    rows, rewards, mask = batch(seed)
    expected = padded([to_go(row, gamma) for row in rows], rewards)
    torch.testing.assert_close(rewards_to_go(rewards, mask, gamma), expected)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_reinforce_takes_the_mean_return_of_the_other_episodes_off(seed: int, gamma: float) -> None:
    rows, rewards, mask = batch(seed)
    starts = [to_go(row, gamma)[0] for row in rows]
    expected = [
        [later - sum(starts[:i] + starts[i + 1 :]) / (len(rows) - 1) for later in to_go(row, gamma)]
        for i, row in enumerate(rows)
    ]
    torch.testing.assert_close(reinforce_advantages(rewards, mask, gamma), padded(expected, rewards))


def test_reinforce_of_one_episode_has_no_baseline() -> None:
    _, rewards, mask = batch(0, count=1)
    with pytest.raises(ValueError, match="there is only one episode"):
        reinforce_advantages(rewards, mask, 1.0)


@pytest.mark.parametrize("answers", [2, 3, 6])
@pytest.mark.parametrize("seed", range(3))
def test_rloo_takes_the_mean_of_the_other_answers_off(seed: int, answers: int) -> None:
    rows, rewards, mask = batch(seed)
    expected = []
    for i, row in enumerate(rows):
        first = i // answers * answers
        others = [sum(rows[j]) for j in range(first, first + answers) if j != i]
        expected.append([sum(row) - sum(others) / len(others)] * len(row))
    torch.testing.assert_close(rloo_advantages(rewards, mask, answers), padded(expected, rewards))


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("answers", [2, 3, 6])
def test_grpo_compares_the_answers_of_a_prompt(answers: int, scale: bool) -> None:
    rows, rewards, mask = batch(answers)
    expected = []
    for i, row in enumerate(rows):
        group = [sum(rows[j]) for j in range(i // answers * answers, (i // answers + 1) * answers)]
        mean = sum(group) / answers
        deviation = math.sqrt(sum((value - mean) ** 2 for value in group) / (answers - 1))
        expected.append([(sum(row) - mean) / (deviation + 1e-4 if scale else 1.0)] * len(row))
    torch.testing.assert_close(grpo_advantages(rewards, mask, answers, scale), padded(expected, rewards))


def test_grpo_learns_nothing_from_answers_that_are_worth_the_same() -> None:
    rewards, mask = torch.tensor([[1.0], [1.0], [0.0], [2.0]]), torch.ones(4, 1, dtype=torch.bool)
    for scale in (True, False):
        found = grpo_advantages(rewards, mask, 2, scale)
        assert found[:2].tolist() == [[0.0], [0.0]]
        assert found[2] < 0 < found[3]


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_reinforce_pp_whitens_rewards_to_go_over_the_batch(gamma: float) -> None:
    rows, rewards, mask = batch(7)
    later = [to_go(row, gamma) for row in rows]
    flat = [value for row in later for value in row]
    mean = sum(flat) / len(flat)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in flat) / len(flat) + 1e-8)
    expected = padded([[(value - mean) / deviation for value in row] for row in later], rewards)
    torch.testing.assert_close(reinforce_pp_advantages(rewards, mask, gamma), expected)


def test_ppo_without_a_critic_is_reinforce_without_a_baseline() -> None:
    """λ = 1 and V = 0: the advantage is the reward-to-go."""
    _, rewards, mask = batch(3)
    found, _ = generalised_advantages(rewards.nan_to_num(), torch.zeros_like(rewards), mask, 0.9, 1.0)
    torch.testing.assert_close(found, rewards_to_go(rewards, mask, 0.9))


GROUPED: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda rewards, mask: rloo_advantages(rewards, mask, 3),
    lambda rewards, mask: grpo_advantages(rewards, mask, 3, True),
    lambda rewards, mask: grpo_advantages(rewards, mask, 3, False),
]


@pytest.mark.parametrize("advantages", GROUPED)
def test_a_prompt_of_its_own_level_changes_nothing(advantages: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Easy and hard prompts: what is added to all answers of a prompt is no answer's merit."""
    _, rewards, mask = batch(5)
    level = torch.tensor([10.0, -3.0, 0.0, 7.0], dtype=D).repeat_interleave(3)
    moved = rewards.clone()
    moved[:, 0] += level  # every response has a first token
    torch.testing.assert_close(advantages(moved, mask), advantages(rewards, mask))


@pytest.mark.parametrize("advantages", GROUPED)
def test_groups_do_not_see_each_other(advantages: Callable[[Tensor, Tensor], Tensor]) -> None:
    _, rewards, mask = batch(6)
    whole = advantages(rewards, mask)
    for first in range(0, 12, 3):
        alone = advantages(rewards[first : first + 3], mask[first : first + 3])
        torch.testing.assert_close(alone, whole[first : first + 3])


@pytest.mark.parametrize("seed", range(3))
def test_running_moments_are_those_of_all_numbers_together(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(n, generator=generator) * n + 100 for n in (1, 5, 2, 17)]
    moments = RunningMoments()
    for values in batches:
        moments = moments.with_batch(values)
    everything = torch.cat(batches).double()
    assert moments.count == 25
    assert moments.mean == pytest.approx(float(everything.mean()), rel=1e-12)
    assert moments.deviation == pytest.approx(float(everything.std(correction=0)), rel=1e-9)
