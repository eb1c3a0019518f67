"""Who is asked what next: batches of items, handed out as tasks under a lease.

An *item* is a prompt with K ≥ 2 completions. ``overlap`` different people judge it; nobody judges it twice. Whoever
asks for work gets a *task*: an item in an order of their own, for as long as the lease lasts. What is skipped or left
lying goes back to the others. The rules, in the order in which they are tried:

1. A task that this person holds is theirs until it is sent or skipped (a reload, a second tab, an undo). One whose
   lease ran out is theirs again as long as nobody else has taken the item.
2. At a share ``gold_share`` of the places in a person's series, drawn by lot, comes a gold item: one whose right
   answer is known. Nothing that leaves this module tells it from another item.
3. At a share ``control_share`` comes an item of the control group. That is the same share of the batch's items, drawn
   by lot when they are added, whatever their priority: a random sample, on which the chosen ones can be checked.
4. Otherwise comes the open item of the highest priority that is not in the control group: the pairs that teach most.

When 3 or 4 has nothing left the other one serves. Batches are served in the order in which they were opened. A batch
with a ``target`` hands out nothing more when as many sends, and leases that may become sends, are there.

A send writes judgements and is acknowledged when they are on disk; the same send again changes nothing. Undo writes
a retraction and gives the task back with what was said as its draft. Every method is one transaction, and those that
change something take turns (see `database`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from itertools import islice
from operator import itemgetter
from typing import Any

import sqlalchemy as sa

from . import choosing
from .batches import add_rows, batch_of, batch_row, check_batch
from .choosing import WHOLE, candidate, left_lying, next_number, open_batches, open_to, order, room
from .progress import progress_of
from .records import Judgement
from .sending import as_draft, demonstrations_of, judgements_of, retraction
from .store import Store, add_records, completions_by_id, judgement_by_id, prompt_by_id
from .tables import BATCHES, DEMONSTRATIONS, GUIDELINES, ITEMS, LEASED, TASKS, moment
from .tasks import Batch, ConflictError, Item, Progress, Submission, Task, Why

_BATCH = 1000
_Row = dict[str, Any]


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
        check_batch(name, settings)
        with self._database.writing() as db:
            before = batch_row(db, name)
            if before is None:
                fresh = {"name": name, "closed": False, "done": 0, "sent": 0, "created": moment(self._now())}
                db.execute(BATCHES.insert(), [settings | fresh | {"salt": secrets.token_hex(16)}])
            else:
                db.execute(sa.update(BATCHES).where(BATCHES.c.name == name).values(closed=False, **settings))
                if change := overlap - before["overlap"]:
                    items = sa.update(ITEMS).where(ITEMS.c.batch == before["seq"])
                    db.execute(items.values(free=ITEMS.c.free + change))
            made = batch_row(db, name)
        assert made is not None
        return batch_of(made)

    def set_target(self, name: str, target: int) -> None:
        """How many sends are enough; nothing else of the batch changes. LookupError: there is none."""
        with self._database.writing() as db:
            if db.execute(sa.update(BATCHES).where(BATCHES.c.name == name).values(target=target)).rowcount == 0:
                raise LookupError(f"there is no batch {name!r}")

    def left(self, name: str) -> int:
        """How many ordinary tasks of a batch are under way or could still be handed out, to whomever."""
        with self._database.reading() as db:
            batch = batch_row(db, name)
            if batch is None:
                raise LookupError(f"there is no batch {name!r}")
            mine = (ITEMS.c.batch == batch["seq"], ITEMS.c.arm != "gold", ITEMS.c.free > 0)
            free = db.scalar(sa.select(sa.func.sum(ITEMS.c.free)).where(*mine)) or 0
            under_way = sa.select(sa.func.count()).where(TASKS.c.batch == batch["seq"], LEASED, TASKS.c.arm != "gold")
            return int(free) + (db.scalar(under_way) or 0)

    def close_batch(self, name: str) -> None:
        """Hand out nothing more of it; tasks under way may still be sent. LookupError: there is none."""
        with self._database.writing() as db:
            if db.execute(sa.update(BATCHES).where(BATCHES.c.name == name).values(closed=True)).rowcount == 0:
                raise LookupError(f"there is no batch {name!r}")

    def batches(self) -> list[Batch]:
        """All batches, oldest first."""
        with self._database.reading() as db:
            return [batch_of(row) for row in db.execute(sa.select(BATCHES).order_by(BATCHES.c.seq)).mappings()]

    def add_items(self, batch: str, items: Iterable[Item]) -> int:
        """Put items into a batch, all or nothing, and return how many were new.

        Raises LookupError for a batch that is not there; ValueError for completions that are not in the store or
        answer another prompt, and for gold ranks that do not fit.
        """
        stream, added = iter(items), 0
        with self._database.writing() as db:
            row = batch_row(db, batch)
            if row is None:
                raise LookupError(f"there is no batch {batch!r}; open it first")
            while part := list(islice(stream, _BATCH)):
                added += add_rows(db, row, part)
        return added

    # Tasks

    def next(self, annotator: str) -> Task | None:
        """The task that this person should do now; None when there is none (`why_nothing` says why)."""
        now = self._now()
        with self._database.writing() as db:
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
            wanted = any(room(db, row) for row in waiting)
        return "" if wanted else "enough collected"

    def task(self, annotator: str, id: str) -> Task:
        """A task of this person's. LookupError when there is none, or it is somebody else's."""
        with self._database.reading() as db:
            return _task(db, _own(db, annotator, id))

    def save_draft(self, annotator: str, id: str, draft: dict[str, Any]) -> None:
        """Keep what was filled in so far; the lease begins anew. ConflictError when the task was sent or skipped."""
        with self._database.writing() as db:
            row = _own(db, annotator, id)
            if row["state"] in ("done", "skipped"):
                raise ConflictError("this task is finished, so its draft is not kept; undo it to change it")
            expires = {"expires": _lease_end(row["lease_seconds"], self._now())} if row["state"] == "leased" else {}
            _update(db, row, draft=draft, **expires)

    def submit(self, annotator: str, id: str, submission: Submission) -> list[Judgement]:
        """Store what was said and return the judgements, once they are on disk.

        The same submission again returns the same. A lease that ran out meanwhile costs nothing: what was said
        counts, though somebody else may have been asked too.

        Raises LookupError (not this person's task), ValueError (what does not fit the task), ConflictError (another
        send was there first, or this one was undone).
        """
        with self._database.writing() as db:
            row = _own(db, annotator, id)
            if row["state"] == "done":
                if row["send"] != submission.id:
                    raise ConflictError("this task was judged already; undo that first to say something else")
                return _said(db, row)
            task = _task(db, row)
            made = judgements_of(annotator, task, submission, row["events"], self._now())
            if row["events"] and judgement_by_id(db, made[0].id) is not None:
                raise ConflictError("this send was undone; send it under a new id")
            add_records(db, [*made, *demonstrations_of(annotator, task, submission, made[0])])
            if row["state"] != "leased":  # the slot went back when the lease ran out, or with the skip
                _free(db, row, -1)
            events = {judgement.criterion: judgement.id for judgement in made}
            sent = {"send": submission.id, "seconds": submission.seconds, "events": events, "draft": None}
            _update(db, row, state="done", finished=moment(self._now()), **sent)
            _count(db, row, +1)
        return made

    def skip(self, annotator: str, id: str) -> None:
        """This person will not be asked again; others may be. ConflictError when it was judged."""
        with self._database.writing() as db:
            row = _own(db, annotator, id)
            if row["state"] == "done":
                raise ConflictError("this task was judged already; undo that first to skip it")
            if row["state"] == "leased":
                _free(db, row, +1)
            if row["state"] != "skipped":
                _update(db, row, state="skipped", finished=moment(self._now()))

    def undo(self, annotator: str) -> Task | None:
        """Take back this person's last send or skip: its task is theirs again, with what was said as the draft."""
        now = self._now()
        with self._database.writing() as db:
            row = _last_finished(db, annotator)
            if row is None:
                return None
            if row["state"] == "done":
                said = _said(db, row)
                retractions = [retraction(judgement, now) for judgement in said]
                add_records(db, list(retractions))
                _count(db, row, -1)
                draft = as_draft(said, _written_with(db, said)) | {"seconds": row["seconds"]}
                changes = {"events": {one.criterion: one.id for one in retractions}, "draft": draft, "send": None}
            else:
                _free(db, row, -1)
                changes = {}
            lease = {
                "state": "leased",
                "started": moment(now),
                "expires": _lease_end(row["lease_seconds"], now),
                "finished": None,
            }
            return _task(db, _update(db, row, **lease, **changes))

    def progress(self, annotator: str) -> Progress:
        """Where this person stands."""
        with self._database.reading() as db:
            return progress_of(db, annotator)

    # For whoever looks after it

    def skips(self) -> dict[str, int]:
        """Annotator → how many tasks they have skipped."""
        query = sa.select(TASKS.c.annotator, sa.func.count()).where(TASKS.c.state == "skipped")
        with self._database.reading() as db:
            return {row[0]: row[1] for row in db.execute(query.group_by(TASKS.c.annotator))}

    def gold_ranks(self) -> dict[str, tuple[int, ...]]:
        """Judgement → the ranks that are right, in the order in which it was shown; of those about gold items."""
        query = sa.select(TASKS.c.events, TASKS.c.shown, ITEMS.c.completions, ITEMS.c.gold, BATCHES.c.criteria)
        query = query.select_from(TASKS.join(ITEMS, TASKS.c.item == ITEMS.c.seq).join(BATCHES))
        with self._database.reading() as db:
            rows = db.execute(query.where(TASKS.c.state == "done", ITEMS.c.gold.is_not(None))).all()
        found = {}
        for events, shown, completions, gold, criteria in rows:
            right = dict(zip(completions, gold, strict=True))
            if criteria[0] in events:  # else the batch was asked by another criterion then
                found[events[criteria[0]]] = tuple(right[key] for key in shown)
        return found

    def arms(self) -> dict[str, choosing.Arm]:
        """Judgement → control or priority, of batches in which both were judged."""
        with self._database.reading() as db:
            return choosing.arms_of_judgements(db)

    # Handing out

    def _held(self, db: sa.Connection, annotator: str, now: datetime) -> _Row | None:
        """This person's task, its lease renewed; other people's leases that ran out end here."""
        late = sa.and_(TASKS.c.expires < moment(now), TASKS.c.annotator != annotator)
        leased = WHOLE.where(LEASED, sa.or_(TASKS.c.annotator == annotator, late))
        mine = []
        for row in map(dict, db.execute(leased.order_by(TASKS.c.started)).mappings().all()):
            if row["annotator"] == annotator:
                mine.append(row)
            else:
                _update(db, row, state="expired")
                _free(db, row, +1)
        if not mine:
            return None
        # Whoever sees the task again sees today's guidelines.
        newest = db.scalar(sa.select(sa.func.max(GUIDELINES.c.version)))
        return _update(db, mine[-1], expires=_lease_end(mine[-1]["lease_seconds"], now), guidelines=newest)

    def _assign(self, db: sa.Connection, annotator: str, now: datetime) -> _Row | None:
        batches = [row for row in db.execute(open_batches()).mappings().all() if room(db, row) > 0]
        for row in left_lying(db, annotator):
            if any(row["batch"] == batch["seq"] for batch in batches):
                _free(db, row, -1)
                return _update(
                    db, row, state="leased", started=moment(now), expires=_lease_end(row["lease_seconds"], now)
                )
        number = next_number(db, annotator)
        for batch in batches:
            item = candidate(db, batch, annotator, number)
            if item is not None:
                return _lease(db, batch, item, annotator, number, now)
        return None


