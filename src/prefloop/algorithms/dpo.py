"""Direct preference optimisation [Rafailov et al. 2023, eq. 7].

The policy is its own reward model: r(x, y) = β·(log π(y|x) − log π_ref(y|x)), summed over the response's tokens.
Votes are counted as in :mod:`prefloop.algorithms.preference`, so split votes and ties need no rule of their own.
"""

from __future__ import annotations

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
    """−w′ log σ(βΔ) − l′ log σ(−βΔ) for each pair.

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
    correct = (margin.detach().sign() + 1) / 2
    return loss, {
        "accuracy": wins * correct + losses * (1 - correct),
        "margin": (wins - losses) * margin.detach(),
    }
