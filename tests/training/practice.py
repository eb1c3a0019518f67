"""What training on a policy's own samples is tried with: a policy, a reward, and a run that takes a moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tests.toys import policy, prompts
from torch import Tensor

from prefloop.config import PPOConfig
from prefloop.feedback.records import Prompt
from prefloop.models.heads import ValueHead
from prefloop.policy import Policy
from prefloop.rollout.batch import Rollout
from prefloop.rollout.reward import Reward
from prefloop.training.critic import SharedCritic
from prefloop.training.loop import Metrics
from prefloop.training.policy_gradient import train_policy_gradient

SMALL: dict[str, Any] = {
    "iterations": 1,
    "episodes": 8,
    "minibatch_episodes": 8,
    "epochs": 1,
    "max_response_tokens": 6,
    "max_grad_norm": 1e9,
}
"""One iteration of one step, with its gradient as it is."""


def byte_scores(_prompts: Sequence[Prompt], rollout: Rollout) -> Tensor:
    """Something that differs from response to response."""
    return torch.tensor([(sum(rollout.responses[row]) % 7) / 3 for row in range(len(rollout))])


def lively(kind: str = "llama", **options: Any) -> Policy:
    """A policy whose responses end now and then."""
    made = policy(kind, **options)
    head = made.model.get_output_embeddings()
    bias = torch.zeros(head.weight.shape[0])
    bias[made.chat.eos_id] = 4.0
    head.bias = torch.nn.Parameter(bias)
    return made


def away(made: Policy) -> Policy:
    """A reference that differs from the policy, as from the second iteration on."""
    reference = made.copy()
    with torch.no_grad():
        for parameter in reference.model.parameters():
            parameter.mul_(1.1)
    return reference


def train(
    made: Policy, scorer: Callable[..., Tensor] = byte_scores, seed: int = 0, **options: Any
) -> tuple[list[Metrics], ValueHead]:
    """PPO with a critic on the policy's trunk: the figures of each iteration, and the critic's head."""
    lines: list[Metrics] = []
    config = PPOConfig(**{**SMALL, **options})
    critic = train_policy_gradient(made, prompts(5), [Reward(scorer)], config, seed, lines.append)
    assert isinstance(critic, SharedCritic)
    return lines, critic.head
