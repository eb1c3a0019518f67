"""The win rate at equal length, with its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from prefloop.feedback.intervals import Estimate, Z


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
