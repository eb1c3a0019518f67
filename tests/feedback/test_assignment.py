"""The queue's rules, one by one, on both databases: who is asked what, and what holds while they think."""

import shutil
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from scipy.stats import binomtest
from tests.feedback.queues import Clock, check_counts, fill, given, judge_all, prompts_of, send, start

from prefloop.feedback.assignment import Queue
from prefloop.feedback.store import Store
from prefloop.feedback.tasks import ConflictError

# Who is asked what


def test_overlap_people_judge_each_item_and_nobody_twice(queue: Queue, store: Store) -> None:
    items = start(queue, store, 5, overlap=2)
    seen = Counter(prompt for name in ("a", "b", "c") for prompt in judge_all(queue, name))
    assert seen == dict.fromkeys(prompts_of(items), 2)
    assert queue.next("d") is None
    assert queue.why_nothing("d") == "all judged"
    check_counts(store)


def test_highest_priority_first(queue: Queue, store: Store) -> None:
    items = [replace(item, priority=float(i * 7 % 10 - 5)) for i, item in enumerate(fill(store, 10))]
    queue.open_batch("a", control_share=0.0)
    queue.add_items("a", items)
    best_first = sorted(items, key=lambda item: -item.priority)
    assert judge_all(queue, "ann") == prompts_of(best_first)


def test_equal_priorities_come_in_no_order_of_ours(queue: Queue, store: Store) -> None:
    items = start(queue, store, 30)
    assert judge_all(queue, "ann") not in (prompts_of(items), prompts_of(items)[::-1])


def test_what_a_person_holds_comes_again(queue: Queue, store: Store, clock: Clock) -> None:
    start(queue, store, 5, overlap=2)
    task = given(queue, "ann")
    clock.add(minutes=20)
    again = given(queue, "ann")  # a reload, or a second tab
    assert replace(again, expires=task.expires) == task
    assert again.expires == clock.now + timedelta(seconds=1800), "the lease begins anew"
    assert queue.task("ann", task.id) == again
    assert given(queue, "bob").id != task.id
    queue.close_batch("a")
    assert given(queue, "ann").id == task.id
    check_counts(store)


def test_nobody_sees_or_touches_another_ones_task(queue: Queue, store: Store) -> None:
    start(queue, store, 2)
    task = given(queue, "ann")
    for do in (
        lambda: queue.task("bob", task.id),
        lambda: queue.task("ann", "no such"),
        lambda: queue.save_draft("bob", task.id, {}),
        lambda: queue.skip("bob", task.id),
        lambda: send(queue, "bob", task),
    ):
        with pytest.raises(LookupError, match="no such task of yours"):
            do()
    assert store.counts().judgements == 0


def test_the_order_shown_is_random_for_each_annotator_and_stored(queue: Queue, store: Store) -> None:
    items = start(queue, store, 60, overlap=3)
    orders: dict[str, dict[str, tuple[str, ...]]] = {}
    for name in ("ann", "bob", "eve"):
        orders[name] = {}
        while (task := queue.next(name)) is not None:
            orders[name][task.prompt.id] = tuple(one.id for one in task.shown)
            assert queue.task(name, task.id).shown == task.shown
            (said,) = send(queue, name, task)
            assert said.shown == orders[name][task.prompt.id]
    for name, shown in orders.items():
        turned = sum(shown[item.prompt_id] != item.completions for item in items)
        assert binomtest(turned, 60).pvalue > 0.01, name
    assert orders["ann"] != orders["bob"] != orders["eve"] != orders["ann"]


def test_an_item_in_two_batches_is_judged_once_by_each(queue: Queue, store: Store) -> None:
    items = start(queue, store, 4)
    queue.open_batch("b", overlap=2, control_share=0.0)
    queue.add_items("b", items[:3] + fill(store, 2, first=4))
    assert queue.progress("ann").remaining == 6
    first = judge_all(queue, "ann")
    assert len(first) == len(set(first)) == 6
    assert set(first[:4]) == set(prompts_of(items)), "the batch that was opened first"
    assert len(judge_all(queue, "bob")) == 5
    check_counts(store)


def test_the_guidelines_that_were_shown_are_recorded(queue: Queue, store: Store) -> None:
    start(queue, store, 3)
    assert given(queue, "ann").guidelines is None
    (before,) = send(queue, "ann", given(queue, "ann"))
    store.add_guidelines("First.", "root")
    task = given(queue, "ann")
    store.add_guidelines("Second.", "root")
    assert send(queue, "ann", task)[0].guidelines == task.guidelines == 1, "what was on the page when it was sent"
    again = given(queue, "ann")
    store.add_guidelines("Third.", "root")
    assert (again.guidelines, given(queue, "ann").guidelines) == (2, 3), "a reload shows the newest"
    assert send(queue, "ann", again)[0].guidelines == 3
    assert before.guidelines is None
    assert [one.guidelines for one in store.judgements()] == [None, 1, 3]


# Leases


def test_a_lease_that_runs_out_goes_to_somebody_else(queue: Queue, store: Store, clock: Clock) -> None:
    start(queue, store, 1, lease_seconds=60)
    task = given(queue, "ann")
    clock.add(seconds=59)
    assert queue.next("bob") is None
    assert queue.why_nothing("bob") == "all judged"
    clock.add(seconds=1)
    assert given(queue, "bob").prompt == task.prompt
    assert queue.next("ann") is None
    check_counts(store)


