"""Bradley–Terry: the loss of a reward model.

P(i ≻ j) = σ(s_i − s_j) [Bradley & Terry 1952; Ouyang et al. 2022, eq. 1]. Votes for either side of a pair are
counted, a tie as half a vote for each, so a pair with votes (2, 1) or (½, ½) is one row.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Stats = dict[str, Tensor]


def bradley_terry_loss(
    difference: Float[Tensor, " P"],
    wins: Float[Tensor, " P"],
    losses: Float[Tensor, " P"],
) -> tuple[Float[Tensor, " P"], Stats]:
    """−w log σ(Δ) − l log σ(−Δ) for each pair.

    Args:
        difference: Δ = s_i − s_j.
        wins, losses: votes for i and for j; a tie is half a vote for each.

    Returns:
        The loss of each pair, to be divided by the number of votes, and ``accuracy``: the votes that the sign
        of Δ gets right (half of them where Δ is 0).
    """
    loss = -wins * F.logsigmoid(difference) - losses * F.logsigmoid(-difference)
    correct = (difference.detach().sign() + 1) / 2
    return loss, {"accuracy": wins * correct + losses * (1 - correct)}


def centring_penalty(first: Float[Tensor, " P"], second: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """(s_i + s_j)²: Bradley–Terry fixes differences only; this keeps the level near 0 [Eisenstein et al. 2023]."""
    return (first + second).square()
