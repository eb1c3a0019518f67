"""How reliable each annotator is: Crowd-BT, fitted by maximum likelihood.

The model [Chen, Bennett, Collins-Thompson & Horvitz 2013, "Pairwise Ranking Aggregation in a Crowdsourced Setting",
eq. 3]: of two answers whose scores differ by Δ, annotator k prefers the first with probability

    p = η_k σ(Δ) + (1 − η_k) σ(−Δ).

η = 1 is as good as the model allows, ½ a random click, 0 somebody who turns everything round. A tie is half a vote
each way.

Deviations:

1. The scores are integrated out, not fitted. Prompts have two answers and a few votes, so there are as many Δ as
   pairs, and fitting them all makes η too extreme however much data there is [Neyman & Scott 1948]. Here
   Δ ~ N(β·d, σ²) with d an external difference (of a reward model, 0 without one), by quadrature. The
   *spread* σ and β are fitted too.
2. The pairs of a prompt with more than two answers enter as if they were independent: a composite likelihood. Their
   dependence is put right in the intervals, (H+Λ)⁻¹ (J+Λ) (H+Λ)⁻¹ with the observed information H, the sum J of the
   squared gradients of the prompts, and the priors' precision Λ (Godambe's sandwich).
3. Weak Gaussian priors (`PRIORS`). Votes alone tell the level of η and σ apart only where four annotators judge the
   same pair: from two or three, only the products (2η_j − 1)(2η_k − 1)·E[tanh²(Δ/2)] are known, so that annotators
   can be compared with each other, while the level is the prior's and the interval says so. Gold items or external
   differences fix the level.
4. Votes fit a smaller spread with a larger η about as well, which no ellipse around the likeliest values describes.
   So η is averaged over spreads (`_over_spreads`), as in Rue, Martino & Chopin 2009: at each a Gaussian on the logit
   scale, weighted by Laplace's approximation to the probability of that spread. Where pairs of a prompt depend on
   each other, the log-likelihood is divided by trace((H+Λ)⁻¹ (J+Λ)) / |θ| first [Pauli, Racugno & Ventura 2011].
5. The likelihood is the same with every η and every Δ turned round. Gold items decide which it is; without any, the
   majority does.

Chen et al. put a penalty on the scores and Beta priors on η for the same reasons (sections 4.1 and 5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from scipy.special import expit, logit, logsumexp, ndtr, softmax

from .agreement import following
from .intervals import Estimate
from .keys import Ints
from .pairs import Floats, PairVotes

SPREAD = 2.0
"""The prior's median of σ, in logits: two annotators with η = 1 then agree in 70 % of cases, about as often as
trained ones did (72.6 %) [Ouyang et al. 2022]."""
PRIORS = {"logit η": (1.5, 2.0), "log σ": (math.log(SPREAD), 0.75), "β": (1.0, 1.0)}
"""Mean and standard deviation of each parameter."""
MOST_VOTES = 100_000
"""Votes that are read; of more, those of prompts drawn at random, which say enough."""
_NODES, _FARTHEST = 24, 5.0
_STEPS = np.linspace(-2.5, 2.5, 11)
"""Spreads that are averaged over, in standard errors of log σ from the likeliest."""


@dataclass(frozen=True)
class Reliability:
    """What was estimated, for annotators in the order of `PairVotes.annotators`."""

    eta: tuple[Estimate, ...]
    """η with its 95 % interval; ``n`` is the number of votes that say something about it."""
    accuracy: tuple[float, ...]
    """How often each picks the better answer, at the estimated spread."""
    spread: float
    """σ, the standard deviation of the difference Δ of two answers, in logits."""
    scale: float | None
    """β, what one unit of the external differences is worth; None without them."""
    votes: int
    """How many votes were read."""
    informative: int
    """How many there are that say something: of pairs that were judged twice, are gold or have a difference."""

    def weights(self, cast: Ints) -> Floats:
        """[annotators] What a vote should weigh: the log-odds of the annotator's accuracy q, log(q / (1 − q)), and 0
        where that is negative; in units that make the mean vote weigh 1.

        Of votes that err independently, the sum of the log-odds decides best [Nitzan & Paroush 1982]. q and not η,
        since nobody is right about a pair of almost equal answers more often than it allows. The mean of 1 keeps the
        number of votes, and with it the learning rate's meaning, what it was. Everybody weighs 1 where nobody is
        known to be better than a coin.

        Args:
            cast: [annotators] how many votes each has cast.
        """
        raw = np.maximum(0.0, logit(np.array(self.accuracy)))
        if not (raw @ cast) > 0:
            return np.ones(len(raw))
        weights: Floats = raw * cast.sum() / (raw @ cast)
        return weights


def annotator_weights(votes: PairVotes) -> dict[str, tuple[float, Estimate]]:
    """Name → (weight of a vote, η): what the reward model's votes are weighted with."""
    if not votes.annotators:
        return {}
    found, cast = crowd_bt(votes), np.bincount(votes.annotator, minlength=len(votes.annotators))
    return dict(zip(votes.annotators, zip(map(float, found.weights(cast)), found.eta, strict=True), strict=True))


