"""The first update of a policy gradient from the formulas, row by row and token by token: slow and literal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tests.toys import naive_log_probs, prompts
from tests.training.practice import byte_scores
from torch import Tensor

from prefloop.config import (
    GRPOConfig,
    PolicyGradientConfig,
    PPOConfig,
    REINFORCEConfig,
    REINFORCEPPConfig,
    RLOOConfig,
)
from prefloop.models.heads import RewardModel
from prefloop.policy import Policy
from prefloop.rollout.batch import Rollout
from prefloop.rollout.reward import Reward
from prefloop.training.loop import Metrics
from prefloop.training.policy_gradient import train_policy_gradient

Values = Callable[[Tensor, list[int]], Tensor]
"""The policy's last hidden states and the ids of a whole sequence → V of each state."""


def expected_advantages(rewards: list[list[float]], values: list[list[float]], c: PolicyGradientConfig) -> Any:
    """Per algorithm and token, from the formulas."""
    totals = [sum(row) for row in rewards]

    def to_go(row: list[float], gamma: float) -> list[float]:
        return [sum(gamma ** (s - t) * row[s] for s in range(t, len(row))) for t in range(len(row))]

    def whitened(rows: list[list[float]]) -> list[list[float]]:
        flat = [value for row in rows for value in row]
        mean = sum(flat) / len(flat)
        deviation = math.sqrt(sum((a - mean) ** 2 for a in flat) / len(flat) + 1e-8)
        return [[(a - mean) / deviation for a in row] for row in rows]

    if isinstance(c, PPOConfig):
        raw = []
        for row, v in zip(rewards, values, strict=True):
            deltas = [r + c.gamma * after - v for r, v, after in zip(row, v, [*v[1:], 0.0], strict=True)]
            raw.append(to_go(deltas, c.gamma * c.lam))
        return raw, whitened(raw)
    if isinstance(c, REINFORCEPPConfig):
        return None, whitened([to_go(row, c.gamma) for row in rewards])
    if isinstance(c, REINFORCEConfig):
        starts = [to_go(row, c.gamma)[0] for row in rewards]
        rest = [(sum(starts) - start) / (len(starts) - 1) for start in starts]
        return None, [[g - b for g in to_go(row, c.gamma)] for row, b in zip(rewards, rest, strict=True)]
    assert isinstance(c, RLOOConfig | GRPOConfig)
    found = []
    for i, row in enumerate(rewards):
        group = totals[i // c.answers * c.answers :][: c.answers]
        mean = sum(group) / c.answers
        if isinstance(c, RLOOConfig):
            advantage = totals[i] - (sum(group) - totals[i]) / (c.answers - 1)
        else:
            deviation = math.sqrt(sum((g - mean) ** 2 for g in group) / (c.answers - 1)) + 1e-4
            advantage = (totals[i] - mean) / (deviation if c.scale_advantages else 1.0)
        found.append([advantage] * len(row))
    return None, found


class Oracle:
    """The first update's gradient and figures, from the formulas, row by row and token by token."""

    def __init__(
        self,
        made: Policy,
        reference: Policy,
        value_of: Values,
        critic: list[Tensor],
        rollout: Rollout,
        scores: Sequence[float],
        c: PolicyGradientConfig,
    ) -> None:
        rows, asked = rollout.sequences, [len(prompt) for prompt in rollout.prompts]

        tables, refs, values = [], [], []
        for one, start in zip(rows, asked, strict=True):
            ids, places = torch.tensor([one.ids]), slice(start - 1, -1)
            output = made.model(input_ids=ids, output_hidden_states=True)  # one pass: norms round in float32
            tables.append(torch.log_softmax(output.logits[0, places] / c.temperature, 1))
            values.append(value_of(output.hidden_states[-1][0], one.ids)[places])
            with torch.no_grad():
                refs.append(torch.log_softmax(reference.model(input_ids=ids).logits[0, places] / c.temperature, 1))
        deviation = math.sqrt(sum((s - sum(scores) / len(scores)) ** 2 for s in scores) / len(scores))
        rewards, kls, shaped = [], [], []
        for sequence, start, ended, score in zip(rows, asked, rollout.ended.tolist(), scores, strict=True):
            new = naive_log_probs(made.model, sequence, c.temperature).tolist()
            ref = naive_log_probs(reference.model, sequence, c.temperature).tolist()
            assert len(new) == len(sequence) - start
            kls.append(sum(new) - sum(ref))
            penalty = c.kl_coef if c.kl_in == "reward" else 0.0
            k1 = [p - q for p, q in zip(new, ref, strict=True)]
            kl = {"k1": k1, "k2": [k * k / 2 for k in k1], "k3": [math.exp(-k) - 1 + k for k in k1]}
            rewards.append([-penalty * k for k in kl.get(c.kl_estimator, k1)])
            score = score / deviation if c.scale_scores else score
            score = max(-c.clip_scores, min(c.clip_scores, score)) if c.clip_scores else score
            shaped.append(score - (0.0 if ended else c.missing_eos_penalty))
        for i, row in enumerate(rewards):
            answers = c.answers if isinstance(c, PPOConfig) else 1
            first = i // answers * answers
            others = [shaped[j] for j in range(first, first + answers) if j != i]
            row[-1] += shaped[i] - (sum(others) / len(others) if others else 0.0)
        self.tokens = sum(map(len, rewards))
        self.kl = sum(kls) / len(kls)
        if isinstance(c, PPOConfig) and c.whiten_rewards:
            flat = [r for row in rewards for r in row]
            mean = sum(flat) / len(flat)
            spread = math.sqrt(sum((r - mean) ** 2 for r in flat) / len(flat) + 1e-8)
            rewards = [[(r - mean) / spread + mean for r in row] for row in rewards]
        targets, advantages = expected_advantages(rewards, [value.tolist() for value in values], c)

        loss, self.value_loss, self.entropy = torch.zeros(()), 0.0, 0.0
        for i, (sequence, start) in enumerate(zip(rows, asked, strict=True)):
            for t, advantage in enumerate(advantages[i]):
                log_probs, ref_log_probs, token = tables[i][t], refs[i][t], sequence.ids[start + t]
                entropy = -(log_probs.exp() * log_probs).sum()
                loss = loss - advantage * log_probs[token] - c.entropy_coef * entropy
                if c.kl_in == "loss":
                    k1 = log_probs[token] - ref_log_probs[token]
                    full = (log_probs.exp() * (log_probs - ref_log_probs)).sum()
                    loss = loss + c.kl_coef * {"k2": k1**2 / 2, "k3": (-k1).exp() - 1 + k1}.get(c.kl_estimator, full)
                if isinstance(c, PPOConfig):
                    error = (values[i][t] - (targets[i][t] + values[i][t].detach())) ** 2 / 2
                    loss = loss + c.value_coef * error
                    self.value_loss += float(error.detach()) / self.tokens
                self.entropy += float(entropy.detach()) / self.tokens
        self.gradient = torch.autograd.grad(loss / self.tokens, [*made.model.parameters(), *critic])


def first_update(
    made: Policy,
    reference: Policy,
    value_of: Values,
    critic: list[Tensor],
    config: PolicyGradientConfig,
    gradients: list[list[Tensor]],
    rollouts: Sequence[Rollout],
    model: RewardModel | None = None,
) -> tuple[Metrics, Oracle]:
    """Train for one step against ``reference``, and compare with the oracle."""
    start, lines = made.copy(), list[Metrics]()
    made.copy = lambda: reference  # type: ignore[method-assign]
    train_policy_gradient(made, prompts(5), [Reward(byte_scores, model=model)], config, 0, lines.append)
    [rollout] = rollouts
    assert {bool(ended) for ended in rollout.ended} == {True, False}
    scores = byte_scores([], rollout).tolist()
    oracle = Oracle(start, reference, value_of, critic, rollout, scores, config)
    assert max(float(slope.abs().max()) for slope in oracle.gradient) > 0.01
    assert len(gradients[0]) == len(oracle.gradient)
    for found, wanted in zip(gradients[0], oracle.gradient, strict=True):
        torch.testing.assert_close(found.reshape(wanted.shape), wanted, atol=1e-9, rtol=0)
    assert lines[0]["kl"] == pytest.approx(oracle.kl, abs=1e-9)
    assert lines[0]["entropy"] == pytest.approx(oracle.entropy, abs=1e-9)
    assert lines[0]["reward"] == pytest.approx(sum(scores) / len(scores))
    assert lines[0]["response_tokens"] == pytest.approx(oracle.tokens / 8)
    assert lines[0]["ended"] == pytest.approx(float(rollout.ended.double().mean()))
    return lines[0], oracle
