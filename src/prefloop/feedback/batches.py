"""Rows of batches and of their items: checked, made, read. The rules of handing them out are in `assignment`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from .choosing import arm_of, uniform
from .records import content_id
from .store import completions_by_id
from .tables import BATCHES, ITEMS
from .tasks import Batch, Item


def check_batch(name: str, settings: Mapping[str, Any]) -> None:
    criteria = settings["criteria"]
    if not name or not criteria or len(set(criteria)) < len(criteria) or not all(criteria):
        raise ValueError(f"a batch needs a name and one or more different criteria; got {name!r}, {criteria}")
    if settings["overlap"] < 1 or settings["lease_seconds"] < 1:
        raise ValueError(f"batch {name!r}: overlap and lease_seconds are 1 or more")
    if settings["target"] is not None and settings["target"] < 1:
        raise ValueError(f"batch {name!r}: target is 1 or more, or None for all")
    for share in ("gold_share", "control_share"):
        if not 0 <= settings[share] < 1:
            raise ValueError(f"batch {name!r}: {share} is a share from 0 to below 1; got {settings[share]}")


def batch_row(db: sa.Connection, name: str) -> sa.RowMapping | None:
    return db.execute(sa.select(BATCHES).where(BATCHES.c.name == name)).mappings().first()


def batch_of(row: sa.RowMapping) -> Batch:
    fields = {name: value for name, value in row.items() if name not in ("seq", "salt", "sent")}
    created = datetime.fromisoformat(row["created"])
    return Batch(**{**fields, "criteria": tuple(row["criteria"]), "created": created})


def add_rows(db: sa.Connection, batch: sa.RowMapping, items: list[Item]) -> int:
    owners = {c.id: c.prompt_id for c in completions_by_id(db, {key for item in items for key in item.completions})}
    rows = {}
    for item in items:
        _check_item(item, owners)
        key = content_id("item", item.prompt_id, sorted(item.completions), batch["criteria"])
        lot = uniform("lot", batch["salt"], key)
        arm = arm_of(batch, item.gold, lot)
        rows[key] = {
            "batch": batch["seq"],
            "key": key,
            "prompt_id": item.prompt_id,
            "completions": list(item.completions),
            "gold": None if item.gold is None else list(item.gold),
            "arm": arm,
            "priority": item.priority,
            "lot": lot,
            "place": item.priority if arm == "priority" else lot,
            "free": batch["overlap"],
        }
    there = sa.select(ITEMS.c.key).where(ITEMS.c.batch == batch["seq"], ITEMS.c.key.in_(rows))
    for key in db.scalars(there).all():
        del rows[key]
    if rows:
        db.execute(ITEMS.insert(), list(rows.values()))
    return len(rows)


def _check_item(item: Item, owners: Mapping[str, str]) -> None:
    keys = item.completions
    if len(keys) < 2 or len(set(keys)) < len(keys):
        raise ValueError(f"an item compares two or more different completions; got {len(keys)}: {keys!r:.200}")
    for key in keys:
        if owners.get(key) != item.prompt_id:
            whose = f"answers prompt {owners[key]}" if key in owners else "is not in the store"
            raise ValueError(f"the item of prompt {item.prompt_id} shows completion {key!r:.80}, which {whose}")
    if not math.isfinite(item.priority):
        raise ValueError(f"the item of prompt {item.prompt_id} has priority {item.priority}, not a finite number")
    ranks = item.gold
    if ranks is not None and (len(ranks) != len(keys) or set(ranks) != set(range(1, max(ranks) + 1))):
        raise ValueError(f"gold ranks are dense from 1, one for each of {len(keys)} completions; got {list(ranks)}")
