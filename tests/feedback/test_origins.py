"""Origins against each other: known strengths are found, tables hold only what can be compared, names stay apart."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, stdtrit
from tests.feedback.simulation import make_votes

from prefloop.feedback.keys import Ints
from prefloop.feedback.origins import compare_origins, short_names
from prefloop.feedback.pairs import Floats, PairVotes
from prefloop.feedback.scores import PRIOR_SD

STRENGTH = np.array([1.0, 0.4, -0.2, -1.2])


def contest(
    seed: int, prompts: int, strength: Floats, overlap: int = 3, spread: float = 0.0
) -> tuple[PairVotes, Ints]:
    """Votes between answers of two origins; every answer has a worth of its own around its origin's."""
    rng = np.random.default_rng(seed)
    rows, left = [], []
    origin = np.array([rng.choice(len(strength), 2, replace=False) for _ in range(prompts)])
    for prompt, (one, other) in enumerate(origin):
        difference = strength[one] - strength[other] + rng.normal(0, spread)
        for who in range(overlap):
            rows.append((prompt, who, 2 * prompt, 2 * prompt + 1, float(rng.random() < expit(difference))))
            left.append(bool(rng.random() < 0.5))
    return make_votes(rows, overlap, left), origin.reshape(-1)


def test_the_truth_is_in_the_intervals() -> None:
    inside = []
    for seed in range(40):
        votes, origin = contest(seed, 150, STRENGTH)
        (field,) = compare_origins(votes, origin, ("a", "b", "c", "d"))
        truth = dict(zip("abcd", STRENGTH - STRENGTH.mean(), strict=True))
        inside += [one.score["low"] <= truth[one.name] <= one.score["high"] for one in field]
    assert np.mean(inside) >= 0.92
    assert np.mean(inside) < 1.0, "intervals that always hold say nothing"


def test_votes_of_a_prompt_are_not_independent() -> None:
    """Equal origins, answers that differ much: every vote of a prompt says the same."""
    inside = []
    for seed in range(60):
        votes, origin = contest(seed, 100, np.zeros(3), overlap=6, spread=8.0)
        (field,) = compare_origins(votes, origin, ("a", "b", "c"))
        inside += [one.score["low"] <= 0 <= one.score["high"] for one in field]
        assert sum(one.score["value"] for one in field) == pytest.approx(0, abs=1e-6)
        assert sum(one.win_rate["n"] for one in field) == 2 * len(votes)
    assert np.mean(inside) >= 0.9


def test_who_always_wins_is_known_no_better_than_by_independent_votes() -> None:
    """By hand: s of one is x, of the other −x, and p = σ(2x); the curvature along (1, −1)/√2 is 2np(1−p) + 1/τ²."""
    rows = [(k, 0, 2 * k, 2 * k + 1, 1.0) for k in range(8)]
    ((best, worst),) = compare_origins(make_votes(rows, 1), np.tile([0, 1], 8), ("a", "b"))
    x = best.score["value"]
    p = expit(2 * x)
    assert x / PRIOR_SD**2 == pytest.approx(8 * (1 - p)), "the mode"
    error = np.sqrt(0.5 / (16 * p * (1 - p) + PRIOR_SD**-2))
    assert best.score["high"] - x == pytest.approx(stdtrit(7, 0.975) * error)
    assert worst.score["value"] == pytest.approx(-x)


def test_who_met_only_weak_ones_is_not_the_best() -> None:
    """a beats b, b beats c; a and c win as many of their votes."""
    rows = [(k, 0, 2 * k, 2 * k + 1, float(k % 4 != 0)) for k in range(80)]
    origin = np.array([[0, 1] if k < 40 else [1, 2] for k in range(80)]).reshape(-1)
    (field,) = compare_origins(make_votes(rows, 1), origin, ("a", "b", "c"))
    assert [one.name for one in field] == ["a", "b", "c"]
    assert [one.win_rate["value"] for one in field] == [0.75, 0.5, 0.25]
    assert field[1].score["value"] == pytest.approx(0, abs=1e-9)
    assert 0.8 < field[0].score["value"] <= np.log(3)


def test_what_was_not_compared_is_not_in_one_table() -> None:
    rows = [(k, 0, 2 * k, 2 * k + 1, 1.0) for k in range(5)]
    origin = np.array([[0, 1], [1, 2], [3, 4], [5, 5], [3, 4]]).reshape(-1)
    names = ("a", "b", "c", "d", "e", "f")
    fields = compare_origins(make_votes(rows, 1), origin, names)
    assert [[one.name for one in field] for field in fields] == [["a", "b", "c"], ["d", "e"]]
    assert all(one.score["low"] < 0 < one.score["high"] for field in fields for one in field), "five votes"
    assert compare_origins(make_votes(rows[3:4], 1), origin, names) == ()
    assert compare_origins(make_votes([], 1), origin, names) == ()


def test_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefloop.feedback.origins.MOST_ORIGINS", 2)
    rows = [(k, 0, 2 * k, 2 * k + 1, 1.0) for k in range(5)]
    origin = np.array([[0, 1], [2, 1], [2, 1], [2, 0], [2, 1]]).reshape(-1)
    (field,) = compare_origins(make_votes(rows, 1), origin, ("a", "b", "c"))
    assert [one.name for one in field] == ["c", "b"]


def test_an_origin_for_each_answer_makes_few_tables() -> None:
    rows = [(k, 0, 2 * k, 2 * k + 1, 1.0) for k in range(40)]
    assert len(compare_origins(make_votes(rows, 1), np.arange(80), tuple(map(str, range(80))))) == 5


def test_names_are_short_and_different() -> None:
    digest = "0123456789abcdef" * 2
    names = [
        f"runs/first/sft@{digest}",
        f"runs/first/ppo@{digest}",
        f"/somewhere/else/runs/second/sft@{digest}",
        f"/somewhere/else/runs/second/sft@{digest[:8]}{digest[:24]}",
        f"/one/x/runs/third/sft@{digest}",
        f"/other/x/runs/third/sft@{digest}",
        "gpt2",
        f"taken/dpo@{digest[:8]}",
        f"runs/taken/dpo@{digest}",
        "a long name that has neither a path nor a hash",
    ]
    short = short_names(names)
    assert list(short) != []
    assert short[names[0]] == "first/sft@01234567"
    assert short[names[2]] == "second/sft@0123456789abcdef"
    assert short["gpt2"] == "gpt2"
    assert short[names[7]] == names[7]
    assert len(set(short.values())) == len(names) == len(short)