# Tasks


def _own(db: sa.Connection, annotator: str, id: str) -> _Row:
    row = db.execute(WHOLE.where(TASKS.c.id == id)).mappings().first()
    if row is None or row["annotator"] != annotator:
        raise LookupError("there is no such task of yours")
    return dict(row)


def _task(db: sa.Connection, row: _Row) -> Task:
    by_id = {completion.id: completion for completion in completions_by_id(db, row["shown"])}
    return Task(
        id=row["id"],
        batch=row["name"],
        criteria=tuple(row["criteria"]),
        prompt=prompt_by_id(db, row["prompt_id"]),
        shown=tuple(by_id[key] for key in row["shown"]),
        guidelines=row["guidelines"],
        draft=row["draft"],
        expires=datetime.fromisoformat(row["expires"]),
        number=row["number"],
    )


def _lease(
    db: sa.Connection, batch: sa.RowMapping, item: sa.RowMapping, annotator: str, number: int, now: datetime
) -> _Row:
    row = {
        "id": secrets.token_hex(16),
        "item": item["seq"],
        "batch": batch["seq"],
        "key": item["key"],
        "annotator": annotator,
        "number": number,
        "arm": item["arm"],
        "shown": order(batch, item, annotator),
        "guidelines": db.scalar(sa.select(sa.func.max(GUIDELINES.c.version))),
        "state": "leased",
        "started": moment(now),
        "expires": _lease_end(batch["lease_seconds"], now),
        "events": {},
    }
    db.execute(TASKS.insert(), [row])
    _free(db, row, -1)
    more = {"name": batch["name"], "criteria": batch["criteria"], "prompt_id": item["prompt_id"], "draft": None}
    return row | more