def test_a_lease_that_ran_out_is_renewed_if_nobody_took_it(queue: Queue, store: Store, clock: Clock) -> None:
    start(queue, store, 2, lease_seconds=60)
    task = given(queue, "ann")
    queue.save_draft("ann", task.id, {"reason": "half a thought"})
    clock.add(hours=9)
    back = given(queue, "ann")
    assert (back.id, back.draft) == (task.id, {"reason": "half a thought"})
    assert given(queue, "bob").prompt != task.prompt
    check_counts(store)


def test_what_was_left_lying_comes_back_with_its_draft(queue: Queue, store: Store, clock: Clock) -> None:
    items = start(queue, store, 1, lease_seconds=60, overlap=2)
    task = given(queue, "ann")
    queue.save_draft("ann", task.id, {"reason": "half a thought"})
    clock.add(hours=9)
    assert given(queue, "bob").prompt == task.prompt  # ends Ann's lease; there is one more place
    more = [replace(item, priority=9.0) for item in fill(store, 3, first=1)]
    queue.add_items("a", more)
    back = given(queue, "ann")
    assert (back.id, back.draft, back.number) == (task.id, {"reason": "half a thought"}, 1)
    assert items[0].prompt_id == back.prompt.id
    check_counts(store)


def test_a_late_send_counts(queue: Queue, store: Store, clock: Clock) -> None:
    start(queue, store, 1, lease_seconds=60)
    late = given(queue, "ann")
    clock.add(seconds=61)
    assert queue.next("bob") is not None
    assert len(send(queue, "ann", late)) == 1
    assert len(send(queue, "bob", given(queue, "bob"))) == 1
    assert store.counts().judgements == 2
    assert queue.batches()[0].done == 2
    check_counts(store)


def test_after_a_late_send_nobody_else_is_asked(queue: Queue, store: Store, clock: Clock) -> None:
    start(queue, store, 1, lease_seconds=60)
    late = given(queue, "ann")
    clock.add(seconds=61)
    other = given(queue, "bob")
    send(queue, "ann", late)
    queue.skip("bob", other.id)
    assert queue.next("eve") is None, "the one judgement that was wanted is there"
    check_counts(store)


def test_a_late_send_of_what_nobody_took(queue: Queue, store: Store, clock: Clock) -> None:
    start(queue, store, 2, lease_seconds=60)
    late = given(queue, "ann")
    clock.add(seconds=61)
    queue.skip("bob", given(queue, "bob").id)
    send(queue, "ann", late)
    assert len(judge_all(queue, "eve")) == 1
    check_counts(store)


# Drafts


def test_a_draft_is_kept_and_renews_the_lease(queue: Queue, store: Store, clock: Clock) -> None:
    start(queue, store, 1, lease_seconds=60)
    task = given(queue, "ann")
    draft = {"ranks": [2, 1], "reason": "because \0 \u202e", "deep": {"a": [None, True, 0.1]}}
    clock.add(seconds=50)
    queue.save_draft("ann", task.id, draft)
    clock.add(seconds=50)
    assert queue.next("bob") is None, "whoever writes is still at it"
    assert given(queue, "ann").draft == draft
    send(queue, "ann", task)
    with pytest.raises(ConflictError, match="finished"):
        queue.save_draft("ann", task.id, {})
    assert queue.task("ann", task.id).draft is None


# Speed

BIG = {"items", "tasks", "judgements", "prompts", "completions", "demonstrations"}


def test_no_statement_reads_a_whole_table(tmp_path: Any, empty_sqlite: Any) -> None:
    """As SQLite plans them: an index serves everywhere but in what is short by nature."""
    seen: list[tuple[str, Any]] = []
    with Store.open(shutil.copy(empty_sqlite, tmp_path)) as store:
        queue = Queue(store)
        queue.open_batch("a", gold_share=0.5, target=9)
        queue.open_batch("b")
        items = fill(store, 6)
        queue.add_items("a", [*items[:3], *(replace(item, gold=(1, 2)) for item in items[3:])])
        queue.add_items("b", items[:2])

        def note(_db: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
            seen.append((statement, parameters))

        sa.event.listen(store.database.engine, "before_cursor_execute", note)
        for name in ("ann", "bob"):
            task = given(queue, name)
            queue.save_draft(name, task.id, {})
            queue.progress(name)
            queue.why_nothing(name)
            send(queue, name, task, demonstration=(0, "Better."))
            queue.undo(name)
            queue.skip(name, task.id)
            given(queue, name)
        sa.event.remove(store.database.engine, "before_cursor_execute", note)
        with store.database.reading() as db:
            for statement, parameters in seen:
                if statement.split()[0] in ("SELECT", "UPDATE"):
                    plan = [row[3] for row in db.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
                    slow = [step for step in plan if step.startswith("SCAN") and step.split()[1] in BIG]
                    assert not [step for step in slow if "tasks_leased" not in step], f"{statement}\n{plan}"
                    if "items.place" in statement and "ORDER BY" in statement:
                        assert any("items_open" in step for step in plan), plan
                        assert not any("ORDER BY" in step for step in plan), plan


def test_few_statements(queue: Queue, store: Store) -> None:
    start(queue, store, 5)
    judge_all(queue, "ann", 1)
    counts = {}
    for name, call in (
        ("next", lambda: queue.next("ann")),
        ("submit", lambda: send(queue, "ann", given(queue, "ann"))),
        ("undo", lambda: queue.undo("ann")),
        ("progress", lambda: queue.progress("ann")),
    ):
        seen: list[str] = []
        sa.event.listen(store.database.engine, "before_cursor_execute", lambda *a, seen=seen: seen.append(a[2]))
        call()
        counts[name] = len(seen)
    assert counts["next"] <= 15
    assert counts["submit"] <= 11 + 7, "with the asking for what is held"
    assert counts["undo"] <= 15
    assert counts["progress"] <= 9