def crowd_bt(votes: PairVotes, differences: Floats | None = None, seed: int = 0) -> Reliability:
    """Fit Crowd-BT.

    Args:
        votes: of one annotator about one pair, the latest counts. Their ``gold`` is used where it is known.
        differences: [N] d, by how much an outside score puts the first answer of each vote's pair above the second.
        seed: which prompts are read where there are more than `MOST_VOTES` votes.

    Returns:
        Annotators about whom the votes say nothing have the prior's η and an interval as wide.
    """
    rows = _informative(votes, differences)
    read = _sampled(votes.prompt, rows, seed)
    d = np.zeros(len(votes)) if differences is None else differences
    problem = Problem(votes.rows(read), d[read], external=differences is not None)
    modes, errors, weight = _over_spreads(problem)
    a = len(votes.annotators)
    ends = [expit(_quantiles(share, modes[:, :a], errors[:, :a], weight)) for share in (0.5, 0.025, 0.975)]
    counts = np.bincount(problem.votes.annotator, minlength=a)
    mean = weight @ modes
    right = problem.ease(mean)
    return Reliability(
        eta=tuple(
            {"value": float(value), "low": float(low), "high": float(high), "n": int(n)}
            for value, low, high, n in zip(*ends, counts, strict=True)
        ),
        accuracy=tuple(map(float, 1 - right + (2 * right - 1) * ends[0])),
        spread=math.exp(mean[a]),
        scale=None if differences is None else float(mean[a + 1]),
        votes=len(read),
        informative=len(rows),
    )


def _over_spreads(problem: Problem) -> tuple[Floats, Floats, Floats]:
    """The modes of θ at several spreads around the likeliest one, their standard errors at that spread, each
    [spreads, θ], and how probable each spread is by Laplace's approximation."""
    start = problem.solve()
    a = len(problem.votes.annotators)
    covariance, dependence = problem.covariance(start)
    reach = math.sqrt(covariance[a, a])
    modes, errors, evidence = [], [], []
    for step in _STEPS:
        theta = problem.solve(start, spread=start[a] + step * reach)
        covariance, _ = problem.covariance(theta, spread_known=True)
        modes.append(theta)
        errors.append(np.sqrt(np.diag(covariance)))
        free = np.delete(np.delete(covariance, a, 0), a, 1)
        evidence.append(-problem.loss(theta)[0] / max(1.0, dependence) + np.linalg.slogdet(free)[1] / 2)
    return np.array(modes), np.array(errors), softmax(evidence)


def _quantiles(share: float, means: Floats, errors: Floats, weight: Floats) -> Floats:
    """[A] Quantiles of mixtures of normal distributions, means and errors [mixed, A], by bisection."""
    low, high = (means - 6 * errors).min(0), (means + 6 * errors).max(0)
    for _ in range(50):
        middle = (low + high) / 2
        below = weight @ ndtr((middle - means) / errors) < share
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


