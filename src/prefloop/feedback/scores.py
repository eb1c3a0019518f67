"""What the votes say about each answer: majority, Bradley–Terry and Plackett–Luce scores.

Scores compare answers to the same prompt only. They are posterior modes under a Gaussian prior, s ~ N(0, τ²): an
answer that was never beaten has no finite maximum-likelihood score, and with two or three votes a pair that is the
usual case. A large τ comes close to maximum likelihood.

* Bradley–Terry: P(i ≻ j) = σ(s_i − s_j) [Bradley & Terry 1952]; a tie is half a vote for each.
* Plackett–Luce: ∏_k e^{s_k} / Σ_{l ≥ k} e^{s_l} [Plackett 1975]; for answers that tie, the mean of −log P over all
  their orders, as in the reward model's loss.
* Crowd-BT: the same as Bradley–Terry with votes of annotators of known reliability η [Chen et al. 2013, eq. 3]:
  P(k says i ≻ j) = η_k σ(s_i − s_j) + (1 − η_k) σ(s_j − s_i). `prefloop.feedback.reliability` estimates η.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from .pairs import Floats, PairVotes, sums

MAX_TIED = 12
"""Answers that may tie in a ranking: t of them make 2^t − 1 choices."""
PRIOR_SD = 1.5
"""τ: two answers then differ by 1.5·√2 ≈ 2 logits, as seems common (`prefloop.feedback.reliability.SPREAD`)."""


def majority(votes: PairVotes, weights: Floats | None = None) -> Floats:
    """[pairs] The weighted votes for the first answer of each pair minus those for the second; 0 is a draw.

    Args:
        weights: [annotators], 1 for everybody where not given.
    """
    weight = np.ones(len(votes)) if weights is None else weights[votes.annotator]
    return sums(votes.pair, weight * votes.sign, votes.n_pairs)


def bradley_terry(
    votes: PairVotes, answers: int, prior_sd: float = PRIOR_SD, reliability: Floats | None = None
) -> Floats:
    """[answers] Scores; 0 for an answer without votes.

    Args:
        answers: how many there are; votes name them by number.
        reliability: η of each annotator, [annotators], for Crowd-BT. Everybody's is 1 where not given.
    """
    eta = np.ones(len(votes)) if reliability is None else reliability[votes.annotator]

    def loss(scores: Floats) -> tuple[float, Floats]:
        return crowd_loss(scores, votes, eta, prior_sd)

    return _minimum(loss, answers)


def crowd_loss(scores: Floats, votes: PairVotes, eta: Floats, prior_sd: float) -> tuple[float, Floats]:
    """−log posterior of the scores and its gradient, [answers]; ``eta`` [N] is of each vote's annotator."""
    s = expit(scores[votes.first] - scores[votes.second])
    p = np.clip(1 - eta + (2 * eta - 1) * s, 1e-300, 1.0)
    q = np.clip(eta - (2 * eta - 1) * s, 1e-300, 1.0)
    value = -(votes.value * np.log(p) + (1 - votes.value) * np.log(q)).sum()
    slope = -(votes.value / p - (1 - votes.value) / q) * (2 * eta - 1) * s * (1 - s)
    gradient = sums(votes.first, slope, len(scores)) - sums(votes.second, slope, len(scores))
    return float(value + (scores**2).sum() / (2 * prior_sd**2)), gradient + scores / prior_sd**2


def plackett_luce(
    rankings: Iterable[tuple[Sequence[Sequence[int]], bool, float]], answers: int, prior_sd: float = PRIOR_SD
) -> Floats:
    """[answers] Scores; 0 for an answer without rankings.

    Args:
        rankings: (answers by number, best tier first; whether only the first tier was chosen; weight) of each.
    """
    chosen = [
        (members, size, weight * part)
        for tiers, best_only, weight in rankings
        for members, size, part in choices(tiers, best_only)
    ]
    if not chosen:
        return np.zeros(answers)

    def loss(scores: Floats) -> tuple[float, Floats]:
        return choice_loss(scores, chosen, prior_sd)

    return _minimum(loss, answers)


def choice_loss(
    scores: Floats, chosen: Sequence[tuple[tuple[int, ...], int, float]], prior_sd: float
) -> tuple[float, Floats]:
    """−log posterior of the scores and its gradient, [answers], of weighted `choices`."""
    lengths = np.array([len(members) for members, _, _ in chosen])
    sizes, weight = (np.array([choice[k] for choice in chosen], float) for k in (1, 2))
    member = np.concatenate([members for members, _, _ in chosen])
    starts = np.concatenate([[0], lengths.cumsum()[:-1]])
    place = np.arange(len(member)) - np.repeat(starts, lengths)
    share = np.where(place < np.repeat(sizes, lengths), np.repeat(weight / sizes, lengths), 0.0)
    top = np.maximum.reduceat(scores[member], starts)
    powers = np.exp(scores[member] - np.repeat(top, lengths))
    total = np.add.reduceat(powers, starts)
    value = (weight * (top + np.log(total))).sum() - (share * scores[member]).sum()
    gradient = sums(member, np.repeat(weight / total, lengths) * powers - share, len(scores))
    return float(value + (scores**2).sum() / (2 * prior_sd**2)), gradient + scores / prior_sd**2


def choices(tiers: Sequence[Sequence[int]], best_only: bool = False) -> Iterator[tuple[tuple[int, ...], int, float]]:
    """A ranking as choices: (answers, how many of the first of them may be the one chosen, weight).

    Drawing the answers of a tier T one by one in any order leaves, after some draws, a subset S of it and all that
    rank lower. Every subset of a size m is equally likely, and so is every member to be drawn next. So the mean over
    the |T|! orders is a sum over the 2^|T| − 1 subsets: a choice out of S and the rest, weight 1 / C(|T|, m), in
    which each of S is chosen with probability 1/m. The weights of a ranking of K answers sum to K − 1.

    Args:
        tiers: the answers, best tier first; those of one tier tie.
        best_only: only the first tier was chosen, and nothing is known about the others.

    Raises:
        ValueError: more than ``MAX_TIED`` answers tie.
    """
    for number, tier in enumerate(tiers[:1] if best_only else tiers):
        if len(tier) > MAX_TIED:
            raise ValueError(
                f"{len(tier)} answers to one prompt tie; Plackett–Luce takes up to {MAX_TIED}, since t of them make "
                '2^t choices. Use loss = "bradley-terry", or leave that ranking out'
            )
        rest = tuple(answer for lower in tiers[number + 1 :] for answer in lower)
        for size in range(len(tier), 0, -1):
            if size + len(rest) > 1:
                for subset in combinations(tier, size):
                    yield (*subset, *rest), size, 1 / math.comb(len(tier), size)


def _minimum(loss: Callable[[Floats], tuple[float, Floats]], n: int) -> Floats:
    found = minimize(loss, np.zeros(n), jac=True, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-14})
    scores: Floats = found.x
    return scores
