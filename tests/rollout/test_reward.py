"""Scores of rollouts: by function or model, and refused when they are no numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.toys import assistant, byte_tokenizer, llama, user

from prefloop.chat import Chat
from prefloop.feedback.records import Prompt
from prefloop.models.heads import RewardModel
from prefloop.rollout.batch import Rollout
from prefloop.rollout.reward import function_scorer, model_scorer

CHAT = Chat(byte_tokenizer(merges=[("a", "b")]))
PROMPTS = [
    Prompt.of("first"),
    Prompt(messages=(user("x"), assistant("y"), user("second"))),
]


def rollout(*responses: list[int]) -> Rollout:
    longest = max(map(len, responses))
    mask = torch.arange(longest) < torch.tensor([len(ids) for ids in responses])[:, None]
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids in responses])
    nothing = torch.zeros(mask.shape)
    prompts = [CHAT.prompt_ids(prompt.messages) for prompt in PROMPTS]
    return Rollout(prompts, ids, mask, nothing, nothing, nothing, torch.tensor([ids[-1] == 1 for ids in responses]))


def ids(text: str) -> list[int]:
    """Byte by byte: the tokenizer itself would merge "ab"."""
    return [i for byte in text for i in CHAT.tokenizer(byte, add_special_tokens=False)["input_ids"]]


def test_a_function_is_asked_about_the_texts_in_order() -> None:
    asked = []

    def reward(prompt: str, response: str) -> float:
        asked.append((prompt, response))
        return len(response)

    scores = function_scorer(reward, CHAT)(PROMPTS, rollout([*ids(" yes"), CHAT.eos_id], ids("no way")))
    assert asked == [("first", "yes"), ("second", "no way")]
    assert scores.tolist() == [3.0, 6.0]


@pytest.mark.parametrize("value", [1, True, torch.tensor(3.0), torch.tensor([2.5]), np.float32(0.5)])
def test_whatever_is_a_number_is_taken(value: Any) -> None:
    scores = function_scorer(lambda *_: value, CHAT)(PROMPTS, rollout(ids("a"), ids("b")))
    assert scores.tolist() == [float(value)] * 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "good", "2.5", [1, 2], torch.ones(2)])
def test_a_reward_that_is_no_finite_number_is_an_error_with_the_texts(value: Any) -> None:
    def reward(prompt: str, response: str) -> Any:
        return value if prompt == "second" else 0.0

    with pytest.raises(ValueError, match="which is no finite number") as caught:
        function_scorer(reward, CHAT)(PROMPTS, rollout(ids("fine"), ids("bad one")))
    assert repr(value) in str(caught.value)
    assert "prompt 'second' and response 'bad one'" in str(caught.value)


def test_line_04_a_reward_model_reads_the_very_tokens_that_were_sampled() -> None:
    reward = RewardModel.from_policy(llama(len(CHAT.tokenizer)), CHAT.tokenizer, seed=0)
    sampled = rollout([*ids("ab ab"), CHAT.eos_id], ids("abc"))
    encoded_again = CHAT.answered(PROMPTS[0], "ab ab").ids
    assert sampled.sequences[0].ids != encoded_again  # the tokenizer would have merged
    scores = model_scorer(reward, 64)(PROMPTS, sampled)
    for score, sequence in zip(scores.tolist(), sampled.sequences, strict=True):
        with torch.no_grad():
            states = reward.model.base_model(input_ids=torch.tensor([sequence.ids])).last_hidden_state
        assert score == pytest.approx(float(states[0, -1] @ reward.model.score.weight[0].detach()), abs=1e-5)
