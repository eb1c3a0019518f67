"""Comparing two policies: the counts, the samples, and alarms that ring when they should and only then."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from prefloop.evaluation.win_rate import Answers, alarms, compare
from prefloop.feedback.intervals import wilson
from prefloop.feedback.records import Prompt


def answers(
    scores: Sequence[float],
    *,
    tokens: Sequence[int] | None = None,
    learned: Sequence[float] | None = None,
    kl: float = 0,
) -> Answers:
    return Answers(
        texts=[f"answer {i} {score}" for i, score in enumerate(scores)],
        tokens=list(tokens or [10] * len(scores)),
        learned=list(learned) if learned is not None else None,
        judged=[{"score": score, "politeness": score / 2} for score in scores],
        kl=kl,
    )


def compared(after: Answers, before: Answers) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    prompts = [Prompt.of(f"question {i}") for i in range(len(after.texts))]
    return compare("ppo", after, "sft", before, prompts, "me")


def test_a_report_counts_wins_ties_and_losses() -> None:
    before = answers([0.0, 0.0, 1.0, 1.0, 0.5], tokens=[4, 4, 4, 4, 4], learned=[0.0, 0.0, 0.0, 0.0, 1.0])
    after = answers([1.0, 0.0, 0.0, 2.0, 0.6], tokens=[5, 5, 5, 5, 10], learned=[1.0, 1.0, 1.0, 1.0, 2.0], kl=2.5)
    report, samples = compared(after, before)
    assert (report["wins"], report["ties"], report["losses"]) == (3, 1, 1)
    assert report["win_rate"] == wilson(3.5, 5)
    assert (report["name"], report["against"], report["judge"]) == ("ppo", "sft", "me")
    assert (report["true_reward_before"], report["true_reward_after"]) == pytest.approx((0.5, 0.72))
    assert (report["learned_reward_before"], report["learned_reward_after"]) == pytest.approx((0.2, 1.2))
    assert (report["response_tokens_before"], report["response_tokens_after"]) == (4, 6)
    assert report["kl"] == 2.5
    assert report["parts"]["politeness"] == pytest.approx({"before": 0.25, "after": 0.36})
    assert list(report["parts"]) == ["politeness"]
    assert "length_controlled_win_rate" not in report  # five prompts cannot say
    assert [row["verdict"] for row in samples] == ["win", "tie", "loss", "win", "win"]
    assert samples[2] == {
        "prompt": "question 2",
        "before": "answer 2 1.0",
        "after": "answer 2 0.0",
        "verdict": "loss",
        "true_before": 1.0,
        "true_after": 0.0,
        "learned_before": 0.0,
        "learned_after": 1.0,
    }
    json.dumps([report, samples], allow_nan=False)


def test_without_a_learned_reward_nothing_is_said_about_it() -> None:
    report, samples = compared(answers([1.0]), answers([0.0]))
    assert not [key for key in [*report, *samples[0]] if "learned" in key]


def test_swapping_the_policies_turns_the_report_round() -> None:
    one, other = answers([1.0, 0.0, 0.3, 0.7] * 5), answers([0.0, 0.5, 0.3, 0.1] * 5)
    there, back = compared(one, other)[0], compared(other, one)[0]
    assert (
        (there["wins"], there["ties"], there["losses"]) == (back["losses"], back["ties"], back["wins"]) == (10, 5, 5)
    )
    assert there["win_rate"]["value"] == pytest.approx(1 - back["win_rate"]["value"])


# Alarms


def quiet(**changes: Any) -> dict[str, Any]:
    """A report with nothing to worry about, and changes to it."""
    return {
        "win_rate": wilson(70, 100),
        "learned_reward_before": 0.0,
        "learned_reward_after": 1.0,
        "response_tokens_before": 20.0,
        "response_tokens_after": 21.0,
        "length_controlled_win_rate": {"value": 0.68, "low": 0.6, "high": 0.76, "n": 100},
        "parts": {"politeness": {"before": 0.5, "after": 0.9}, "brevity": {"before": 0.5, "after": 0.49}},
        "kl": 8.0,
        **changes,
    }


def test_an_honest_win_rings_no_alarm() -> None:
    assert alarms(quiet()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"win_rate": wilson(30, 100)}, ["learned reward rose by 1.00", "prefers the old", "30%", "exploits"]),
        ({"win_rate": wilson(52, 100)}, ["learned reward rose by 1.00", "sees no difference", "52%", "42% to 62%"]),
        ({"win_rate": wilson(48, 100)}, ["sees no difference", "48%"]),
        ({"response_tokens_after": 31.0}, ["from 20 to 31 tokens", "padding"]),
        ({"response_tokens_after": 13.0}, ["from 20 to 13 tokens", "clipping"]),
        (
            {"length_controlled_win_rate": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 100}},
            ["At equal length", "50%", "40% to 60%"],
        ),
        ({"parts": {"faithfulness": {"before": 0.9, "after": 0.7}}}, ["Faithfulness fell from 0.90 to 0.70"]),
        ({"kl": 30.0}, ["KL", "30 nats", "more than one a token"]),
    ],
    ids=["exploited", "no difference", "nor a loss", "longer", "shorter", "length explains", "a part fell", "KL"],
)
def test_each_alarm_rings_alone(changes: dict[str, Any], words: list[str]) -> None:
    found = alarms(quiet(**changes))
    assert len(found) == 1, found
    for word in words:
        assert word in found[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"win_rate": wilson(30, 100), "learned_reward_after": -0.5, "length_controlled_win_rate": None},
        {"win_rate": wilson(52, 100), "learned_reward_after": 0.0, "length_controlled_win_rate": None},
        {
            "win_rate": wilson(52, 100),
            "learned_reward_after": 0.0,
            "length_controlled_win_rate": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 100},
        },
        {"response_tokens_after": 30.0},
        {"response_tokens_after": 13.4},
        {"length_controlled_win_rate": None},
        {"parts": {}},
        {"parts": {"brevity": {"before": 0.5, "after": 0.485}}},
        {"kl": 21.0},
    ],
    ids=[
        "lost honestly",
        "nothing learnt",
        "no win to explain",
        "longer",
        "shorter",
        "no control",
        "no parts",
        "a little less",
        "KL",
    ],
)
def test_alarms_stay_silent_below_their_limits(changes: dict[str, Any]) -> None:
    assert alarms(quiet(**changes)) == []


def test_a_report_carries_its_alarms() -> None:
    after = answers([0.0] * 40, learned=[2.0] * 40, tokens=[30] * 40, kl=50)
    report, _ = compared(after, answers([1.0] * 40, learned=[0.0] * 40))
    assert len(report["alarms"]) == 4
    assert report["alarms"] == alarms(report)
