"""The queue's rules, one by one, on both databases: who is asked what, what a send, a skip and an undo do."""

import shutil
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given as given_
from hypothesis import strategies as st
from scipy.stats import binomtest
from tests.feedback.queues import Clock, check_counts, fill, given, judge_all, prompts_of, send, start

from prefloop.feedback.assignment import Queue
from prefloop.feedback.records import Completion, Demonstration
from prefloop.feedback.store import Store
from prefloop.feedback.tasks import ConflictError, Submission, Verdict

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


# Sending


def test_a_send_says_everything(queue: Queue, store: Store, clock: Clock) -> None:
    start(queue, store, 1, criteria=("help", "harm"))
    task = given(queue, "ann")
    verdicts = (Verdict("help", (2, 1), strength=4), Verdict("harm", (1, 1)))
    said = queue.submit("ann", task.id, Submission("s", verdicts, ("unsafe",), "because", 3.5, (1, "Better.")))
    assert list(store.judgements()) == said
    assert [(one.criterion, one.ranks, one.strength) for one in said] == [("help", (2, 1), 4), ("harm", (1, 1), None)]
    for one in said:
        assert (one.annotator, one.source, one.prompt_id) == ("ann", "human", task.prompt.id)
        assert one.shown == tuple(answer.id for answer in task.shown)
        assert (one.flags, one.reason, one.seconds) == (("unsafe",), "because", 3.5)
        assert timedelta(0) <= clock.now - one.created < timedelta(seconds=1)
    (better,) = store.demonstrations()
    assert (better.text, better.origin, better.judgement_id) == ("Better.", "person:ann", said[0].id)
    assert better.metadata == {"edited": task.shown[1].id}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"id": ""}, "needs an id"),
        ({"verdicts": ()}, "one verdict by each criterion"),
        ({"verdicts": (Verdict("overall", (1, 2)),) * 2}, "one verdict by each criterion"),
        ({"verdicts": (Verdict("other", (1, 2)),)}, "one verdict by each criterion"),
        ({"verdicts": (Verdict("overall", (1, 2, 3)),)}, "2 answers were shown; got 3 ranks"),
        ({"verdicts": (Verdict("overall", (1, 3)),)}, "dense"),
        ({"verdicts": (Verdict("overall", (1, 2), 5),)}, "strength is 1 to 4"),
        ({"flags": ("odd",)}, "unknown flags"),
        ({"seconds": -1.0}, "0 or more"),
        ({"seconds": float("nan")}, "0 or more"),
        ({"reason": "\ud800"}, "lone surrogate"),
        ({"demonstration": (2, "x")}, "the answers are 0 to 1"),
        ({"demonstration": (-1, "x")}, "the answers are 0 to 1"),
        ({"demonstration": (None, " ")}, "empty"),
    ],
)
def test_sends_that_make_no_sense(queue: Queue, store: Store, wrong: dict[str, Any], message: str) -> None:
    start(queue, store, 1)
    task = given(queue, "ann")
    with pytest.raises(ValueError, match=message):
        send(queue, "ann", task, **wrong)
    assert store.counts().judgements == store.counts().demonstrations == 0
    assert given(queue, "ann").id == task.id
    check_counts(store)


def test_the_same_send_again_changes_nothing(queue: Queue, store: Store) -> None:
    start(queue, store, 2, criteria=("help", "harm"))
    task = given(queue, "ann")
    first = send(queue, "ann", task, id="s", demonstration=(None, "Better."))
    assert send(queue, "ann", task, id="s", demonstration=(None, "Better.")) == first
    assert (store.counts().judgements, store.counts().demonstrations) == (2, 1)
    with pytest.raises(ConflictError, match="judged already; undo that first"):
        send(queue, "ann", task, id="another tab")
    with pytest.raises(ConflictError, match="judged already"):
        queue.skip("ann", task.id)
    check_counts(store)


def test_a_send_repeated_after_the_batch_was_opened_anew(queue: Queue, store: Store) -> None:
    start(queue, store, 1)
    task = given(queue, "ann")
    first = send(queue, "ann", task, id="s")
    queue.open_batch("a", criteria=("other",))
    assert send(queue, "ann", task, id="s") == first


def test_sends_of_two_people_under_one_id(queue: Queue, store: Store) -> None:
    start(queue, store, 1, overlap=2)
    for name in ("ann", "bob"):
        send(queue, name, given(queue, name), id="1")
    assert store.counts().judgements == 2


# Skip and undo


def test_a_skipped_item_goes_to_others(queue: Queue, store: Store) -> None:
    start(queue, store, 1)
    task = given(queue, "ann")
    queue.skip("ann", task.id)
    queue.skip("ann", task.id)
    assert queue.next("ann") is None
    assert queue.progress("ann").skipped == 1
    assert queue.skips() == {"ann": 1}
    assert given(queue, "bob").prompt == task.prompt
    check_counts(store)


def test_undo_of_a_skip(queue: Queue, store: Store) -> None:
    start(queue, store, 3)
    task = given(queue, "ann")
    queue.skip("ann", task.id)
    held = given(queue, "ann")
    back = queue.undo("ann")
    assert back is not None
    assert back.id == task.id
    assert given(queue, "ann").id == task.id
    send(queue, "ann", task)
    assert given(queue, "ann").id == held.id, "what was held before is still there"
    assert store.counts().judgements == 1
    check_counts(store)


