"""Who is asked what next: batches of items, handed out as tasks under a lease.

An *item* is a prompt with K ≥ 2 completions. ``overlap`` different people judge it; nobody judges it twice. Whoever
asks for work gets a *task*: an item in an order of their own, for as long as the lease lasts. What is skipped or left
lying goes back to the others. The rules, in the order in which they are tried:

1. A task that this person holds is theirs until it is sent or skipped (a reload, a second tab, an undo).
2. At a share ``gold_share`` of the places in a person's series, drawn by hash, comes a gold item: one whose right
   answer is known. Nothing that leaves this module tells it from another item.
3. At a share ``control_share`` comes the open item with the lowest lot, whatever its priority: these items are a
   random sample of the batch, on which the chosen ones can be checked.
4. Otherwise comes the open item of the highest priority: the pairs that teach most.

Batches are served in the order in which they were opened. A batch with a ``target`` hands out nothing more when as
many sends, and leases that may become sends, are there.

A send writes judgements and is acknowledged when they are on disk; the same send again changes nothing. Undo writes
a retraction and gives the task back with what was said as its draft.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from itertools import islice
from statistics import median
from typing import Any

import sqlalchemy as sa

from .choosing import arms, candidate, gold_among, open_batches, open_to, order, room, uniform
from .records import Judgement, content_id
from .sending import as_draft, demonstrations_of, judgements_of, retraction
from .store import Store, add_records, completions_by_id, judgement_by_id, prompt_by_id
from .tables import BATCHES, DEMONSTRATIONS, GUIDELINES, ITEMS, TASKS, moment
from .tasks import Batch, ConflictError, Item, Progress, Submission, Task, Why

COUNTED = 1000
"""Remaining work is counted up to here: more than anybody does today, and the count stays quick."""
_BATCH = 1000


class Queue:
    """The batches, items and tasks of a store. Safe to use from several threads and processes at once."""

    def __init__(self, store: Store, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._database = store.database
        self._now = now

    # Batches and items

    def open_batch(
        self,
        name: str,
        *,
        criteria: tuple[str, ...] = ("overall",),
        overlap: int = 1,
        target: int | None = None,
        gold_share: float = 0.0,
        control_share: float = 0.1,
        lease_seconds: int = 1800,
    ) -> Batch:
        """Make a batch; or change one of that name, which is then open again. Its items stay as they are."""
        settings = {
            "criteria": list(criteria),
            "overlap": overlap,
            "target": target,
            "gold_share": gold_share,
            "control_share": control_share,
            "lease_seconds": lease_seconds,
        }
        _check_batch(name, settings)
        with self._database.leasing() as db:
            before = _batch_row(db, name)
            if before is None:
                fresh = {"name": name, "closed": False, "done": 0, "sent": 0, "created": moment(self._now())}
                db.execute(BATCHES.insert(), [settings | fresh])
            else:
                db.execute(sa.update(BATCHES).where(BATCHES.c.name == name).values(closed=False, **settings))
                change = overlap - before["overlap"]
                free = sa.case((ITEMS.c.free + change > 0, ITEMS.c.free + change), else_=0)
                db.execute(sa.update(ITEMS).where(ITEMS.c.batch == before["seq"]).values(free=free))
            made = _batch_row(db, name)
        assert made is not None
        return _batch(made)

    def close_batch(self, name: str) -> None:
        """Hand out nothing more of it; tasks under way may still be sent. LookupError: there is none."""
        with self._database.leasing() as db:
            if db.execute(sa.update(BATCHES).where(BATCHES.c.name == name).values(closed=True)).rowcount == 0:
                raise LookupError(f"there is no batch {name!r}")

    def batches(self) -> list[Batch]:
        """All batches, oldest first."""
        with self._database.reading() as db:
            return [_batch(row) for row in db.execute(sa.select(BATCHES).order_by(BATCHES.c.seq)).mappings()]

    def add_items(self, batch: str, items: Iterable[Item]) -> int:
        """Put items into a batch, all or nothing, and return how many were new.

        Raises LookupError for a batch that is not there; ValueError for completions that are not in the store or
        answer another prompt, and for gold ranks that do not fit.
        """
        stream, added = iter(items), 0
        with self._database.writing() as db:
            row = _batch_row(db, batch)
            if row is None:
                raise LookupError(f"there is no batch {batch!r}; open it first")
            while part := list(islice(stream, _BATCH)):
                added += _add_items(db, row, part)
        return added

    # Tasks

    def next(self, annotator: str) -> Task | None:
        """The task that this person should do now; None when there is none (`why_nothing` says why)."""
        now = self._now()
        self._release_expired(now)
        with self._database.leasing() as db:
            self._one_at_a_time(db, annotator)
            row = self._held(db, annotator, now) or self._assign(db, annotator, now)
            return None if row is None else _task(db, row)

    def why_nothing(self, annotator: str) -> Why:
        """Why `next` had nothing for this person; empty when it has something after all."""
        with self._database.reading() as db:
            batches = list(db.execute(sa.select(BATCHES)).mappings())
            if not batches:
                return "nothing to judge"
            if all(row["closed"] for row in batches):
                return "paused"
            waiting = [row for row in batches if not row["closed"] and open_to(db, row, annotator, 1)]
            if not waiting:
                return "all judged"
            wanted = any(row["target"] is None or room(db, row) for row in waiting)
        return "" if wanted else "enough collected"

    def task(self, annotator: str, id: str) -> Task:
        """A task of this person's. LookupError when there is none, or it is somebody else's."""
        with self._database.reading() as db:
            return _task(db, _own(db, annotator, id))

    def save_draft(self, annotator: str, id: str, draft: dict[str, Any]) -> None:
        """Keep what was filled in so far; the lease begins anew. ConflictError when the task was sent or skipped."""
        with self._database.leasing() as db:
            row = _own(db, annotator, id, lock=True)
            if row["state"] in ("done", "skipped"):
                raise ConflictError("this task is finished, so its draft is not kept; undo it to change it")
            state: dict[str, Any] = {"draft": draft}
            if row["state"] == "leased":
                state["expires"] = self._lease_end(db, row["batch"], self._now())
            _update(db, row, **state)

    def submit(self, annotator: str, id: str, submission: Submission) -> list[Judgement]:
        """Store what was said and return the judgements, once they are on disk.

        The same submission again returns the same. A lease that ran out meanwhile costs nothing: what was said
        counts, though somebody else may have been asked too.

        Raises LookupError (not this person's task), ValueError (what does not fit the task), ConflictError (another
        send was there first, or this one was undone).
        """
        with self._database.writing() as db:
            row = _own(db, annotator, id, lock=True)
            task = _task(db, row)
            made = judgements_of(annotator, task, submission, row["events"], self._now())
            if row["state"] == "done":
                if row["send"] != submission.id:
                    raise ConflictError("this task was judged already; undo that first to say something else")
                return [_stored(db, judgement.id) for judgement in made]
            if any(judgement_by_id(db, judgement.id) for judgement in made):
                raise ConflictError("this send was undone; send it under a new id")
            add_records(db, [*made, *demonstrations_of(annotator, task, submission, made[0])])
            self._finish(db, row, "done", submission.seconds)
            events = {judgement.criterion: judgement.id for judgement in made}
            _update(db, row, send=submission.id, events=events, draft=None)
            gold = row["arm"] == "gold"
            _count(db, row["batch"], done=0 if gold else 1, sent=1)
        return made

    def skip(self, annotator: str, id: str) -> None:
        """This person will not be asked again; others may be. ConflictError when it was judged."""
        with self._database.leasing() as db:
            row = _own(db, annotator, id, lock=True)
            if row["state"] == "done":
                raise ConflictError("this task was judged already; undo that first to skip it")
            if row["state"] != "skipped":
                _free(db, row, +1 if row["state"] == "leased" else 0)
                self._finish(db, row, "skipped", None, takes=False)

    def undo(self, annotator: str) -> Task | None:
        """Take back this person's last send or skip: its task is theirs again, with what was said as the draft."""
        now = self._now()
        with self._database.writing() as db:
            row = _last_finished(db, annotator)
            if row is None:
                return None
            changes: dict[str, Any] = {"state": "leased", "started": moment(now), "finished": None, "send": None}
            if row["state"] == "done":
                said = [_stored(db, key) for key in row["events"].values()]
                retractions = [retraction(judgement, now) for judgement in said]
                add_records(db, list(retractions))
                changes |= {
                    "events": {one.criterion: one.id for one in retractions},
                    "draft": as_draft(said, _written_with(db, said)) | {"seconds": row["seconds"]},
                }
                _count(db, row["batch"], done=0 if row["arm"] == "gold" else -1, sent=-1)
            else:
                _free(db, row, -1)
            _update(db, row, expires=self._lease_end(db, row["batch"], now), **changes)
            return _task(db, _own(db, annotator, row["id"]))

    def progress(self, annotator: str) -> Progress:
        """Where this person stands."""
        with self._database.reading() as db:
            mine = sa.select(TASKS.c.state, sa.func.count()).where(TASKS.c.annotator == annotator)
            states: dict[str, int] = dict(db.execute(mine.group_by(TASKS.c.state)).tuples().all())
            batches = list(db.execute(open_batches()).mappings())
            held = states.get("leased", 0)
            number = _next_number(db, annotator)
            remaining, more = held, False
            for row in batches:
                count = open_to(db, row, annotator, COUNTED)
                more |= count == COUNTED
                if row["target"] is not None:
                    count = min(count, room(db, row))
                count += gold_among(db, row, annotator, number, count)
                remaining, number = remaining + count, number + count
            recent = sa.select(TASKS.c.seconds).where(
                TASKS.c.annotator == annotator, TASKS.c.state == "done", TASKS.c.seconds.is_not(None)
            )
            seconds = list(db.scalars(recent.order_by(TASKS.c.finished.desc()).limit(20)))
        return Progress(
            done=states.get("done", 0),
            skipped=states.get("skipped", 0),
            remaining=min(remaining, COUNTED),
            remaining_at_least=more or remaining > COUNTED,
            seconds_per_item=median(seconds) if seconds else None,
            collected=sum(row["sent"] for row in batches),
            target=_targets(batches),
        )

    # For whoever looks after it

    def skips(self) -> dict[str, int]:
        """Annotator → how many tasks they have skipped."""
        query = sa.select(TASKS.c.annotator, sa.func.count()).where(TASKS.c.state == "skipped")
        with self._database.reading() as db:
            return dict(db.execute(query.group_by(TASKS.c.annotator)).tuples().all())

    def gold_ranks(self) -> dict[str, tuple[int, ...]]:
        """Judgement → the ranks that are right, in the order in which it was shown; of those about gold items."""
        query = sa.select(TASKS.c.events, TASKS.c.shown, ITEMS.c.completions, ITEMS.c.gold, BATCHES.c.criteria)
        query = query.select_from(TASKS.join(ITEMS, TASKS.c.item == ITEMS.c.seq).join(BATCHES))
        with self._database.reading() as db:
            rows = db.execute(query.where(TASKS.c.state == "done", ITEMS.c.gold.is_not(None))).all()
        found = {}
        for events, shown, completions, gold, criteria in rows:
            right = dict(zip(completions, gold, strict=True))
            found[events[criteria[0]]] = tuple(right[key] for key in shown)
        return found

    # Handing out

    def _one_at_a_time(self, db: sa.Connection, annotator: str) -> None:
        """Two requests of one person wait for each other: both get the same task."""
        if self._database.is_postgres:
            key = int(content_id("annotator", annotator)[:15], 16)
            db.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))

    def _release_expired(self, now: datetime) -> None:
        late = sa.select(TASKS.c.seq, TASKS.c.item).where(TASKS.c.state == "leased", TASKS.c.expires < moment(now))
        with self._database.reading() as db:
            if not db.execute(late.limit(1)).first():
                return
        with self._database.leasing() as db:
            for seq, item in db.execute(
                late.order_by(TASKS.c.item).limit(100).with_for_update(skip_locked=True)
            ).all():
                db.execute(sa.update(TASKS).where(TASKS.c.seq == seq).values(state="expired"))
                db.execute(sa.update(ITEMS).where(ITEMS.c.seq == item).values(free=ITEMS.c.free + 1))

    def _held(self, db: sa.Connection, annotator: str, now: datetime) -> sa.RowMapping | None:
        query = sa.select(TASKS).where(TASKS.c.annotator == annotator, TASKS.c.state == "leased")
        row = db.execute(query.order_by(TASKS.c.started.desc()).limit(1)).mappings().first()
        if row is not None:
            _update(db, row, expires=self._lease_end(db, row["batch"], now))
        return row

    def _assign(self, db: sa.Connection, annotator: str, now: datetime) -> sa.RowMapping | None:
        number = _next_number(db, annotator)
        for batch in db.execute(open_batches()).mappings().all():
            if batch["target"] is not None and room(db, batch) <= 0:
                continue
            for arm in arms(batch, annotator, number):
                item = candidate(db, batch, annotator, arm)
                if item is not None:
                    return self._lease(db, batch, item, annotator, number, arm, now)
        return None

    def _lease(
        self,
        db: sa.Connection,
        batch: sa.RowMapping,
        item: sa.RowMapping,
        annotator: str,
        number: int,
        arm: str,
        now: datetime,
    ) -> sa.RowMapping:
        db.execute(sa.update(ITEMS).where(ITEMS.c.seq == item["seq"]).values(free=ITEMS.c.free - 1))
        lease = {
            "item": item["seq"],
            "batch": batch["seq"],
            "arm": arm,
            "state": "leased",
            "started": moment(now),
            "expires": moment(now + timedelta(seconds=batch["lease_seconds"])),
        }
        of_theirs = (TASKS.c.annotator == annotator, TASKS.c.key == item["key"])
        again = sa.update(TASKS).where(*of_theirs).values(**lease)  # a lease of theirs that ran out
        if db.execute(again).rowcount == 0:
            fresh = {
                "id": secrets.token_hex(16),
                "key": item["key"],
                "annotator": annotator,
                "number": number,
                "shown": order(item, annotator),
                "guidelines": db.scalar(sa.select(sa.func.max(GUIDELINES.c.version))),
                "events": {},
            }
            db.execute(TASKS.insert(), [fresh | lease])
        return db.execute(sa.select(TASKS).where(*of_theirs)).mappings().one()

    def _lease_end(self, db: sa.Connection, batch: int, now: datetime) -> str:
        seconds = db.scalar(sa.select(BATCHES.c.lease_seconds).where(BATCHES.c.seq == batch))
        return moment(now + timedelta(seconds=seconds or 0))

    # Sending

    def _finish(
        self, db: sa.Connection, row: sa.RowMapping, state: str, seconds: float | None, takes: bool = True
    ) -> None:
        if takes and row["state"] != "leased":  # the slot went back when the lease ran out, or with the skip
            _free(db, row, -1)
        _update(db, row, state=state, finished=moment(self._now()), seconds=seconds)


