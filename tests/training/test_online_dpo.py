"""Online DPO: whose answers are compared with which votes, and how often the optimiser steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.toys import naive_log_probs, parameters, prompts, same
from tests.training.practice import SMALL, away, byte_scores, lively
from torch import Tensor

from prefloop.config import OnlineDPOConfig
from prefloop.feedback.records import Prompt
from prefloop.rollout.batch import Rollout
from prefloop.rollout.reward import Reward
from prefloop.rollout.sampler import sample
from prefloop.training import online_dpo as module
from prefloop.training.loop import Metrics
from prefloop.training.online_dpo import PairJudge, Votes, judge_by_reward, train_online_dpo


def train(judge: PairJudge, made: Any = None, seed: int = 0, **options: Any) -> list[Metrics]:
    lines: list[Metrics] = []
    config = OnlineDPOConfig(**{**SMALL, **options})
    train_online_dpo(made or lively(), prompts(5), judge, config, seed, lines.append)
    return lines


BY_BYTES = judge_by_reward([Reward(byte_scores)], 1.5)


@pytest.mark.parametrize(("answers", "temperature"), [(2, 1.0), (4, 1.0), (2, 0.8)])
def test_line_28_the_first_gradient_is_that_of_the_formula(
    float64: None, gradients: list[list[Tensor]], monkeypatch: pytest.MonkeyPatch, answers: int, temperature: float
) -> None:
    """Each pair of a prompt's answers, with Bradley–Terry's shares of a vote, against the reference, at T = 1."""
    rollouts: list[Rollout] = []

    def recording(*args: Any, **options: Any) -> Rollout:
        rollouts.append(sample(*args, **options))
        return rollouts[-1]

    monkeypatch.setattr(module, "sample", recording)
    made = lively()
    start, reference = made.copy(), away(made)
    made.copy = lambda: reference  # type: ignore[method-assign]
    [line] = train(BY_BYTES, made, answers=answers, temperature=temperature, beta=0.3)

    [rollout] = rollouts
    rows = rollout.sequences
    scores = [
        score - (0.0 if ended else 1.5)
        for score, ended in zip(byte_scores([], rollout).tolist(), rollout.ended.tolist(), strict=True)
    ]
    sums, refs = [], []
    for one in rows:
        first = one.mask.index(True)
        log_probs = torch.log_softmax(start.model(input_ids=torch.tensor([one.ids])).logits[0, first - 1 : -1], 1)
        sums.append(log_probs.gather(1, torch.tensor(one.ids[first:])[:, None]).sum())
        refs.append(float(naive_log_probs(reference.model, one).sum()))
    loss, pairs = torch.zeros(()), 0
    for i in range(8):
        for j in range(i + 1, i // answers * answers + answers):
            delta = 0.3 * ((sums[i] - refs[i]) - (sums[j] - refs[j]))
            share = 1 / (1 + math.exp(scores[j] - scores[i]))
            loss = loss - share * torch.sigmoid(delta).log() - (1 - share) * torch.sigmoid(-delta).log()
            pairs += 1
    for found, wanted in zip(
        gradients[0], torch.autograd.grad(loss / pairs, list(start.model.parameters())), strict=True
    ):
        torch.testing.assert_close(found, wanted, atol=1e-9, rtol=0)
    assert line["comparisons"] == pairs == 8 * (answers - 1) / 2
    assert line["loss"] == pytest.approx(float(loss.detach()) / pairs, abs=1e-9)
    new, old = (
        sum(float(naive_log_probs(model, one, temperature).sum()) for one in rows)
        for model in (start.model, reference.model)
    )
    assert line["kl"] == pytest.approx((new - old) / 8, abs=1e-9)


def test_line_14_micro_batches_change_no_gradient(float64: None, gradients: list[list[Tensor]]) -> None:
    for size in (1, 10_000):
        train(BY_BYTES, micro_batch_tokens=size, epochs=2, learning_rate=1e-3, minibatch_episodes=4)
    assert len(gradients) == 8
    for cut, whole in zip(gradients[:4], gradients[4:], strict=True):
        for one, other in zip(cut, whole, strict=True):
            torch.testing.assert_close(one, other, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("minibatch", "epochs", "steps"), [(2, 3, 12), (4, 1, 2), (8, 2, 2)])
def test_line_15_steps_are_counted_in_answers(
    gradients: list[list[Tensor]], minibatch: int, epochs: int, steps: int
) -> None:
    train(BY_BYTES, minibatch_episodes=minibatch, epochs=epochs)
    assert len(gradients) == steps


def test_prompts_without_votes_are_left_out(gradients: list[list[Tensor]]) -> None:
    def nobody(asked: Sequence[Prompt], rollout: Rollout, answers: int) -> tuple[list[list[Votes]], Metrics]:
        return [[] for _ in range(0, len(asked), answers)], {}

    def one(asked: Sequence[Prompt], rollout: Rollout, answers: int) -> tuple[list[list[Votes]], Metrics]:
        return [[(0, 1, 1.0, 0.0)], *([] for _ in range(answers, len(asked), answers))], {"judgements": 1.0}

    made = lively()
    start = parameters(made.model)
    [line] = train(nobody, made)
    assert line["comparisons"] == 0
    assert "loss" not in line
    assert gradients == []
    assert same(parameters(made.model), start)
    [line] = train(one, made)
    assert line["comparisons"] == line["judgements"] == 1
    assert len(gradients) == 1


def test_same_seed_same_model_bit_for_bit() -> None:
    found = []
    for seed in (1, 1, 2):
        made = lively()
        train(BY_BYTES, made, seed=seed, iterations=2, learning_rate=1e-3)
        found.append(parameters(made.model))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])
