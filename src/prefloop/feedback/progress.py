"""Where somebody stands in the queue: what is done, what is left for them, how quick they are."""

from __future__ import annotations

from statistics import median

import sqlalchemy as sa

from .choosing import goal, goal_left, gold_among, left_lying, next_number, open_batches, open_to, room
from .tables import TASKS
from .tasks import Progress

COUNTED = 1000
"""Remaining work is counted up to here: more than anybody does today, and the count stays quick."""


def progress_of(db: sa.Connection, annotator: str) -> Progress:
    """Where this person stands."""
    mine = sa.select(TASKS.c.state, sa.func.count()).where(TASKS.c.annotator == annotator)
    states: dict[str, int] = {row[0]: row[1] for row in db.execute(mine.group_by(TASKS.c.state))}
    batches = list(db.execute(open_batches()).mappings())
    remaining, more = _remaining(db, batches, annotator)
    recent = sa.select(TASKS.c.seconds).where(
        TASKS.c.annotator == annotator, TASKS.c.state == "done", TASKS.c.seconds.is_not(None)
    )
    seconds = list(db.scalars(recent.order_by(TASKS.c.finished.desc()).limit(20)))
    remaining += states.get("leased", 0)
    return Progress(
        done=states.get("done", 0),
        skipped=states.get("skipped", 0),
        remaining=min(remaining, COUNTED),
        remaining_at_least=more or remaining > COUNTED,
        seconds_per_item=median(seconds) if seconds else None,
        collected=sum(row["sent"] for row in batches),
        target=_targets(batches),
    )


def _remaining(db: sa.Connection, batches: list[sa.RowMapping], annotator: str) -> tuple[int, bool]:
    """How many tasks `Queue._assign` has for this person, one after the other, and whether there are more."""
    number, remaining, more = next_number(db, annotator), 0, False
    lying = left_lying(db, annotator)
    served: list[sa.RowMapping] = []
    for batch in batches:
        hides_gold = batch["target"] is not None and batch["gold_share"] > 0
        left = goal_left(db, batch) if hides_gold else room(db, batch)
        if left <= 0:
            continue
        again = sum(row["batch"] == batch["seq"] for row in lying)
        fresh = open_to(db, batch, annotator, COUNTED, served)
        more |= fresh == COUNTED < left - again
        if fresh:
            served.append(batch)
        if hides_gold:  # counted without a look at what the tasks under way are
            fresh += gold_among(db, batch, annotator, number, fresh)
            fresh = int(max(0, min(fresh, left - again)))
        else:
            fresh = int(max(0, min(fresh, left - again)))
            fresh += gold_among(db, batch, annotator, number, fresh)
        number, remaining = number + fresh, remaining + again + fresh
    return remaining, more


def _targets(batches: list[sa.RowMapping]) -> int | None:
    """All targets together, gold items included, since what was sent includes them too."""
    if not batches or any(row["target"] is None for row in batches):
        return None
    return sum(goal(row) for row in batches)
