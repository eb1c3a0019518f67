"""Line 14, once more: in which order a step's rows come, and how they are cut, is nobody's business."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from tests.toys import policy, prompts, random_sequences
from tests.training import test_direct as direct
from tests.training import test_reward as reward
from tests.training.practice import byte_scores, lively
from torch import Tensor, testing

from prefloop.config import KTOConfig, PPOConfig, RewardConfig, RLOOConfig, SFTConfig
from prefloop.rollout.reward import Reward
from prefloop.training import direct as direct_module
from prefloop.training import maximum_likelihood, on_policy
from prefloop.training import reward as reward_module
from prefloop.training.loop import shuffled_batches
from prefloop.training.policy_gradient import train_policy_gradient
from prefloop.training.reward import train_reward
from prefloop.training.sft import train_sft

Cut = dict[str, Any]


def sft(cut: Cut) -> None:
    data = random_sequences(0, [(5, 3), (1, 9), (12, 1), (2, 2), (7, 8), (4, 4)])
    train_sft(policy(), data, [], SFTConfig(batch_size=6, **cut), 0, lambda _: None)


def reward_model(cut: Cut) -> None:
    train_reward(reward.reward_model(), reward.groups(6), [], RewardConfig(batch_size=6, **cut), 0, lambda _: None)


def rankings(cut: Cut) -> None:
    config = RewardConfig(batch_size=6, loss="plackett-luce", **cut)
    train_reward(reward.reward_model(), reward.groups(6), [], config, 0, lambda _: None)


def dpo(cut: Cut) -> None:
    direct.train(policy(), direct.groups(6), **cut)


def kto(cut: Cut) -> None:
    direct.train(policy(), direct.groups(6), section=KTOConfig, **cut)


def ppo(cut: Cut) -> None:
    config = PPOConfig(iterations=1, episodes=8, minibatch_episodes=8, epochs=1, max_response_tokens=6, **cut)
    train_policy_gradient(lively(), prompts(5), [Reward(byte_scores)], config, 0, lambda _: None)


def rloo(cut: Cut) -> None:
    kinds: Cut = {"kl_in": "loss", "kl_estimator": "full"}
    config = RLOOConfig(
        iterations=1, episodes=8, minibatch_episodes=8, epochs=1, max_response_tokens=6, **kinds, **cut
    )
    train_policy_gradient(lively(), prompts(5), [Reward(byte_scores)], config, 0, lambda _: None)


@pytest.mark.parametrize("loop", [sft, reward_model, rankings, dpo, kto, ppo, rloo])
def test_line_14_neither_order_nor_cut_changes_a_gradient(
    float64: None, gradients: list[list[Tensor]], monkeypatch: pytest.MonkeyPatch, loop: Callable[[Cut], None]
) -> None:
    """Four orders of one whole step, cut into micro-batches of one row, of some, and not at all: 1e-9."""
    order = 0

    def reordered(items: Sequence[Any], batch_size: int, steps: int, seed: int) -> Iterator[list[Any]]:
        for batch in shuffled_batches(items, batch_size, steps, seed):
            yield random.Random(order).sample(batch, len(batch))

    for module in (maximum_likelihood, reward_module, direct_module, on_policy):
        monkeypatch.setattr(module, "shuffled_batches", reordered)
    for order, tokens in enumerate((1, 40, 90, 10_000)):  # noqa: B007
        loop({"micro_batch_tokens": tokens, "max_grad_norm": 1e9})
    first, *others = gradients
    assert len(others) == 3
    assert max(float(slope.abs().max()) for slope in first) > 1e-3
    for other in others:
        for one, same in zip(first, other, strict=True):
            testing.assert_close(one, same, atol=1e-9, rtol=0)
