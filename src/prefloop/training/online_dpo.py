"""Online DPO [Guo et al. 2024]: sample, judge, train by DPO, and sample again from what that made.

The loss is DPO's, against the policy as it came in. What differs from training on stored comparisons is where the
answers come from: from the policy of the moment, so the comparisons are about what it says now.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from prefloop.config import DPOConfig, OnlineDPOConfig
from prefloop.feedback.records import Prompt
from prefloop.models.footprint import hand_back
from prefloop.models.forward import score_responses
from prefloop.models.quickest import in_one_precision
from prefloop.policy import Policy
from prefloop.rollout.batch import Rollout
from prefloop.rollout.reward import Reward, total_scores
from prefloop.rollout.sampler import sample
from prefloop.seeds import derive
from prefloop.training.comparisons import PreferenceGroup, group_micro_batches
from prefloop.training.direct import preference_losses
from prefloop.training.loop import Log, Loss, Metrics, Optimiser, fitted, mean_figures, shuffled_batches, steps_in
from prefloop.training.on_policy import Observer, laps, prompt_batches, rollout_figures

Votes = tuple[int, int, float, float]
"""(i, j, votes for answer i, votes for answer j) of one prompt's answers."""
PairJudge = Callable[[Sequence[Prompt], Rollout, int], tuple[list[list[Votes]], Metrics]]
"""(prompt of each row, rollout, K) → the votes of every prompt, and figures for the metrics."""


@in_one_precision
def train_online_dpo(
    policy: Policy,
    prompts: Sequence[Prompt],
    judge: PairJudge,
    config: OnlineDPOConfig,
    seed: int,
    log: Log,
    *,
    max_prompt_tokens: int = 256,
    observe: Observer | None = None,
) -> None:
    """Train ``policy`` in place; as it comes in, it is the reference."""
    model, config = policy.model.eval(), fitted(config, policy.model)
    reference = policy.copy().model.requires_grad_(False)
    per_iteration = config.episodes // config.answers
    per_step = config.minibatch_episodes // config.answers
    steps_each = config.epochs * (per_iteration // per_step)
    optimiser = Optimiser(model.parameters(), config, config.iterations * steps_each)
    batches = prompt_batches(policy, prompts, per_iteration, config.iterations, seed, max_prompt_tokens)
    loss_config, started = (
        DPOConfig(beta=config.beta, micro_batch_tokens=config.micro_batch_tokens),
        time.perf_counter(),
    )

    def loss(batch: list[PreferenceGroup]) -> Iterator[Loss]:
        return preference_losses(model, batch, loss_config, torch.zeros((), device=model.device))

    for iteration, batch in enumerate(batches, start=1):
        clock = [time.perf_counter()]
        # 1 sample prompts
        prompt_ids = [ids for _, ids in batch]
        asked = [prompt for prompt, _ in batch for _ in range(config.answers)]
        # 2 generate responses
        rollout = sample(
            model,
            prompt_ids,
            eos_id=policy.chat.eos_id,
            max_response_tokens=config.max_response_tokens,
            temperature=config.temperature,
            seed=derive(seed, "online_dpo", iteration),
            answers=config.answers,
        )
        hand_back()
        clock.append(time.perf_counter())
        # 3 judge them
        votes, figures = judge(asked, rollout, config.answers)
        ref_log_probs = _read_reference(reference, rollout, config.micro_batch_tokens, config.temperature)
        groups = _groups(rollout, votes, ref_log_probs, config, reference)
        clock.append(time.perf_counter())
        # 4 train on the comparisons
        steps: list[Metrics] = []
        size = min(per_step, len(groups))
        count = steps_in(len(groups), per_step, config.epochs) if groups else 0
        for minibatch in shuffled_batches(groups, size, count, derive(seed, "update", iteration)):
            micro = group_micro_batches(minibatch, config.micro_batch_tokens, model)
            steps.append(optimiser.step(micro, loss, sum(group.votes for group in minibatch)))
        hand_back()
        clock.append(time.perf_counter())

        line = {
            "iteration": iteration,
            "progress": iteration / config.iterations,
            **figures,
            "comparisons": sum(len(group.pairs) for group in groups),
            **rollout_figures(rollout, ref_log_probs),
            **(mean_figures(steps) if steps else {}),
            "seconds": clock[-1] - started,
            **dict(zip(("sample_seconds", "score_seconds", "update_seconds"), laps(clock), strict=True)),
        }
        if observe is not None:
            line |= observe(asked, [policy.chat.text(ids) for ids in rollout.responses])
        log(line)


def judge_by_reward(reward: Sequence[Reward], missing_eos_penalty: float) -> PairJudge:
    """Every pair of a prompt's answers, with the votes that Bradley–Terry gives: σ(s_i − s_j) and σ(s_j − s_i).

    Whole votes for the better answer would drive its margin to infinity, however small the difference. With these
    shares DPO's optimum is π_ref·exp(s/β), as PPO's is.
    """

    def judge(asked: Sequence[Prompt], rollout: Rollout, answers: int) -> tuple[list[list[Votes]], Metrics]:
        scores, figures = total_scores(reward, asked, rollout)
        rewarded = (scores - missing_eos_penalty * (~rollout.ended)).view(-1, answers)
        pairs = list(combinations(range(answers), 2))
        first, second = rewarded[:, [i for i, _ in pairs]], rewarded[:, [j for _, j in pairs]]
        shares = (first - second).sigmoid().tolist()
        votes = [[(i, j, share, 1 - share) for (i, j), share in zip(pairs, row, strict=True)] for row in shares]
        return votes, {"reward": float(scores.mean()), **figures}

    return judge


def _read_reference(model: Any, rollout: Rollout, max_tokens: int, temperature: float) -> Float[Tensor, "B R"]:
    values = score_responses(model, rollout.sequences, max_tokens, temperature)
    result = torch.zeros_like(rollout.log_probs)
    result[rollout.mask] = torch.cat(values)
    return result


def _groups(
    rollout: Rollout,
    votes: Sequence[Sequence[Votes]],
    ref_log_probs: Float[Tensor, "B R"],
    config: OnlineDPOConfig,
    reference: Any,
) -> list[PreferenceGroup]:
    """The answers to each prompt with their votes; prompts without any are left out.

    DPO is about softmax(logits), whatever temperature the answers were drawn at.
    """
    if config.temperature != 1:
        ref_log_probs = _read_reference(reference, rollout, config.micro_batch_tokens, 1.0)
    sums = ref_log_probs.sum(1).split(config.answers)
    return [
        PreferenceGroup(
            tuple(rollout.sequences[prompt * config.answers : (prompt + 1) * config.answers]),
            tuple(pairs),
            ref_log_probs=sums[prompt],
        )
        for prompt, pairs in enumerate(votes)
        if pairs
    ]
