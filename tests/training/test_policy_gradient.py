"""Policy gradients: one iteration against slow loops, and what stays fixed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.toys import (
    naive_log_probs,
    parameters,
    policy,
    prompts,
    same,
)
from torch import Tensor

from prefloop.config import (
    GroupConfig,
    GRPOConfig,
    PolicyGradientConfig,
    PPOConfig,
    REINFORCEConfig,
    REINFORCEPPConfig,
    RLOOConfig,
)
from prefloop.feedback.records import Prompt
from prefloop.models.heads import RewardModel, ValueHead
from prefloop.models.loading import load_reward_model
from prefloop.policy import Policy
from prefloop.rollout.batch import Rollout
from prefloop.rollout.reward import Reward
from prefloop.rollout.sampler import sample
from prefloop.seeds import derive
from prefloop.training import policy_gradient as module
from prefloop.training.critic import SeparateCritic, SharedCritic
from prefloop.training.loop import Metrics, NonFiniteError
from prefloop.training.on_policy import _watch_kl
from prefloop.training.policy_gradient import train_policy_gradient

SMALL: dict[str, Any] = {
    "iterations": 1,
    "episodes": 8,
    "minibatch_episodes": 8,
    "epochs": 1,
    "max_response_tokens": 6,
    "max_grad_norm": 1e9,
}


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


def train(
    made: Policy, scorer: Callable[..., Tensor] = byte_scores, seed: int = 0, **options: Any
) -> tuple[list[Metrics], ValueHead]:
    lines: list[Metrics] = []
    config = PPOConfig(**{**SMALL, **options})
    critic = train_policy_gradient(made, prompts(5), [Reward(scorer)], config, seed, lines.append)
    assert isinstance(critic, SharedCritic)
    return lines, critic.head


class Recorded(list[Rollout]):
    """The rollouts that training drew."""


@pytest.fixture
def rollouts(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    found = Recorded()

    def recording(*args: Any, **options: Any) -> Rollout:
        found.append(sample(*args, **options))
        return found[-1]

    monkeypatch.setattr(module, "sample", recording)
    return found


# One iteration against slow loops


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


def away(made: Policy) -> Policy:
    """A reference that differs from the policy, as from the second iteration on."""
    reference = made.copy()
    with torch.no_grad():
        for parameter in reference.model.parameters():
            parameter.mul_(1.1)
    return reference


def first_update(
    made: Policy,
    reference: Policy,
    value_of: Values,
    critic: list[Tensor],
    config: PolicyGradientConfig,
    gradients: list[list[Tensor]],
    rollouts: Recorded,
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


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.8, "kl_coef": 0.5, "lam": 0.8, "gamma": 0.9, "missing_eos_penalty": 2.5},
        {"value_coef": 1.0, "entropy_coef": 0.3, "lam": 1.0},
        {"scale_scores": True, "clip_scores": 1.5, "whiten_rewards": True, "kl_coef": 0.2},
        {"answers": 4, "missing_eos_penalty": 0.3},
        {"kl_estimator": "k3", "kl_coef": 0.4},
        {"kl_in": "loss", "kl_estimator": "k2", "kl_coef": 0.4},
        {"kl_in": "loss", "kl_estimator": "full", "kl_coef": 0.4, "temperature": 0.8},
    ],
    ids=["defaults", "others", "entropy", "scaled", "several answers", "k3", "k2 in the loss", "full in the loss"],
)
@pytest.mark.parametrize("later", [False, True], ids=["at the start", "later"])
def test_lines_08_to_18_the_first_gradient_is_that_of_the_formulas(
    float64: None,
    gradients: list[list[Tensor]],
    rollouts: Recorded,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    later: bool,
) -> None:
    """All of steps 3 to 6: KL in reward or loss, score at the end, GAE, whitening, both losses, normalisation.

    ``later``: the reference differs from the policy and the critic is not zero, as from the second iteration on.
    """
    made, weights = lively(), torch.zeros(17)
    reference = away(made) if later else made.copy()
    if later:
        weights = torch.linspace(-0.3, 0.5, 17)
        init = ValueHead.__init__

        def trained(self: ValueHead, width: int) -> None:
            init(self, width)
            with torch.no_grad():
                self.linear.weight.copy_(weights[None, :-1])
                self.linear.bias.copy_(weights[-1:])

        monkeypatch.setattr(ValueHead, "__init__", trained)
    slope, level = weights[:-1].clone().requires_grad_(), weights[-1:].clone().requires_grad_()

    def value_of(states: Tensor, _: list[int]) -> Tensor:
        return states @ slope + level

    config = PPOConfig(**{**SMALL, **options})
    line, oracle = first_update(made, reference, value_of, [slope, level], config, gradients, rollouts)
    assert line["value_loss"] == pytest.approx(oracle.value_loss, abs=1e-9)
    assert line["policy_loss"] == pytest.approx(0.0, abs=1e-9)  # whitened advantages have mean 0
    assert (abs(oracle.kl) > 0.05) == later


@pytest.mark.parametrize(
    "config",
    [
        REINFORCEConfig(**SMALL, kl_coef=0.3, gamma=0.9),
        RLOOConfig(**SMALL, kl_coef=0.3),
        RLOOConfig(**SMALL, kl_coef=0.3, answers=2, kl_in="loss", kl_estimator="full"),
        GRPOConfig(**SMALL, kl_coef=0.3, kl_in="loss", kl_estimator="k2"),
        GRPOConfig(**SMALL, kl_coef=0.3, scale_advantages=False, kl_in="loss", kl_estimator="k3"),
        GRPOConfig(**SMALL, kl_coef=0.3, answers=8),
        REINFORCEPPConfig(**SMALL, kl_coef=0.3, gamma=0.95, scale_scores=True),
    ],
    ids=["REINFORCE", "RLOO", "RLOO full", "GRPO", "Dr. GRPO k3", "GRPO k1", "REINFORCE++"],
)
def test_the_first_gradient_without_a_critic_is_that_of_the_formulas(
    float64: None, gradients: list[list[Tensor]], rollouts: Recorded, config: PolicyGradientConfig
) -> None:
    made = lively()

    def no_values(_: Tensor, ids: list[int]) -> Tensor:
        return torch.zeros(len(ids))

    line, _ = first_update(made, away(made), no_values, [], config, gradients, rollouts)
    assert "value_loss" not in line
    assert "explained_variance" not in line
    if isinstance(config, GroupConfig):  # the answers to a prompt are neighbours
        asked = rollouts[0].prompts
        assert len({tuple(prompt) for prompt in asked}) == 8 // config.answers
        assert all(asked[i] == asked[i // config.answers * config.answers] for i in range(8))


@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_line_30_a_critic_of_its_own_starts_from_the_reward_model(
    float64: None, gradients: list[list[Tensor]], rollouts: Recorded, temperature: float
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


def test_scores_that_are_all_equal_have_no_scale() -> None:
    def scorer(_prompts: Sequence[Prompt], rollout: Rollout) -> Tensor:
        return torch.ones(len(rollout))

    plain, scaled = (train(lively(), scorer, scale_scores=flag)[0][0]["value_loss"] for flag in (False, True))
    assert scaled == plain


def test_rewards_are_asked_about_the_prompt_that_each_response_answers(rollouts: Recorded) -> None:
    asked: list[list[int]] = []
    made = lively()

    def scorer(asked_prompts: Sequence[Prompt], rollout: Rollout) -> Tensor:
        asked.extend(made.chat.prompt_ids(prompt.messages) for prompt in asked_prompts)
        return byte_scores(asked_prompts, rollout)

    train_policy_gradient(made, prompts(5), [Reward(scorer)], RLOOConfig(**SMALL), 0, print)
    assert asked == list(rollouts[0].prompts)


@pytest.mark.parametrize(("bound", "matters"), [(1.01, True), (1e9, False)])
def test_line_12_the_dual_clip_is_heeded_in_training(bound: float, matters: bool) -> None:
    found = []
    for dual_clip in (0.0, bound):
        made = lively()
        train(made, dual_clip=dual_clip, epochs=6, learning_rate=3e-2, minibatch_episodes=4)
        found.append(parameters(made.model))
    assert same(*found) != matters


def test_several_rewards_add_up_by_their_weights(float64: None, gradients: list[list[Tensor]]) -> None:
    def longer(_prompts: Sequence[Prompt], rollout: Rollout) -> Tensor:
        return rollout.lengths.to(torch.get_default_dtype())

    def both(asked: Sequence[Prompt], rollout: Rollout) -> Tensor:
        return 0.5 * byte_scores(asked, rollout) - 2 * longer(asked, rollout)

    lines: list[Metrics] = []
    parts = [Reward(byte_scores, "bytes", 0.5), Reward(longer, "longer", -2.0)]
    for rewards in ([Reward(both)], parts):
        train_policy_gradient(lively(), prompts(5), rewards, PPOConfig(**SMALL), 0, lines.append)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
    assert "reward_bytes" not in lines[0]
    assert lines[1]["reward"] == pytest.approx(0.5 * lines[1]["reward_bytes"] - 2 * lines[1]["reward_longer"])
    assert lines[1]["reward"] == pytest.approx(lines[0]["reward"])


def test_line_14_micro_batches_change_no_gradient(float64: None, gradients: list[list[Tensor]]) -> None:
    for size in (1, 70, 10_000):
        train(lively(), micro_batch_tokens=size, epochs=2, learning_rate=1e-3, minibatch_episodes=4)
    assert len(gradients) == 12
    for step in range(4):
        for cut in (0, 4):
            for found, whole in zip(gradients[cut + step], gradients[8 + step], strict=True):
                torch.testing.assert_close(found, whole, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("episodes", "minibatch", "epochs", "iterations"), [(8, 2, 3, 2), (8, 8, 1, 3), (6, 3, 2, 1)]
)
def test_line_15_minibatch_episodes_set_how_often_the_optimiser_steps(
    gradients: list[list[Tensor]], episodes: int, minibatch: int, epochs: int, iterations: int
) -> None:
    train(
        lively(),
        episodes=episodes,
        minibatch_episodes=minibatch,
        epochs=epochs,
        iterations=iterations,
        micro_batch_tokens=1,
    )
    assert len(gradients) == iterations * epochs * episodes // minibatch


def test_line_30_the_learning_rate_falls_linearly_over_the_whole_run() -> None:
    lines, _ = train(lively(), iterations=4, epochs=2, minibatch_episodes=4, learning_rate=1e-3)
    # Of the last of the four steps of each iteration.
    assert [line["learning_rate"] for line in lines] == pytest.approx([1e-3 * (16 - i) / 16 for i in (3, 7, 11, 15)])


def test_line_30_adams_epsilon_is_1e_5(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    step = torch.optim.AdamW.step

    def recording(self: torch.optim.AdamW) -> None:
        found.append(self.param_groups[0]["eps"])
        step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", recording)
    train(lively())
    assert found == [1e-5]


# What the sampled and the trained distribution have in common


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_line_03_the_first_minibatch_has_ratio_one(kind: str, temperature: float) -> None:
    """To 1e-4 in float32."""
    lines, _ = train(lively(kind), temperature=temperature, iterations=3, learning_rate=1e-3, minibatch_episodes=2)
    assert max(line["ratio_error"] for line in lines) < 1e-4
    assert max(line["approx_kl"] for line in lines) > 1e-6


@pytest.mark.filterwarnings("ignore:the KL to the reference")
def test_line_03_a_disagreement_of_sampling_and_training_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "sample", lambda *args, **options: sample(*args, **{**options, "temperature": 0.9}))
    with pytest.warns(UserWarning, match="sampling and training disagree"):
        train(lively())


def test_line_02_dropout_is_off_in_policy_and_reference() -> None:
    made = lively("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    made.model.train()
    lines, _ = train(made, iterations=2, learning_rate=1e-9)
    assert max(line["ratio_error"] for line in lines) < 1e-4
    assert abs(lines[0]["kl"]) < 1e-4
    assert not made.model.training


def test_line_19_the_reference_is_the_policy_as_it_came_in_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    start = parameters(lively().model)
    seen = []
    read = module._read_reference

    def recording(model: Any, *rest: Any) -> Any:
        seen.append(same(parameters(model), start) and not any(p.requires_grad for p in model.parameters()))
        return read(model, *rest)

    monkeypatch.setattr(module, "_read_reference", recording)
    made = lively()
    lines, _ = train(made, iterations=4, learning_rate=5e-3)
    assert seen == [True] * 4
    assert not same(parameters(made.model), start)
    assert abs(lines[0]["kl"]) < 1e-4
    assert lines[-1]["kl"] > 0.01


def test_line_10_advantages_are_of_the_values_read_while_sampling(rollouts: Recorded) -> None:
    """From the second iteration on the critic is not zero; its values are those of the head that is returned."""
    lines, head = train(lively(), iterations=2, learning_rate=1e-2, value_coef=1.0)
    assert lines[0]["explained_variance"] == 0.0
    assert not bool(rollouts[0].values.any())
    assert bool(rollouts[1].values.any())
    assert bool(head.linear.weight.any())


def test_line_20_the_weight_of_the_kl_follows_the_controller() -> None:
    options: dict[str, Any] = {"kl_target": 0.5, "kl_horizon": 40, "kl_coef": 0.2}
    lines, _ = train(lively(), iterations=4, learning_rate=5e-3, **options)
    coef = 0.2
    for line in lines:
        assert line["kl_coef"] == pytest.approx(coef, rel=1e-12)
        coef *= 1 + min(max(line["kl"] / 0.5 - 1, -0.2), 0.2) * 8 / 40
    assert lines[-1]["kl_coef"] != 0.2
    fixed, _ = train(lively(), iterations=3, learning_rate=5e-3, kl_coef=0.2)
    assert {line["kl_coef"] for line in fixed} == {0.2}


@pytest.mark.parametrize(
    ("kl", "message"), [(-1.0, "below 0 by more than sampling noise"), (25.0, "more than 2 a token")]
)
def test_line_21_an_impossible_or_exploding_kl_is_a_warning(kl: float, message: str) -> None:
    noise = torch.tensor([-0.1, 0.1, 0.0, 0.0])
    with pytest.warns(UserWarning, match=message):
        _watch_kl(kl + noise, torch.full((4,), 10.0))


def test_line_21_a_small_negative_estimate_is_noise() -> None:
    _watch_kl(torch.tensor([-0.5, 0.6, -0.4, 0.2]), torch.full((4,), 10.0))
    _watch_kl(torch.tensor([-1e-5]), torch.full((1,), 10.0))


# What users see


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_line_16_a_loss_that_is_not_finite_stops_the_run_with_its_batch(
    poison: float, rollouts: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = lively()
    start = parameters(made.model)

    monkeypatch.setattr(module, "value_loss", lambda values, *_: values * poison)
    with pytest.raises(NonFiniteError, match="the loss is not finite") as caught:
        train(made, minibatch_episodes=4)
    assert same(parameters(made.model), start)
    drawn = rollouts[0].sequences
    assert len(caught.value.batch) == 4
    assert all(sequence in drawn for sequence in caught.value.batch)


def test_same_seed_same_model_bit_for_bit() -> None:
    found = []
    for seed in (1, 1, 2):
        made = lively()
        lines, head = train(made, seed=seed, iterations=3, learning_rate=1e-3, minibatch_episodes=4)
        figures = [{k: v for k, v in line.items() if not k.endswith("seconds")} for line in lines]
        found.append(([*parameters(made.model), *parameters(head)], figures))
    assert same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert not same(found[0][0], found[2][0])


def test_each_iteration_draws_other_responses(rollouts: Recorded) -> None:
    """With one prompt, or the other prompts of an iteration would make the difference."""
    config = PPOConfig(**{**SMALL, "iterations": 3, "learning_rate": 1e-12})
    train_policy_gradient(lively(), prompts(1), [Reward(byte_scores)], config, 0, print)
    assert len({tuple(map(tuple, rollout.ids.tolist())) for rollout in rollouts}) == 3


def test_an_observer_sees_the_texts_and_changes_nothing() -> None:
    seen: list[tuple[Sequence[Prompt], Sequence[str]]] = []

    def observe(asked: Sequence[Prompt], texts: Sequence[str]) -> Metrics:
        seen.append((asked, texts))
        torch.rand(3)  # what it draws is its own
        return {"true_reward": 7.0}

    plain, watched = lively(), lively()
    train(plain)
    lines: list[Metrics] = []
    train_policy_gradient(
        watched, prompts(5), [Reward(byte_scores)], PPOConfig(**SMALL), 0, lines.append, observe=observe
    )
    assert lines[0]["true_reward"] == 7.0
    assert same(parameters(plain.model), parameters(watched.model))
    [(asked, texts)] = seen
    assert len(asked) == len(texts) == 8
    assert {prompt.id for prompt in asked} == {prompt.id for prompt in prompts(5)}


def test_line_09_long_prompts_are_cut_at_the_limit(rollouts: Recorded) -> None:
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


def test_seeds_derived_by_name_are_their_own() -> None:
    found = [derive(0, "ppo", 1), derive(0, "ppo", 2), derive(0, "update", 1), derive(1, "ppo", 1)]
    assert len(set(found)) == 4
    assert found[0] == derive(0, "ppo", 1)
    assert all(0 <= seed < 2**62 for seed in found)
