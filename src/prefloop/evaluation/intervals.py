"""Figures with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from scipy.special import expit

Z = 1.959963984540054


class Estimate(TypedDict):
    """A figure, its 95 % interval and the number of independent observations behind it."""

    value: float
    low: float
    high: float
    n: int


def wilson(successes: float, n: int) -> Estimate:
    """A proportion with Wilson's score interval [Wilson 1927]. Half successes (ties) count one half.

    Raises:
        ValueError: no observations.
    """
    if n <= 0:
        raise ValueError("a proportion needs at least one observation")
    p = successes / n
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    # In exact arithmetic the interval holds p and stays in [0, 1]; rounding may leave it by one unit.
    return {
        "value": p,
        "low": max(0.0, min(p, centre - half)),
        "high": min(1.0, max(p, centre + half)),
        "n": n,
    }


def length_controlled(outcomes: Sequence[float], length_differences: Sequence[float]) -> Estimate | None:
    """The win rate at equal length: σ(a) of the logistic regression logit P(win) = a + b·tanh(Δ/sd)
    [Dubois et al. 2024, without its terms for the model and the instruction].

    Args:
        outcomes: 1 win, ½ tie, 0 loss.
        length_differences: tokens of the answer judged minus tokens of the other.

    Returns:
        None where lengths do not vary or where one side of the regression is empty, so that it has no answer.
    """
    y, difference = np.asarray(outcomes, float), np.asarray(length_differences, float)
    if len(y) < 10 or difference.std() == 0 or y.min() == y.max():
        return None
    x = np.column_stack([np.ones_like(y), np.tanh(difference / difference.std())])
    ridge = np.diag([0.0, 1e-2])  # keeps b finite where length tells winners from losers completely
    weights = np.zeros(2)
    for _ in range(50):
        p = expit(x @ weights)
        hessian = x.T @ (x * (p * (1 - p))[:, None]) + ridge
        step = np.linalg.solve(hessian, x.T @ (y - p) - ridge @ weights)
        weights += step
        if np.abs(step).max() < 1e-10:
            break
    if not np.isfinite(weights).all() or abs(weights[0]) > 15:
        return None
    error = math.sqrt(np.linalg.inv(hessian)[0, 0])
    low, value, high = (float(expit(weights[0] + z * error)) for z in (-Z, 0, Z))
    return {"value": value, "low": low, "high": high, "n": len(y)}
