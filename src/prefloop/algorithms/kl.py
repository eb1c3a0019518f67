"""The KL penalty: estimators of KL(π‖π_ref) from samples of π, and the controller of its weight β.

Estimators k1, k2, k3: Schulman 2020, "Approximating KL divergence". As a *loss* term only k2 has the right
gradient [Tang & Munos 2025]. In the *reward* use k1: the published advice also names k3, but its policy gradient
leaves out a term that is zero for k1 alone (docs/tried.md has a world in which it misses the optimum).
"""

from __future__ import annotations

import math
from typing import Literal

from jaxtyping import Float
from torch import Tensor


def kl_estimate(
    log_probs: Float[Tensor, "*shape"],
    ref_log_probs: Float[Tensor, "*shape"],
    estimator: Literal["k1", "k2", "k3"] = "k1",
) -> Float[Tensor, "*shape"]:
    """Per-token estimate, nats.

    k1 = log π − log π_ref: unbiased, may be negative. k2 = ½ k1²: biased, never negative.
    k3 = exp(−k1) − 1 + k1: unbiased and never negative.
    """
    k1 = log_probs - ref_log_probs
    if estimator == "k1":
        return k1
    if estimator == "k2":
        return k1.square() / 2
    return (-k1).expm1() + k1


def adapt_kl_coef(coef: float, kl: float, target: float, episodes: int, horizon: int) -> float:
    """β ← β·(1 + clip(KL/target − 1, −0.2, 0.2)·n/horizon) [Ziegler et al. 2019, §2.2].

    Args:
        coef: β so far.
        kl: KL of the iteration, summed over the response, mean over episodes, nats.
        target: the KL wished for, nats.
        episodes: n, episodes of the iteration.
        horizon: episodes over which the controller acts.
    """
    assert math.isfinite(kl)
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coef * (1 + error * episodes / horizon)