def test_undo_of_a_skip_that_somebody_else_has_got(queue: Queue, store: Store) -> None:
    start(queue, store, 1)
    queue.skip("ann", given(queue, "ann").id)
    other = given(queue, "bob")
    assert queue.undo("ann") is not None
    queue.skip("bob", other.id)
    assert queue.next("eve") is None, "Ann has it"
    check_counts(store)


def test_undo_of_a_send(queue: Queue, store: Store, clock: Clock) -> None:
    start(queue, store, 2, criteria=("help", "harm"))
    task = given(queue, "ann")
    verdicts = (Verdict("help", (2, 1), 3), Verdict("harm", (1, 1)))
    fields = {"flags": ("unsafe",), "reason": "because", "demonstration": (1, "Better.")}
    said = send(queue, "ann", task, id="s", verdicts=verdicts, **fields)
    back = queue.undo("ann")
    assert back is not None
    assert (back.id, back.shown, back.number) == (task.id, task.shown, task.number)
    assert back.draft == {
        "verdicts": [{"criterion": v.criterion, "ranks": list(v.ranks), "strength": v.strength} for v in verdicts],
        "flags": ["unsafe"],
        "reason": "because",
        "demonstration": {"answer": 1, "text": "Better."},
        "seconds": 2.0,
    }
    assert list(store.judgements()) == list(store.demonstrations()) == []
    assert queue.batches()[0].done == 0
    assert store.counts().judgements == 4, "nothing is gone: two judgements, two retractions"
    with pytest.raises(ConflictError, match="was undone; send it under a new id"):
        send(queue, "ann", task, id="s", verdicts=verdicts)
    resent = send(queue, "ann", task, id="s2", **{**fields, "demonstration": (None, "Best.")})
    assert list(store.judgements()) == resent
    assert [one.text for one in store.demonstrations()] == ["Best."]
    events = list(store.judgements(effective=False))
    assert events[:2] == said
    assert [one.supersedes for one in events[2:]] == [one.id for one in (*said, *events[2:4])]
    check_counts(store)


def test_several_undos_go_back_one_by_one(queue: Queue, store: Store) -> None:
    start(queue, store, 4)
    tasks = []
    for i in range(3):
        task = given(queue, "ann")
        tasks.append(task.id)
        if i == 1:
            queue.skip("ann", task.id)
        else:
            send(queue, "ann", task)
    assert [back.id for _ in range(3) if (back := queue.undo("ann"))] == tasks[::-1]
    assert queue.undo("ann") is None
    assert queue.undo("bob") is None
    assert list(store.judgements()) == []
    order = []
    while (task := queue.next("ann")) is not None:
        order.append(task.id)
        send(queue, "ann", task)
    assert order[:3] == tasks, "the one that was undone last comes first"
    assert len(list(store.judgements())) == 4
    check_counts(store)


def test_undo_resend_undo(queue: Queue, store: Store) -> None:
    start(queue, store, 1)
    task = given(queue, "ann")
    for i in range(4):
        said = send(queue, "ann", task, id=str(i))
        assert list(store.judgements()) == said
        assert queue.undo("ann") is not None
        assert list(store.judgements()) == []
    queue.skip("ann", task.id)
    assert queue.undo("ann") is not None
    send(queue, "ann", task)
    assert len(list(store.judgements())) == 1
    assert store.counts().judgements == 9
    check_counts(store)


# K answers, ties, flags: what is sent is what is stored


@given_(
    values=st.lists(st.integers(1, 4), min_size=3, max_size=3), flags=st.sets(st.sampled_from(["unsafe", "all bad"]))
)
def test_any_ranking_is_stored_as_it_was_sent(
    values: list[int], flags: set[str], empty_sqlite: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = shutil.copy(empty_sqlite, tmp_path_factory.mktemp("ranking") / "feedback.db")
    ranks = tuple(sorted(set(values)).index(value) + 1 for value in values)
    with Store.open(path) as store:
        queue = Queue(store)
        queue.open_batch("a")
        queue.add_items("a", fill(store, 1, answers=3))
        task = given(queue, "ann")
        submission = Submission("s", (Verdict("overall", ranks),), tuple(sorted(flags)))
        queue.submit("ann", task.id, submission)
        (stored,) = store.judgements()
        assert (stored.ranks, set(stored.flags)) == (ranks, flags)
        assert {stored.shown[i]: ranks[i] for i in range(3)} == {task.shown[i].id: ranks[i] for i in range(3)}
        queue.undo("ann")
        back = given(queue, "ann").draft
        assert back is not None
        assert back["verdicts"][0]["ranks"] == list(ranks)


def test_a_demonstration_that_is_there_already(queue: Queue, store: Store) -> None:
    items = start(queue, store, 1)
    store.add([Demonstration(prompt_id=items[0].prompt_id, text="Better.", origin="person:ann")])
    send(queue, "ann", given(queue, "ann"), demonstration=(None, "Better."))
    queue.undo("ann")
    assert [one.judgement_id for one in store.demonstrations()] == [None], "only what came with the send is undone"
    assert isinstance(next(store.completions()), Completion)


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
