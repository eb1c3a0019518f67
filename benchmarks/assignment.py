"""How long the queue takes when a million judgements are stored: `next`, `submit`, `progress`, `undo`.

    python benchmarks/assignment.py feedback.db
    python benchmarks/assignment.py postgresql:///empty_database --judgements 1000000

The database must be new. In it 64 annotators have judged everything in a large batch, and in a second one, of which
everything is open still (three people are to judge each item), one of them has judged the 20,000 items that come
first: for that one the search is longest. First everybody takes turns; then all at once, each with a pause for
thought.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from statistics import quantiles
from typing import Any

import sqlalchemy as sa

from prefloop.feedback.assignment import Queue
from prefloop.feedback.choosing import uniform
from prefloop.feedback.records import Completion, Prompt, content_id
from prefloop.feedback.store import Store
from prefloop.feedback.tables import BATCHES, ITEMS, JUDGEMENTS, TASKS
from prefloop.feedback.tasks import Submission, Task, Verdict

ANNOTATORS = [f"annotator {i:02}" for i in range(64)]
BUSY = ANNOTATORS[0]
WHEN = "2026-01-01T00:00:00.000000+00:00"
_BATCH = 10_000

Times = dict[str, list[tuple[float, float]]]
"""What was called → seconds of each call, by the clock and of this thread's processor."""


def build(store: Store, judgements: int, ahead: int) -> None:
    """``judgements`` by everybody, two on each item of batch 1; ``ahead`` by one person in batch 2."""
    queue, rng = Queue(store), random.Random(0)
    queue.open_batch("done", overlap=2)
    queue.open_batch("open", overlap=3)
    items = judgements // 2
    open_items = 3 * ahead
    pairs = list(_pairs(store, items + open_items))
    done = [(1, pair, "priority", 0.0, 0) for pair in pairs[:items]]
    priorities = sorted((rng.random() for _ in range(open_items)), reverse=True)
    _insert(store, ITEMS, _items([*done, *_open(pairs[items:], priorities, ahead)]))
    asked: dict[str, int] = defaultdict(int)
    said = [
        (seq, 1, pair, ANNOTATORS[(seq + 17 * k) % 64]) for seq, pair in enumerate(pairs[:items], 1) for k in (0, 1)
    ]
    said += [(items + i + 1, 2, pair, BUSY) for i, pair in enumerate(pairs[items : items + ahead])]
    _insert(store, JUDGEMENTS, (_judgement(*one) for one in said))
    _insert(store, TASKS, (_task(*one, asked) for one in said))
    with store.database.writing() as db:
        for seq, number in ((1, 2 * items), (2, ahead)):
            db.execute(sa.update(BATCHES).where(BATCHES.c.seq == seq).values(done=number, sent=number))
        if store.database.is_postgres:
            _count_on(db)
    if store.database.is_postgres:  # as its own housekeeping does within the minute
        with store.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as db:
            db.execute(sa.text("VACUUM ANALYZE"))