def _lease_end(seconds: int, now: datetime) -> str:
    return moment(now + timedelta(seconds=seconds))


def _last_finished(db: sa.Connection, annotator: str) -> _Row | None:
    # One query for each state: the index has their order within a state.
    rows: list[sa.RowMapping] = []
    for state in ("done", "skipped"):
        last = WHOLE.where(TASKS.c.annotator == annotator, TASKS.c.state == state)
        rows += db.execute(last.order_by(TASKS.c.finished.desc()).limit(1)).mappings().all()
    return dict(max(rows, key=itemgetter("finished"))) if rows else None


def _update(db: sa.Connection, row: _Row, **changes: Any) -> _Row:
    """Change a task and return it as it is now."""
    db.execute(sa.update(TASKS).where(TASKS.c.id == row["id"]).values(**changes))
    return {**row, **changes}


def _free(db: sa.Connection, row: _Row, change: int) -> None:
    """Give a slot of the task's item back (+1), or take one (−1). A gold item has one for everybody."""
    if row["arm"] != "gold":
        db.execute(sa.update(ITEMS).where(ITEMS.c.seq == row["item"]).values(free=ITEMS.c.free + change))


def _count(db: sa.Connection, row: _Row, change: int) -> None:
    """Count a send (+1), or one that was undone (−1)."""
    done = 0 if row["arm"] == "gold" else change
    counted = {"done": BATCHES.c.done + done, "sent": BATCHES.c.sent + change}
    db.execute(sa.update(BATCHES).where(BATCHES.c.seq == row["batch"]).values(**counted))


def _said(db: sa.Connection, row: _Row) -> list[Judgement]:
    """What stands for a task that is done, one judgement by each criterion."""
    return [_stored(db, key) for key in row["events"].values()]


def _stored(db: sa.Connection, id: str) -> Judgement:
    found = judgement_by_id(db, id)
    assert found is not None, "written with the task"
    return found


def _written_with(db: sa.Connection, said: list[Judgement]) -> tuple[int | None, str] | None:
    """The demonstration that came with a send: the place of the answer it was made from, and its text."""
    written = sa.select(DEMONSTRATIONS).where(
        DEMONSTRATIONS.c.prompt_id == said[0].prompt_id,  # has an index
        DEMONSTRATIONS.c.judgement_id == said[0].id,
    )
    row = db.execute(written).mappings().first()
    if row is None:
        return None
    source = row["metadata"].get("edited")
    return None if source is None else said[0].shown.index(source), row["text"]
