"""Biases of simulated annotators, whose biases are known; the regression against another optimiser and a sandwich
written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from scipy.special import expit
from tests.feedback.simulation import make_votes

from prefloop.feedback.bias import Bias, bias, leanings, logistic, position_within_pairs, relative
from prefloop.feedback.features import features
from prefloop.feedback.pairs import Floats, PairVotes

POSITION, LENGTH, LISTS = 0.4, 1.2, -0.8


def biased(
    seed: int,
    prompts: int = 400,
    overlap: int = 3,
    own_position: tuple[float, ...] = (0.0,) * 6,
    own_length: tuple[float, ...] = (0.0,) * 6,
    spread: float = 1.5,
) -> tuple[PairVotes, Floats, Floats]:
    """Votes by the formula, the answers' features, and Δs of each vote."""
    rng = np.random.default_rng(seed)
    counts = np.column_stack(
        [rng.integers(10, 200, 2 * prompts), rng.poisson(1, 2 * prompts), np.zeros(2 * prompts)]
    ).astype(float)
    z = relative(counts[0::2], counts[1::2])
    rows, left, quality = [], [], []
    for prompt, difference in enumerate(rng.normal(0, spread, prompts)):
        for who in rng.choice(6, overlap, replace=False):
            side = 1 if rng.random() < 0.5 else -1
            slopes = np.array([LENGTH + own_length[who], LISTS, 0.0])
            logit = side * (difference + slopes @ z[prompt]) + POSITION + own_position[who]
            chose_left = rng.random() < expit(logit)
            rows.append((prompt, int(who), 2 * prompt, 2 * prompt + 1, float(chose_left == (side == 1))))
            left.append(side == 1)
            quality.append(difference)
    return make_votes(rows, 6, left), counts, np.array(quality)


def found(seed: int, quality: bool = True, **settings: object) -> Bias:
    votes, counts, differences = biased(seed, **settings)  # type: ignore[arg-type]
    result = bias(votes, counts, differences if quality else None)
    assert result is not None
    return result


def test_biases_are_recovered_within_their_intervals() -> None:
    truth, covered, widths = {"length": LENGTH, "lists": LISTS}, [], []
    for seed in range(40):
        one = found(seed)
        assert one.features.keys() == truth.keys()  # nobody wrote headings
        assert one.quality is not None
        pairs = [(one.position, POSITION), (one.quality, 1.0)]
        pairs += [(one.features[name], value) for name, value in truth.items()]
        covered.append([estimate["low"] <= value <= estimate["high"] for estimate, value in pairs])
        widths.append([estimate["high"] - estimate["low"] for estimate, _ in pairs])
    assert np.mean(covered) >= 0.92
    assert np.min(np.mean(covered, 0)) >= 0.85
    assert np.mean(widths, 0).max() < 1.1


def test_without_bias_none_is_found() -> None:
    outside = []
    for seed in range(60):
        votes, counts, _ = biased(seed)
        coin = (
            np.random.default_rng(1000 + seed).random(votes.n_pairs)[votes.pair] < 0.5
        )  # the pair's, whoever is asked
        flat = make_votes(
            [
                (int(p), int(k), int(2 * p), int(2 * p + 1), float(c))
                for p, k, c in zip(votes.prompt, votes.annotator, coin, strict=True)
            ],
            6,
            votes.first_left.tolist(),
        )
        one = bias(flat, counts)
        assert one is not None
        effects = (one.position, *one.features.values())
        outside.append([not effect["low"] <= 0 <= effect["high"] for effect in effects])
    assert np.mean(outside) <= 0.1  # 5 % is right; three votes that say the same would make it 26 % without clusters


