"""Bradley–Terry and Plackett–Luce: the losses of a reward model.

Bradley–Terry is of pairs: P(i ≻ j) = σ(s_i − s_j) [Bradley & Terry 1952; Ouyang et al. 2022, eq. 1]. Votes for
either side of a pair are counted, a tie as half a vote for each, so a pair with votes (2, 1) or (½, ½) is one row.

Plackett–Luce is of rankings: the best is chosen out of all, the second out of the others, and so on,
P(1 ≻ 2 ≻ …) = ∏_k e^{s_k} / Σ_{l ≥ k} e^{s_l} [Plackett 1975]. Answers that tie are in no order, and the loss is
the mean of −log P over all orders that they may have. For two answers it is Bradley–Terry with half votes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

Stats = dict[str, Tensor]


def bradley_terry_loss(
    difference: Float[Tensor, " P"],
    wins: Float[Tensor, " P"],
    losses: Float[Tensor, " P"],
    margin: Float[Tensor, " P"] | float = 0.0,
    random_answers: float = 0.0,
) -> tuple[Float[Tensor, " P"], Stats]:
    """−w log P(Δ − m) − l log P(−Δ − m) for each pair, with P(x) = (1−ε)·σ(x) + ε/2.

    Args:
        difference: Δ = s_i − s_j.
        wins, losses: votes for i and for j; a tie is half a vote for each.
        margin: m ≥ 0, by how much each vote's winner should lead [Touvron et al. 2023, eq. 2]; 0 for ties.
        random_answers: ε, the share of votes that were given at random [Christiano et al. 2017, §2.2.3].

    Returns:
        The loss of each pair, to be divided by the number of votes, and ``accuracy``: the votes that the sign
        of Δ gets right (half of them where Δ is 0).
    """
    loss = -wins * _log_win(difference - margin, random_answers) - losses * _log_win(
        -difference - margin, random_answers
    )
    correct = (difference.detach().sign() + 1) / 2
    return loss, {"accuracy": wins * correct + losses * (1 - correct)}


def _log_win(x: Float[Tensor, " P"], random_answers: float) -> Float[Tensor, " P"]:
    """log((1−ε)·σ(x) + ε/2), finite with its gradient for every x."""
    if not random_answers:
        return F.logsigmoid(x)
    floor = x.new_tensor(math.log(random_answers / 2))
    return torch.logaddexp(math.log1p(-random_answers) + F.logsigmoid(x), floor)


def plackett_luce_loss(
    scores: Float[Tensor, "C K"],
    shown: Bool[Tensor, "C K"],
    chosen: Float[Tensor, "C K"],
    weights: Float[Tensor, " C"],
    random_answers: float = 0.0,
) -> tuple[Float[Tensor, " C"], Stats]:
    """−w Σ_i q_i log((1−ε)·p_i + ε/n) for each choice out of n answers, p being the softmax of their scores.

    A ranking is the choices that `prefloop.feedback.scores.choices` gives; its −log P is the sum of theirs.

    Args:
        scores: of the answers of each choice.
        shown: which places hold an answer; what stands in the others does not matter.
        chosen: q, how likely each answer was the one chosen: 1 for one of them, or 1/m for each of m that tie.
        weights: w.
        random_answers: ε, the share of choices that were made at random. Between two answers this is the floor of
            :func:`bradley_terry_loss`.

    Returns:
        The loss of each choice, to be divided by the sum of the weights, and ``accuracy``: the weight that the
        answer with the highest score gets right.
    """
    scores = scores.masked_fill(~shown, -math.inf)
    log_p = scores.log_softmax(1)
    if random_answers:
        floor = math.log(random_answers) - shown.sum(1, keepdim=True).to(log_p.dtype).log()
        log_p = torch.logaddexp(math.log1p(-random_answers) + log_p, floor)
    # Not a product alone: 0 · −∞ is NaN.
    loss = -weights * (chosen * log_p.masked_fill(~shown, 0.0)).sum(1)
    best = (scores.detach() == scores.detach().amax(1, keepdim=True)).to(chosen.dtype)
    return loss, {"accuracy": weights * (chosen * best).sum(1) / best.sum(1)}


def centring_penalty(first: Float[Tensor, " P"], second: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """(s_i + s_j)²: the losses fix differences only; this keeps the level near 0 [Eisenstein et al. 2023]."""
    return (first + second).square()
