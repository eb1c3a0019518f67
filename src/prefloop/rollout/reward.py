"""Rewards for sampled responses: a reward model, or any Python function."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from prefloop.chat import Chat
from prefloop.feedback.records import Prompt
from prefloop.models.heads import RewardModel
from prefloop.rollout.batch import Rollout

RewardFunction = Callable[[str, str], float]
"""(prompt's text, response) → how good the response is."""


@runtime_checkable
class Scorer(Protocol):
    """What PPO asks: a score for each response of a rollout."""

    def __call__(self, prompts: Sequence[Prompt], rollout: Rollout, /) -> Float[Tensor, " B"]: ...


def model_scorer(reward: RewardModel, max_tokens: int) -> Scorer:
    """Scores of a reward model with the policy's tokenizer: it reads the very tokens that were sampled."""

    def score(_prompts: Sequence[Prompt], rollout: Rollout) -> Float[Tensor, " B"]:
        return reward.score(rollout.sequences, max_tokens)

    return score


def text_scorer(reward: RewardModel, chat: Chat) -> Scorer:
    """Scores of a reward model with a tokenizer of its own: it reads the whole conversation as text.

    Args:
        chat: the policy's, which turns sampled tokens into text.
    """

    def score(prompts: Sequence[Prompt], rollout: Rollout) -> Float[Tensor, " B"]:
        answered = [
            reward.chat.answered_within(prompt, chat.text(ids), reward.context)
            for prompt, ids in zip(prompts, rollout.responses, strict=True)
        ]
        return reward.score(answered).to(rollout.ids.device)

    return score


def function_scorer(function: RewardFunction, chat: Chat) -> Scorer:
    """Scores of a Python function of the texts.

    Raises:
        ValueError: the function returned something that is no finite number; the message has the texts.
    """

    def score(prompts: Sequence[Prompt], rollout: Rollout) -> Float[Tensor, " B"]:
        scores = []
        for prompt, ids in zip(prompts, rollout.responses, strict=True):
            response = chat.text(ids)
            value = function(prompt.text, response)
            try:
                number = float(value)
            except (TypeError, ValueError):
                number = math.nan
            if not math.isfinite(number):
                raise ValueError(
                    f"the reward function returned {value!r}, which is no finite number, "
                    f"for prompt {prompt.text!r} and response {response!r}"
                )
            scores.append(number)
        return torch.tensor(scores, device=rollout.ids.device)

    return score
