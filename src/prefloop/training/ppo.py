"""PPO against a reward [Schulman et al. 2017; Ziegler et al. 2019; Stiennon et al. 2020; Huang et al. 2024].

Deviations from the published implementations:

1. The value function is a head on the policy's own trunk and starts at zero; V is read off while decoding.
2. Losses are normalised by the response tokens of the whole optimiser step, not of each micro-batch.
3. The score belongs to the last real token, and the state after it is terminal (value 0, not trained).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from prefloop.algorithms.gae import generalised_advantages
from prefloop.algorithms.kl import adapt_kl_coef, kl_estimate
from prefloop.algorithms.likelihood import token_entropy, token_log_probs
from prefloop.algorithms.masked import masked_mean, masked_whiten
from prefloop.algorithms.ppo import explained_variance, policy_loss, token_rewards, value_loss
from prefloop.config import PPOConfig
from prefloop.feedback.records import Prompt
from prefloop.models.forward import (
    head_logits,
    hidden_states,
    micro_batches,
    pad,
    predicting_states,
    score_responses,
    width_of,
)
from prefloop.models.heads import ValueHead
from prefloop.policy import Policy
from prefloop.rollout.batch import Rollout
from prefloop.rollout.reward import Scorer
from prefloop.rollout.sampler import sample
from prefloop.seeds import derive
from prefloop.training.loop import Log, Metrics, NonFiniteError, Optimiser, shuffled_batches

Observer = Callable[[Sequence[Prompt], Sequence[str]], Metrics]
"""Looks at prompts and responses of an iteration and adds figures to its metrics; it never touches training."""

# Cached decoding and the training pass do the same sums in another order. In float32 the ratio of their
# probabilities stays this close to 1; more means that they do not compute the same thing.
RATIO_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Experience:
    """A rollout with what is learnt from it; all tensors [B, R] as in the rollout, 0 at padding."""

    rollout: Rollout
    advantages: Float[Tensor, "B R"]
    returns: Float[Tensor, "B R"]


def train_ppo(
    policy: Policy,
    prompts: Sequence[Prompt],
    scorer: Scorer,
    config: PPOConfig,
    seed: int,
    log: Log,
    *,
    max_prompt_tokens: int = 256,
    observe: Observer | None = None,
) -> ValueHead:
    """Train ``policy`` in place; as it comes in, it is the reference. Returns the value function's head."""
    if not prompts:
        raise ValueError("there are no prompts to practise on")
    model = policy.model.eval()  # no dropout: the sampled and the trained distribution are the same
    reference = policy.copy().model.requires_grad_(False)
    value_head = ValueHead(width_of(model)).to(model.device)
    updates = config.iterations * config.epochs * (config.episodes // config.minibatch_episodes)
    optimiser = Optimiser([*model.parameters(), *value_head.parameters()], config, updates, eps=1e-5)
    encoded = _encode(policy, prompts, max_prompt_tokens)
    batches = shuffled_batches(encoded, config.episodes, config.iterations, seed)
    kl_coef, started = config.kl_coef, time.perf_counter()

    for iteration, batch in enumerate(batches, start=1):
        clock = [time.perf_counter()]
        # 1 sample prompts
        asked, prompt_ids = [prompt for prompt, _ in batch], [ids for _, ids in batch]
        # 2 generate responses
        rollout = sample(
            model,
            prompt_ids,
            eos_id=policy.chat.eos_id,
            max_response_tokens=config.max_response_tokens,
            temperature=config.temperature,
            seed=derive(seed, "ppo", iteration),
            value_head=value_head,
        )
        clock.append(time.perf_counter())
        # 3 score them
        scores = scorer(asked, rollout)
        rewarded = scores - config.missing_eos_penalty * (~rollout.ended)
        # 4 penalise the KL from the reference
        ref_log_probs = _reference_log_probs(reference, rollout, config)
        kl = kl_estimate(rollout.log_probs, ref_log_probs, config.kl_estimator)
        rewards = token_rewards(rewarded, kl, rollout.mask, kl_coef)
        # 5 compute advantages
        advantages, returns = generalised_advantages(rewards, rollout.values, rollout.mask, config.gamma, config.lam)
        experience = Experience(rollout, masked_whiten(advantages, rollout.mask), returns)
        clock.append(time.perf_counter())
        # 6 clipped update
        update = _update(policy, value_head, experience, optimiser, config, derive(seed, "update", iteration))
        clock.append(time.perf_counter())

        line = {
            "iteration": iteration,
            "progress": iteration / config.iterations,
            "reward": float(scores.mean()),
            **_rollout_figures(rollout, ref_log_probs, returns),
            "kl_coef": kl_coef,
            **update,
            "seconds": clock[-1] - started,
            **dict(zip(("sample_seconds", "score_seconds", "update_seconds"), _laps(clock), strict=True)),
        }
        if observe is not None:
            line |= observe(asked, [policy.chat.text(ids) for ids in rollout.responses])
        log(line)
        if config.kl_target:
            kl_coef = adapt_kl_coef(kl_coef, line["kl"], config.kl_target, config.episodes, config.kl_horizon)
    return value_head


def _encode(policy: Policy, prompts: Sequence[Prompt], max_tokens: int) -> list[tuple[Prompt, list[int]]]:
    """Each prompt with its token ids."""
    fitted = [policy.chat.fitted_prompt_ids(prompt, max_tokens) for prompt in prompts]
    cut = sum(kept is not prompt for (_, kept), prompt in zip(fitted, prompts, strict=True))
    if cut:
        warnings.warn(f"{cut} of {len(prompts)} prompts were cut to {max_tokens} tokens", stacklevel=3)
    return [(prompt, ids) for prompt, (ids, _) in zip(prompts, fitted, strict=True)]


def _reference_log_probs(model: torch.nn.Module, rollout: Rollout, config: PPOConfig) -> Float[Tensor, "B R"]:
    """log π_ref of the sampled tokens, at the same temperature; 0 at padding."""
    values = score_responses(model, rollout.sequences, config.micro_batch_tokens, config.temperature)
    result = torch.zeros_like(rollout.log_probs)
    result[rollout.mask] = torch.cat(values)
    return result


def _update(
    policy: Policy,
    value_head: ValueHead,
    experience: Experience,
    optimiser: Optimiser,
    config: PPOConfig,
    seed: int,
) -> Metrics:
    """``epochs`` passes over the episodes; the mean of each step's figures."""
    rollout, model = experience.rollout, policy.model
    sequences = rollout.sequences
    first_step_errors: list[float] = []

    def loss(rows: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        batch = pad([sequences[row] for row in rows], model.device)
        states = predicting_states(hidden_states(model, batch), batch)
        logits = head_logits(model, states)
        log_probs = token_log_probs(logits, batch.targets, config.temperature)
        values = value_head(states)

        mask = rollout.mask[rows]
        old_log_probs, old_values = rollout.log_probs[rows][mask], rollout.values[rows][mask]
        advantages, returns = experience.advantages[rows][mask], experience.returns[rows][mask]
        if len(steps) == 0:
            first_step_errors.append(float((log_probs.detach() - old_log_probs).exp().sub(1).abs().max()))
        policy_losses, stats = policy_loss(log_probs, old_log_probs, advantages, config.clip_range)
        value_losses = value_loss(values, old_values, returns, config.value_clip_range)
        stats |= {"policy_loss": policy_losses.detach(), "value_loss": value_losses.detach()}
        losses = policy_losses + config.value_coef * value_losses
        if config.entropy_coef:
            losses = losses - config.entropy_coef * token_entropy(logits, config.temperature)
        return losses, stats

    steps: list[Metrics] = []
    count = config.epochs * (len(rollout) // config.minibatch_episodes)
    lengths = [len(sequence) for sequence in sequences]
    for minibatch in shuffled_batches(range(len(rollout)), config.minibatch_episodes, count, seed):
        groups = micro_batches([lengths[row] for row in minibatch], config.micro_batch_tokens)
        micro = [[minibatch[i] for i in group] for group in groups]
        try:
            steps.append(optimiser.step(micro, loss, int(rollout.lengths[minibatch].sum())))
        except NonFiniteError as error:
            error.batch = [sequences[row] for row in minibatch]
            raise

    ratio_error = max(first_step_errors)
    if ratio_error > RATIO_TOLERANCE:
        warnings.warn(
            f"sampling and training disagree: a token's probability differs by {ratio_error:.2g} (relative) "
            f"before any update, more than {RATIO_TOLERANCE:g}. The policy gradient is biased",
            stacklevel=2,
        )
    means = {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
    return {**means, "learning_rate": steps[-1]["learning_rate"], "ratio_error": ratio_error}


def _rollout_figures(rollout: Rollout, ref_log_probs: Float[Tensor, "B R"], returns: Float[Tensor, "B R"]) -> Metrics:
    mask, lengths = rollout.mask, rollout.lengths.float()
    kl = kl_estimate(rollout.log_probs, ref_log_probs, "k1").sum(1)
    _watch_kl(kl, lengths)
    return {
        "kl": float(kl.mean()),
        "entropy": float(masked_mean(rollout.entropy, mask)),
        "response_tokens": float(lengths.mean()),
        "ended": float(rollout.ended.float().mean()),
        "explained_variance": explained_variance(rollout.values[mask], returns[mask]),
    }


def _watch_kl(kl: Float[Tensor, " B"], lengths: Float[Tensor, " B"]) -> None:
    """Say so when the KL is impossible (a bug) or out of hand (a setting)."""
    mean = float(kl.mean())
    noise = float(kl.std()) / len(kl) ** 0.5 if len(kl) > 1 else 0.0
    if mean < -4 * noise - 1e-3:
        warnings.warn(
            f"the KL to the reference is {mean:.3f} nats, below 0 by more than sampling noise ({noise:.3f}): the "
            "responses were not drawn from the distribution whose log-probabilities are used",
            stacklevel=2,
        )
    if mean > 2 * float(lengths.mean()):
        warnings.warn(
            f"the KL to the reference is {mean:.1f} nats, more than 2 a token: the policy has left the language of "
            "the reference. Raise ppo.kl_coef, set ppo.kl_target or lower ppo.learning_rate",
            stacklevel=2,
        )


def _laps(clock: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(clock)]
