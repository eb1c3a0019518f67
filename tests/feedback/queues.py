"""A clock, a store with items, and short ways to send, for the tests of the queue."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import sqlalchemy as sa

from prefloop.feedback.assignment import Queue
from prefloop.feedback.records import Completion, Judgement, Prompt
from prefloop.feedback.store import Store
from prefloop.feedback.tables import BATCHES, ITEMS, TASKS
from prefloop.feedback.tasks import Item, Submission, Task, Verdict

_ids = count()


class Clock:
    """Goes on by a millisecond whenever somebody looks."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.add(milliseconds=1)
        return self.now

    def add(self, **by: float) -> None:
        self.now += timedelta(**by)


def fill(store: Store, items: int, answers: int = 2, first: int = 0) -> list[Item]:
    """Prompts ``first``, ``first`` + 1, … with their answers in the store, and an item for each."""
    prompts = [Prompt.of(f"Prompt {i}") for i in range(first, first + items)]
    made = [[Completion(prompt_id=p.id, text=f"Answer {k}", origin="test") for k in range(answers)] for p in prompts]
    store.add([*prompts, *(one for each in made for one in each)])
    return [Item(p.id, tuple(one.id for one in each)) for p, each in zip(prompts, made, strict=True)]


def send(queue: Queue, annotator: str, task: Task, **fields: Any) -> list[Judgement]:
    """Say something about a task: the first answer shown is better."""
    verdicts = tuple(Verdict(one, tuple(range(1, len(task.shown) + 1))) for one in task.criteria)
    said: dict[str, Any] = {"id": f"send-{next(_ids)}", "verdicts": verdicts, "seconds": 2.0}
    return queue.submit(annotator, task.id, Submission(**{**said, **fields}))


def given(queue: Queue, annotator: str) -> Task:
    task = queue.next(annotator)
    assert task is not None
    return task


def judge_all(queue: Queue, annotator: str, most: int = 10_000) -> list[str]:
    """Judge until there is nothing left, or ``most`` tasks; the prompts in the order in which they came."""
    done: list[str] = []
    while len(done) < most and (task := queue.next(annotator)) is not None:
        send(queue, annotator, task)
        done.append(task.prompt.id)
    return done


def check_counts(store: Store) -> None:
    """What is counted as it goes along equals what is there."""
    with store.database.reading() as db:
        overlap = {row.seq: row.overlap for row in db.execute(sa.select(BATCHES))}
        tasks = db.execute(sa.select(TASKS)).all()
        for item in db.execute(sa.select(ITEMS)):
            here = [task for task in tasks if task.item == item.seq]
            taken = sum(task.state in ("leased", "done") for task in here)
            assert item.free == overlap[item.batch] - (0 if item.arm == "gold" else taken), f"item {item.seq}"
            assert len({task.annotator for task in here}) == len(here), "nobody has an item twice"
        for batch in db.execute(sa.select(BATCHES)):
            sent = [task for task in tasks if task.batch == batch.seq and task.state == "done"]
            assert batch.sent == len(sent)
            assert batch.done == sum(task.arm != "gold" for task in sent)


def prompts_of(items: Iterable[Item]) -> list[str]:
    return [item.prompt_id for item in items]


def start(queue: Queue, store: Store, items: int, **settings: Any) -> list[Item]:
    """A batch ``a`` with new items and no control group."""
    made = fill(store, items)
    queue.open_batch("a", **{"control_share": 0.0, **settings})
    assert queue.add_items("a", made) == items
    return made
