"""Who decides an evaluation, and what it says of two policies' answers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from prefloop.context import Context, sample_responses
from prefloop.evaluation.win_rate import Answers, Judge, compare
from prefloop.feedback.records import Prompt
from prefloop.models.forward import score_responses
from prefloop.models.heads import RewardModel
from prefloop.models.loading import load_reward_model
from prefloop.policy import Policy

MAX_TOKENS = 8192
"""Of one forward pass where nothing is trained, padding included."""

TRAINED_JUDGE = "the trained reward itself"
NO_JUDGE = (
    "The judge is the reward that the policy was trained on, so these figures show how well it was optimised, "
    "not whether the answers are better. Set judge.fraction to keep comparisons for an independent one."
)


def choose_judge(context: Context, folder: str = "") -> tuple[str, Judge]:
    """Who decides an evaluation, by name and as a function.

    A reward model from ``folder``; else the world's true preference; else the run's held-out reward model; failing
    all, the trained reward model, with a warning, as whenever it is asked about a policy trained against it.
    """
    world, limit = context.world, context.recipe.data.max_prompt_tokens
    if world is not None and not folder:
        return "true preference", lambda prompts, texts: [
            world.judge(prompt.text, text) for prompt, text in zip(prompts, texts, strict=True)
        ]
    independent = context.recipe.judge.fraction > 0
    place = Path(folder) if folder else context.run / ("judge" if independent else "reward") / "model"
    model = load_reward_model(folder or place)
    name = folder or "held-out reward model"
    if place.resolve() == (context.run / "reward" / "model").resolve():
        name = TRAINED_JUDGE
        warnings.warn(NO_JUDGE, stacklevel=2)
    return name, lambda prompts, texts: [{"score": one} for one in answer_scores(model, prompts, texts, limit)]


def judged(
    name: str, after: Answers, against: str, before: Answers, prompts: Sequence[Prompt], judge: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A comparison and its samples, with an alarm where the judge is no independent one."""
    report, samples = compare(name, after, against, before, prompts, judge)
    if judge == TRAINED_JUDGE:
        report["alarms"].insert(0, NO_JUDGE)
    return report, samples


def answers_of(
    context: Context,
    policy: Policy,
    reference: Policy,
    prompts: Sequence[Prompt],
    judge_answers: Judge,
    learned: RewardModel | None,
) -> Answers:
    """One policy's answers, scored. Both sides of a comparison draw with the same random numbers."""
    config, limit = context.recipe.evaluate, context.recipe.data.max_prompt_tokens
    rollout = sample_responses(context, policy, prompts, config, "evaluation")
    texts = [policy.chat.text(ids) for ids in rollout.responses]
    kl = 0.0
    if policy is not reference:
        ref_log_probs = score_responses(reference.model, rollout.sequences, MAX_TOKENS, config.temperature)
        kl = float(rollout.log_probs[rollout.mask].sum() - torch.cat(ref_log_probs).sum())
    return Answers(
        texts=texts,
        tokens=rollout.lengths.tolist(),
        learned=answer_scores(learned, prompts, texts, limit) if learned else None,
        judged=judge_answers(prompts, texts),
        kl=kl / len(rollout),
    )


def answer_scores(
    model: RewardModel, prompts: Sequence[Prompt], texts: Sequence[str], max_prompt_tokens: int
) -> list[float]:
    """A reward model's scores of texts."""
    sequences = [
        model.chat.answered(model.chat.fitted_prompt_ids(prompt, max_prompt_tokens)[1], text)
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    scores: list[float] = model.score(sequences, MAX_TOKENS).tolist()
    return scores