def test_who_has_a_bias_of_their_own_is_told() -> None:
    for seed in range(3):
        one = found(seed, False, prompts=1500, own_position=(0, 0, 0, 0, 1.2, 0), own_length=(0, 0, 0, 0, 0, 3.0))
        said = leanings(one)
        assert any("first" in text for text in said["annotator 4"])
        assert any("the longer answer" in text for text in said["annotator 5"])
        assert (
            max(one.annotator_length_beyond, key=lambda name: one.annotator_length_beyond[name]["value"])
            == "annotator 5"
        )
    quiet = [leanings(found(seed, False, prompts=200, own_position=(-POSITION,) * 6)) for seed in range(30)]
    assert sum(map(bool, quiet)) <= 5


def test_the_coefficients_are_the_best_and_the_sandwich_is_the_formula() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((80, 3)), rng.choice([0.0, 0.5, 1.0], 80)
    clusters, precision = rng.integers(0, 25, 80), np.array([0.01, 1.0, 4.0])
    theta, covariance = logistic(csr_matrix(x), y, clusters, precision)

    def loss(w: Floats) -> float:
        return float((np.logaddexp(0, x @ w) - y * (x @ w)).sum() + (precision * w**2).sum() / 2)

    assert theta == pytest.approx(minimize(loss, np.zeros(3), tol=1e-12).x, abs=1e-5)
    p = expit(x @ theta)
    hessian = sum(p[i] * (1 - p[i]) * np.outer(x[i], x[i]) for i in range(80)) + np.diag(precision)
    groups = [sum((y[i] - p[i]) * x[i] for i in np.flatnonzero(clusters == c)) for c in np.unique(clusters)]
    squares = sum(np.outer(g, g) for g in groups) * len(groups) / (len(groups) - 1) + np.diag(precision)
    assert covariance == pytest.approx(np.linalg.inv(hessian) @ squares @ np.linalg.inv(hessian))


def test_separated_votes_have_finite_effects() -> None:
    rows = [(p, 0, 2 * p, 2 * p + 1, 1.0) for p in range(40)]
    counts = np.tile([[50.0, 0, 0], [10.0, 0, 0]], (40, 1))
    one = bias(make_votes(rows, 1), counts)
    assert one is not None
    assert all(math.isfinite(value) for effect in (one.position, one.features["length"]) for value in effect.values())
    assert bias(make_votes(rows, 1).rows(np.zeros(40, bool)), counts) is None


@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_within_pairs_the_quality_cancels(spread: float) -> None:
    covered, estimates = [], []
    for seed in range(25):
        one = position_within_pairs(biased(seed, overlap=4, spread=spread)[0])
        assert one is not None
        covered.append(one["low"] <= POSITION <= one["high"])
        estimates.append(one["value"])
    assert np.mean(covered) >= 0.84
    assert np.mean(estimates) == pytest.approx(POSITION, abs=0.05)


def test_within_pairs_counts_opposite_orders_only() -> None:
    rows = [(0, 0, 0, 1, 1.0), (0, 1, 0, 1, 0.0), (0, 2, 0, 1, 1.0), (1, 0, 2, 3, 1.0), (1, 1, 2, 3, 0.0)]
    votes = make_votes(rows, 3, left=[True, False, True, True, True])
    one = position_within_pairs(votes)
    assert one is not None
    assert one["n"] == 2  # the votes of 0 and of 2, each with that of 1; all chose the left
    assert one["value"] == pytest.approx(math.log(2.5 / 0.5) / 2)
    assert one["low"] < 0 < one["value"] < one["high"]
    assert position_within_pairs(make_votes(rows, 3)) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (0, 0, 0)),
        ("Two words", (2, 0, 0)),
        ("- one\n* two\n  3. three\n4) four", (8, 4, 0)),
        ("# A title\n\n**Bold line**\nnot **all** of it\n#tag -5 1.5", (12, 0, 2)),
    ],
)
def test_features(text: str, expected: tuple[int, int, int]) -> None:
    assert features(text) == expected


def test_relative_differences_lie_between_minus_one_and_one() -> None:
    found = relative(np.array([3.0, 0, 0, 5]), np.array([1.0, 0, 4, 5]))
    assert found.tolist() == [0.5, 0, -1, 0]
