"""Direct preference optimisation and its family: the losses of comparisons, without a reward model.

In DPO the policy is its own reward model: r(x, y) = β·(log π(y|x) − log π_ref(y|x)), summed over the response's
tokens [Rafailov et al. 2023]. The others change the link (IPO), the unit (KTO: an answer, not a pair) or the quantity
compared (ORPO, SimPO: log π(y|x) per token, without a reference).

Votes are counted as in :mod:`prefloop.algorithms.preference`, so split votes and ties need no rule of their own.
Every loss is to be divided by the number of votes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Stats = dict[str, Tensor]


def dpo_loss(
    difference: Float[Tensor, " P"],
    wins: Float[Tensor, " P"],
    losses: Float[Tensor, " P"],
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Float[Tensor, " P"], Stats]:
    """−w′ log σ(βΔ) − l′ log σ(−βΔ) for each pair [Rafailov et al. 2023, eq. 7].

    Args:
        difference: Δ = [log π(i) − log π_ref(i)] − [log π(j) − log π_ref(j)], summed over response tokens.
        wins, losses: votes for i and for j; a tie is half a vote for each.
        beta: strength of the tie to the reference.
        label_smoothing: ε of conservative DPO [Mitchell 2023]: w′ = (1−ε)·w + ε·l and l′ = (1−ε)·l + ε·w.

    Returns:
        The loss of each pair, and for each pair the votes that the sign of Δ gets right (``accuracy``) and the
        implicit reward margin βΔ towards the side with the votes, times the votes (``margin``).
    """
    margin = beta * difference
    smooth_wins = (1 - label_smoothing) * wins + label_smoothing * losses
    smooth_losses = (1 - label_smoothing) * losses + label_smoothing * wins
    loss = -smooth_wins * F.logsigmoid(margin) - smooth_losses * F.logsigmoid(-margin)
    return loss, pair_stats(margin, wins, losses)


def ipo_loss(
    difference: Float[Tensor, " P"], wins: Float[Tensor, " P"], losses: Float[Tensor, " P"], beta: float
) -> tuple[Float[Tensor, " P"], Stats]:
    """w·(Δ − 1/(2β))² + l·(Δ + 1/(2β))² for each pair [Azar et al. 2023, eq. 17].

    The square stops where DPO's sigmoid never does: a pair that everybody answers alike is not pushed to infinity.

    Args:
        difference: Δ as in :func:`dpo_loss`.
        beta: τ of the paper; the margin aimed at is 1/(2β) nats.
    """
    target = 1 / (2 * beta)
    loss = wins * (difference - target).square() + losses * (difference + target).square()
    return loss, pair_stats(beta * difference, wins, losses)


def kto_loss(
    ratios: Float[Tensor, " B"],
    kl: Float[Tensor, ""],
    desirable: Float[Tensor, " B"],
    undesirable: Float[Tensor, " B"],
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Tensor, " B"]:
    """Kahneman–Tversky: w·λ_D·(1 − σ(β(h − z))) + l·λ_U·(1 − σ(β(z − h))) for each answer.

    [Ethayarajh et al. 2024, eq. 8], h the log-ratio of an answer. Each answer counts by itself, so feedback need not
    come in pairs.

    Args:
        ratios: h = log π(y) − log π_ref(y), summed over response tokens.
        kl: z ≥ 0, the reference point: see :func:`kto_reference_point`. No gradient flows through it.
        desirable, undesirable: votes for and against each answer.
        desirable_weight, undesirable_weight: λ_D and λ_U; the paper wants λ_D·n_D / (λ_U·n_U) in [1, 4/3].
    """
    margin = beta * (ratios - kl.detach())
    liked = desirable * desirable_weight * torch.sigmoid(-margin)
    return liked + undesirable * undesirable_weight * torch.sigmoid(margin)


def kto_reference_point(mismatched_ratios: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """z = max(0, mean of h(x, y′)), y′ being answers to other prompts: a biased, never negative estimate of
    KL(π‖π_ref) [Ethayarajh et al. 2024, §4.1]."""
    return mismatched_ratios.detach().mean().clamp(min=0)


def orpo_loss(
    first: Float[Tensor, " P"],
    second: Float[Tensor, " P"],
    wins: Float[Tensor, " P"],
    losses: Float[Tensor, " P"],
    weight: float,
) -> tuple[Float[Tensor, " P"], Stats]:
    """−log π(chosen) − λ log σ(log odds(chosen)/odds(rejected)) for each vote [Hong et al. 2024, eq. 6 and 7].

    Fine-tuning on the chosen answer and the odds ratio in one; there is no reference.

    Args:
        first, second: log π of i and j, *mean* over response tokens: log of a geometric mean, below 0.
        weight: λ of the odds ratio.
    """
    log_odds = (first - _log1mexp(first)) - (second - _log1mexp(second))
    imitation = -wins * first - losses * second
    contrast = -wins * F.logsigmoid(log_odds) - losses * F.logsigmoid(-log_odds)
    return imitation + weight * contrast, pair_stats(log_odds, wins, losses)


def simpo_loss(
    difference: Float[Tensor, " P"],
    wins: Float[Tensor, " P"],
    losses: Float[Tensor, " P"],
    beta: float,
    margin: float,
) -> tuple[Float[Tensor, " P"], Stats]:
    """−w log σ(βΔ − γ) − l log σ(−βΔ − γ) for each pair [Meng et al. 2024, eq. 6].

    Args:
        difference: Δ of log π, *mean* over response tokens; there is no reference.
        margin: γ, by how much the better answer should lead.
    """
    reward = beta * difference
    loss = -wins * F.logsigmoid(reward - margin) - losses * F.logsigmoid(-reward - margin)
    return loss, pair_stats(reward, wins, losses)


def pair_stats(margin: Float[Tensor, " P"], wins: Float[Tensor, " P"], losses: Float[Tensor, " P"]) -> Stats:
    """The votes that the sign of ``margin`` gets right (half of them at 0), and the margin towards the side with the
    votes, times the votes."""
    margin = margin.detach()
    correct = (margin.sign() + 1) / 2
    return {"accuracy": wins * correct + losses * (1 - correct), "margin": (wins - losses) * margin}


def _log1mexp(x: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """log(1 − eˣ) for x < 0, exact at both ends [Mächler 2012]. A probability of 1 counts as the next float below."""
    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    near = x > -0.6931471805599453
    # Each branch is given harmless numbers where the other is taken, so that no gradient is NaN.
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, x, x.new_tensor(-0.5)))),
        torch.log1p(-torch.exp(torch.where(near, x.new_tensor(-1.0), x))),
    )
