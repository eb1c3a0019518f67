"""Careless annotators are found, and careful ones are left in peace."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tests.feedback.simulation import make_votes, simulate

from prefloop.feedback.clickers import (
    coin_evidence,
    coin_suspicions,
    gold_suspicion,
    side_suspicion,
    speed_suspicion,
)
from prefloop.feedback.intervals import wilson


@pytest.mark.parametrize("seed", range(6))
def test_who_clicks_at_random_is_found_among_the_careful(seed: int) -> None:
    votes, _ = simulate(seed, (0.95, 0.9, 0.9, 0.85, 0.5), prompts=250, overlap=3, spread=3.0)
    found = coin_suspicions(coin_evidence(votes))
    assert [bool(reason) for reason in found] == [False] * 4 + [True]
    assert "answers like a coin" in found[4]


def test_a_careful_panel_is_left_in_peace() -> None:
    alarms = 0
    for seed in range(100):
        votes, _ = simulate(seed, (0.9,) * 6, prompts=60, overlap=3)
        alarms += any(coin_suspicions(coin_evidence(votes)))
    assert alarms <= 8  # 5 % are allowed; 8 or fewer of 100 in 94 % of cases at that


def test_gold_finds_somebody_who_shares_no_pair_with_anybody() -> None:
    votes, _ = simulate(0, (0.95, 0.95, 0.5), prompts=400, overlap=1, spread=4.0, gold=0.6)
    evidence = coin_evidence(votes)
    assert [bool(reason) for reason in coin_suspicions(evidence)] == [False, False, True]
    assert evidence.votes.sum() == (votes.gold != 0).sum()


def test_the_evidence_is_the_product_of_the_formula() -> None:
    """Three annotators, ten pairs: two always agree, the third never does."""
    rows = [(p, k, 2 * p, 2 * p + 1, float(k < 2)) for p in range(10) for k in range(3)]
    evidence = coin_evidence(make_votes(rows, 3))
    # The third is asked ten times whether it goes with two others. The first two never face a majority: 1 against 1.
    assert evidence.votes.tolist() == [0, 0, 10]
    assert evidence.agreed.tolist() == [0, 0, 0]
    # Nobody else was in that situation: p = (0 + 1) / (0 + 2), which is a coin's, so nothing is known.
    assert evidence.log_ratio.tolist() == [0, 0, 0]
    rows += [(p, k, 2 * p, 2 * p + 1, 1.0) for p in range(10, 28) for k in range(3)]
    evidence = coin_evidence(make_votes(rows, 3))
    p = (36 + 1) / (36 + 2)  # of the other two, who always went with their majority of two
    expected = 18 * math.log(0.5 / p) + 10 * math.log(0.5 / (1 - p))
    assert evidence.log_ratio[2] == pytest.approx(expected)
    assert evidence.expected[2] == pytest.approx(28 * p)


def test_ties_say_nothing_and_few_votes_no_more() -> None:
    rows = [(p, k, 2 * p, 2 * p + 1, 0.5 if k == 2 else 1.0) for p in range(20) for k in range(3)]
    assert coin_evidence(make_votes(rows, 3)).log_ratio[2] == 0
    few = [(p, k, 2 * p, 2 * p + 1, float(k < 3)) for p in range(4) for k in range(4)]
    many = [(p, k, 2 * p, 2 * p + 1, 1.0) for p in range(4, 900) for k in (0, 1, 2, 4)]
    evidence = coin_evidence(make_votes(few + many, 5))
    assert math.exp(evidence.log_ratio[3]) > 80
    assert coin_suspicions(evidence)[3] == ""


def test_gold_accuracy() -> None:
    assert gold_suspicion(wilson(10, 20)).startswith("gold items: 50% of 20 right, at most 70%")
    assert gold_suspicion(wilson(17, 20)) == gold_suspicion(wilson(4, 5)) == gold_suspicion(wilson(0, 4)) == ""


def test_faster_than_anybody_reads() -> None:
    words = np.full(20, 200.0)
    assert speed_suspicion(words, np.full(20, 13.0)) == ""  # 923 words a minute
    assert "20 of 20" in speed_suspicion(words, np.full(20, 11.0))
    assert speed_suspicion(words, np.array([11.0] * 10 + [60.0] * 10)) == ""
    assert speed_suspicion(words[:4], np.full(4, 1.0)) == ""


def test_always_the_same_side() -> None:
    assert "shown first in 100% of 60" in side_suspicion(np.array([1.0] * 60 + [0.5] * 5))
    assert "shown last in 98% of 100" in side_suspicion(np.array([0.0] * 98 + [1.0] * 2))
    assert side_suspicion(np.array([1.0] * 20)) == ""  # 84 % at the least
    assert side_suspicion(np.array([1.0] * 80 + [0.0] * 20)) == side_suspicion(np.array([0.5] * 99)) == ""
