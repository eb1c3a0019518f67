"""Figures with 95 % intervals."""

from __future__ import annotations

import math
from typing import TypedDict

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

Z = 1.959963984540054


class Estimate(TypedDict):
    """A figure, its 95 % interval and the number of observations behind it."""

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
    low, high = score_interval(successes / n, n)
    return {"value": successes / n, "low": low, "high": high, "n": n}


def clustered_wilson(values: npt.ArrayLike, clusters: npt.ArrayLike) -> Estimate:
    """A mean of shares with Wilson's interval for as many observations as they are worth (`effective_number`).

    Args:
        values: 1 right, 0 wrong, ½ undecided.
        clusters: which prompt each value belongs to.

    Returns:
        ``n`` is the number of values, not what they are worth.

    Raises:
        ValueError: no observations.
    """
    y = np.asarray(values, float)
    if len(y) == 0:
        raise ValueError("a proportion needs at least one observation")
    share = float(y.mean())
    low, high = score_interval(share, effective_number(y, clusters))
    return {"value": share, "low": low, "high": high, "n": len(y)}


def difference(one: Estimate, other: Estimate) -> Estimate:
    """``one`` less ``other``, two independent estimates with intervals of their own: their distances from the
    estimates are added as squares, each end of one with the opposite end of the other [Newcombe 1998, method 10;
    Zou & Donner 2008 for intervals of any kind]. ``n`` is that of both together."""
    value = one["value"] - other["value"]
    below = math.hypot(one["value"] - one["low"], other["high"] - other["value"])
    above = math.hypot(one["high"] - one["value"], other["value"] - other["low"])
    return {"value": value, "low": value - below, "high": value + above, "n": one["n"] + other["n"]}


def effective_number(values: npt.ArrayLike, clusters: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """How many independent observations say as much as these, which depend on each other within clusters.

    The pairs of one prompt share its answers and its difficulty. With p the mean of n values in C clusters,

        deff = C/(C−1) · Σ_c (Σ_{i∈c} (y_i − p))² / n²  over  p(1−p)/(n−1),     not below 1,
        n_eff = n / deff · (t_{n−1} / t_{C−1})²,

    the design effect [Kish 1965; Rao & Scott 1992], and the quantiles of Student's t that allow for a variance
    known from C clusters only [Korn & Graubard 1998]. One value in each cluster: n, exactly. Where there is no
    variance to be seen (one cluster, or all values equal), each cluster counts as one observation: the cautious end.

    Args:
        values: shares, 0 to 1.
        weights: how often each value counts (votes of a pair); n is their sum, but no less than the number of values.
    """
    y = np.asarray(values, float)
    weight = np.ones_like(y) if weights is None else np.asarray(weights, float)
    found, cluster = np.unique(clusters, return_inverse=True)
    count, n = len(found), max(float(weight.sum()), len(y))
    if count == 1 or y.min() == y.max():
        return float(count)
    p = float(np.average(y, weights=weight))
    sums = np.bincount(cluster, weight * (y - p))
    variance = count / (count - 1) * float((sums**2).sum()) / float(weight.sum()) ** 2
    effect = max(1.0, variance / (p * (1 - p) / (n - 1)))
    return n / effect * float(stdtrit(n - 1, 0.975) / stdtrit(count - 1, 0.975)) ** 2


def score_interval(p: float, n: float) -> tuple[float, float]:
    """Both ends of Wilson's interval for a share p of n observations; n need not be whole."""
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    # In exact arithmetic the interval holds p and stays in [0, 1]; rounding may leave it by one unit.
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))
