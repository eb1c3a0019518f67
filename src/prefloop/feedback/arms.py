"""What was chosen by priority beside the control group.

A share of a batch's items is drawn by lot, whatever their priority (`prefloop.feedback.assignment`): they are what
all pairs are like, while the others are those that seemed to teach most. Pairs chosen because a reward model is
unsure of them should be closer for people too: more ties, less agreement. Where the arms do not differ, priority
chooses no better than chance; and a figure that describes *all* pairs is the control group's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .agreement import agreement
from .intervals import Estimate, clustered_wilson, difference
from .pairs import PairVotes
from .reading import Names


@dataclass(frozen=True)
class Arm:
    """One part of the batches that have both."""

    judgements: int
    votes: int
    ties: Estimate
    """Share of votes that are ties."""
    raw: Estimate | None
    """Raw agreement; None where nothing was judged by two."""


@dataclass(frozen=True)
class Arms:
    """Both, and by how much they differ: priority less control. The intervals take the arms for independent, though
    the same prompt may be in both."""

    control: Arm
    priority: Arm
    ties: Estimate
    raw: Estimate | None


def compare_arms(votes: PairVotes, arms: Names) -> Arms | None:
    """Both arms; None where there are no votes of one.

    Args:
        arms: of each judgement; other names than ``control`` and ``priority`` are of neither.
    """
    arm = np.array([*arms.names, ""])[arms.number][votes.judgement]
    found = [_arm(votes.rows(arm == name)) if (arm == name).any() else None for name in ("control", "priority")]
    control, priority = found
    if control is None or priority is None:
        return None
    raw = difference(priority.raw, control.raw) if priority.raw and control.raw else None
    return Arms(control, priority, difference(priority.ties, control.ties), raw)


def _arm(votes: PairVotes) -> Arm:
    return Arm(
        judgements=len(np.unique(votes.judgement)),
        votes=len(votes),
        ties=clustered_wilson(votes.value == 0.5, votes.prompt),
        raw=agreement(votes).raw,
    )
