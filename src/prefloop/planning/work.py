"""What each stage of a recipe does, in tokens, optimiser steps and models held; see the loops in `training`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from prefloop.config import (
    DIRECT,
    ON_POLICY,
    GroupConfig,
    KTOConfig,
    OnlineDPOConfig,
    OnPolicyConfig,
    PPOConfig,
    StageName,
)
from prefloop.planning.data import Amounts, Lengths
from prefloop.recipes import Recipe
from prefloop.training.direct import WITH_REFERENCE
from prefloop.training.loop import steps_in
from prefloop.training.reward import SHIFT_PROMPTS

CHECKS = 5
"""Times that a stage looks at its held-out data, at most."""
DECODED = 128
"""Sequences that the on-policy stages decode together."""
IDLE = 0.1
"""Share of decoded rows that have ended and wait to leave the batch or to be replaced."""


@dataclass(frozen=True)
class Work:
    """What a stage does."""

    stage: StageName
    held: dict[str, tuple[float, bool]] = field(default_factory=dict)
    """What for → how many models of the recipe's size, and whether they are trained."""
    steps: int = 0
    """Of the optimiser."""
    trained: float = 0.0
    """Tokens that go forwards and backwards, and of them those whose logits are trained."""
    trained_logits: float = 0.0
    step_tokens: float = 0.0
    """Trained tokens of one optimiser step by one model; micro-batches are cut from them."""
    longest: int = 0
    """Tokens of the longest sequence: it is in one pass, whatever the budget."""
    budget: int = 0
    """``micro_batch_tokens``: 0 leaves it open."""
    read: float = 0.0
    """Tokens that go forwards only, and of them those whose logits are asked for."""
    read_logits: float = 0.0
    sampled: float = 0.0
    """Tokens drawn, one after the other."""
    decode_steps: float = 0.0
    rendered: float = 0.0
    """Sequences that are tokenised."""
    rows: int = 0
    """Sequences that are decoded together, and the columns that their cache grows to."""
    columns: int = 0


def work_of(recipe: Recipe, amounts: Amounts) -> list[Work]:
    """Every stage of the recipe."""
    return [_count(stage)(recipe, amounts, stage) for stage in recipe.stages]


def _count(stage: StageName) -> Callable[[Recipe, Amounts, Any], Work]:
    if stage in ON_POLICY:
        return _on_policy
    if stage in DIRECT:
        return _direct
    return {
        "pretrain": _pretrain,
        "sft": _sft,
        "sample": _sample,
        "label": lambda _recipe, _amounts, stage: Work(stage),
        "reward": _reward,
        "judge": _reward,
        "evaluation": _evaluation,
    }[stage]