def _pairs(store: Store, count: int) -> Iterator[tuple[str, str, str]]:
    """Prompt and two of its four completions; six pairs of each prompt."""
    for start in range(0, count, 6 * 2000):
        prompts = [Prompt.of(f"Prompt {i}") for i in range(start // 6, start // 6 + 2000)]
        answers = [
            [Completion(prompt_id=p.id, text=f"Answer {k}", origin="benchmark") for k in range(4)] for p in prompts
        ]
        store.add([*prompts, *(one for each in answers for one in each)])
        pairs = (
            (prompt.id, each[a].id, each[b].id)
            for prompt, each in zip(prompts, answers, strict=True)
            for a in range(4)
            for b in range(a)
        )
        for number, pair in enumerate(pairs, start):
            if number < count:
                yield pair


def _open(
    pairs: list[tuple[str, str, str]], priorities: list[float], ahead: int
) -> Iterator[tuple[int, tuple[str, str, str], str, float, int]]:
    for i, (pair, priority) in enumerate(zip(pairs, priorities, strict=True)):
        arm = "control" if i >= ahead and uniform("control", i) < 0.1 else "priority"
        yield 2, pair, arm, priority, 2 if i < ahead else 3


def _key(pair: tuple[str, str, str]) -> str:
    return content_id("item", pair[0], sorted(pair[1:]))


def _items(given: Iterable[tuple[int, tuple[str, str, str], str, float, int]]) -> Iterator[dict[str, Any]]:
    for seq, (batch, pair, arm, priority, free) in enumerate(given, 1):
        lot = uniform("lot", seq)
        yield {
            "seq": seq,
            "batch": batch,
            "key": _key(pair),
            "prompt_id": pair[0],
            "completions": list(pair[1:]),
            "gold": None,
            "arm": arm,
            "priority": priority,
            "lot": lot,
            "place": priority if arm == "priority" else lot,
            "free": free,
        }


def _judgement(seq: int, batch: int, pair: tuple[str, str, str], annotator: str) -> dict[str, Any]:
    return {
        "id": content_id("judgement", batch, seq, annotator),
        "prompt_id": pair[0],
        "annotator": annotator,
        "source": "human",
        "shown": list(pair[1:]),
        "ranks": [1, 2],
        "criterion": "overall",
        "flags": [],
        "reason": "",
        "seconds": 9.0,
        "retracted": False,
        "created": WHEN,
    }


def _task(seq: int, batch: int, pair: tuple[str, str, str], annotator: str, asked: dict[str, int]) -> dict[str, Any]:
    asked[annotator] += 1
    return {
        "id": content_id("task", seq, annotator),
        "item": seq,
        "batch": batch,
        "key": _key(pair),
        "annotator": annotator,
        "number": asked[annotator],
        "arm": "priority",
        "shown": list(pair[1:]),
        "state": "done",
        "started": WHEN,
        "expires": WHEN,
        "finished": WHEN[:18] + f"{asked[annotator] % 10}" + WHEN[19:],
        "seconds": 9.0,
        "send": "1",
        "events": {"overall": content_id("judgement", batch, seq, annotator)},
    }


def _insert(store: Store, table: sa.Table, rows: Iterable[dict[str, Any]]) -> None:
    page = []
    with store.database.writing() as db:
        for row in rows:
            page.append(row)
            if len(page) == _BATCH:
                db.execute(table.insert(), page)
                page = []
        if page:
            db.execute(table.insert(), page)


def _count_on(db: sa.Connection) -> None:
    last = sa.select(sa.func.max(ITEMS.c.seq)).scalar_subquery()
    db.execute(sa.select(sa.func.setval(sa.func.pg_get_serial_sequence("items", "seq"), last)))


# Measuring


@contextmanager
def statements(store: Store) -> Iterator[list[str]]:
    """The statements that are run meanwhile, by this process."""
    seen: list[str] = []

    def note(_db: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    sa.event.listen(store.database.engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        sa.event.remove(store.database.engine, "before_cursor_execute", note)


def one_round(queue: Queue, annotator: str, times: Times) -> None:
    """What a page does for one item."""
    task = _timed(times, "next", queue.next, annotator)
    assert task is not None
    _timed(times, "progress", queue.progress, annotator)
    _timed(times, "draft", queue.save_draft, annotator, task.id, {"reason": "because"})
    _timed(times, "submit", queue.submit, annotator, task.id, _submission(task))


def _submission(task: Task) -> Submission:
    return Submission(token_hex(8), tuple(Verdict(one, (1, 2)) for one in task.criteria), seconds=5.0)


def _timed(times: Times, name: str, call: Any, *arguments: Any) -> Any:
    begun, busy = time.perf_counter(), time.thread_time()
    result = call(*arguments)
    times[name].append((time.perf_counter() - begun, time.thread_time() - busy))
    return result


def in_turns(queue: Queue, rounds: int) -> tuple[Times, Times]:
    """Everybody but the busy one, and the busy one."""
    others: Times = defaultdict(list)
    busy: Times = defaultdict(list)
    for _ in range(rounds):
        for annotator in ANNOTATORS:
            one_round(queue, annotator, busy if annotator == BUSY else others)
    for _ in range(4 * rounds):
        one_round(queue, BUSY, busy)
    for annotator in ANNOTATORS:
        _timed(others, "undo", queue.undo, annotator)
    return others, busy


def at_once(queue: Queue, seconds: float, pause: float) -> Times:
    """Everybody in a thread of their own, with a pause for thought before each send (mean, exponential)."""
    together: Times = defaultdict(list)
    until = time.monotonic() + seconds

    def work(annotator: str) -> Times:
        rng = random.Random(annotator)
        times: Times = defaultdict(list)
        while time.monotonic() < until:
            time.sleep(rng.expovariate(1 / pause))
            one_round(queue, annotator, times)
        return times

    with ThreadPoolExecutor(len(ANNOTATORS)) as pool:
        for times in pool.map(work, ANNOTATORS):
            for name, found in times.items():
                together[name] += found
    return together


def summary(times: Times) -> dict[str, dict[str, Any]]:
    """Milliseconds: median, 95th and 99th percentile, by the clock and of the processor.

    On SQLite the second is all the work there is but the disk's, and says something on a busy machine too.
    """
    return {
        name: {"n": len(found)}
        | {which: _percentiles(one) for which, one in zip(("clock", "cpu"), zip(*found, strict=True), strict=True)}
        for name, found in times.items()
    }


def _percentiles(found: Iterable[float]) -> list[float]:
    cuts = quantiles(found, n=100, method="inclusive")
    return [round(1000 * cuts[p - 1], 1) for p in (50, 95, 99)]


def count_statements(store: Store, queue: Queue) -> dict[str, int]:
    annotator = ANNOTATORS[5]
    task = queue.next(annotator)
    assert task is not None
    queue.submit(annotator, task.id, _submission(task))
    counts, at_hand = {}, None
    for name in ("next", "progress", "submit", "undo"):
        with statements(store) as seen:
            if name == "submit":
                assert at_hand is not None
                queue.submit(annotator, at_hand.id, _submission(at_hand))
            else:
                result = getattr(queue, name)(annotator)
                at_hand = result if name == "next" else at_hand
        counts[name] = len(seen)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", help="a new file, or the URL of an empty PostgreSQL database")
    parser.add_argument("--judgements", type=int, default=1_000_000)
    parser.add_argument(
        "--ahead", type=int, default=20_000, help="how many of the items to come one person has judged"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30, help="how long all work at once")
    parser.add_argument("--pause", type=float, default=5, help="mean seconds that somebody thinks about an item")
    options = parser.parse_args()
    place = options.database if "://" in options.database else Path(options.database)
    with Store.open(place) as store:
        if not Queue(store).batches():
            begun = time.perf_counter()
            build(store, options.judgements, options.ahead)
            print(f"built in {time.perf_counter() - begun:.0f} s", flush=True)
        queue = Queue(store)
        print(json.dumps({"statements": count_statements(store, queue)}), flush=True)
        others, busy = in_turns(queue, options.rounds)
        for name, times in (("in turns", others), ("in turns, the busy one", busy)):
            print(json.dumps({name: summary(times)}), flush=True)
        print(json.dumps({"at once": summary(at_once(queue, options.seconds, options.pause))}), flush=True)
        print(json.dumps({"judgements": store.counts().judgements}), flush=True)


if __name__ == "__main__":
    main()
