"""Who decides an evaluation, and what it says of two policies' answers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
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
from prefloop.rewarding import MAX_TOKENS, answer_scores, text_scorer_of

TRAINED_JUDGE = "the trained reward itself"
NO_JUDGE = (
    "The judge is the reward that the policy was trained on, so these figures show how well it was optimised, "
    "not whether the answers are better. Set judge.fraction to keep comparisons for an independent one."
)
NO_OTHER_JUDGE = NO_JUDGE.replace(
    "Set judge.fraction to keep comparisons for an independent one.",
    "Name an independent one by `prefloop evaluate`'s --judge: the folder of a reward model.",
)


@dataclass(frozen=True)
class Referee:
    """Who decides an evaluation."""

    name: str
    scores: Judge
    alarm: str = ""
    """What is to be said beside every result, where the judge is no independent one."""


def choose_judge(context: Context, folder: str = "") -> Referee:
    """Who decides an evaluation of this run.

    A reward model from ``folder``; else the world's true preference; else the run's held-out reward model; else its
    reward model; failing all, the recipe's own rewards. The last two with a warning where policies were trained on
    them.
    """
    world, limit, recipe = context.world, context.recipe.data.max_prompt_tokens, context.recipe
    if world is not None and not folder:
        return Referee(
            "true preference",
            lambda prompts, texts: [
                world.judge(prompt.text, text) for prompt, text in zip(prompts, texts, strict=True)
            ],
        )
    if not folder and "reward" not in recipe.stages:
        warnings.warn(NO_OTHER_JUDGE, stacklevel=2)
        score = text_scorer_of(context)
        return Referee(TRAINED_JUDGE, lambda p, texts: [{"score": one} for one in score(p, texts)], NO_OTHER_JUDGE)
    independent = recipe.judge.fraction > 0
    place = Path(folder) if folder else context.run / ("judge" if independent else "reward") / "model"
    model = load_reward_model(folder or place)
    name, alarm = folder or "held-out reward model", ""
    if place.resolve() == (context.run / "reward" / "model").resolve():
        name = "the run's reward model"
        if recipe.rewards_itself:
            name, alarm = TRAINED_JUDGE, NO_JUDGE
            warnings.warn(alarm, stacklevel=2)
    return Referee(name, lambda p, texts: [{"score": one} for one in answer_scores(model, p, texts, limit)], alarm)


def judged(
    name: str, after: Answers, against: str, before: Answers, prompts: Sequence[Prompt], referee: Referee
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A comparison and its samples, with the referee's alarm."""
    report, samples = compare(name, after, against, before, prompts, referee.name)
    if referee.alarm:
        report["alarms"].insert(0, referee.alarm)
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