class Problem:
    """The likelihood of votes as a function of θ = (logit η of each annotator, log σ, and β where there are external
    differences).

    Votes of the same annotator with the same answer about pairs of the same prior are one *case*, C of them; what a
    pair was told is a row of counts of cases, and few rows are different: the *patterns*. So an evaluation costs
    a product of a sparse matrix [patterns, cases] with a table [cases, nodes].
    """

    def __init__(self, votes: PairVotes, differences: Floats, external: bool) -> None:
        self.votes = votes
        self._external = external
        pairs = votes.n_pairs
        gold = np.sign(np.bincount(votes.pair, votes.gold, pairs))
        d = np.zeros(pairs)
        d[votes.pair] = differences
        self._kinds, kind = np.unique(np.column_stack([d, gold]), axis=0, return_inverse=True)
        keys = np.column_stack([votes.annotator, kind[votes.pair], 2 * votes.value])
        cases, case = np.unique(keys, axis=0, return_inverse=True)
        self._who, self._kind, self._y = cases[:, 0].astype(int), cases[:, 1].astype(int), cases[:, 2:] / 2
        self._counts = csr_matrix((np.ones(len(votes)), (votes.pair, case)), (pairs, len(cases)))
        self._patterns, self._times = _distinct(self._counts)
        self._of_kind = np.bincount(kind, minlength=len(self._kinds))
        whose = np.zeros(pairs, int)
        whose[votes.pair] = np.unique(votes.prompt, return_inverse=True)[1]
        self._prompts = csr_matrix(
            (np.ones(pairs), (whose, np.arange(pairs))), (int(whose.max(initial=-1)) + 1, pairs)
        )

    def solve(self, start: Floats | None = None, spread: float | None = None) -> Floats:
        """The posterior mode; at a given log σ if one is given.

        The search starts with the majority; and where something outside tells right from wrong, at the opposite too.
        """
        a = len(self.votes.annotators)
        bounds: list[tuple[float | None, float | None]] = [(None, None)] * (a + 1 + self._external)
        if start is not None:
            starts = [start]
        else:
            starts = [self._start()]
            if self._external or (self._kinds[:, 1] != 0).any():
                starts.append(np.concatenate([-starts[0][:a], starts[0][a:]]))
        if spread is not None:
            bounds[a] = (spread, spread)
        found = [
            minimize(self.loss, one, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500})
            for one in starts
        ]
        best: Floats = min(found, key=lambda result: result.fun).x
        return best

    def loss(self, theta: Floats) -> tuple[float, Floats]:
        """−log posterior and its gradient."""
        at = self._at(theta)
        each, posterior = self._integral(at, self._patterns)
        share = self._patterns.T @ (posterior * self._times[:, None])  # [cases, nodes]
        slope = share * at.slope
        gradient = [np.bincount(self._who, (slope * at.by_eta).sum(1), len(self.votes.annotators))]
        gradient += [np.array([(slope * at.by_delta * moved).sum()]) for moved in at.moved]
        mean, precision = self._prior()
        off = theta - mean
        return float(off @ (precision * off)) / 2 - float(self._times @ each), precision * off - np.concatenate(
            gradient
        )

    def covariance(self, theta: Floats, spread_known: bool = False) -> tuple[Floats, float]:
        """[θ, θ] The sandwich of deviation 2, 0 for a spread that is known; and how many times too sure of themselves
        the votes are when they are taken for independent, trace((H+Λ)⁻¹ (J+Λ)) / |θ|."""
        information, squares = self.information(theta)
        precision = np.diag(self._prior()[1])
        free = np.ones(len(theta), bool)
        free[len(self.votes.annotators)] = not spread_known
        bread = np.linalg.inv((information + precision)[np.ix_(free, free)])
        middle = (squares + precision)[np.ix_(free, free)]
        found = np.zeros_like(information)
        found[np.ix_(free, free)] = bread @ middle @ bread
        return found, float(np.trace(bread @ middle)) / len(bread)

    def information(self, theta: Floats) -> tuple[Floats, Floats]:
        """[θ, θ] H, by Louis' identity −E[∂²ℓ] − Cov[∂ℓ] over what Δ may be [Louis 1982]; and J, the sum of the
        prompts' squared gradients."""
        at = self._at(theta)
        _, posterior = self._integral(at, self._counts)
        size, a = len(theta), len(self.votes.annotators)
        information = -self._second_derivatives(at, self._counts.T @ posterior, size)
        rows, columns = np.arange(len(self._who)), self._who
        means = csr_matrix((self._counts.shape[0], size))
        for node in range(_NODES):
            slope = at.slope[:, node]
            values = [slope * at.by_eta[:, node], *(slope * (at.by_delta * m)[:, node] for m in at.moved)]
            where = [columns, *(np.full(len(rows), a + k) for k in range(size - a))]
            table = csr_matrix(
                (np.concatenate(values), (np.tile(rows, len(values)), np.concatenate(where))), (len(rows), size)
            )
            gradients = self._counts @ table
            weighted = gradients.multiply(posterior[:, node : node + 1]).tocsr()
            information -= (gradients.T @ weighted).toarray()
            means = means + weighted
        scores = self._prompts @ means
        return information + (means.T @ means).toarray(), (scores.T @ scores).toarray()

    def ease(self, theta: Floats) -> float:
        """How often somebody with η = 1 picks the better of two answers: the mean of σ(|Δ|) over the pairs."""
        if not len(self._of_kind):
            return float(
                _quadrature()[1] @ expit(np.abs(math.exp(theta[len(self.votes.annotators)]) * _quadrature()[0]))
            )
        delta, _ = self._differences(theta)
        return float(np.average(expit(np.abs(delta)) @ _quadrature()[1], weights=self._of_kind))

    def _start(self) -> Floats:
        votes, a = self.votes, len(self.votes.annotators)
        rows, score, _ = following(votes)
        who = votes.annotator[rows]
        share = (np.bincount(who, score, a) + 3) / (np.bincount(who, minlength=a) + 4)
        return np.concatenate([logit(share), [math.log(SPREAD)], [1.0] if self._external else []])

    def _prior(self) -> tuple[Floats, Floats]:
        """Means and precisions of θ."""
        a = len(self.votes.annotators)
        each = [PRIORS["logit η"]] * a + [PRIORS["log σ"]] + [PRIORS["β"]] * self._external
        mean, sd = np.array(each).T
        return mean, sd**-2.0

    def _differences(self, theta: Floats) -> tuple[Floats, list[Floats]]:
        """Δ at each node, [kinds, nodes], and its derivatives by log σ and β; turned to gold's side where there is
        gold, which makes the prior half a Gaussian."""
        a, (nodes, _) = len(self.votes.annotators), _quadrature()
        d, gold = self._kinds[:, :1], self._kinds[:, 1:]
        spread = math.exp(theta[a]) * np.broadcast_to(nodes, (len(d), len(nodes)))
        plain = spread + (theta[a + 1] * d if self._external else 0.0)
        turn = np.where(gold == 0, 1.0, np.where(gold * plain < 0, -1.0, 1.0))
        return plain * turn, [spread * turn, *([d * turn] if self._external else [])]

    def _at(self, theta: Floats) -> _Point:
        delta, moved = self._differences(theta)
        eta = expit(theta[self._who])[:, None]
        s = expit(delta)[self._kind]
        p = np.clip(1 - eta + (2 * eta - 1) * s, 1e-12, 1 - 1e-12)
        return _Point(eta, s, p, self._y, [m[self._kind] for m in moved])

    def _integral(self, at: _Point, counts: csr_matrix) -> tuple[Floats, Floats]:
        """The log-likelihood of each row of counts, [rows], and how likely each node is for it, [rows, nodes]."""
        joint = counts @ (at.y * np.log(at.p) + (1 - at.y) * np.log(1 - at.p)) + np.log(_quadrature()[1])
        each = logsumexp(joint, axis=1, keepdims=True)
        return each[:, 0], np.exp(joint - each)

    def _second_derivatives(self, at: _Point, share: Floats, size: int) -> Floats:
        """[θ, θ] The expected second derivatives of the votes' log-likelihoods, by the chain rule from p."""
        a, flat = len(self.votes.annotators), at.s * (1 - at.s)
        by_eta2 = at.by_eta * (1 - 2 * at.eta)
        by_delta2 = at.by_delta * (1 - 2 * at.s)
        both = 2 * at.eta * (1 - at.eta) * flat
        found = np.zeros((size, size))
        of_eta = (share * (at.curve * at.by_eta**2 + at.slope * by_eta2)).sum(1)
        found[np.arange(a), np.arange(a)] = np.bincount(self._who, of_eta, a)
        cross = share * (at.curve * at.by_eta * at.by_delta + at.slope * both)
        square = share * (at.curve * at.by_delta**2 + at.slope * by_delta2)
        for k, moved in enumerate(at.moved):
            found[:a, a + k] = found[a + k, :a] = np.bincount(self._who, (cross * moved).sum(1), a)
            for m, other in enumerate(at.moved):
                found[a + k, a + m] = (square * moved * other).sum()
        # Δ is linear in β and exponential in log σ, whose second derivative is the first once more.
        found[a, a] += (share * at.slope * at.by_delta * at.moved[0]).sum()
        return found


