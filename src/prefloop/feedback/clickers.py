"""Annotators who may not read: who answers like a coin, wrongly on gold items, too fast, or always on one side.

A suspicion is a reason to talk to somebody, not a verdict: each comes with its figures.

**Like a coin.** Of vote i, p_i is how often the *other* annotators answer as this one did in the same situation: the
rest of the panel leads by the same number of votes, or the item is gold. If this annotator is like the others, the
product ∏ ½ / p_i, the likelihood ratio of a coin against them, has the mean 1, and exceeds 1/α with a probability of
at most α (Markov's inequality, whenever one looks). It is asked of annotators with at least five such votes, at
α = 5 % divided by the number of annotators, so that a whole panel of careful people is left in peace 19 times in 20.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .agreement import following
from .intervals import Estimate, wilson
from .keys import Ints
from .pairs import Floats, PairVotes, sums

ALPHA = 0.05
"""How often a panel of careful annotators has somebody suspected for answering like a coin."""
FEWEST_VOTES = 5
WORDS_PER_MINUTE = 1000.0
"""Nobody reads faster: silent reading takes 238 words a minute on average and hardly ever more than 400 [Brysbaert
2019]; twice that is skimming."""
ONE_SIDE = 0.9
"""Chosen this often at the least (by the interval's lower end), a side is what somebody chooses, not an answer."""
GOLD_FLOOR = 0.8
"""Accuracy on gold items whose interval lies below this is too low: whoever reads gets them right."""
_GOLD = 0
_MOST_LEAD = 5


@dataclass(frozen=True)
class Evidence:
    """Votes that can be compared with the others' or with gold, for each annotator, [annotators]."""

    votes: Ints
    """How many."""
    agreed: Floats
    """How many went with the others' majority or with gold; a tie counts one half."""
    expected: Floats
    """How many would have, of somebody like the others."""
    log_ratio: Floats
    """log ∏ ½ / p_i; ties say nothing."""


def coin_evidence(votes: PairVotes) -> Evidence:
    """How much each annotator's votes look like a coin's; see the top."""
    votes = votes.latest()
    a = len(votes.annotators)
    rows, score, lead = following(votes)
    gold = np.flatnonzero(votes.gold)
    plain = votes.gold[rows] == 0  # of gold items it is known what is right, whatever the others say
    row = np.concatenate([rows[plain], gold])
    score = np.concatenate([score[plain], (1 + votes.sign[gold] * votes.gold[gold]) / 2])
    situation = np.concatenate([np.minimum(lead[plain], _MOST_LEAD), np.full(len(gold), _GOLD)])
    who = votes.annotator[row]
    where = who * (_MOST_LEAD + 1) + situation
    agreed = sums(where, score, a * (_MOST_LEAD + 1)).reshape(a, -1)
    asked = np.bincount(where, minlength=a * (_MOST_LEAD + 1)).reshape(a, -1)
    # Of the others alone; one more of each kind, so that no vote is ruled out. A majority is never worse than a coin.
    p = np.maximum(0.5, (agreed.sum(0) - agreed + 1) / (asked.sum(0) - asked + 2))[who, situation]
    ratio = np.select([score == 1, score == 0], [np.log(0.5 / p), np.log(0.5 / np.minimum(1 - p, 0.5))])
    return Evidence(
        votes=np.bincount(who, minlength=a),
        agreed=sums(who, score, a),
        expected=sums(who, p, a),
        log_ratio=sums(who, ratio, a),
    )


def coin_suspicions(evidence: Evidence) -> list[str]:
    """[annotators] Why each may be clicking at random; "" where there is no reason."""
    asked = evidence.votes >= FEWEST_VOTES
    limit = np.log(max(1, int(asked.sum())) / ALPHA)
    found = [""] * len(evidence.votes)
    for k in np.flatnonzero(asked & (evidence.log_ratio > limit)):
        n, ratio = evidence.votes[k], evidence.log_ratio[k]
        odds = f"{np.exp(ratio):,.0f}" if ratio < np.log(1e6) else f"10^{ratio / np.log(10):.0f}"
        found[k] = (
            f"answers like a coin: {evidence.agreed[k] / n:.0%} of {n} votes go with the others or with gold, "
            f"where theirs do in {evidence.expected[k] / n:.0%} ({odds} : 1)"
        )
    return found


def gold_suspicion(accuracy: Estimate) -> str:
    """For an accuracy on gold items, which are chosen to be clear."""
    if accuracy["n"] < FEWEST_VOTES or accuracy["high"] >= GOLD_FLOOR:
        return ""
    return f"gold items: {accuracy['value']:.0%} of {accuracy['n']} right, at most {accuracy['high']:.0%} (95 %)"


def speed_suspicion(words: Floats, seconds: Floats) -> str:
    """For the answers' words and the time taken, of each timed judgement."""
    if len(words) < FEWEST_VOTES:
        return ""
    fast = int((60 * words > WORDS_PER_MINUTE * seconds).sum())
    if 2 * fast <= len(words):
        return ""
    return f"too fast to read: {fast} of {len(words)} judgements faster than {WORDS_PER_MINUTE:,.0f} words a minute"


def side_suspicion(left: Floats) -> str:
    """For votes with 1 for the left, 0 for the right."""
    decided = left[left != 0.5]
    if len(decided) < FEWEST_VOTES:
        return ""
    share = wilson(float(decided.sum()), len(decided))
    if share["low"] > ONE_SIDE or share["high"] < 1 - ONE_SIDE:
        side = "first" if share["value"] > 0.5 else "last"
        how_often = max(share["value"], 1 - share["value"])
        return f"chooses the answer shown {side} in {how_often:.0%} of {len(decided)} votes"
    return ""
