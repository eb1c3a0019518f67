"""The queue against a model of it: any sequence of asking, sending, skipping, undoing and waiting."""

import shutil
from collections import defaultdict
from dataclasses import replace
from itertools import count
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from tests.feedback.queues import Clock, check_counts, fill, send

from prefloop.feedback import assignment
from prefloop.feedback.assignment import Queue
from prefloop.feedback.store import Store
from prefloop.feedback.tasks import ConflictError, Task

PEOPLE = st.sampled_from(["ann", "bob", "eve"])
LEASE = 60


class Person:
    """What the model knows of one person: plain lists, no counters."""

    def __init__(self) -> None:
        self.held: dict[str, float] = {}  # task → when the lease ends; in the order in which they were got
        self.lost: set[str] = set()  # tasks whose lease somebody else's asking ended
        self.finished: list[tuple[str, str]] = []  # (task, what was sent; empty for a skip), oldest first
        self.tasks: dict[str, Task] = {}


class QueueMachine(RuleBasedStateMachine):
    """Three people, six items in two batches that share one, some gold, an overlap of one or two."""

    make_store: Any = None

    @initialize(overlap=st.integers(1, 2), wanted=st.sampled_from([None, 3]), gold=st.sampled_from([0.0, 0.4]))
    def open(self, overlap: int, wanted: int | None, gold: float) -> None:
        self.store, self.close = self.make_store()
        self.clock, self.overlap, self.wanted = Clock(), overlap, wanted
        self.queue = Queue(self.store, self.clock)
        items = fill(self.store, 7)
        self.queue.open_batch("a", overlap=overlap, target=wanted, gold_share=gold, lease_seconds=LEASE)
        self.queue.open_batch("b", overlap=overlap, lease_seconds=LEASE)
        self.shared = items[3].prompt_id
        self.gold = {items[5].prompt_id, items[6].prompt_id}
        known = [replace(item, gold=(1, 2)) for item in items[5:]]
        self.queue.add_items("a", [*items[:4], *known])
        self.queue.add_items("b", items[3:5])
        self.people: dict[str, Person] = defaultdict(Person)
        self.late: set[str] = set()  # items that were sent late, or taken back when somebody else had them
        self.sends = 0

    def teardown(self) -> None:
        if hasattr(self, "close"):
            self.close()

    # What people do

    @rule(name=PEOPLE)
    def ask(self, name: str) -> None:
        person = self.people[name]
        left = self.queue.progress(name).remaining
        task = self.queue.next(name)
        now = self.clock.now.timestamp()
        for other in self.people.values():
            if other is not person:
                for id in [id for id, end in other.held.items() if end < now]:
                    del other.held[id]
                    other.lost.add(id)
        if person.held:
            assert task is not None
            assert task.id == list(person.held)[-1], "what they got last"
        elif task is None:
            assert self.queue.why_nothing(name) != "" or left == 0
        elif task.id not in person.lost:
            assert task.id not in person.tasks, "new to them"
            assert task.prompt.id not in {one.prompt.id for one in person.tasks.values()}, (
                "nobody judges an item twice"
            )
        if task is not None:
            person.lost.discard(task.id)
            person.held.pop(task.id, None)
            person.held[task.id] = now + LEASE
            person.tasks[task.id] = task

    @rule(name=PEOPLE, which=st.integers(0, 9), again=st.booleans())
    def send(self, name: str, which: int, again: bool) -> None:
        person = self.people[name]
        open_ = [id for id in person.tasks if id in person.held or id in person.lost or (id, "") in person.finished]
        if again and (sent := [pair for pair in person.finished if pair[1]]):
            id, send_id = sent[which % len(sent)]
            before = self.store.counts()
            send(self.queue, name, person.tasks[id], id=send_id)
            assert self.store.counts() == before, "the same send again changes nothing"
            with pytest.raises(ConflictError):
                send(self.queue, name, person.tasks[id], id="another")
        elif open_:
            id = open_[which % len(open_)]
            if id not in person.held:
                self.late.add(person.tasks[id].prompt.id)
            self.sends += 1
            send(self.queue, name, person.tasks[id], id=f"send {self.sends}")
            person.finished = [pair for pair in person.finished if pair[0] != id]
            self.finish(person, id, f"send {self.sends}")

    @rule(name=PEOPLE, which=st.integers(0, 9))
    def skip(self, name: str, which: int) -> None:
        person = self.people[name]
        if open_ := [*person.held, *sorted(person.lost)]:
            id = open_[which % len(open_)]
            self.queue.skip(name, id)
            self.finish(person, id, "")

    def finish(self, person: Person, id: str, sent: str) -> None:
        person.held.pop(id, None)
        person.lost.discard(id)
        person.finished.append((id, sent))

    @rule(name=PEOPLE)
    def undo(self, name: str) -> None:
        person = self.people[name]
        back = self.queue.undo(name)
        if not person.finished:
            assert back is None
            return
        id, sent = person.finished.pop()
        assert back is not None
        assert back.id == id
        assert (back.draft is not None) >= bool(sent)
        if not sent:
            self.late.add(back.prompt.id)
        person.held[id] = self.clock.now.timestamp() + LEASE

    @rule(seconds=st.sampled_from([LEASE / 2, LEASE * 2]))
    def wait(self, seconds: float) -> None:
        self.clock.add(seconds=seconds)

    # What holds at any time

    @invariant()
    def the_counts_are_those_of_what_is_there(self) -> None:
        check_counts(self.store)

    @invariant()
    def what_counts_is_the_last_that_was_sent(self) -> None:
        standing = {
            (name, person.tasks[id].prompt.id)
            for name, person in self.people.items()
            for id, sent in person.finished
            if sent
        }
        judgements = [(one.annotator, one.prompt_id) for one in self.store.judgements()]
        assert sorted(judgements) == sorted(standing)

    @invariant()
    def no_item_is_asked_too_often(self) -> None:
        asked: dict[str, int] = defaultdict(int)
        for person in self.people.values():
            for id in [*person.held, *(id for id, sent in person.finished if sent)]:
                asked[person.tasks[id].prompt.id] += 1
        for prompt, times in asked.items():
            if prompt not in self.late | self.gold:
                assert times <= self.overlap * (2 if prompt == self.shared else 1)

    @invariant()
    def a_target_is_not_passed(self) -> None:
        if self.wanted is not None and not self.late:
            batch = self.queue.batches()[0]
            assert batch.done <= self.wanted


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_queue_does_what_the_model_does(
    request: pytest.FixtureRequest, kind: str, empty_sqlite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = count()  # what is drawn by lot is the same whenever an example is run again
    monkeypatch.setattr(assignment.secrets, "token_hex", lambda size: f"{next(numbers) % 2**20:0{2 * size}x}")

    def in_a_file() -> tuple[Store, Any]:
        store = Store.open(shutil.copy(empty_sqlite, mkdtemp(dir=tmp_path)))
        return store, store.close

    def on_the_server() -> tuple[Store, Any]:
        lent = request.getfixturevalue("postgres").lend()
        store = Store.open(lent.__enter__())
        return store, lambda: (store.close(), lent.__exit__(None, None, None))

    make, examples = (in_a_file, 40) if kind == "sqlite" else (on_the_server, 8)
    machine = type("Machine", (QueueMachine,), {"make_store": staticmethod(make)})
    chosen = settings(max_examples=examples, stateful_step_count=25, deadline=None)
    run_state_machine_as_test(machine, settings=chosen)
