"""The demo's reward stage with other losses and with an ensemble, from finished runs of the demo.

    python benchmarks/reward.py runs/seed-0 runs/seed-1 --prompts 600 > reward.jsonl

For each run and variant one JSON line: accuracy on held-out judgements, and against the true preference, which has no
slips of annotators in it. ``docs/reward-model.md`` has the figures. Nothing is written into the runs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from prefloop.config import RewardConfig
from prefloop.dataset import judged_pairs
from prefloop.demo.world import WORLDS
from prefloop.evaluation.reward_quality import evaluate_reward
from prefloop.feedback.aggregate import Comparison, read_snapshot
from prefloop.feedback.intervals import Estimate, clustered_wilson
from prefloop.models.heads import RewardModel
from prefloop.policy import load_policy
from prefloop.recipes import load_recipe
from prefloop.seeds import derive
from prefloop.training.encoding import encode
from prefloop.training.reward import make_reward

VARIANTS: dict[str, dict[str, Any]] = {
    "bradley-terry, ensemble of 3": {"ensemble": 3},
    "plackett-luce": {"loss": "plackett-luce"},
    "random_answers 0.2": {"random_answers": 0.2},
    "margin 1/3": {"margin": 1 / 3},
}
"""The ensemble's first member is the plain Bradley–Terry model."""


def true_accuracy(model: RewardModel, comparisons: Sequence[Comparison]) -> Estimate:
    """How often the model prefers the answer with the higher true utility, over pairs whose utilities differ."""
    utility, right, whose = WORLDS["rewriter"].utility, list[float](), list[int]()
    for number, item in enumerate(comparisons):
        scores = model.score([model.chat.answered(item.prompt, text) for text in item.texts]).tolist()
        true = [utility(item.prompt.text, text) for text in item.texts]
        for i, j in combinations(range(len(true)), 2):
            if abs(true[i] - true[j]) > 1e-9:
                right.append(float((scores[i] > scores[j]) == (true[i] > true[j])))
                whose.append(number)
    return clustered_wilson(right, whose)


def measure(run: Path, prompts: int, variants: Sequence[str]) -> None:
    recipe = load_recipe(run / "recipe.toml")
    policy = load_policy(run / "sft" / "model")
    train, heldout, _ = judged_pairs(recipe, read_snapshot(run / "label" / "snapshot.jsonl").comparisons())
    limits = recipe.data.max_prompt_tokens, recipe.data.max_response_tokens
    groups, tested = (encode(policy.chat, part, *limits)[0] for part in (train[: prompts or None], heldout))
    for name in variants:
        config = RewardConfig(**(recipe.reward.model_dump() | VARIANTS[name]))
        started = time.perf_counter()
        model = make_reward(policy, groups, tested, config, derive(recipe.seed, "reward"), lambda _: None)
        line = {
            "run": run.name,
            "variant": name,
            "prompts": len(groups),
            "seconds": time.perf_counter() - started,
            "true_accuracy": true_accuracy(model, heldout),
            "members_true_accuracy": [true_accuracy(member, heldout) for member in model.members],
            **evaluate_reward(model, tested, random_answers=config.random_answers),
        }
        print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="finished runs of the demo")
    parser.add_argument("--prompts", type=int, default=0, help="training prompts used (all, when not given)")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for run in arguments.runs:
        measure(run, arguments.prompts, arguments.variants)


if __name__ == "__main__":
    main()
