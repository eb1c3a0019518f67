"""What else moves a vote: the side on which an answer stands, its length, its lists and headings.

One logistic regression over the pairs of a criterion:

    logit P(left) = γ·Δs + b_0 + b_k + (β + c_k·[length])ᵀ z

z are the normalised differences left minus right, (a − b) / (a + b), in words, list items and headings; b_0 is the
position bias of everybody, b_k what annotator k adds to it, β_length the verbosity bias and c_k what k adds to that.
Δs is an outside estimate of which answer is better, where there is one. Ties are half votes. b_k and c_k have
Gaussian priors (a ridge), so that somebody with few votes is taken for average.

Intervals are Wald's, with the sandwich (H+Λ)⁻¹ (J+Λ) (H+Λ)⁻¹ clustered by prompt: the votes of a prompt share its
answers and depend on each other, which the likelihood's own curvature does not know. A profile likelihood would not
either.

What the figures can say. The order shown is drawn by lot, so b_0 is the order's doing; without Δs it is a little
nearer to 0 than what one person feels about one pair, as all marginal effects are. Length is not drawn by lot:
β_length holds what length itself is worth too. c_k compares people who saw pairs of the same kind, and is free of
that.

`position_within_pairs` needs no model of quality at all: where a pair was judged in both orders, Δs cancels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix, hstack
from scipy.special import expit, ndtri

from .agreement import REPLICATES, percentiles, resampled
from .features import FEATURES
from .intervals import Estimate, Z
from .keys import Ints
from .pairs import Floats, PairVotes, sums

OWN_POSITION_SD, OWN_LENGTH_SD = 0.5, 1.5
"""Prior standard deviations of what an annotator adds, in logits: 0.5 moves an even choice to 62 %, and so does 1.5
where one answer is twice as long as the other, z = ⅓."""
NUISANCE_SD = 10.0
"""Of everything else: none to speak of, but finite where the data would send an effect to infinity."""
FEWEST_VOTES = 20
"""Annotators with fewer have no effects of their own."""
MOST_ANNOTATORS = 500
"""And of more, those with the most votes have."""


@dataclass(frozen=True)
class Bias:
    """Effects in logits, with 95 % intervals; ``n`` is the number of votes."""

    position: Estimate
    """For the answer shown first, in the average vote: b_0 and the mean of b_k over the votes."""
    features: Mapping[str, Estimate]
    """β by feature, for answers that differ in it; of length, in the average vote."""
    quality: Estimate | None
    """γ, what one unit of Δs is worth; None without Δs."""
    annotator_position: Mapping[str, Estimate]
    """b_0 + b_k by annotator."""
    annotator_length: Mapping[str, Estimate]
    """β_length + c_k by annotator."""
    annotator_length_beyond: Mapping[str, Estimate]
    """By annotator, c_k less the mean of c over the others' votes."""
    within_pairs: Estimate | None
    """Position bias from pairs that were judged in both orders; ``n`` counts pairs of such votes."""


def bias(votes: PairVotes, features: Floats, differences: Floats | None = None) -> Bias | None:
    """The regression; None where there are no votes.

    Args:
        features: [answers, F] counts for each answer, in the order of `features.FEATURES`.
        differences: [N] Δs of each vote's first answer over its second.
    """
    if not len(votes):
        return None
    turn = np.where(votes.first_left, 1.0, -1.0)
    z = relative(features[votes.first], features[votes.second]) * turn[:, None]
    used = np.flatnonzero(z.any(0))
    active = _active(votes)
    own = active[votes.annotator]
    shared = [np.ones((len(votes), 1)), z[:, used]]
    if differences is not None:
        shared.append((differences * turn)[:, None])
    design = hstack([*map(csr_matrix, shared), _indicators(own, np.ones(len(votes))), _indicators(own, z[:, 0])])
    k, a = sum(part.shape[1] for part in shared), int(active.max()) + 1
    precision = np.repeat([NUISANCE_SD**-2.0, OWN_POSITION_SD**-2.0, OWN_LENGTH_SD**-2.0], [k, a, a])
    theta, covariance = logistic(design.tocsr(), votes.left, votes.prompt, precision)

    def effect(weights: Mapping[int, float], n: int = len(votes)) -> Estimate:
        return _combined(theta, covariance, weights, n)

    def on_average(column: int, own_columns: int) -> dict[int, float]:
        """What everybody has in common, and what annotators add, by their shares of the votes."""
        shares = counts[active >= 0] / len(votes)
        return {column: 1.0, **{own_columns + i: float(share) for i, share in enumerate(shares)}}

    def by_annotator(weights: Callable[[int], Mapping[int, float]]) -> dict[str, Estimate]:
        return {
            name: effect(weights(i), int(count))
            for name, i, count in zip(votes.annotators, active, counts, strict=True)
            if i >= 0
        }

    def beyond(i: int) -> dict[int, float]:
        """c_i less what the others add, by their shares of the others' votes."""
        mine = counts[active >= 0]
        shares = mine / max(1, len(votes) - mine[i])
        return {k + a + j: 1.0 if j == i else -float(share) for j, share in enumerate(shares)}

    counts = np.bincount(votes.annotator, minlength=len(votes.annotators))
    length = 0 in used  # the first column after the constant, if it is there
    return Bias(
        position=effect(on_average(0, k)),
        features={
            FEATURES[f]: effect(on_average(1, k + a) if f == 0 else {1 + at: 1.0}) for at, f in enumerate(used)
        },
        quality=None if differences is None else effect({k - 1: 1.0}),
        annotator_position=by_annotator(lambda i: {0: 1.0, k + i: 1.0}),
        annotator_length=by_annotator(lambda i: {1: 1.0, k + a + i: 1.0}) if length else {},
        annotator_length_beyond=by_annotator(beyond) if length else {},
        within_pairs=position_within_pairs(votes),
    )


