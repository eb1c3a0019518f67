"""The KL penalty: KL(π‖π_ref) and its estimators from samples of π, and the controller of its weight β.

Estimators k1, k2, k3: Schulman 2020, "Approximating KL divergence". Which of them has the right gradient depends on
where it stands [Tang & Munos 2025]:

* In the *reward* it is k1: the policy gradient of a penalty k(π) leaves out E[∇k], which is zero for k1 alone. The
  published advice also names k3; it misses the optimum (docs/ppo.md measures by how much).
* As a term of the *loss* it is k2 or the full KL, whose gradients agree: E[k1·∇log π]. That of k1 is zero on average,
  that of k3 is that of the KL the other way round. Either charges a token for its own divergence only, not for
  where it leads: for answers of several tokens only k1 in the reward has the optimum π_ref·exp(r/β).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
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


def full_kl(
    logits: Float[Tensor, "N V"], ref_logits: Float[Tensor, "N V"], temperature: float = 1.0
) -> Float[Tensor, " N"]:
    """Σ_a π(a)·(log π(a) − log π_ref(a)) over the whole vocabulary, for softmax(logits / T); nats."""
    log_probs = torch.log_softmax(logits.float() / temperature, dim=1)
    ref_log_probs = torch.log_softmax(ref_logits.float() / temperature, dim=1)
    return (log_probs.exp() * (log_probs - ref_log_probs)).sum(1)


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
