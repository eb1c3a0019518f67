"""The critic, on the policy's trunk or a model of its own: what it starts from, and what trains it."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.toys import parameters, prompts, same
from tests.training.oracle import first_update
from tests.training.practice import SMALL, away, byte_scores, lively, train
from torch import Tensor

from prefloop.config import PPOConfig
from prefloop.feedback.records import Prompt
from prefloop.models.heads import RewardModel
from prefloop.models.loading import load_reward_model
from prefloop.rollout.batch import Rollout
from prefloop.rollout.reward import Reward
from prefloop.training.critic import SeparateCritic
from prefloop.training.loop import Metrics
from prefloop.training.policy_gradient import train_policy_gradient

# On the policy's trunk


def test_line_10_advantages_are_of_the_values_read_while_sampling(rollouts: list[Rollout]) -> None:
    """From the second iteration on the critic is not zero; its values are those of the head that is returned."""
    lines, head = train(lively(), iterations=2, learning_rate=1e-2, value_coef=1.0)
    assert lines[0]["explained_variance"] == 0.0
    assert not bool(rollouts[0].values.any())
    assert bool(rollouts[1].values.any())
    assert bool(head.linear.weight.any())


# Of its own


@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_line_30_a_critic_of_its_own_starts_from_the_reward_model(
    float64: None, gradients: list[list[Tensor]], rollouts: list[Rollout], temperature: float
) -> None:
    """Its first values are the reward model's scores at every place, and only the policy's loss moves the policy."""
    made = lively()
    model = RewardModel.from_policy(away(made).model, made.tokenizer, seed=3)
    model.shift_scores(0.4)
    copied = RewardModel(copy.deepcopy(model.model), model.tokenizer)

    def value_of(_: Tensor, ids: list[int]) -> Tensor:
        states = copied.model.base_model(input_ids=torch.tensor([ids])).last_hidden_state
        return copied.model.score(states)[0, :, 0] + 0.4

    config = PPOConfig(**SMALL, critic="separate", kl_coef=0.3, value_coef=0.7, temperature=temperature)
    line, oracle = first_update(
        made, away(made), value_of, list(copied.model.parameters()), config, gradients, rollouts, model
    )
    assert line["value_loss"] == pytest.approx(oracle.value_loss, abs=1e-9)
    assert same(parameters(model.model), parameters(copied.model))  # the reward model itself stays as it is


def test_line_30_a_critic_of_its_own_without_a_reward_model_starts_at_zero(tmp_path: Path) -> None:
    made = lively()
    config = PPOConfig(**{**SMALL, "iterations": 2, "learning_rate": 1e-2, "critic": "separate", "value_coef": 1.0})
    lines: list[Metrics] = []
    critic = train_policy_gradient(made, prompts(5), [Reward(byte_scores)], config, 0, lines.append)
    assert isinstance(critic, SeparateCritic)
    assert lines[0]["explained_variance"] == 0.0
    assert lines[1]["explained_variance"] != 0.0
    assert not same(parameters(critic.model.model.base_model), parameters(made.model.base_model))
    critic.save(tmp_path)
    loaded = load_reward_model(tmp_path / "critic")
    sequences = [made.chat.answered(Prompt.of("x"), "yes")]
    assert float(loaded.score(sequences)) == pytest.approx(float(critic.model.score(sequences)), abs=1e-6)


@pytest.mark.parametrize(
    ("weights", "options", "scale"),
    [
        ([1.0], {}, 1.0),
        ([-2.0], {}, -2.0),
        ([1.0, 0.5], {}, 0.0),
        ([1.0], {"answers": 4}, 0.0),
        ([1.0], {"scale_scores": True}, 0.0),
    ],
)
def test_line_30_the_critics_head_is_the_reward_models_where_its_score_is_the_return(
    weights: list[float], options: dict[str, Any], scale: float
) -> None:
    made = lively()
    model = RewardModel.from_policy(made.model, made.tokenizer, seed=3)
    model.shift_scores(0.4)
    rewards = [Reward(byte_scores, f"r{i}", weight, model if i == 0 else None) for i, weight in enumerate(weights)]
    config = PPOConfig(**{**SMALL, "learning_rate": 1e-12}, critic="separate", **options)
    critic = train_policy_gradient(made, prompts(5), rewards, config, 0, print)
    assert isinstance(critic, SeparateCritic)
    torch.testing.assert_close(critic.model.model.score.weight, scale * model.model.score.weight, atol=1e-6, rtol=0)
    assert critic.model.model.config.reward_shift == pytest.approx(0.4 * scale)


def test_line_16_a_critic_of_its_own_is_clipped_by_itself(gradients: list[list[Tensor]]) -> None:
    """The norm of the larger gradient must not hold the smaller one down."""
    made = lively()
    ours = len(list(made.model.parameters()))
    config = PPOConfig(**{**SMALL, "max_grad_norm": 1e-3}, critic="separate", value_coef=100.0)
    lines: list[Metrics] = []
    train_policy_gradient(made, prompts(5), [Reward(byte_scores)], config, 0, lines.append)
    [found] = gradients
    assert math.sqrt(sum(float(g.square().sum()) for g in found[:ours])) == pytest.approx(1e-3, rel=1e-3)
    assert math.sqrt(sum(float(g.square().sum()) for g in found[ours:])) == pytest.approx(1e-3, rel=1e-3)
    assert lines[0]["critic_grad_norm"] > 10 * lines[0]["grad_norm"] > 1e-2
