"""How far annotators agree.

The unit is a pair of answers (`prefloop.feedback.pairs`); what an annotator says about it is *better*, *tie* or
*worse*. A ranking of K answers is C(K, 2) units of one prompt, and intervals come from resampling prompts, so that
the pairs of a ranking do not pass for independent ones.

Krippendorff's α = 1 − D_o / D_e [Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability"] with the
coincidences o_ck of a unit with m values, each of the m(m−1) ordered pairs of values weighing 1/(m−1). Which of two
answers comes first is a matter of numbering, so each unit is entered in both orders: *better* and *worse* are then
equally frequent, and α does not depend on the numbering. Two differences are used:

* nominal, δ² = 1 for any two values that differ;
* ordinal, where worse < tie < better. In equal numbers of *better* and *worse*, Krippendorff's ordinal difference
  makes a tie exactly half as far from either as they are from each other: δ² = ¼ and 1.

1 is agreement, 0 what chance would give. Raw agreement is the share of pairs of annotators who say the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .intervals import Estimate, wilson
from .keys import Ints
from .pairs import Floats, PairVotes, sums

REPLICATES = 2000
"""Bootstrap samples."""


@dataclass(frozen=True)
class Agreement:
    """Figures with 95 % intervals; None where nothing was judged twice, or where it would divide by nothing."""

    pairs: int
    """Pairs of answers that at least two annotators judged."""
    alpha: Estimate | None
    """Krippendorff's α, nominal; ``n`` is the number of votes on these pairs."""
    alpha_ordinal: Estimate | None
    raw: Estimate | None
    """Share of pairs of annotators who say the same, a tie being an answer like any other."""
    decided: Estimate | None
    """The same where both took a side."""
    leave_one_out: Estimate | None
    """Share of votes that go with the majority of the other annotators [Dubois et al. 2024]."""
    accuracy_of_one: Estimate | None
    """How often one annotator is right, by `accuracy_from_agreement` of ``decided``."""


def agreement(votes: PairVotes, seed: int = 0) -> Agreement:
    """Agreement of different annotators; of one who judged a pair twice, the later vote counts.

    Intervals are percentiles of `REPLICATES` samples of the prompts, drawn with replacement. Where all agree, which
    leaves nothing to resample, the lower end is Wilson's with one observation a prompt.
    """
    votes = _overlapping(votes.latest())
    if not len(votes):
        return Agreement(0, None, None, None, None, None, None)
    by_prompt = _sums_by_prompt(votes)
    total = by_prompt.sum(0)
    chances = (*map(float, _by_chance(total)), 1.0, 1.0, 1.0)  # α falls by 1/D_e of a disagreement, a share by itself
    alpha, ordinal, raw, decided, others = (
        _estimate(value, replicas, int(n), len(by_prompt), chance)
        for value, replicas, n, chance in zip(
            _figures(total),
            _figures(resampled(by_prompt, REPLICATES, seed)),
            total[[0, 0, 4, 6, 8]],
            chances,
            strict=True,
        )
    )
    return Agreement(votes.n_pairs, alpha, ordinal, raw, decided, others, _accuracy(decided))


def accuracy_from_agreement(agreed: float) -> float:
    """q = (1 + √(2a − 1)) / 2: how often one of two equally good annotators is right, who err independently and
    agree in a share a of cases, since a = q² + (1 − q)². Agreement below one half is that of guessing."""
    return (1 + math.sqrt(max(0.0, 2 * agreed - 1))) / 2


def following(votes: PairVotes) -> tuple[Ints, Floats, Ints]:
    """Votes beside what the other annotators say.

    Args:
        votes: at most one for each annotator and pair (`PairVotes.latest`).

    Returns:
        rows: [M] the votes on whose pair the others have a majority, in order.
        score: [M] 1 where the vote goes with that majority, 0 where it goes against it, ½ for a tie.
        lead: [M] by how many votes the majority leads; at least 1.
    """
    others = sums(votes.pair, votes.sign, votes.n_pairs)[votes.pair] - votes.sign
    rows = np.flatnonzero(others)
    score = (1 + votes.sign[rows] * np.sign(others[rows])) / 2
    return rows, score, np.abs(others[rows]).astype(np.int64)


