"""What the two trained models are worth on the same held-out rows: equal work gives equal losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.speed.jobs import Job

from prefloop.config import DPOConfig
from prefloop.feedback.records import Message, Prompt
from prefloop.models.loading import load_reward_model
from prefloop.policy import load_policy
from prefloop.training.comparisons import PreferenceGroup
from prefloop.training.direct import heldout_figures as preferences
from prefloop.training.direct import with_reference
from prefloop.training.maximum_likelihood import heldout_loss
from prefloop.training.reward import heldout_figures as scores

TOKENS = 8192


def loss(job: Job, trained: Path, heldout: Path) -> float:
    """The mean loss of a trained model on held-out rows, nats."""
    with heldout.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    if job.work == "reward":
        model = load_reward_model(trained)
        return scores(model, [_group(model.chat, row) for row in rows], TOKENS)["eval_loss"]
    policy = load_policy(trained)
    groups = [_group(policy.chat, row) for row in rows]
    if job.work == "sft":
        return heldout_loss(policy.model, [group.sequences[0] for group in groups], TOKENS)
    compared = with_reference(load_policy(job.model).model, groups, DPOConfig())
    return preferences(policy.model, compared, DPOConfig())["eval_loss"]


def _group(chat: Any, row: dict[str, Any]) -> PreferenceGroup:
    prompt = Prompt(messages=tuple(Message(**one) for one in row["messages"]))
    answers = (chat.answered(prompt, row[side].strip()) for side in ("chosen", "rejected"))
    return PreferenceGroup(tuple(answers), ((0, 1, 1.0, 0.0),))
