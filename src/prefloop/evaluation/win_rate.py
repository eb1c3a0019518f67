"""Two policies on the same held-out prompts: who wins, by whose judgement, and is the win an honest one?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefloop.evaluation.intervals import length_controlled
from prefloop.feedback.intervals import wilson
from prefloop.feedback.records import Prompt

Judge = Callable[[Sequence[Prompt], Sequence[str]], list[dict[str, float]]]
"""Scores for answers, one dict each: ``score`` (what decides) and, where the judge has them, its parts."""


@dataclass(frozen=True)
class Answers:
    """One policy's answers to the evaluation's prompts."""

    texts: list[str]
    tokens: list[int]
    """Length of each answer."""
    learned: list[float] | None
    """The trained reward model's scores, where there is one."""
    judged: list[dict[str, float]]
    """The judge's scores."""
    kl: float
    """KL to the reference, summed over the response, mean, nats."""


def compare(
    name: str, after: Answers, against: str, before: Answers, prompts: Sequence[Prompt], judge: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The content of ``evaluation/NAME.json`` and of ``NAME.samples.jsonl`` (see docs/run-folder.md)."""
    scores_before = np.array([one["score"] for one in before.judged])
    scores_after = np.array([one["score"] for one in after.judged])
    outcomes = (np.sign(scores_after - scores_before) + 1) / 2
    controlled = length_controlled(
        outcomes.tolist(), [a - b for a, b in zip(after.tokens, before.tokens, strict=True)]
    )
    parts = [part for part in before.judged[0] if part != "score"]
    report: dict[str, Any] = {
        "name": name,
        "against": against,
        "judge": judge,
        "win_rate": wilson(float(outcomes.sum()), len(outcomes)),
        "wins": int((outcomes == 1).sum()),
        "ties": int((outcomes == 0.5).sum()),
        "losses": int((outcomes == 0).sum()),
        **({"length_controlled_win_rate": controlled} if controlled else {}),
        "true_reward_before": float(scores_before.mean()),
        "true_reward_after": float(scores_after.mean()),
        "response_tokens_before": float(np.mean(before.tokens)),
        "response_tokens_after": float(np.mean(after.tokens)),
        "kl": after.kl,
        "parts": {
            part: {
                "before": float(np.mean([one[part] for one in before.judged])),
                "after": float(np.mean([one[part] for one in after.judged])),
            }
            for part in parts
        },
    }
    if before.learned is not None and after.learned is not None:
        report["learned_reward_before"] = float(np.mean(before.learned))
        report["learned_reward_after"] = float(np.mean(after.learned))
    report["alarms"] = alarms(report)
    return report, _samples(prompts, before, after, outcomes.tolist())


def alarms(report: dict[str, Any]) -> list[str]:
    """Signs of over-optimisation in the figures of one comparison [Gao et al. 2022]."""
    found = []
    rate = report["win_rate"]
    gain = report.get("learned_reward_after", 0.0) - report.get("learned_reward_before", 0.0)
    if gain > 0 and rate["high"] < 0.5:
        found.append(
            f"The learned reward rose by {gain:.2f}, yet the judge prefers the old answers "
            f"(win rate {rate['value']:.0%}): the policy exploits faults of the reward model."
        )
    elif gain > 0 and rate["low"] <= 0.5:
        found.append(
            f"The learned reward rose by {gain:.2f}, but the judge sees no difference "
            f"(win rate {rate['value']:.0%}, interval {rate['low']:.0%} to {rate['high']:.0%})."
        )
    before, after = report["response_tokens_before"], report["response_tokens_after"]
    if after > 1.5 * before or after < before / 1.5:
        found.append(f"Answers went from {before:.0f} to {after:.0f} tokens: look for padding or clipping.")
    controlled = report.get("length_controlled_win_rate")
    if controlled and rate["low"] > 0.5 and controlled["low"] <= 0.5:
        found.append(
            f"At equal length the win rate is {controlled['value']:.0%} "
            f"(interval {controlled['low']:.0%} to {controlled['high']:.0%}): length may explain the wins."
        )
    for part, values in report["parts"].items():
        if values["after"] < values["before"] - 0.02:
            found.append(f"{part.capitalize()} fell from {values['before']:.2f} to {values['after']:.2f}.")
    if report["kl"] > report["response_tokens_after"]:
        found.append(f"The KL to the reference is {report['kl']:.0f} nats, more than one a token.")
    return found


def _samples(
    prompts: Sequence[Prompt], before: Answers, after: Answers, outcomes: Sequence[float]
) -> list[dict[str, Any]]:
    verdicts = {1.0: "win", 0.5: "tie", 0.0: "loss"}
    rows = []
    for i, prompt in enumerate(prompts):
        row = {
            "prompt": prompt.text,
            "before": before.texts[i],
            "after": after.texts[i],
            "verdict": verdicts[outcomes[i]],
            "true_before": before.judged[i]["score"],
            "true_after": after.judged[i]["score"],
        }
        if before.learned is not None and after.learned is not None:
            row |= {"learned_before": before.learned[i], "learned_after": after.learned[i]}
        rows.append(row)
    return rows
