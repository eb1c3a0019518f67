"""How many votes a conclusion needs.

To find a win rate p at the 5 % level with power 0.8, against the hypothesis that it is one half:

    n = (z_{0.975}·½ + z_{0.8}·√(p(1−p)))² / (p − ½)²

independent votes [Fleiss, Levin & Paik 2003, eq. 2.31]: 53 % 2,178; 55 % 783; 60 % 194; 65 % 85.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import ndtri

from .intervals import Z, score_interval

POWER = 0.8


@dataclass(frozen=True)
class Needed:
    """What the question "is A better than B?" still needs."""

    answered: bool
    """Whether the 95 % interval leaves out one half."""
    more: int | None
    """Votes that are missing if the win rate is what it seems; 0 when answered, None when it seems to be one half."""
    at_least: int
    """Votes that are missing if it is as far from one half as the interval allows: fewer will hardly do."""


def votes_needed(win_rate: float, power: float = POWER) -> int | None:
    """Independent votes to tell ``win_rate`` from one half; None for one half itself, which no number can.

    Raises:
        ValueError: a rate or a power that is no probability.
    """
    if not (0 <= win_rate <= 1 and 0 < power < 1):
        raise ValueError(f"a win rate and a power are probabilities; got {win_rate} and {power}")
    if win_rate == 0.5:
        return None
    root = Z / 2 + ndtri(power) * math.sqrt(win_rate * (1 - win_rate))
    return math.ceil(root**2 / (win_rate - 0.5) ** 2)


def votes_still_needed(wins: float, n: int, worth: float | None = None, power: float = POWER) -> Needed:
    """How many more votes a win rate needs until its interval leaves out one half.

    Asking again after every vote until the interval is clear finds differences where there are none more often than
    in 5 % of cases: decide on a number first, by this figure, and then collect it.

    Args:
        wins: of n votes; a tie is half a win.
        worth: how many independent votes the n are worth (`intervals.effective_number`): the missing ones are taken
            to depend on each other as much.

    Raises:
        ValueError: no votes, or more wins than votes.
    """
    if n < 1 or not 0 <= wins <= n:
        raise ValueError(f"{wins} wins of {n} votes; expected at least one vote, and wins from 0 to their number")
    rate, independent = wins / n, min(float(n), worth or n)
    low, high = score_interval(rate, independent)
    if low > 0.5 or high < 0.5:
        return Needed(True, 0, 0)
    far = max(low, high, key=lambda end: abs(end - 0.5))

    def missing(at: float) -> int | None:
        total = votes_needed(at, power)
        return None if total is None else max(1, math.ceil(total * n / independent) - n)

    return Needed(False, missing(rate), missing(far) or 1)
