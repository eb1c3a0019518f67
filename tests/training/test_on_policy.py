"""What on-policy training shares: the prompts that it practises on, and its watch over the KL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.toys import policy, prompts
from tests.training.practice import SMALL, byte_scores, lively

from prefloop.config import PPOConfig
from prefloop.feedback.records import Prompt
from prefloop.rollout.batch import Rollout
from prefloop.rollout.reward import Reward
from prefloop.training.loop import Metrics, shuffled_batches
from prefloop.training.on_policy import prompt_batches, rollout_figures
from prefloop.training.policy_gradient import train_policy_gradient

POLICY = policy()


@pytest.mark.parametrize(("seed", "count", "size", "iterations"), [(0, 7, 3, 6), (1, 40, 4, 2), (2, 1, 5, 2)])
def test_prompts_come_as_if_all_had_been_tokenised(seed: int, count: int, size: int, iterations: int) -> None:
    asked = prompts(count)
    encoded = [(prompt, POLICY.chat.prompt_ids(prompt.messages)) for prompt in asked]
    expected = list(shuffled_batches(encoded, size, iterations, seed))
    assert list(prompt_batches(POLICY, asked, size, iterations, seed, 100)) == expected


class Watched(Sequence[Prompt]):
    """Remembers what was asked for."""

    def __init__(self, items: Sequence[Prompt]) -> None:
        self.items, self.read = items, list[int]()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        self.read.append(index)
        return self.items[index]


def test_of_many_prompts_those_are_read_that_are_drawn() -> None:
    many = Watched(prompts(200))
    batches = list(prompt_batches(POLICY, many, 4, 3, 0, 100))
    drawn = {prompt.id for batch in batches for prompt, _ in batch}
    assert len(many.read) == len(drawn) == 12


def test_line_09_long_prompts_are_cut_at_the_limit(rollouts: list[Rollout]) -> None:
    made = lively()
    limit = len(made.chat.prompt_ids(Prompt.of("last").messages))
    config = PPOConfig(**{**SMALL, "episodes": 2, "minibatch_episodes": 2})
    long = [Prompt.of("first line\nlast")]
    with pytest.warns(UserWarning, match=f"1 of 1 prompts were cut to {limit} tokens"):
        train_policy_gradient(made, long, [Reward(byte_scores)], config, 0, print, max_prompt_tokens=limit)
    assert rollouts[0].prompts == [made.chat.prompt_ids(Prompt.of("last").messages)] * 2


def test_no_prompts_is_an_error() -> None:
    with pytest.raises(ValueError, match="no prompts to practise on"):
        train_policy_gradient(policy(), [], [Reward(byte_scores)], PPOConfig(), 0, print)


def figures_of(kl: list[float]) -> Metrics:
    """Of responses of ten tokens with this KL in all."""
    each = (torch.tensor(kl) / 10)[:, None].expand(-1, 10)
    ids, none = torch.full(each.shape, 7), torch.zeros(each.shape)
    rollout = Rollout([[3]] * len(kl), ids, ids > 0, each, none, none, ids[:, 0] > 0)
    return rollout_figures(rollout, none)


@pytest.mark.parametrize(
    ("kl", "message"), [(-1.0, "below 0 by more than sampling noise"), (25.0, "more than 2 a token")]
)
def test_line_21_an_impossible_or_exploding_kl_is_a_warning(kl: float, message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        assert figures_of([kl - 0.1, kl + 0.1, kl, kl])["kl"] == pytest.approx(kl, abs=1e-5)


def test_line_21_a_small_negative_estimate_is_noise() -> None:
    assert figures_of([-0.5, 0.6, -0.4, 0.2])["kl"] == pytest.approx(-0.025, abs=1e-6)
    assert figures_of([-1e-5])["kl"] < 0
