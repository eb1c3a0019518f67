"""Crowd-BT: the likelihood by numerical integration, gradients by finite differences, and annotators of known
reliability, who are to be recovered within their intervals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import norm
from tests.feedback.simulation import make_votes, simulate

from prefloop.feedback.pairs import Floats, PairVotes
from prefloop.feedback.reliability import PRIORS, Problem, annotator_weights, crowd_bt
from prefloop.feedback.scores import bradley_terry, majority

PANEL = (0.95, 0.9, 0.85, 0.75, 0.65, 0.5)


def problem(seed: int, external: bool, **settings: Any) -> tuple[Problem, Floats]:
    votes, _ = simulate(seed, PANEL[:4], **({"prompts": 30, "overlap": 3, "gold": 0.2, "ties": 0.1} | settings))
    rng = np.random.default_rng(seed)
    d = np.round(rng.standard_normal(votes.n_pairs), 1)[votes.pair] * external
    theta = np.array([1.5, 0.3, -0.5, 2.0, 0.6, *([0.7] if external else [])]) + 0.2 * rng.standard_normal(
        5 + external
    )
    return Problem(votes, d, external), theta


# The likelihood


def slow_loss(votes: PairVotes, theta: Floats) -> float:
    """By adaptive integration over Δ ~ N(0, σ²), pair by pair; by half of it where there is gold."""
    eta, spread, total = expit(theta[:4]), math.exp(theta[4]), 0.0
    for pair in range(votes.n_pairs):
        mine = votes.rows(votes.pair == pair)
        gold = int(mine.gold[0])

        def joint(x: float, mine: PairVotes = mine, gold: int = gold) -> float:
            delta = gold * abs(x) if gold else x
            p = eta[mine.annotator] * expit(delta) + (1 - eta[mine.annotator]) * expit(-delta)
            return float(np.prod(p**mine.value * (1 - p) ** (1 - mine.value)) * norm.pdf(x, scale=spread))

        total -= math.log(quad(joint, -8 * spread, 8 * spread, points=[0])[0])
    means = np.array([PRIORS["logit η"]] * 4 + [PRIORS["log σ"]])
    return total + float((((theta - means[:, 0]) / means[:, 1]) ** 2).sum() / 2)


def test_the_likelihood_is_the_integral_over_what_the_difference_may_be() -> None:
    made, theta = problem(0, external=False)
    assert made.loss(theta)[0] == pytest.approx(slow_loss(made.votes, theta), rel=2e-4)


def test_external_differences_move_the_mean() -> None:
    """With a spread of next to nothing the likelihood is that of the differences themselves."""
    made, theta = problem(1, external=True, gold=0.0)
    theta[4] = -8.0
    rng = np.random.default_rng(1)
    d = np.round(rng.standard_normal(made.votes.n_pairs), 1)[made.votes.pair]
    eta, delta = expit(theta[:4])[made.votes.annotator], theta[5] * d
    p, y = eta * expit(delta) + (1 - eta) * expit(-delta), made.votes.value
    means = np.array([PRIORS["logit η"]] * 4 + [PRIORS["log σ"], PRIORS["β"]])
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).sum()
    expected += (((theta - means[:, 0]) / means[:, 1]) ** 2).sum() / 2
    assert made.loss(theta)[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_gradient_and_information_are_those_of_finite_differences(seed: int, external: bool) -> None:
    made, theta = problem(seed, external, answers=3)
    gradient, step = made.loss(theta)[1], 1e-5 * np.eye(len(theta))
    slopes = [(made.loss(theta + e)[0] - made.loss(theta - e)[0]) / 2e-5 for e in step]
    curves = [(made.loss(theta + e)[1] - made.loss(theta - e)[1]) / 2e-5 for e in step]
    assert np.abs(gradient).max() > 0.1
    assert gradient == pytest.approx(np.array(slopes), abs=1e-6)
    sds = [PRIORS["logit η"][1]] * 4 + [PRIORS["log σ"][1]] + [PRIORS["β"][1]] * external
    assert made.information(theta)[0] + np.diag(np.array(sds) ** -2.0) == pytest.approx(np.array(curves), abs=1e-6)


# Recovery


@pytest.mark.parametrize(
    ("settings", "widest"),
    [
        ({"prompts": 300, "overlap": 5}, 0.45),
        ({"prompts": 300, "overlap": 3}, 0.7),
        ({"prompts": 300, "overlap": 3, "gold": 0.15}, 0.6),
        ({"prompts": 200, "overlap": 4, "answers": 4}, 0.3),
        ({"prompts": 400, "overlap": 4, "spread": 1.0}, 0.7),
        ({"prompts": 300, "overlap": 4, "spread": 4.0}, 0.4),
    ],
    ids=["overlap 5", "overlap 3", "gold", "rankings of four", "hard pairs", "easy pairs"],
)
def test_annotators_of_known_reliability_are_recovered_within_their_intervals(
    settings: dict[str, Any], widest: float
) -> None:
    covered, widths, found = [], [], []
    for seed in range(20):
        estimates = crowd_bt(simulate(seed, PANEL, **settings)[0]).eta
        covered.append([one["low"] <= eta <= one["high"] for one, eta in zip(estimates, PANEL, strict=True)])
        widths.append([one["high"] - one["low"] for one in estimates])
        found.append([one["value"] for one in estimates])
    assert np.mean(covered) >= 0.9
    assert np.mean(widths) < widest, "intervals too wide to prove anything"
    assert np.corrcoef(np.mean(found, 0), PANEL)[0, 1] > 0.93


def test_many_votes_leave_little_doubt() -> None:
    found = crowd_bt(simulate(0, PANEL, prompts=6000, overlap=5)[0])
    assert [one["value"] for one in found.eta] == pytest.approx(PANEL, abs=0.07)
    assert found.spread == pytest.approx(2.0, rel=0.25)


def test_external_differences_reveal_annotators_who_share_no_pair() -> None:
    eta, covered = (0.95, 0.75, 0.5, 0.1), []
    for seed in range(12):
        votes, scores = simulate(seed, eta, prompts=1200, overlap=1)
        # A reward model with errors, on a scale of its own: Var Δ = 4 and of the error 1, so E[Δ | d] = 2 · ⅘ · d.
        error = np.random.default_rng(1000 + seed).normal(0, math.sqrt(0.5), scores.shape)
        worth = (scores + error).ravel() / 2
        found = crowd_bt(votes, worth[votes.first] - worth[votes.second])
        covered.append([one["low"] <= true <= one["high"] for one, true in zip(found.eta, eta, strict=True)])
        assert found.scale == pytest.approx(1.6, rel=0.5)
        assert max(one["high"] - one["low"] for one in found.eta) < 0.3
    assert np.mean(covered) >= 0.9


def test_gold_decides_which_side_is_right_and_otherwise_the_majority_does() -> None:
    eta = (0.1, 0.1, 0.15, 0.9)  # most turn everything round
    plain = crowd_bt(simulate(0, eta, prompts=400, overlap=3)[0]).eta
    assert [one["value"] > 0.5 for one in plain] == [True, True, True, False]
    known = crowd_bt(simulate(0, eta, prompts=400, overlap=3, gold=0.1)[0]).eta
    assert [one["value"] > 0.5 for one in known] == [False, False, False, True]


def test_without_overlap_nothing_is_known_and_the_interval_says_so() -> None:
    found = crowd_bt(simulate(0, PANEL, prompts=300, overlap=1)[0])
    for one in found.eta:
        assert one["n"] == 0
        assert one["low"] < 0.2
        assert one["high"] > 0.98
    assert (found.votes, found.informative) == (0, 0)


def test_too_many_votes_are_sampled_by_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    votes, _ = simulate(0, PANEL, prompts=600, overlap=4)
    whole = crowd_bt(votes)
    monkeypatch.setattr("prefloop.feedback.reliability.MOST_VOTES", 1000)
    part = crowd_bt(votes)
    assert part.informative == whole.votes == 2400
    assert 800 < part.votes < 1200
    assert part.votes % 4 == 0  # whole prompts
    assert part.eta[0]["high"] - part.eta[0]["low"] > whole.eta[0]["high"] - whole.eta[0]["low"]


# Weights


def test_a_vote_weighs_by_what_it_is_worth() -> None:
    votes, _ = simulate(3, PANEL, prompts=800, overlap=5)
    found = annotator_weights(votes)
    weights = [found[name][0] for name in votes.annotators]
    assert sorted(weights, reverse=True) == pytest.approx(weights, abs=0.25)
    assert weights[-1] < 0.1
    cast = np.bincount(votes.annotator)
    assert np.average(weights, weights=cast) == pytest.approx(1.0)


def test_where_nothing_is_known_everybody_weighs_the_same() -> None:
    votes, _ = simulate(0, PANEL, prompts=100, overlap=1)
    assert [weight for weight, _ in annotator_weights(votes).values()] == pytest.approx([1.0] * 6)
    coins, _ = simulate(0, (0.1, 0.1, 0.1), prompts=300, overlap=3, gold=1.0)
    assert [weight for weight, _ in annotator_weights(coins).values()] == [1.0] * 3
    assert annotator_weights(make_votes([(0, 0, 0, 1, 1.0)], 1))["annotator 0"][0] == 1.0


def test_the_weighted_majority_is_right_more_often() -> None:
    """Two good annotators among three who click at random; five of them judge each pair."""
    plain, weighted = [], []
    for seed in range(5):
        votes, scores = simulate(seed, (0.98, 0.95, 0.5, 0.5, 0.5), prompts=300, overlap=5, spread=3.0)
        flat, truth = scores.ravel(), np.zeros(votes.n_pairs)
        truth[votes.pair] = flat[votes.first] - flat[votes.second]
        weights = np.array([weight for weight, _ in annotator_weights(votes).values()])
        for right, score in ((plain, majority(votes)), (weighted, majority(votes, weights))):
            right.append(np.mean(np.where(score == 0, 0.5, (score > 0) == (truth > 0))))
    assert np.mean(weighted) > np.mean(plain) + 0.05
    assert min(np.subtract(weighted, plain)) > 0


def test_scores_of_a_known_panel_come_closer_to_the_truth() -> None:
    votes, scores = simulate(4, (0.98, 0.95, 0.5, 0.5, 0.5), prompts=200, overlap=5, answers=4)
    eta = np.array([one["value"] for one in crowd_bt(votes).eta])
    centred = (scores - scores.mean(1, keepdims=True)).ravel()
    plain, crowd = (np.corrcoef(bradley_terry(votes, 800, reliability=r), centred)[0, 1] for r in (None, eta))
    assert crowd > plain + 0.03
