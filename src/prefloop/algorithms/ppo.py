"""Proximal policy optimisation for language models.

Schulman et al. 2017 (clipping), Ziegler et al. 2019 and Stiennon et al. 2020 (per-token KL penalty in the reward,
the score at the last token). An action is a token, a state the tokens before it.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Stats = dict[str, Tensor]


def token_rewards(
    scores: Float[Tensor, " B"], kl: Float[Tensor, "B R"], mask: Bool[Tensor, "B R"], kl_coef: float
) -> Float[Tensor, "B R"]:
    """r_t = −β·kl_t, and the score on top at the last real token of the response; 0 at padding."""
    rewards = (-kl_coef * kl).where(mask, kl.new_zeros(()))
    last = mask.sum(1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype))


def policy_loss(
    log_probs: Float[Tensor, " N"],
    old_log_probs: Float[Tensor, " N"],
    advantages: Float[Tensor, " N"],
    clip_range: float,
    dual_clip: float = 0.0,
) -> tuple[Float[Tensor, " N"], Stats]:
    """max(−Aρ, −A·clip(ρ, 1−ε, 1+ε)) for each token, ρ = π(a)/π_old(a) [Schulman et al. 2017, eq. 7].

    Args:
        clip_range: ε.
        dual_clip: c > 1 bounds the loss of a bad action (A < 0) by −cA, however much likelier it has become
            [Ye et al. 2020, eq. 4]; 0 for no such bound.

    Returns:
        The loss of each token; ``clip_fraction`` and ``approx_kl`` (k3 of the policy that sampled).
    """
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    losses = torch.maximum(unclipped, clipped)
    if dual_clip:
        bound = -advantages * dual_clip
        losses = torch.minimum(losses, bound).where(advantages < 0, losses)
    with torch.no_grad():
        stats = {
            "clip_fraction": (clipped > unclipped).float(),
            "approx_kl": ratio - 1 - log_ratio,
        }
    return losses, stats


def value_loss(
    values: Float[Tensor, " N"],
    old_values: Float[Tensor, " N"],
    returns: Float[Tensor, " N"],
    clip_range: float,
) -> Float[Tensor, " N"]:
    """½·max((V−R)², (V_clip−R)²) for each token, V_clip = V_old + clip(V−V_old, ±ε)."""
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return torch.maximum((values - returns).square(), (clipped - returns).square()) / 2


def explained_variance(values: Float[Tensor, " N"], returns: Float[Tensor, " N"]) -> float:
    """1 − Var(R − V)/Var(R): 1 is perfect, 0 as good as a constant; 0 where all returns are equal."""
    variance = returns.var(correction=0)
    if variance == 0:
        return 0.0
    return float(1 - (returns - values).var(correction=0) / variance)