@dataclass(frozen=True)
class _Point:
    """The probability of each case at each node, [cases, nodes], and its derivatives."""

    eta: Floats
    """[cases, 1]."""
    s: Floats
    """σ(Δ)."""
    p: Floats
    """That the first answer is preferred."""
    y: Floats
    """[cases, 1] 1 where it was, ½ for a tie."""
    moved: list[Floats]
    """Derivatives of Δ by log σ and β."""

    @cached_property
    def by_eta(self) -> Floats:
        """∂p / ∂ logit η."""
        found: Floats = self.eta * (1 - self.eta) * (2 * self.s - 1)
        return found

    @cached_property
    def by_delta(self) -> Floats:
        """∂p / ∂Δ."""
        found: Floats = (2 * self.eta - 1) * self.s * (1 - self.s)
        return found

    @cached_property
    def slope(self) -> Floats:
        """∂ℓ / ∂p of a vote's log-likelihood."""
        found: Floats = self.y / self.p - (1 - self.y) / (1 - self.p)
        return found

    @cached_property
    def curve(self) -> Floats:
        """∂²ℓ / ∂p²."""
        found: Floats = -self.y / self.p**2 - (1 - self.y) / (1 - self.p) ** 2
        return found


def _informative(votes: PairVotes, differences: Floats | None) -> Ints:
    """The rows of the latest vote of each annotator about each pair that was judged twice, is gold or has a
    difference."""
    kept = votes.latest_rows()
    known = np.bincount(votes.pair[kept], minlength=votes.n_pairs) > 1
    known[votes.pair[votes.gold != 0]] = True
    if differences is not None:
        known[votes.pair[differences != 0]] = True
    return kept[known[votes.pair[kept]]]