def resampled(rows: Floats, replicates: int, seed: int) -> Floats:
    """[replicates, S] Bootstrap sums of ``rows`` [prompts, S], as many rows as there are.

    How often each *distinct* row is drawn is multinomial, so rows that are equal need one number and not one each:
    of a million prompts with three votes a few dozen are distinct.
    """
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    share, total = counts / counts.sum(), int(counts.sum())
    pieces = max(1, 4_000_000 // len(distinct))
    drawn = [
        rng.multinomial(total, share, min(pieces, replicates - start)) @ distinct
        for start in range(0, replicates, pieces)
    ]
    return np.concatenate(drawn)


def percentiles(value: float, drawn: Floats, n: int) -> Estimate:
    """``value`` with the 2.5 % and 97.5 % percentiles of its bootstrap samples; those that are not a number are left
    out."""
    low, high = np.percentile(drawn[np.isfinite(drawn)], [2.5, 97.5])
    return {"value": value, "low": min(float(low), value), "high": max(float(high), value), "n": n}


def _overlapping(votes: PairVotes) -> PairVotes:
    several = np.bincount(votes.pair, minlength=votes.n_pairs) > 1
    return votes.rows(several[votes.pair])


def _sums_by_prompt(votes: PairVotes) -> Floats:
    """[prompts, 10]: votes; ties; coincidences of better with worse, of a side with a tie; agreeing pairs of
    annotators and all of them... in the order in which `_figures` takes them."""
    worse, tie, better = (sums(votes.pair, votes.value == value, votes.n_pairs) for value in (0.0, 0.5, 1.0))
    n, sides = worse + tie + better, worse + better

    def pairs(count: Floats) -> Floats:
        return count * (count - 1) / 2

    rows, score, _ = following(votes)
    per_pair = np.column_stack(
        [
            n,
            tie,
            2 * worse * better / (n - 1),
            2 * tie * sides / (n - 1),
            pairs(n),
            pairs(worse) + pairs(tie) + pairs(better),
            pairs(sides),
            pairs(worse) + pairs(better),
            np.bincount(votes.pair[rows], minlength=votes.n_pairs),
            sums(votes.pair[rows], score, votes.n_pairs),
        ]
    )
    whose = np.zeros(votes.n_pairs, np.int64)
    whose[votes.pair] = np.unique(votes.prompt, return_inverse=True)[1]
    return np.column_stack([sums(whose, column, int(whose.max()) + 1) for column in per_pair.T])


def _by_chance(table: Floats) -> tuple[Floats, Floats]:
    """D_e, nominal and ordinal, of sums [..., 10]."""
    # Both orders of each unit: twice the votes; of those that took a side, half say *better*.
    total, ties, side = 2 * table[..., 0], 2 * table[..., 1], table[..., 0] - table[..., 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        pairs = total * (total - 1)
        return (total**2 - 2 * side**2 - ties**2) / pairs, (2 * side**2 + ties * side) / pairs


def _figures(table: Floats) -> tuple[Floats, ...]:
    """α nominal, α ordinal, raw, decided, leave-one-out from sums [..., 10]; NaN for nothing divided by nothing."""
    n, _, opposed, half, pairs, agreed, decided_pairs, decided, asked, followed = np.moveaxis(table, -1, 0)
    nominal, ordinal = _by_chance(table)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (
            1 - (opposed + half) / n / nominal,
            1 - (opposed + half / 4) / n / ordinal,
            agreed / pairs,
            decided / decided_pairs,
            followed / asked,
        )


def _estimate(value: Floats, drawn: Floats, n: int, prompts: int, chance: float) -> Estimate | None:
    point = float(value)
    if not math.isfinite(point):
        return None
    if point == 1.0:
        return {"value": 1.0, "low": 1 - (1 - wilson(prompts, prompts)["low"]) / chance, "high": 1.0, "n": n}
    return percentiles(point, drawn, n)


def _accuracy(decided: Estimate | None) -> Estimate | None:
    if decided is None:
        return None
    low, value, high = (accuracy_from_agreement(decided[key]) for key in ("low", "value", "high"))
    return {"value": value, "low": low, "high": high, "n": decided["n"]}
