"""Policy gradients: one iteration against slow loops, and what stays fixed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.toys import parameters, prompts, same
from tests.training.oracle import first_update
from tests.training.practice import SMALL, away, byte_scores, lively, train
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
from prefloop.models.heads import ValueHead
from prefloop.rollout.batch import Rollout
from prefloop.rollout.reward import Reward
from prefloop.rollout.sampler import sample
from prefloop.seeds import derive
from prefloop.training import policy_gradient as module
from prefloop.training.loop import Metrics, NonFiniteError
from prefloop.training.policy_gradient import train_policy_gradient

# One iteration against slow loops


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
    rollouts: list[Rollout],
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
    float64: None, gradients: list[list[Tensor]], rollouts: list[Rollout], config: PolicyGradientConfig
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


# Scores


def test_scores_that_are_all_equal_have_no_scale() -> None:
    def scorer(_prompts: Sequence[Prompt], rollout: Rollout) -> Tensor:
        return torch.ones(len(rollout))

    plain, scaled = (train(lively(), scorer, scale_scores=flag)[0][0]["value_loss"] for flag in (False, True))
    assert scaled == plain


def test_rewards_are_asked_about_the_prompt_that_each_response_answers(rollouts: list[Rollout]) -> None:
    asked: list[list[int]] = []
    made = lively()

    def scorer(asked_prompts: Sequence[Prompt], rollout: Rollout) -> Tensor:
        asked.extend(made.chat.prompt_ids(prompt.messages) for prompt in asked_prompts)
        return byte_scores(asked_prompts, rollout)

    train_policy_gradient(made, prompts(5), [Reward(scorer)], RLOOConfig(**SMALL), 0, print)
    assert asked == list(rollouts[0].prompts)


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


# The update


@pytest.mark.parametrize(("bound", "matters"), [(1.01, True), (1e9, False)])
def test_line_12_the_dual_clip_is_heeded_in_training(bound: float, matters: bool) -> None:
    found = []
    for dual_clip in (0.0, bound):
        made = lively()
        train(made, dual_clip=dual_clip, epochs=6, learning_rate=3e-2, minibatch_episodes=4)
        found.append(parameters(made.model))
    assert same(*found) != matters


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


# What users see


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_line_16_a_loss_that_is_not_finite_stops_the_run_with_its_batch(
    poison: float, rollouts: list[Rollout], monkeypatch: pytest.MonkeyPatch
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


def test_each_iteration_draws_other_responses(rollouts: list[Rollout]) -> None:
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


def test_seeds_derived_by_name_are_their_own() -> None:
    found = [derive(0, "ppo", 1), derive(0, "ppo", 2), derive(0, "update", 1), derive(1, "ppo", 1)]
    assert len(set(found)) == 4
    assert found[0] == derive(0, "ppo", 1)
    assert all(0 <= seed < 2**62 for seed in found)
