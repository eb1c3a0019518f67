"""Rewards for sampled responses: reward models, Python functions, or several of both."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from prefloop.chat import Chat
from prefloop.feedback.records import Prompt
from prefloop.models.heads import RewardModel
from prefloop.rollout.batch import Rollout

RewardFunction = Callable[[str, str], float]
"""(prompt's text, response) → how good the response is."""


@dataclass(frozen=True)
class Batched:
    """Marks a reward function of all prompts and responses of an iteration: two lists in, as many numbers out."""

    function: Callable[[list[str], list[str]], Sequence[float]]


@runtime_checkable
class Scorer(Protocol):
    """A score for each response of a rollout."""

    def __call__(self, prompts: Sequence[Prompt], rollout: Rollout, /) -> Float[Tensor, " B"]: ...


@dataclass(frozen=True)
class Reward:
    """One of the things that responses are rewarded for."""

    scorer: Scorer
    name: str = "reward"
    weight: float = 1.0
    model: RewardModel | None = None
    """The reward model behind it, where there is one that reads the policy's tokens."""


def total_scores(
    rewards: Sequence[Reward], prompts: Sequence[Prompt], rollout: Rollout
) -> tuple[Float[Tensor, " B"], dict[str, float]]:
    """The weighted sum of all rewards, and the mean of each, unweighted, where there is more than one.

    Raises:
        ValueError: a score is not finite.
    """
    parts = [reward.scorer(prompts, rollout).to(rollout.ids.device) for reward in rewards]
    for reward, part in zip(rewards, parts, strict=True):
        if not bool(part.isfinite().all()):
            row = int((~part.isfinite()).nonzero()[0, 0])
            raise ValueError(
                f"reward {reward.name!r} is {float(part[row])} for prompt {_short(prompts[row].text)}, response "
                f"{row + 1} of {len(rollout)} in this iteration; training needs finite numbers"
            )
    total = torch.stack([reward.weight * part for reward, part in zip(rewards, parts, strict=True)]).sum(0)
    means = {f"reward_{reward.name}": float(part.mean()) for reward, part in zip(rewards, parts, strict=True)}
    return total, means if len(rewards) > 1 else {}


def model_reward(
    model: RewardModel, chat: Chat, max_tokens: int, name: str = "reward", weight: float = 1.0
) -> Reward:
    """A reward model's score.

    Args:
        chat: the policy's. Where both write a conversation alike, the model reads the very tokens that were sampled,
            else the whole conversation as text.
        max_tokens: of one forward pass, padding included.
    """
    if _alike(model.chat, chat):
        return Reward(model_scorer(model, max_tokens), name, weight, model)
    return Reward(text_scorer(model, chat), name, weight)


def _alike(one: Chat, other: Chat) -> bool:
    """The same vocabulary, chat template and eos. The same vocabulary alone may stand behind two formats."""

    def format_of(chat: Chat) -> Any:
        return chat.tokenizer.get_vocab(), getattr(chat.tokenizer, "chat_template", None), chat.eos_id

    same: bool = format_of(one) == format_of(other)
    return same


def function_reward(
    function: RewardFunction | Batched, chat: Chat, name: str = "reward", weight: float = 1.0
) -> Reward:
    """A Python function's score; see :func:`function_scorer`."""
    return Reward(function_scorer(function, chat, name), name, weight)


def model_scorer(reward: RewardModel, max_tokens: int) -> Scorer:
    """Scores of a reward model with the policy's tokenizer: it reads the very tokens that were sampled."""

    def score(_prompts: Sequence[Prompt], rollout: Rollout) -> Float[Tensor, " B"]:
        longest = max(map(len, rollout.sequences))
        if longest > reward.context:
            raise ValueError(
                f"the reward model reads at most {reward.context} tokens; a response with its prompt has {longest}. "
                "Lower data.max_prompt_tokens or max_response_tokens"
            )
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


def function_scorer(function: RewardFunction | Batched, chat: Chat, name: str = "reward") -> Scorer:
    """Scores of a Python function of the texts."""

    def score(prompts: Sequence[Prompt], rollout: Rollout) -> Float[Tensor, " B"]:
        responses = [chat.text(ids) for ids in rollout.responses]
        found = score_texts(function, [prompt.text for prompt in prompts], responses, name)
        return torch.tensor(found, device=rollout.ids.device)

    return score


def score_texts(
    function: RewardFunction | Batched, prompts: list[str], responses: list[str], name: str = "reward"
) -> list[float]:
    """What a reward function gives for each response.

    Raises:
        ValueError: it raised something, returned another number of scores than there are responses, or something that
            is no finite number. The message has the prompt and the response; what was raised is its cause.
    """

    def asked(row: int) -> str:
        return f"for prompt {_short(prompts[row])} and response {_short(responses[row])}"

    values: list[Any]
    if isinstance(function, Batched):
        try:
            answer = function.function(list(prompts), list(responses))
        except Exception as error:
            raise ValueError(
                f"the reward function {name!r} raised {error!r} for {len(responses)} responses, the first of them "
                f"{asked(0)}"
            ) from error
        try:
            values = list(answer)
        except TypeError:
            raise ValueError(
                f"the reward function {name!r} is batched and returned {_short(answer)}; expected a list of "
                f"{len(responses)} numbers"
            ) from None
        if len(values) != len(responses):
            raise ValueError(
                f"the reward function {name!r} returned {len(values)} scores for {len(responses)} responses; it must "
                "return one for each, in their order"
            )
    else:
        values = []
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            try:
                values.append(function(prompt, response))
            except Exception as error:
                raise ValueError(f"the reward function {name!r} raised {error!r} {asked(row)}") from error
    return [_number(value, name, asked, row) for row, value in enumerate(values)]


def _number(value: Any, name: str, asked: Callable[[int], str], row: int) -> float:
    try:
        # A text is no number, even one of digits: a judge's answer that nobody has parsed should not pass for one.
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of more than one number
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"the reward function {name!r} returned {_short(value)}, which is no finite number, {asked(row)}"
        )
    return number


def _short(value: Any) -> str:
    """Enough of it to find it by."""
    text = repr(value)
    return text if len(text) <= 400 else f"{text[:300]}… ({len(text)} characters)"
