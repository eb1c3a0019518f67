"""Scores against choix, finite differences and counts by hand."""

from __future__ import annotations

import choix
import numpy as np
import pytest
from scipy.optimize import check_grad
from tests.feedback.simulation import make_votes, simulate

from prefloop.feedback.scores import bradley_terry, choice_loss, choices, crowd_loss, majority, plackett_luce


def test_the_majority_and_a_weighted_one() -> None:
    votes = make_votes([(0, 0, 0, 1, 1.0), (0, 1, 0, 1, 1.0), (0, 2, 0, 1, 0.0), (1, 0, 2, 3, 0.5)], 3)
    assert majority(votes).tolist() == [1.0, 0.0]
    assert majority(votes, np.array([1.0, 0.5, 3.0])).tolist() == [-1.5, 0.0]


@pytest.mark.parametrize("seed", range(3))
def test_bradley_terry_gives_the_scores_of_choix(seed: int) -> None:
    votes, _ = simulate(seed, [1.0] * 4, 1, 4, answers=7)
    data = [(i, j) if v else (j, i) for i, j, v in zip(votes.first, votes.second, votes.value, strict=True)]
    expected = choix.opt_pairwise(7, data, alpha=1 / (2 * 1.5**2), tol=1e-10)
    assert bradley_terry(votes, 7, prior_sd=1.5) == pytest.approx(expected, abs=2e-4)


def test_a_tie_is_half_a_vote_each_way() -> None:
    tie = make_votes([(0, 0, 0, 1, 0.5), (0, 1, 0, 1, 0.5), (0, 0, 1, 2, 1.0)], 2)
    votes = make_votes([(0, 0, 0, 1, 1.0), (0, 1, 0, 1, 0.0), (0, 0, 1, 2, 1.0)], 2)
    assert bradley_terry(tie, 3) == pytest.approx(bradley_terry(votes, 3), abs=1e-4)


def test_an_unbeaten_answer_has_a_finite_score_and_a_lone_one_none() -> None:
    found = bradley_terry(make_votes([(0, 0, 0, 1, 1.0)] * 50, 1), 3)
    assert np.isfinite(found).all()
    assert found[0] > 1 > -1 > found[1]
    assert found[2] == 0


def test_an_annotator_who_turns_everything_round_says_as_much() -> None:
    votes, _ = simulate(1, [1.0, 1.0, 1.0], 10, 3)
    turned = make_votes(
        [
            (int(p), int(k), int(i), int(j), float(1 - v) if k == 2 else float(v))
            for p, k, i, j, v in zip(
                votes.prompt, votes.annotator, votes.first, votes.second, votes.value, strict=True
            )
        ],
        3,
    )
    found = bradley_terry(turned, 20, reliability=np.array([1.0, 1.0, 0.0]))
    assert found == pytest.approx(bradley_terry(votes, 20), abs=1e-4)


def test_random_clicks_say_nothing() -> None:
    votes, _ = simulate(2, [1.0, 0.5], 10, 2)
    alone = votes.rows(votes.annotator == 0)
    assert bradley_terry(votes, 20, reliability=np.array([1.0, 0.5])) == pytest.approx(
        bradley_terry(alone, 20), abs=1e-4
    )


@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_those_of_finite_differences(seed: int) -> None:
    votes, _ = simulate(seed, [0.9, 0.6, 0.2], 5, 3, answers=3, ties=0.2)
    rng = np.random.default_rng(seed)
    eta, at = np.array([0.9, 0.6, 0.2])[votes.annotator], rng.standard_normal(15)
    assert check_grad(*(lambda s, k=k: crowd_loss(s, votes, eta, 1.0)[k] for k in (0, 1)), at) < 1e-5
    chosen = [*choices([[0, 1], [2], [3, 4, 5]]), *choices([[6], [0, 1]], best_only=True)]
    assert check_grad(*(lambda s, k=k: choice_loss(s, chosen, 1.0)[k] for k in (0, 1)), at) < 1e-5


@pytest.mark.parametrize("seed", range(3))
def test_plackett_luce_gives_the_scores_of_choix(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rankings = [tuple(int(k) for k in np.argsort(rng.gumbel(size=6) - np.arange(6) / 3)) for _ in range(12)]
    expected = choix.opt_rankings(6, rankings, alpha=1 / (2 * 2.0**2), tol=1e-10)
    found = plackett_luce([([[k] for k in ranking], False, 1.0) for ranking in rankings], 6, prior_sd=2.0)
    assert found == pytest.approx(expected, abs=2e-4)
    doubled = plackett_luce([([[k] for k in ranking], False, 2.0) for ranking in rankings[:3]], 6)
    again = plackett_luce([([[k] for k in ranking], False, 1.0) for ranking in rankings[:3] * 2], 6)
    assert doubled == pytest.approx(again, abs=1e-4)


def test_of_two_answers_plackett_luce_is_bradley_terry() -> None:
    rankings = [([[0], [1]], False, 3.0), ([[1], [0]], False, 1.0), ([[0, 1]], False, 1.0)]
    values = [1.0, 1.0, 1.0, 0.0, 0.5]
    votes = make_votes([(0, k, 0, 1, value) for k, value in enumerate(values)], 5)
    assert plackett_luce(rankings, 2) == pytest.approx(bradley_terry(votes, 2), abs=1e-4)
    assert plackett_luce([], 2).tolist() == [0, 0]
