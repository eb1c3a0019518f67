"""What the pipeline asks of an embedded world."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from prefloop.demo import grammar, preference, rewrites
from prefloop.feedback.records import Prompt, Split


@dataclass(frozen=True)
class World:
    """Prompts, demonstrations and text to learn from; and the true preference, which no learner sees."""

    name: str
    prompts: Callable[[int, Split, int], list[Prompt]]
    """(how many, split, seed) → distinct prompts."""
    demonstrate: Callable[[Prompt, random.Random], str]
    text: Callable[[int, int], list[str]]
    """(how many, seed) → documents to pretrain on."""
    judge: Callable[[str, str], dict[str, float]]
    """(prompt's text, answer) → ``score``, the true utility, and its parts by name."""

    def utility(self, prompt: str, answer: str) -> float:
        return self.judge(prompt, answer)["score"]


def _judge(prompt: str, answer: str) -> dict[str, float]:
    parts = preference.score(prompt, answer)
    return {
        "score": parts.utility,
        "politeness": parts.politeness,
        "brevity": parts.brevity,
        "faithfulness": parts.faithfulness,
    }


WORLDS = {
    "rewriter": World(
        name="rewriter",
        prompts=grammar.sample_prompts,
        demonstrate=rewrites.write_demonstration,
        text=rewrites.pretraining_text,
        judge=_judge,
    )
}