def _sampled(prompt: Ints, rows: Ints, seed: int) -> Ints:
    """Of too many rows those of some prompts."""
    if len(rows) <= MOST_VOTES:
        return rows
    order = np.random.default_rng(seed).permutation(int(prompt.max()) + 1)
    return rows[order[prompt[rows]] < len(order) * MOST_VOTES / len(rows)]


def _distinct(counts: csr_matrix) -> tuple[csr_matrix, Floats]:
    """The different rows of a sparse matrix, and how often each is there."""
    counts.sort_indices()
    size, found, times = np.diff(counts.indptr), [np.zeros(0, np.int64)], [np.zeros(0)]
    for n in np.unique(size):
        rows = np.flatnonzero(size == n)
        at = counts.indptr[rows][:, None] + np.arange(n)
        _, first, often = np.unique(
            np.hstack([counts.indices[at], counts.data[at]]), axis=0, return_index=True, return_counts=True
        )
        found.append(rows[first])
        times.append(often.astype(float))
    return counts[np.concatenate(found)], np.concatenate(times)


@cache
def _quadrature() -> tuple[Floats, Floats]:
    """Nodes and weights of the standard normal distribution: Gauss–Legendre on either side of 0, where half a
    Gaussian has its edge."""
    half, weights = np.polynomial.legendre.leggauss(_NODES // 2)
    nodes = _FARTHEST * (half + 1) / 2
    weights = weights * np.exp(-(nodes**2) / 2)
    return np.concatenate([-nodes[::-1], nodes]), np.concatenate([weights[::-1], weights]) / (2 * weights.sum())