# Batches and items


def _check_batch(name: str, settings: Mapping[str, Any]) -> None:
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


def _batch_row(db: sa.Connection, name: str) -> sa.RowMapping | None:
    return db.execute(sa.select(BATCHES).where(BATCHES.c.name == name)).mappings().first()


def _batch(row: sa.RowMapping) -> Batch:
    fields = {name: value for name, value in row.items() if name not in ("seq", "sent")}
    created = datetime.fromisoformat(row["created"])
    return Batch(**{**fields, "criteria": tuple(row["criteria"]), "created": created})


def _add_items(db: sa.Connection, batch: sa.RowMapping, items: list[Item]) -> int:
    owners = {c.id: c.prompt_id for c in completions_by_id(db, {key for item in items for key in item.completions})}
    rows = {}
    for item in items:
        _check_item(item, owners)
        key = content_id("item", item.prompt_id, sorted(item.completions))
        rows[key] = {
            "batch": batch["seq"],
            "key": key,
            "prompt_id": item.prompt_id,
            "completions": list(item.completions),
            "gold": None if item.gold is None else list(item.gold),
            "priority": item.priority,
            "lot": uniform("lot", batch["name"], key),
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
    ranks = item.gold
    if ranks is not None and (len(ranks) != len(keys) or set(ranks) != set(range(1, max(ranks) + 1))):
        raise ValueError(f"gold ranks are dense from 1, one for each of {len(keys)} completions; got {list(ranks)}")


def _targets(batches: list[sa.RowMapping]) -> int | None:
    """All targets together, gold items included, since what was sent includes them too."""
    if not batches or any(row["target"] is None for row in batches):
        return None
    return sum(round(row["target"] / (1 - row["gold_share"])) for row in batches)


# Tasks


def _own(db: sa.Connection, annotator: str, id: str, lock: bool = False) -> sa.RowMapping:
    query = sa.select(TASKS).where(TASKS.c.id == id)
    row = db.execute(query.with_for_update() if lock else query).mappings().first()
    if row is None or row["annotator"] != annotator:
        raise LookupError("there is no such task of yours")
    return row


def _task(db: sa.Connection, row: sa.RowMapping) -> Task:
    batch = db.execute(sa.select(BATCHES).where(BATCHES.c.seq == row["batch"])).mappings().one()
    prompt_id = db.execute(sa.select(ITEMS.c.prompt_id).where(ITEMS.c.seq == row["item"])).scalar_one()
    by_id = {completion.id: completion for completion in completions_by_id(db, row["shown"])}
    return Task(
        id=row["id"],
        batch=batch["name"],
        criteria=tuple(batch["criteria"]),
        prompt=prompt_by_id(db, prompt_id),
        shown=tuple(by_id[key] for key in row["shown"]),
        guidelines=row["guidelines"],
        draft=row["draft"],
        expires=datetime.fromisoformat(row["expires"]),
        number=row["number"],
    )


def _next_number(db: sa.Connection, annotator: str) -> int:
    last: int | None = db.scalar(sa.select(sa.func.max(TASKS.c.number)).where(TASKS.c.annotator == annotator))
    return (last or 0) + 1


def _last_finished(db: sa.Connection, annotator: str) -> sa.RowMapping | None:
    finished = sa.select(TASKS).where(TASKS.c.annotator == annotator, TASKS.c.state.in_(("done", "skipped")))
    last = finished.order_by(TASKS.c.finished.desc()).limit(1)
    return db.execute(last.with_for_update()).mappings().first()


def _update(db: sa.Connection, row: sa.RowMapping, **changes: Any) -> None:
    db.execute(sa.update(TASKS).where(TASKS.c.seq == row["seq"]).values(**changes))


def _free(db: sa.Connection, row: sa.RowMapping, change: int) -> None:
    """Give a slot of the task's item back (+1), or take one if there is one (−1)."""
    free = sa.case((ITEMS.c.free + change > 0, ITEMS.c.free + change), else_=0)
    db.execute(sa.update(ITEMS).where(ITEMS.c.seq == row["item"]).values(free=free))


def _count(db: sa.Connection, batch: int, *, done: int, sent: int) -> None:
    change = {"done": BATCHES.c.done + done, "sent": BATCHES.c.sent + sent}
    db.execute(sa.update(BATCHES).where(BATCHES.c.seq == batch).values(**change))


def _stored(db: sa.Connection, id: str) -> Judgement:
    found = judgement_by_id(db, id)
    assert found is not None, "written with the task"
    return found


def _written_with(db: sa.Connection, said: list[Judgement]) -> tuple[int | None, str] | None:
    """The demonstration that came with a send: the place of the answer it was made from, and its text."""
    keys = [judgement.id for judgement in said]
    row = db.execute(sa.select(DEMONSTRATIONS).where(DEMONSTRATIONS.c.judgement_id.in_(keys))).mappings().first()
    if row is None:
        return None
    source = row["metadata"].get("edited")
    return None if source is None else said[0].shown.index(source), row["text"]
