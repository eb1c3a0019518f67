"""Many at once: nothing is lost, nothing counts twice, no item is given to two; also when a writer is killed."""

import random
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.databases import Server
from tests.feedback.queues import check_counts, fill, send
from tests.feedback.threads import in_threads

from prefloop.feedback.assignment import Queue
from prefloop.feedback.store import Store
from prefloop.feedback.tables import ITEMS, TASKS

WORKER = textwrap.dedent("""
    import sys
    from prefloop.feedback.assignment import Queue
    from prefloop.feedback.store import Store
    from tests.feedback.queues import send

    place, names = sys.argv[1], sys.argv[2].split(",")
    with Store.open(place, create=False) as store:
        queue = Queue(store)
        print("ready", flush=True)
        waiting = list(names)
        while waiting:
            for name in list(waiting):
                task = queue.next(name)
                if task is None:
                    waiting.remove(name)
                    continue
                for one in send(queue, name, task, id=task.id):
                    print(one.id, flush=True)
""")
"""A process in which several people take turns until nothing is left; it prints what was acknowledged."""


def start_worker(place: str | Path, names: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(place), ",".join(names)]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    assert worker.stdout is not None
    assert worker.stdout.readline() == "ready\n"
    return worker


@pytest.mark.parametrize(("overlap", "target"), [(1, None), (3, None), (2, 70)])
def test_sixteen_people_at_once(store: Store, overlap: int, target: int | None) -> None:
    items = fill(store, 60)
    queue = Queue(store)
    queue.open_batch("a", overlap=overlap, target=target)
    queue.add_items("a", items)
    chance, acknowledged = random.Random(overlap), []

    def work(name: str) -> None:
        while (task := queue.next(name)) is not None:
            assert queue.next(name) == task or queue.task(name, task.id).id == task.id
            with store.database.reading() as db:
                taken = sa.select(sa.func.count()).select_from(TASKS.join(ITEMS, TASKS.c.item == ITEMS.c.seq))
                taken = taken.where(ITEMS.c.prompt_id == task.prompt.id, TASKS.c.state.in_(("leased", "done")))
                assert (db.scalar(taken) or 0) <= overlap
            if name.startswith("person") and chance.random() < 0.1:
                queue.skip(name, task.id)
                continue
            acknowledged.extend(one.id for one in send(queue, name, task, id="1"))
            if chance.random() < 0.1:
                send(queue, name, task, id="1")
                back = queue.undo(name)
                assert back is not None
                acknowledged.remove(
                    next(one for one in reversed(acknowledged) if one in own(store, name, task.prompt.id))
                )
                acknowledged.extend(one.id for one in send(queue, name, task, id="2"))

    in_threads([f"person {i}" for i in range(16)], work)
    for i in range(overlap):
        work(f"late {i}")  # what was skipped when the others had left
    judgements = list(store.judgements())
    assert sorted(one.id for one in judgements) == sorted(acknowledged)
    wanted = overlap * 60 if target is None else target
    assert len(judgements) == wanted == queue.batches()[0].done
    assert max(Counter(one.prompt_id for one in judgements).values()) <= overlap
    assert len({(one.annotator, one.prompt_id) for one in judgements}) == len(judgements)
    check_counts(store)


def own(store: Store, name: str, prompt_id: str) -> set[str]:
    found = store.judgements(effective=False)
    return {one.id for one in found if one.annotator == name and one.prompt_id == prompt_id}


def test_one_person_in_many_tabs(store: Store) -> None:
    """All tabs get the same task; its send counts once, whichever tab was first."""
    queue = Queue(store)
    queue.open_batch("a")
    queue.add_items("a", fill(store, 20))
    seen: list[str] = []

    def tab(name: str) -> None:
        task = queue.next("ann")
        assert task is not None
        seen.append(task.id)

    for i in range(3):
        seen.clear()
        in_threads([str(tab) for tab in range(8)], tab)
        assert len(set(seen)) == 1
        task = queue.task("ann", seen[0])
        in_threads(["x"] * 8, lambda _, task=task, i=i: send(queue, "ann", task, id=f"s{i}") and None)  # type: ignore[misc]
        assert len(list(store.judgements())) == i + 1
    check_counts(store)


def test_several_processes_at_once(nowhere: str | Path) -> None:
    with Store.open(nowhere) as store:
        queue = Queue(store)
        queue.open_batch("a", overlap=2)
        queue.add_items("a", fill(store, 60))
        workers = [start_worker(nowhere, [f"{process} {i}" for i in range(3)]) for process in range(2)]
        acknowledged = [line.strip() for worker in workers for line in worker.communicate()[0].splitlines()]
        assert [worker.returncode for worker in workers] == [0, 0]
        assert sorted(one.id for one in store.judgements()) == sorted(acknowledged)
        assert len(acknowledged) == 120
        check_counts(store)


@pytest.mark.parametrize(("kind", "times"), [("sqlite", 20), ("postgresql", 5)])
def test_a_writer_that_is_killed_loses_nothing(kind: str, times: int, tmp_path: Path, postgres: Server) -> None:
    """``kill -9`` at random moments: what was acknowledged is there once, and the next process works on."""
    place = str(tmp_path / "feedback.db") if kind == "sqlite" else postgres.create()
    chance = random.Random(7)
    acknowledged: list[str] = []
    with Store.open(place) as store:
        queue = Queue(store)
        queue.open_batch("a", overlap=10)
        queue.add_items("a", fill(store, 300))
    for i in range(times):
        worker = start_worker(place, ["ann", "bob", f"{i}"])
        assert worker.stdout is not None
        acknowledged += [worker.stdout.readline().strip() for _ in range(chance.randrange(1, 25))]
        worker.send_signal(signal.SIGKILL)
        acknowledged += [
            line.strip() for line in worker.communicate()[0].splitlines(keepends=True) if line[-1] == "\n"
        ]
        assert worker.returncode == -signal.SIGKILL
    with Store.open(place) as store:
        found = Counter(one.id for one in store.judgements())
        assert found.total() >= len(acknowledged) > 10 * times / 2
        assert {found[id] for id in acknowledged} == {1}
        assert found.total() <= len(acknowledged) + times, (
            "at most one each that was written and not yet acknowledged"
        )
        check_counts(store)
        with store.database.reading() as db:
            if kind == "sqlite":
                assert db.scalar(sa.text("PRAGMA integrity_check")) == "ok"
