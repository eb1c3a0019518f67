"""How many votes: the published table, the power of a simulated test, and cases by hand."""

from __future__ import annotations

import numpy as np
import pytest

from prefloop.feedback.intervals import wilson
from prefloop.feedback.sample_size import votes_needed, votes_still_needed


@pytest.mark.parametrize(("rate", "votes"), [(0.53, 2178), (0.55, 783), (0.6, 194), (0.65, 85)])
def test_the_table(rate: float, votes: int) -> None:
    assert votes_needed(rate) == votes
    assert votes_needed(1 - rate) == votes


@pytest.mark.parametrize("rate", [0.55, 0.65])
def test_so_many_votes_find_it_four_times_in_five(rate: float) -> None:
    n = votes_needed(rate)
    assert n is not None
    wins = np.random.default_rng(0).binomial(n, rate, 4000)
    found = np.mean([wilson(int(k), n)["low"] > 0.5 for k in wins])
    assert found == pytest.approx(0.8, abs=0.03)


def test_no_number_tells_one_half_from_one_half() -> None:
    assert votes_needed(0.5) is None
    found = votes_still_needed(50, 100)
    assert (found.answered, found.more) == (False, None)
    assert found.at_least == 110 - 0  # 59.6 %, the interval's end, needs 210
    for bad in (-0.1, 1.1):
        with pytest.raises(ValueError, match="probabilities"):
            votes_needed(bad)


def test_an_answered_question_needs_none() -> None:
    assert votes_still_needed(60, 100).answered
    assert votes_still_needed(40, 100).answered
    assert votes_still_needed(60, 100).more == 0


def test_an_open_one_needs_the_rest() -> None:
    assert votes_still_needed(55, 100).more == 783 - 100
    assert votes_still_needed(45, 100).more == 783 - 100
    assert votes_still_needed(110, 200).at_least < votes_still_needed(55, 100).more  # type: ignore[operator]


def test_votes_of_the_same_prompts_are_worth_less() -> None:
    assert not votes_still_needed(60, 100, worth=50).answered
    assert votes_still_needed(55, 100, worth=50).more == 2 * 783 - 100
    assert votes_still_needed(55, 100, worth=500) == votes_still_needed(55, 100)


@pytest.mark.parametrize(("wins", "n"), [(1, 0), (3, 2), (-1, 5)])
def test_impossible_counts_are_refused(wins: float, n: int) -> None:
    with pytest.raises(ValueError, match="expected at least one vote"):
        votes_still_needed(wins, n)
