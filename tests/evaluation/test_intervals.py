"""The win rate at equal length, against a formula written down a second time and against simulated truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from prefloop.evaluation.intervals import length_controlled
from prefloop.feedback.intervals import Estimate

# The win rate at equal length


def simulate(
    seed: int, n: int, quality: float, taste_for_length: float, mean: float = 0.0
) -> tuple[list[float], list[float]]:
    """logit P(win) = quality + taste · tanh(Δ/sd); lengths differ by ``mean`` standard deviations on average."""
    rng = np.random.default_rng(seed)
    difference = np.round(20 * (rng.standard_normal(n) + mean))
    chance = 1 / (1 + np.exp(-(quality + taste_for_length * np.tanh(difference / difference.std()))))
    return (rng.random(n) < chance).astype(float).tolist(), difference.tolist()


def controlled(outcomes: list[float], differences: list[float]) -> Estimate:
    found = length_controlled(outcomes, differences)
    assert found is not None
    return found


@pytest.mark.parametrize("quality", [0.0, 0.5, -0.8])
def test_the_taste_for_length_is_taken_out(quality: float) -> None:
    truth = 1 / (1 + math.exp(-quality))
    outcomes, differences = simulate(1, 20_000, quality, taste_for_length=2.0, mean=1.0)
    found = controlled(outcomes, differences)
    assert found["value"] == pytest.approx(truth, abs=0.03)
    assert found["low"] < truth < found["high"]
    assert np.mean(outcomes) > truth + 0.1  # what the plain win rate would have said
    assert found["n"] == 20_000


def test_without_a_taste_for_length_nothing_is_taken_out() -> None:
    outcomes, differences = simulate(2, 20_000, 0.4, taste_for_length=0.0, mean=0.5)
    assert controlled(outcomes, differences)["value"] == pytest.approx(np.mean(outcomes), abs=0.02)


def test_its_interval_covers_the_truth_nineteen_times_in_twenty() -> None:
    truth, covered = 1 / (1 + math.exp(-0.3)), 0
    for seed in range(400):
        found = controlled(*simulate(seed, 200, 0.3, taste_for_length=1.0, mean=0.5))
        covered += found["low"] <= truth <= found["high"]
    assert 0.92 < covered / 400 < 0.98


def test_the_regression_is_the_best_one() -> None:
    """The same penalised likelihood, minimised by somebody else."""
    outcomes, differences = simulate(3, 150, 0.2, 1.5, 0.5)
    outcomes[:10] = [0.5] * 10
    y, x = np.array(outcomes), np.tanh(np.array(differences) / np.std(differences))

    def loss(w: np.ndarray) -> float:  # type: ignore[type-arg]
        logit = w[0] + w[1] * x
        return float((np.logaddexp(0, logit) - y * logit).sum() + 0.5e-2 * w[1] ** 2)

    best = minimize(loss, np.zeros(2), tol=1e-12).x
    assert controlled(outcomes, differences)["value"] == pytest.approx(1 / (1 + math.exp(-best[0])), abs=1e-5)


def test_swapping_the_sides_turns_it_round() -> None:
    outcomes, differences = simulate(4, 300, 0.4, 1.0, 0.3)
    there = controlled(outcomes, differences)
    back = controlled([1 - y for y in outcomes], [-d for d in differences])
    assert there["value"] == pytest.approx(1 - back["value"], abs=1e-9)
    assert there["low"] == pytest.approx(1 - back["high"], abs=1e-9)


@pytest.mark.parametrize(
    ("outcomes", "differences"),
    [
        ([1.0, 0.0] * 4, [1.0, 2.0] * 4),
        ([1.0, 0.0] * 20, [3.0] * 40),
        ([1.0] * 40, list(range(40))),
        ([0.0] * 40, list(range(40))),
        ([0.5] * 40, list(range(40))),
    ],
    ids=["few", "equal lengths", "all won", "all lost", "all tied"],
)
def test_where_the_data_cannot_say_there_is_no_answer(outcomes: list[float], differences: list[float]) -> None:
    assert length_controlled(outcomes, differences) is None


def test_length_alone_may_decide() -> None:
    differences = [float(d) for d in range(-20, 21) if d]
    found = length_controlled([float(d > 0) for d in differences], differences)
    assert found is None or (found["low"] < 0.5 < found["high"])
    assert found is None or all(math.isfinite(found[key]) for key in ("value", "low", "high"))  # type: ignore[literal-required]
