"""Which item somebody is asked about next, and how many there are for them: the queries behind `assignment`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from .records import content_id
from .tables import BATCHES, ITEMS, OPEN, TASKS


def open_batches() -> sa.Select[Any]:
    """Batches that hand out items, oldest first."""
    return sa.select(BATCHES).where(~BATCHES.c.closed).order_by(BATCHES.c.seq)


def arms(batch: sa.RowMapping, annotator: str, number: int) -> Iterator[str]:
    """How the item of this place in a person's series is chosen; the next where there is none of that kind."""
    if _is_gold(batch, annotator, number):
        yield "gold"
    if uniform("control", annotator, number) < batch["control_share"]:
        yield "control"
    else:
        yield "priority"


def _is_gold(batch: sa.RowMapping, annotator: str, number: int) -> bool:
    return uniform("gold", annotator, number) < batch["gold_share"]


def candidate(db: sa.Connection, batch: sa.RowMapping, annotator: str, arm: str) -> sa.RowMapping | None:
    query = sa.select(ITEMS).where(ITEMS.c.batch == batch["seq"], ~_was_asked(annotator))
    if arm == "gold":
        query = query.where(ITEMS.c.gold.is_not(None)).order_by(ITEMS.c.lot)
    elif arm == "control":
        query = query.where(OPEN).order_by(ITEMS.c.lot)
    else:
        query = query.where(OPEN).order_by(ITEMS.c.priority.desc(), ITEMS.c.lot)
    # On PostgreSQL: an item that somebody is being given at this moment is passed over, not waited for.
    return db.execute(query.limit(1).with_for_update(skip_locked=True, of=ITEMS)).mappings().first()


def _was_asked(annotator: str) -> sa.ColumnElement[bool]:
    """An item that this person has had; one whose lease ran out is asked again."""
    return sa.exists().where(TASKS.c.annotator == annotator, TASKS.c.key == ITEMS.c.key, TASKS.c.state != "expired")


def open_to(db: sa.Connection, batch: sa.RowMapping, annotator: str, most: int) -> int:
    """How many items of the batch this person could be asked about, counted up to ``most``."""
    found = sa.select(sa.literal(1)).select_from(ITEMS)
    found = found.where(ITEMS.c.batch == batch["seq"], OPEN, ~_was_asked(annotator)).limit(most)
    return db.scalar(sa.select(sa.func.count()).select_from(found.subquery())) or 0


def room(db: sa.Connection, batch: sa.RowMapping) -> int:
    """How many more leases the batch's target leaves room for."""
    leased = sa.select(sa.func.count()).where(
        TASKS.c.batch == batch["seq"], TASKS.c.state == "leased", TASKS.c.arm != "gold"
    )
    return max(0, batch["target"] - batch["done"] - (db.scalar(leased) or 0))


def gold_among(db: sa.Connection, batch: sa.RowMapping, annotator: str, number: int, ordinary: int) -> int:
    """How many gold items come between the next ``ordinary`` ones."""
    if batch["gold_share"] == 0 or ordinary == 0:
        return 0
    unseen = sa.select(sa.func.count()).select_from(ITEMS)
    unseen = unseen.where(ITEMS.c.batch == batch["seq"], ITEMS.c.gold.is_not(None), ~_was_asked(annotator))
    left, gold = db.scalar(unseen) or 0, 0
    while ordinary > 0:
        if gold < left and _is_gold(batch, annotator, number):
            gold += 1
        else:
            ordinary -= 1
        number += 1
    return gold


def order(item: sa.RowMapping, annotator: str) -> list[str]:
    """The completions in an order that is random for each annotator."""
    return sorted(item["completions"], key=lambda key: content_id("order", annotator, item["key"], key))


def uniform(*parts: Any) -> float:
    """A number in [0, 1) that follows from ``parts``."""
    digest = hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