def _pretrain(recipe: Recipe, amounts: Amounts, stage: StageName) -> Work:
    config = recipe.pretrain
    batch = max(1, config.batch_tokens // config.block)
    steps = max(1, config.tokens // (batch * config.block))
    tokens = steps * batch * config.block
    read = min(CHECKS, steps) * amounts.heldout_text
    return Work(
        stage,
        {"model": (1, True)},
        steps=steps,
        trained=tokens,
        trained_logits=tokens * (1 - 1 / config.block),
        step_tokens=batch * config.block,
        longest=config.block,
        budget=config.micro_batch_tokens,
        read=read,
        read_logits=read,
    )


def _sft(recipe: Recipe, amounts: Amounts, stage: StageName) -> Work:
    config, lengths = recipe.sft, amounts.demonstrated
    steps = steps_in(amounts.demonstrations, config.batch_size, config.epochs)
    seen, read = steps * config.batch_size, min(CHECKS, steps) * amounts.heldout_demonstrations
    return Work(
        stage,
        {"policy": (1, True)},
        steps=steps,
        trained=seen * lengths.whole,
        trained_logits=seen * lengths.answer,
        step_tokens=config.batch_size * lengths.whole,
        longest=lengths.longest,
        budget=config.micro_batch_tokens,
        read=read * lengths.whole,
        read_logits=read * lengths.answer,
        rendered=amounts.demonstrations + amounts.heldout_demonstrations,
    )


def _sample(recipe: Recipe, amounts: Amounts, stage: StageName) -> Work:
    config = recipe.sample
    prompts = min(config.prompts, amounts.prompts) + min(config.heldout, amounts.heldout)
    lengths = amounts.demonstrated.within(config.max_response_tokens)
    drawn = _drawn(prompts, config.answers, config.batch_size, lengths, 1)
    return Work(stage, {"policy": (1, False)}, rendered=prompts * (1 + config.answers), **drawn)


def _drawn(prompts: float, answers: int, batch: int, lengths: Lengths, rounds: float) -> dict[str, Any]:
    """What it takes to answer these prompts ``rounds`` times: a pass over them, and a step for each token."""
    rows = prompts * answers
    together = min(rows, batch)
    # The batch is full as long as prompts wait; then the longest answer is decoded to its end.
    full = (rows - together) * lengths.answer / (together * (1 - IDLE)) if together else 0.0
    return {
        "read": rounds * prompts * lengths.prompt,
        "sampled": rounds * rows * lengths.answer,
        "decode_steps": rounds * (full + lengths.longest_answer),
        "rows": round(together),
        "columns": lengths.longest,
        "longest": lengths.longest,
    }


def _group_tokens(lengths: Lengths, answers: float) -> float:
    """The answers to a prompt share one pass over it."""
    return lengths.prompt + answers * lengths.answer


def _reward(recipe: Recipe, amounts: Amounts, stage: StageName) -> Work:
    config = recipe.reward if stage == "reward" else recipe.judge
    groups = amounts.groups if stage == "reward" else amounts.judge_groups
    members = recipe.reward.ensemble if stage == "reward" else 1
    steps, tokens = steps_in(groups, config.batch_size, config.epochs), _group_tokens(amounts.judged, amounts.answers)
    read = min(groups, SHIFT_PROMPTS) + (min(CHECKS, steps) + 1) * amounts.heldout_groups
    held = {"policy": (1.0, False), "reward model": (1.0, True)}
    return Work(
        stage,
        held | ({"members": (members - 1.0, False)} if members > 1 else {}),
        steps=members * steps,
        trained=members * steps * config.batch_size * tokens,
        step_tokens=config.batch_size * tokens,
        longest=round(max(tokens, amounts.judged.longest)),
        budget=config.micro_batch_tokens,
        read=members * read * tokens,
        rendered=(groups + amounts.heldout_groups) * amounts.answers,
    )


def _direct(recipe: Recipe, amounts: Amounts, stage: StageName) -> Work:
    config = getattr(recipe, stage)
    lengths, answers = amounts.judged, amounts.answers
    steps, tokens = steps_in(amounts.groups, config.batch_size, config.epochs), _group_tokens(lengths, answers)
    logits, seen = answers * lengths.answer, steps * config.batch_size
    read = min(CHECKS, steps) * amounts.heldout_groups
    if isinstance(config, WITH_REFERENCE):
        read += amounts.groups + amounts.heldout_groups
    mismatched = isinstance(config, KTOConfig) * (seen + amounts.groups + amounts.heldout_groups)
    return Work(
        stage,
        {"policy": (1, True)},
        steps=steps,
        trained=seen * tokens,
        trained_logits=seen * logits,
        step_tokens=config.batch_size * tokens,
        longest=round(max(tokens, lengths.longest)),
        budget=config.micro_batch_tokens,
        read=read * tokens + mismatched * lengths.whole,
        read_logits=read * logits + mismatched * lengths.answer,
        rendered=(amounts.groups + amounts.heldout_groups) * amounts.answers,
    )


def _on_policy(recipe: Recipe, amounts: Amounts, stage: StageName) -> Work:
    config: OnPolicyConfig = getattr(recipe, stage)
    answers = config.answers if isinstance(config, GroupConfig | OnlineDPOConfig) else 1
    lengths = amounts.demonstrated.within(config.max_response_tokens)
    rounds, episodes, size = config.iterations, config.episodes, config.minibatch_episodes
    prompts = episodes / answers
    drawn = _drawn(prompts, answers, DECODED, lengths, rounds)
    scored = prompts * lengths.prompt + episodes * lengths.answer
    step = _prompts_in(size, episodes, answers, config) * lengths.prompt + size * lengths.answer
    steps = rounds * config.epochs * (episodes // size)
    separate = isinstance(config, PPOConfig) and config.critic == "separate"
    held, scorers = _models_held(recipe, config)
    passes = 1 + scorers + separate
    return Work(
        stage,
        held,
        steps=steps,
        trained=steps * step * (1 + separate),
        trained_logits=steps * size * lengths.answer,
        step_tokens=step,
        budget=config.micro_batch_tokens,
        **drawn | {"read": drawn["read"] + rounds * passes * scored},
        read_logits=rounds * episodes * lengths.answer,
        rendered=amounts.prompts + rounds * episodes,
    )


def _prompts_in(size: int, episodes: int, answers: int, config: OnPolicyConfig) -> float:
    """Different prompts among the episodes of an optimiser step; each is read once."""
    if isinstance(config, OnlineDPOConfig):
        return size / answers
    return episodes / answers * (1 - (1 - size / episodes) ** answers)


def _models_held(recipe: Recipe, config: OnPolicyConfig) -> tuple[dict[str, tuple[float, bool]], float]:
    """And how many of them score an answer."""
    held: dict[str, tuple[float, bool]] = {"policy": (1, True), "reference": (1, False)}
    scorers = float(sum(1 for source in recipe.rewards if source.model))
    if recipe.rewards_itself:
        scorers += recipe.reward.ensemble
    if isinstance(config, OnlineDPOConfig) and config.judge == "annotators":
        scorers = 0.0
    if scorers:
        held["rewards"] = (scorers, False)
    if isinstance(config, PPOConfig) and config.critic == "separate":
        held["critic"] = (1, True)
    return held, scorers


def _evaluation(recipe: Recipe, amounts: Amounts, stage: StageName) -> Work:
    config, sides = recipe.evaluate, 1 + len(recipe.algorithms)
    prompts = min(config.prompts, amounts.heldout)
    lengths = amounts.demonstrated.within(config.max_response_tokens)
    learned = recipe.reward.ensemble if "reward" in recipe.stages else 0
    judges = 0 if recipe.data.world else 1
    drawn = _drawn(prompts, 1, config.batch_size, lengths, sides)
    scored = prompts * lengths.whole * (sides * (learned + judges) + sides - 1)
    return Work(
        stage,
        {"policies": (2.0, False)} | ({"rewards": (learned + judges, False)} if learned + judges else {}),
        **drawn | {"read": drawn["read"] + scored},
        read_logits=prompts * lengths.answer * (sides - 1),
        rendered=prompts * sides * (2 + learned + judges),
    )
