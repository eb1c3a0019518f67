"""Which item somebody is asked about next, and how many there are for them: the queries behind `assignment`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Literal

import sqlalchemy as sa

from .records import content_id
from .tables import BATCHES, ITEMS, LEASED, OPEN, TASKS

Arm = Literal["priority", "control", "gold"]
Row = dict[str, Any]
WHOLE = sa.select(TASKS, BATCHES.c.name, BATCHES.c.criteria, BATCHES.c.lease_seconds, ITEMS.c.prompt_id).select_from(
    TASKS.join(ITEMS, TASKS.c.item == ITEMS.c.seq).join(BATCHES, TASKS.c.batch == BATCHES.c.seq)
)
"""Tasks with what is needed of their item and batch; a `Row` is one of these."""


def open_batches() -> sa.Select[Any]:
    """Batches that hand out items, oldest first."""
    return sa.select(BATCHES).where(~BATCHES.c.closed).order_by(BATCHES.c.seq)


def arm_of(batch: sa.RowMapping, gold: object, lot: float) -> Arm:
    """The part of its batch that a new item belongs to."""
    if gold is not None:
        return "gold"
    return "control" if lot < batch["control_share"] else "priority"


def left_lying(db: sa.Connection, annotator: str) -> list[Row]:
    """Tasks that ran out on this person and that nobody else has taken."""
    mine = WHOLE.where(TASKS.c.annotator == annotator, TASKS.c.state == "expired", OPEN)
    # Sorted here: SQLite would go through all tasks of this person for the sake of their order.
    return sorted(map(dict, db.execute(mine).mappings()), key=itemgetter("number"))


def next_number(db: sa.Connection, annotator: str) -> int:
    """The place in this person's series that comes next."""
    last: int | None = db.scalar(sa.select(sa.func.max(TASKS.c.number)).where(TASKS.c.annotator == annotator))
    return (last or 0) + 1


def candidate(db: sa.Connection, batch: sa.RowMapping, annotator: str, number: int) -> sa.RowMapping | None:
    """The item that comes at place ``number`` of a person's series; None when the batch has no more for them.

    A gold item comes before an ordinary one, never after the last: there it would be known for what it is.
    """
    arms: list[Arm] = ["priority", "control"]
    if uniform("control", batch["salt"], annotator, number) < batch["control_share"]:
        arms.reverse()
    found = next((item for arm in arms if (item := _first(db, batch, annotator, arm)) is not None), None)
    if found is not None and _is_gold(batch, annotator, number):
        found = _first(db, batch, annotator, "gold") or found
    return found


def _first(db: sa.Connection, batch: sa.RowMapping, annotator: str, arm: Arm) -> sa.RowMapping | None:
    found = sa.select(ITEMS).where(ITEMS.c.batch == batch["seq"], ITEMS.c.arm == arm, OPEN, ~_had(annotator))
    return db.execute(found.order_by(ITEMS.c.place.desc(), ITEMS.c.lot.desc()).limit(1)).mappings().first()


def _had(annotator: str) -> sa.ColumnElement[bool]:
    return sa.exists().where(TASKS.c.annotator == annotator, TASKS.c.key == ITEMS.c.key)


def _is_gold(batch: sa.RowMapping, annotator: str, number: int) -> bool:
    return uniform("gold", batch["salt"], annotator, number) < batch["gold_share"]


def open_to(
    db: sa.Connection, batch: sa.RowMapping, annotator: str, most: int, earlier: Sequence[sa.RowMapping] = ()
) -> int:
    """How many new ordinary items of the batch there are for this person, counted up to ``most``.

    Items that are open in ``earlier`` batches too are left out: they are judged there.
    """
    found = sa.select(sa.literal(1)).select_from(ITEMS).where(ITEMS.c.batch == batch["seq"], OPEN, ~_had(annotator))
    found = found.where(ITEMS.c.arm.in_(("priority", "control")))
    if earlier:
        twin = ITEMS.alias("twin")
        same = (twin.c.key == ITEMS.c.key, twin.c.batch.in_([row["seq"] for row in earlier]))
        found = found.where(~sa.exists().where(*same, twin.c.free > 0, twin.c.arm != "gold"))
    return db.scalar(sa.select(sa.func.count()).select_from(found.limit(most).subquery())) or 0


def room(db: sa.Connection, batch: sa.RowMapping) -> float:
    """How many more leases the batch's target leaves room for."""
    if batch["target"] is None:
        return math.inf
    leased = sa.select(sa.func.count()).where(TASKS.c.batch == batch["seq"], LEASED, TASKS.c.arm != "gold")
    return max(0, batch["target"] - batch["done"] - (db.scalar(leased) or 0))


def goal(batch: sa.RowMapping) -> int:
    """Sends that a batch with a target will take, those about gold items among them, about."""
    return round(batch["target"] / (1 - batch["gold_share"]))


def goal_left(db: sa.Connection, batch: sa.RowMapping) -> int:
    """What is left of the goal. Tasks under way count alike: by `room`, gold could be told from others."""
    if batch["done"] >= batch["target"]:
        return 0
    under_way = db.scalar(sa.select(sa.func.count()).where(TASKS.c.batch == batch["seq"], LEASED)) or 0
    return goal(batch) - int(batch["sent"]) - under_way


def gold_among(db: sa.Connection, batch: sa.RowMapping, annotator: str, number: int, ordinary: int) -> int:
    """How many gold items come before the last of the next ``ordinary`` ones, the first of them at ``number``."""
    if batch["gold_share"] == 0 or ordinary == 0:
        return 0
    unseen = sa.select(sa.func.count()).select_from(ITEMS)
    unseen = unseen.where(ITEMS.c.batch == batch["seq"], ITEMS.c.arm == "gold", OPEN, ~_had(annotator))
    left, gold = db.scalar(unseen) or 0, 0
    while ordinary > 0:
        if gold < left and _is_gold(batch, annotator, number):
            gold += 1
        else:
            ordinary -= 1
        number += 1
    return gold


def arms_of_judgements(db: sa.Connection) -> dict[str, Arm]:
    """Judgement → control or priority, of what was sent in batches in which both were judged."""
    done = (TASKS.c.state == "done", TASKS.c.arm != "gold")
    many = sa.func.count(TASKS.c.arm.distinct())
    both = sa.select(TASKS.c.batch).where(*done).group_by(TASKS.c.batch).having(many > 1)
    rows = db.execute(sa.select(TASKS.c.events, TASKS.c.arm).where(*done, TASKS.c.batch.in_(both)))
    return {judgement: arm for events, arm in rows for judgement in events.values()}


def order(batch: sa.RowMapping, item: sa.RowMapping, annotator: str) -> list[str]:
    """The completions in an order that is random for each annotator.

    With the batch's secret: an id is a hash that says who wrote the text to whoever can guess that, and an order by
    such hashes alone would let it be tried.
    """
    return sorted(item["completions"], key=lambda key: content_id("order", batch["salt"], annotator, key))


def uniform(*parts: Any) -> float:
    """A number in [0, 1) that follows from ``parts``."""
    digest = hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
