"""Recipes whose runs take a second or two, and ways to run them and to compare what they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefloop import pipeline
from prefloop.config import ON_POLICY
from prefloop.pipeline import Silence
from prefloop.recipes import Recipe, make_recipe
from prefloop.runs import read_json

MODEL: dict[str, Any] = {
    "data": {"max_prompt_tokens": 128, "max_response_tokens": 100},
    "model": {"vocabulary": 400, "width": 32, "layers": 1, "heads": 2, "context": 256},
    "pretrain": {"tokens": 4000, "batch_tokens": 512, "block": 64},
    "sft": {"batch_size": 8},
    "sample": {"prompts": 20, "heldout": 20, "max_response_tokens": 12},
    "reward": {"batch_size": 8},
    "judge": {"batch_size": 8},
    **{
        name: {"iterations": 2, "episodes": 8, "minibatch_episodes": 4, "max_response_tokens": 12}
        for name in ON_POLICY
    },
    "dpo": {"batch_size": 8},
    "evaluate": {"prompts": 12, "max_response_tokens": 12},
}
"""Settings with which a run takes a second or two."""
TINY: dict[str, Any] = {section: MODEL[section] for section in MODEL if section != "judge"} | {
    "name": "tiny",
    "precision": "float32",  # the figures of several processes are compared
    "data": MODEL["data"] | {"world": "rewriter", "world_prompts": 60, "world_heldout": 30},
    "label": {"by": "simulated"},
}
STAGES = ("pretrain", "sft", "sample", "label", "reward", "ppo", "dpo", "evaluation")


def tiny(*settings: str) -> Recipe:
    return make_recipe(TINY, settings)


def from_store(*settings: str) -> Recipe:
    table = MODEL | {
        "name": "tiny",
        "data": MODEL["data"] | {"files": ["dialogues.jsonl"], "heldout_fraction": 0.25},
        "sft": {"demonstrations": "preferred", "batch_size": 8},
    }
    return make_recipe(table, settings)


def dialogues(path: Path, count: int = 80) -> Path:
    """Comparisons of dialogues in the published form; the polite answer is preferred."""
    things = ("tea", "rain", "bread", "a cat", "chess")
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            start = f"\n\nHuman: Question {i}: what about {things[i % 5]}?\n\nAssistant:"
            row = {
                "chosen": f"{start} With pleasure: {things[i % 5]} is fine.",
                "rejected": f"{start} No. {i}",
            }
            file.write(json.dumps(row) + "\n")
    return path


class Recorder(Silence):
    """Remembers what happened."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.kept: list[str] = []
        self.done: list[str] = []
        self.notes: list[str] = []

    def started(self, stage: str) -> None:
        self.ran.append(stage)

    def skipped(self, stage: str) -> None:
        self.kept.append(stage)

    def finished(self, stage: str, seconds: float) -> None:
        assert seconds >= 0
        self.done.append(stage)

    def note(self, text: str) -> None:
        self.notes.append(text)


def run(recipe: Recipe, project: Path) -> Recorder:
    recorder = Recorder()
    pipeline.run(recipe, project, listener=recorder)
    return recorder


def figures(project: Path, name: str = "tiny") -> dict[str, Any]:
    """The summary without what no two runs have in common."""

    def strip(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: strip(item) for key, item in value.items() if key not in ("seconds", "peak_memory_mb")}

    found: dict[str, Any] = strip(read_json(project / "runs" / name / "summary.json"))
    return found


def contents(project: Path) -> dict[str, str]:
    """The hash of everything that a run made, but for times and memory."""
    run = project / "runs" / "tiny"
    return {
        f"{manifest.parent.name}/{name}": digest
        for manifest in run.glob("*/manifest.json")
        for name, digest in read_json(manifest)["outputs"].items()
        if name != "metrics.jsonl"
    }
