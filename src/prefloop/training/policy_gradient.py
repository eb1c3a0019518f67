"""Policy gradients against a reward: PPO, REINFORCE, RLOO, GRPO and REINFORCE++.

[Schulman et al. 2017; Ziegler et al. 2019; Stiennon et al. 2020; Huang et al. 2024; for the others see
:mod:`prefloop.algorithms.policy_gradient`.] One loop: the algorithms differ in step 5, the advantage, alone. PPO's
needs a critic, which learns beside the policy.

Deviations from the published implementations:

1. The value function is by default a head on the policy's own trunk and starts at zero; V is read off while decoding.
2. Losses are normalised by the response tokens of the whole optimiser step, not of each micro-batch or answer.
3. The score belongs to the last real token, and the state after it is terminal (value 0, not trained).
4. With ``answers`` above 1 PPO's scores count from the mean of the prompt's other answers, as in RLOO; the value
   function foresees what is left.
5. All algorithms clip the probability ratio as PPO does, so that a batch can be used more than once.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prefloop.algorithms.gae import generalised_advantages
from prefloop.algorithms.kl import adapt_kl_coef, full_kl, kl_estimate
from prefloop.algorithms.likelihood import token_entropy, token_log_probs
from prefloop.algorithms.masked import masked_whiten
from prefloop.algorithms.moments import RunningMoments
from prefloop.algorithms.policy_gradient import (
    grpo_advantages,
    leave_one_out,
    reinforce_advantages,
    reinforce_pp_advantages,
    rloo_advantages,
)
from prefloop.algorithms.ppo import explained_variance, policy_loss, token_rewards, value_loss
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
from prefloop.models.footprint import hand_back
from prefloop.models.forward import (
    TokenBatch,
    arrange,
    head_logits,
    in_parts,
    log_probs_of,
    micro_batches,
    predicting_states,
    token_parts,
)
from prefloop.models.heads import RewardModel
from prefloop.models.precision import computed_in
from prefloop.models.quickest import in_one_precision
from prefloop.policy import Policy
from prefloop.rollout.batch import Rollout
from prefloop.rollout.reward import Reward, total_scores
from prefloop.rollout.sampler import sample
from prefloop.seeds import derive
from prefloop.training.critic import Critic, SeparateCritic, SharedCritic
from prefloop.training.loop import Log, Loss, Metrics, NonFiniteError, Optimiser, fitted, mean_figures
from prefloop.training.on_policy import Observer, laps, prompt_batches, rollout_figures, shuffled_minibatches

# Cached decoding and the training pass do the same sums in another order. The ratio of their probabilities stays this
# close to 1; more means that they do not compute the same thing. (bfloat16 has 8 bits: 0.17 was seen in the demo.)
RATIO_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.5}


@dataclass(frozen=True)
class Experience:
    """A rollout with what is learnt from it; tensors [B, R] as in the rollout, 0 at padding."""

    rollout: Rollout
    advantages: Float[Tensor, "B R"]
    reference: Reference
    values: Float[Tensor, "B R"] | None
    """The critic's, before the update; None where there is no critic, and so are its targets."""
    returns: Float[Tensor, "B R"] | None


@dataclass(frozen=True)
class Reference:
    """What the reference makes of a rollout."""

    log_probs: Float[Tensor, "B R"]
    """log π_ref of the sampled tokens, at the sampling temperature; 0 at padding."""
    states: list[Tensor]
    """Of each response [tokens, d], the states that its tokens are predicted from; empty unless the full KL is asked
    for: with the reference's head they are the whole distributions, in a fraction of the memory."""
    model: Any


