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
from prefloop.rollout.reward import (
    Batched,
    Reward,
    function_scorer,
    model_reward,
    model_scorer,
    score_texts,
    total_scores,
)

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


def test_a_batched_function_is_asked_once_about_everything() -> None:
    asked = []

    def reward(prompts: list[str], responses: list[str]) -> list[float]:
        asked.append((prompts, responses))
        return [len(response) for response in responses]

    scores = function_scorer(Batched(reward), CHAT)(PROMPTS, rollout(ids(" yes"), ids("no way")))
    assert asked == [(["first", "second"], ["yes", "no way"])]
    assert scores.tolist() == [3.0, 6.0]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([1.0], r"'kind' returned 1 scores for 2 responses; it must return one for each"),
        ([1.0, 2.0, 3.0], r"'kind' returned 3 scores for 2 responses"),
        ([1.0, math.nan], r"'kind' returned nan, which is no finite number, for prompt 'b' and response 'y'"),
        ([None, 1.0], r"'kind' returned None, .* for prompt 'a' and response 'x'"),
        (7.0, r"'kind' is batched and returned 7.0; expected a list of 2 numbers"),
    ],
)
def test_a_batched_function_answers_for_each_response(answer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_texts(Batched(lambda _prompts, _responses: answer), ["a", "b"], ["x", "y"], "kind")


@pytest.mark.parametrize("batched", [False, True])
def test_a_function_that_raises_is_named_with_the_texts(batched: bool) -> None:
    def fails(_prompt: Any, response: Any) -> Any:
        raise RuntimeError("out of luck")

    with pytest.raises(ValueError, match=r"'kind' raised RuntimeError\('out of luck'\)") as caught:
        score_texts(Batched(fails) if batched else fails, ["a" * 5000], ["x"], "kind")
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert "and response 'x'" in str(caught.value)
    assert ("for 1 responses, the first of them" in str(caught.value)) == batched
    assert len(str(caught.value)) < 600  # of a long text enough to find it by


def test_several_rewards_are_added_by_weight_and_shown_apart() -> None:
    rewards = [
        Reward(function_scorer(lambda _, response: len(response), CHAT), "length", -0.5),
        Reward(function_scorer(lambda prompt, _: prompt == "second", CHAT), "second", 10.0),
    ]
    scores, means = total_scores(rewards, PROMPTS, rollout(ids("ab"), ids("abcd")))
    assert scores.tolist() == [-1.0, 8.0]
    assert means == {"reward_length": 3.0, "reward_second": 0.5}
    assert total_scores(rewards[:1], PROMPTS, rollout(ids("ab"), ids("abcd")))[1] == {}


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_named_whoever_gave_it(poison: float) -> None:
    rewards = [Reward(lambda _prompts, _rollout: torch.tensor([1.0, poison]), "model")]
    with pytest.raises(ValueError, match=r"reward 'model' is (nan|inf) for prompt 'second', response 2 of 2"):
        total_scores(rewards, PROMPTS, rollout(ids("a"), ids("b")))


def test_the_same_vocabulary_with_another_template_is_read_as_text() -> None:
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
    other = byte_tokenizer(merges=[("a", "b")], template=template)
    assert other.get_vocab() == CHAT.tokenizer.get_vocab()
    same, apart = (
        RewardModel.from_policy(llama(len(CHAT.tokenizer)), tokenizer, seed=0)
        for tokenizer in (CHAT.tokenizer, other)
    )
    assert model_reward(same, CHAT, 64).model is same
    assert model_reward(apart, CHAT, 64).model is None
    sampled = rollout([*ids("yes"), CHAT.eos_id], [*ids("no"), CHAT.eos_id])
    found = model_reward(apart, CHAT, 64).scorer(PROMPTS, sampled).tolist()
    assert found == pytest.approx([apart(PROMPTS[0], "yes"), apart(PROMPTS[1], "no")], abs=1e-5)


def test_a_reward_model_that_cannot_read_so_much_says_so() -> None:
    short = RewardModel.from_policy(llama(len(CHAT.tokenizer), max_position_embeddings=16), CHAT.tokenizer, seed=0)
    with pytest.raises(ValueError, match="the reward model reads at most 16 tokens; a response with its prompt has"):
        model_scorer(short, 64)(PROMPTS, rollout(ids("a"), ids("b")))


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