def _active(votes: PairVotes) -> Ints:
    """[annotators] Numbers, from 0, of those who have effects of their own; −1 for the others."""
    counts = np.bincount(votes.annotator, minlength=len(votes.annotators))
    most = np.argsort(-counts, kind="stable")[:MOST_ANNOTATORS]
    chosen = np.sort(most[counts[most] >= FEWEST_VOTES])
    found = np.full(len(counts), -1)
    found[chosen] = np.arange(len(chosen))
    return found


def _indicators(group: Ints, value: Floats) -> csr_matrix:
    """[N, groups] ``value`` in the column of each row's group; nothing where the group is −1."""
    rows = np.flatnonzero(group >= 0)
    return csr_matrix((value[rows], (rows, group[rows])), (len(group), int(group.max(initial=-1)) + 1))


def _combined(theta: Floats, covariance: Floats, weights: Mapping[int, float], n: int) -> Estimate:
    """A weighted sum of coefficients."""
    at, weight = list(weights), np.array(list(weights.values()))
    value, error = float(weight @ theta[at]), math.sqrt(weight @ covariance[np.ix_(at, at)] @ weight)
    return {"value": value, "low": value - Z * error, "high": value + Z * error, "n": n}


def leanings(found: Bias) -> dict[str, tuple[str, ...]]:
    """What each annotator leans to, in words: to a side, or to length more than the others. At a level of 5 % for all
    annotators and both questions together (Bonferroni)."""
    tests = max(1, len(found.annotator_position) + len(found.annotator_length_beyond))
    limit = -float(ndtri(0.025 / tests)) / Z
    result: dict[str, tuple[str, ...]] = {}
    for what, sides, effects in (
        ("the answer shown {}", ("first", "last"), found.annotator_position),
        ("the {} answer, more than the others do", ("longer", "shorter"), found.annotator_length_beyond),
    ):
        for name, effect in effects.items():
            value, error = effect["value"], (effect["high"] - effect["low"]) / 2
            # Whoever clicks at random cares less for length than others do; that is no leaning to short answers.
            own = found.annotator_length[name] if effects is found.annotator_length_beyond else effect
            if abs(value) > limit * error and (own["low"] > 0 if value > 0 else own["high"] < 0):
                said = f"leans to {what.format(sides[value < 0])}: {value:+.2f} ± {error:.2f} logits"
                result[name] = (*result.get(name, ()), said)
    return result


def relative(one: Floats, other: Floats) -> Floats:
    """(a − b) / (a + b), from −1 to 1; 0 where both are 0."""
    total = one + other
    return np.divide(one - other, total, out=np.zeros_like(total), where=total > 0)


def logistic(x: csr_matrix, y: Floats, clusters: Ints, precision: Floats) -> tuple[Floats, Floats]:
    """Penalised logistic regression by Newton's method: coefficients [P] and their clustered sandwich [P, P].

    Args:
        x: [N, P].
        y: [N] 1, 0, or ½ for a tie.
        clusters: [N] whole numbers; rows of the same one may depend on each other.
        precision: [P] of the Gaussian prior around 0.
    """
    theta, ridge = np.zeros(x.shape[1]), np.diag(precision)
    for _ in range(50):
        p = expit(x @ theta)
        hessian = (x.T @ x.multiply((p * (1 - p))[:, None]).tocsr()).toarray() + ridge
        step = np.linalg.solve(hessian, x.T @ (y - p) - precision * theta)
        theta = theta + step / max(1.0, np.abs(step).max() / 4)  # far from the optimum the curvature misleads
        if np.abs(step).max() < 1e-9:
            break
    whose = np.unique(clusters, return_inverse=True)[1]
    scores = csr_matrix((y - expit(x @ theta), (whose, np.arange(len(y))))) @ x
    count = whose.max() + 1
    squares = (scores.T @ scores).toarray() * count / max(1, count - 1)
    bread = np.linalg.inv(hessian)
    return theta, bread @ (squares + ridge) @ bread


def position_within_pairs(votes: PairVotes, seed: int = 0) -> Estimate | None:
    """b_0 with the pair's quality eliminated: b = ½ log(n_LL / n_RR).

    Of two votes on the same pair, shown in opposite orders, count those that both chose the left and those that both
    chose the right answer: P(LL) / P(RR) = e^{2b} whatever Δs is, in the formula above. One half is added to both
    counts. The interval is a bootstrap over prompts. None where no pair has such votes.
    """
    sides = [
        sums(votes.pair, (votes.first_left == there) & (votes.left == chosen), votes.n_pairs)
        for there in (True, False)
        for chosen in (1.0, 0.0)
    ]
    both_left, both_right = sides[0] * sides[2], sides[1] * sides[3]
    whose = np.zeros(votes.n_pairs, np.int64)
    whose[votes.pair] = np.unique(votes.prompt, return_inverse=True)[1]
    counts = np.column_stack([sums(whose, part, int(whose.max()) + 1) for part in (both_left, both_right)])
    counts = counts[counts.any(1)]
    if not len(counts):
        return None

    def figure(both: Floats) -> Floats:
        found: Floats = np.log((both[..., 0] + 0.5) / (both[..., 1] + 0.5)) / 2
        return found

    value, drawn = float(figure(counts.sum(0))), figure(resampled(counts, REPLICATES, seed))
    if not counts.sum(0).all():  # nothing to resample: as if one pair had gone the other way
        error = math.sqrt(1 / (counts.sum() + 0.5) + 1 / 0.5) / 2
        return {"value": value, "low": value - Z * error, "high": value + Z * error, "n": int(counts.sum())}
    return percentiles(value, drawn, int(counts.sum()))