@in_one_precision
def train_policy_gradient(
    policy: Policy,
    prompts: Sequence[Prompt],
    reward: Sequence[Reward],
    config: PolicyGradientConfig,
    seed: int,
    log: Log,
    *,
    max_prompt_tokens: int = 256,
    observe: Observer | None = None,
) -> Critic | None:
    """Train ``policy`` in place; as it comes in, it is the reference. Returns PPO's critic.

    ``config``'s class says which algorithm: the six steps are the same for all.
    """
    config = fitted(config, policy.model)
    model = policy.model.eval()  # no dropout: the sampled and the trained distribution are the same
    reference = policy.copy().model.requires_grad_(False)
    critic = _critic(policy, reward, config)
    updates = config.iterations * config.epochs * (config.episodes // config.minibatch_episodes)
    # A critic of its own is clipped by itself, or its gradient, the larger one, would hold the policy's down.
    joined, apart = _critic_parameters(critic)
    optimiser = Optimiser([*model.parameters(), *joined], config, updates, eps=1e-5, apart=apart)
    answers = config.answers if isinstance(config, GroupConfig) else 1
    size = config.episodes // answers
    batches = prompt_batches(policy, prompts, size, config.iterations, seed, max_prompt_tokens)
    kl_coef, moments, started = config.kl_coef, RunningMoments(), time.perf_counter()

    for iteration, batch in enumerate(batches, start=1):
        clock = [time.perf_counter()]
        # 1 sample prompts
        prompt_ids = [ids for _, ids in batch]
        asked = [prompt for prompt, _ in batch for _ in range(answers)]
        # 2 generate responses
        rollout = sample(
            model,
            prompt_ids,
            eos_id=policy.chat.eos_id,
            max_response_tokens=config.max_response_tokens,
            temperature=config.temperature,
            seed=derive(seed, "ppo", iteration),
            answers=answers,
            value_head=critic.head if critic else None,
        )
        hand_back()
        clock.append(time.perf_counter())
        # 3 score them
        scores, figures = total_scores(reward, asked, rollout)
        moments = moments.with_batch(scores)
        rewarded = _shaped(scores, rollout, moments, config)
        # 4 penalise the KL from the reference
        ref = _read_reference(reference, rollout, config)
        rewards = _token_rewards(rewarded, rollout, ref, config, kl_coef)
        # 5 compute advantages
        values = critic.read(rollout, config.micro_batch_tokens) if critic else None
        advantages, returns = _advantages(rewards, values, rollout, config)
        experience = Experience(rollout, advantages, ref, values, returns)
        clock.append(time.perf_counter())
        # 6 clipped update
        update = _update(policy, critic, experience, optimiser, config, kl_coef, derive(seed, "update", iteration))
        hand_back()
        clock.append(time.perf_counter())

        line = {
            "iteration": iteration,
            "progress": iteration / config.iterations,
            "reward": float(scores.mean()),
            **figures,
            **rollout_figures(rollout, ref.log_probs),
            **_critic_figures(experience),
            "kl_coef": kl_coef,
            **update,
            "seconds": clock[-1] - started,
            **dict(zip(("sample_seconds", "score_seconds", "update_seconds"), laps(clock), strict=True)),
        }
        if observe is not None:
            line |= observe(asked, [policy.chat.text(ids) for ids in rollout.responses])
        log(line)
        if config.kl_target:
            kl_coef = adapt_kl_coef(kl_coef, line["kl"], config.kl_target, config.episodes, config.kl_horizon)
    return critic


def _critic(policy: Policy, reward: Sequence[Reward], config: PolicyGradientConfig) -> Critic | None:
    if not isinstance(config, PPOConfig):
        return None
    if config.critic == "shared":
        return SharedCritic(policy.model)
    first = next((one for one in reward if one.model is not None), None)
    if first is None or first.model is None:
        return SeparateCritic(RewardModel.from_policy(policy.model, policy.tokenizer, seed=0), scale=0.0)
    # The model's score is a forecast of the return only where the return is that score and nothing else.
    alone = len(reward) == 1 and config.answers == 1 and not config.scale_scores
    return SeparateCritic(first.model, scale=first.weight if alone else 0.0)


def _critic_parameters(critic: Critic | None) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Those on the policy's trunk, and those of a critic of its own."""
    if critic is None:
        return [], []
    found = list(critic.parameters())
    return (found, []) if isinstance(critic, SharedCritic) else ([], found)


def _shaped(
    scores: Float[Tensor, " B"], rollout: Rollout, moments: RunningMoments, config: PolicyGradientConfig
) -> Float[Tensor, " B"]:
    """Scores scaled and clipped, where that is asked for, lower where the response was cut off, and for PPO with
    several answers to a prompt less the mean of the others."""
    if config.scale_scores and moments.deviation:  # of scores that are all equal so far there is no scale
        scores = scores / moments.deviation
    if config.clip_scores:
        scores = scores.clamp(-config.clip_scores, config.clip_scores)
    scores = scores - config.missing_eos_penalty * (~rollout.ended)
    if isinstance(config, PPOConfig) and config.answers > 1:
        return leave_one_out(scores, config.answers)
    return scores


def _read_reference(model: Any, rollout: Rollout, config: PolicyGradientConfig) -> Reference:
    keep = config.kl_estimator == "full"
    log_probs = torch.zeros_like(rollout.log_probs)
    states: list[Tensor] = [torch.empty(0)] * (len(rollout) if keep else 0)
    for rows, batch in _passes(rollout, config, model):
        with torch.no_grad():
            found = predicting_states(model, batch)
        read = torch.zeros_like(log_probs[rows])
        read[rollout.mask[rows]] = log_probs_of(model, found, batch.targets, config.temperature)
        log_probs[rows] = read
        if keep:
            for row, part in zip(rows, found.split(rollout.lengths[rows].tolist()), strict=True):
                states[row] = part
    return Reference(log_probs, states, model)


def _passes(rollout: Rollout, config: PolicyGradientConfig, model: Any) -> Iterator[tuple[list[int], TokenBatch]]:
    """All rows of a rollout, cut to fit memory."""
    for rows in micro_batches(rollout.sequences, config.micro_batch_tokens, model):
        yield rows, arrange([rollout.sequences[row] for row in rows], model)


def _token_rewards(
    scores: Float[Tensor, " B"], rollout: Rollout, ref: Reference, config: PolicyGradientConfig, kl_coef: float
) -> Float[Tensor, "B R"]:
    """The score at the last token, and at every token the KL penalty unless that is part of the loss."""
    if config.kl_in == "loss":
        kl = torch.zeros_like(rollout.log_probs)
    else:
        assert config.kl_estimator != "full", "refused by the recipe"
        kl = kl_estimate(rollout.log_probs, ref.log_probs, config.kl_estimator)
    rewards = token_rewards(scores, kl, rollout.mask, kl_coef)
    if isinstance(config, PPOConfig) and config.whiten_rewards:
        return masked_whiten(rewards, rollout.mask, keep_mean=True)
    return rewards


def _advantages(
    rewards: Float[Tensor, "B R"],
    values: Float[Tensor, "B R"] | None,
    rollout: Rollout,
    config: PolicyGradientConfig,
) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B R"] | None]:
    """How much better each token was than expected, by each algorithm's lights; for PPO, its critic's targets too."""
    mask = rollout.mask
    match config:
        case PPOConfig():
            assert values is not None
            advantages, returns = generalised_advantages(rewards, values, mask, config.gamma, config.lam)
            return masked_whiten(advantages, mask), returns
        case REINFORCEConfig():
            return reinforce_advantages(rewards, mask, config.gamma), None
        case RLOOConfig():
            return rloo_advantages(rewards, mask, config.answers), None
        case GRPOConfig():
            return grpo_advantages(rewards, mask, config.answers, config.scale_advantages), None
        case REINFORCEPPConfig():
            return reinforce_pp_advantages(rewards, mask, config.gamma), None
        case _:
            raise TypeError(f"no advantage belongs to {type(config).__name__}")


def _update(
    policy: Policy,
    critic: Critic | None,
    experience: Experience,
    optimiser: Optimiser,
    config: PolicyGradientConfig,
    kl_coef: float,
    seed: int,
) -> Metrics:
    """``epochs`` passes over the episodes; the mean of each step's figures."""
    rollout = experience.rollout
    errors: list[float] = []

    def loss(rows: list[int]) -> Iterator[Loss]:
        for found, stats, error in _losses(policy.model, critic, experience, rows, config, kl_coef):
            errors.append(error)
            yield found, stats

    steps: list[Metrics] = []
    ratio_error = 0.0
    for minibatch in shuffled_minibatches(rollout, config, seed):
        steps.append(_step(optimiser, policy, rollout, minibatch, loss, config))
        if len(steps) == 1:  # before which nothing has changed
            ratio_error = max(errors)
    _watch_ratio(ratio_error)
    return {**mean_figures(steps), "ratio_error": ratio_error}


def _losses(
    model: Any,
    critic: Critic | None,
    experience: Experience,
    rows: list[int],
    config: PolicyGradientConfig,
    kl_coef: float,
) -> Iterator[tuple[Tensor, dict[str, Tensor], float]]:
    """Part by part, the loss of every response token of some rows, statistics of it, and how far a ratio is from 1 at
    most."""
    rollout, ref = experience.rollout, experience.reference
    mask = rollout.mask[rows]
    batch = arrange([rollout.sequences[row] for row in rows], model)
    old, advantages, ref_log_probs = (
        whole[rows][mask] for whole in (rollout.log_probs, experience.advantages, ref.log_probs)
    )
    ref_states = torch.cat([ref.states[row] for row in rows]) if ref.states else None

    def of(states: Tensor, place: slice) -> tuple[Tensor, dict[str, Tensor], float]:
        logits = head_logits(model, states)
        log_probs = token_log_probs(logits, batch.targets[place], config.temperature)
        losses, stats = policy_loss(log_probs, old[place], advantages[place], config.clip_range, config.dual_clip)
        stats["policy_loss"] = losses.detach()
        if config.kl_in == "loss":
            if config.kl_estimator == "full":
                assert ref_states is not None
                kl = full_kl(logits, head_logits(ref.model, ref_states[place]), config.temperature)
            else:
                kl = kl_estimate(log_probs, ref_log_probs[place], config.kl_estimator)
            losses = losses + kl_coef * kl
            stats["kl_loss"] = kl.detach()
        if isinstance(critic, SharedCritic):
            value_losses, more = _value_part(critic.head(states), experience, rows, config, place)
            losses, stats = losses + value_losses, stats | more
        if config.entropy_coef:
            losses = losses - config.entropy_coef * token_entropy(logits, config.temperature)
        return losses, stats, float((log_probs.detach() - old[place]).exp().sub(1).abs().max())

    states = predicting_states(model, batch)
    yield from in_parts(states, token_parts(model, len(states)), of)
    if isinstance(critic, SeparateCritic):
        values = critic.values([rollout.sequences[row] for row in rows])
        yield (*_value_part(values, experience, rows, config), 0.0)


def _value_part(
    values: Float[Tensor, " n"],
    experience: Experience,
    rows: list[int],
    config: PolicyGradientConfig,
    place: slice = slice(None),
) -> Loss:
    """The critic's part of the loss, at some of the response tokens of some rows."""
    assert isinstance(config, PPOConfig)
    assert experience.values is not None
    assert experience.returns is not None
    mask = experience.rollout.mask[rows]
    old, target = (whole[rows][mask][place] for whole in (experience.values, experience.returns))
    losses = value_loss(values, old, target, config.value_clip_range)
    return config.value_coef * losses, {"value_loss": losses.detach()}


def _step(
    optimiser: Optimiser,
    policy: Policy,
    rollout: Rollout,
    minibatch: list[int],
    loss: Callable[[list[int]], Iterator[Loss]],
    config: PolicyGradientConfig,
) -> Metrics:
    """One step on some rows of a rollout, in micro-batches."""
    sequences = [rollout.sequences[row] for row in minibatch]
    groups = micro_batches(sequences, config.micro_batch_tokens, policy.model)
    micro = [[minibatch[i] for i in group] for group in groups]
    try:
        return optimiser.step(micro, loss, int(rollout.lengths[minibatch].sum()))
    except NonFiniteError as error:
        error.batch = sequences
        raise


def _critic_figures(experience: Experience) -> Metrics:
    if experience.values is None or experience.returns is None:
        return {}
    mask = experience.rollout.mask
    return {"explained_variance": explained_variance(experience.values[mask], experience.returns[mask])}


def _watch_ratio(error: float) -> None:
    """Say so when the policy that sampled is not the one that is trained."""
    tolerance = RATIO_TOLERANCE[computed_in()]
    if error > tolerance:
        warnings.warn(
            f"sampling and training disagree: a token's probability differs by {error:.2g} (relative) "
            f"before any update, more than {tolerance:g}. The policy gradient is biased",
            stacklevel=2,
        )
