"""The queue's rules, one by one, on both databases: who is asked what, what a send, a skip and an undo do."""

import shutil
from collections import Counter
from dataclasses import asdict, replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given as given_
from hypothesis import strategies as st
from scipy.stats import binomtest, mannwhitneyu
from tests.feedback.queues import Clock, check_counts, fill, given, judge_all, prompts_of, send

from prefloop.feedback import assignment
from prefloop.feedback.assignment import Queue
from prefloop.feedback.records import Completion, Demonstration
from prefloop.feedback.store import Store
from prefloop.feedback.tables import ITEMS, TASKS
from prefloop.feedback.tasks import ConflictError, Item, Submission, Task, Verdict


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Queue:
    monkeypatch.setattr(assignment.secrets, "token_hex", _counted())  # what is drawn is the same on every run
    return Queue(store, clock)


def _counted() -> Any:
    made = iter(range(10**9))
    return lambda size: f"{next(made):0{2 * size}x}"


def start(queue: Queue, store: Store, items: int, **settings: Any) -> list[Item]:
    made = fill(store, items)
    queue.open_batch("a", **{"control_share": 0.0, **settings})
    assert queue.add_items("a", made) == items
    return made


# Batches and items


def test_a_batch_says_what_it_is_told(queue: Queue, clock: Clock) -> None:
    made = queue.open_batch("b", criteria=("help", "harm"), overlap=3, target=9, gold_share=0.1, lease_seconds=60)
    assert made.criteria == ("help", "harm")
    assert (made.overlap, made.target, made.closed, made.done, made.created) == (3, 9, False, 0, clock.now)
    queue.open_batch("a")
    assert [batch.name for batch in queue.batches()] == ["b", "a"]
    again = queue.open_batch("b", overlap=2)
    assert (again.overlap, again.target, again.criteria, again.created) == (2, None, ("overall",), made.created)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"criteria": ()},
        {"criteria": ("a", "a")},
        {"criteria": ("",)},
        {"overlap": 0},
        {"target": 0},
        {"lease_seconds": 0},
        {"gold_share": 1.0},
        {"gold_share": -0.1},
        {"control_share": float("nan")},
    ],
)
def test_batches_that_make_no_sense(queue: Queue, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="batch"):
        queue.open_batch(**{"name": "b", **wrong})
    assert queue.batches() == []


def test_items_are_added_once(queue: Queue, store: Store) -> None:
    items = start(queue, store, 3)
    turned = replace(items[0], completions=items[0].completions[::-1], priority=9.0)
    assert queue.add_items("a", [turned, *items, *fill(store, 1, first=3)]) == 1
    assert len(judge_all(queue, "ann")) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"completions": ("x" * 32, "y" * 32)}, "is not in the store"),
        ({"prompt_id": "z" * 32}, "answers prompt"),
        ({"completions": ()}, "two or more different completions; got 0"),
        ({"gold": (1,)}, "gold ranks are dense from 1"),
        ({"gold": (1, 3)}, "gold ranks are dense from 1"),
        ({"priority": float("nan")}, "not a finite number"),
    ],
)
def test_items_that_make_no_sense(queue: Queue, store: Store, change: dict[str, Any], message: str) -> None:
    items = fill(store, 3)
    queue.open_batch("a")
    with pytest.raises(ValueError, match=message):
        queue.add_items("a", [*items[:2], replace(items[2], **change)])
    assert judge_all(queue, "ann") == [], "all or nothing"
    with pytest.raises(LookupError, match="no batch 'b'"):
        queue.add_items("b", items)
    with pytest.raises(LookupError, match="no batch 'b'"):
        queue.close_batch("b")


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


# Targets, closing, opening anew


def test_a_target_pauses_and_leases_count(queue: Queue, store: Store) -> None:
    start(queue, store, 10, target=3)
    assert queue.progress("eve").remaining == 3
    tasks = {name: given(queue, name) for name in ("ann", "bob", "cy")}
    assert queue.next("eve") is None
    assert queue.why_nothing("eve") == "enough collected"
    assert queue.progress("eve").remaining == 0
    queue.skip("ann", tasks["ann"].id)
    assert given(queue, "eve").id
    for name in ("bob", "cy"):
        send(queue, name, tasks[name])
    send(queue, "eve", given(queue, "eve"))
    assert queue.next("ann") is None
    progress = queue.progress("ann")
    assert (progress.collected, progress.target, progress.remaining) == (3, 3, 0)
    assert queue.undo("bob") is not None
    assert queue.next("ann") is None, "Bob is at it again"
    queue.open_batch("a", target=4, control_share=0.0)
    assert queue.next("ann") is not None
    check_counts(store)


def test_a_closed_batch(queue: Queue, store: Store) -> None:
    start(queue, store, 3)
    assert queue.why_nothing("ann") == ""
    task = given(queue, "ann")
    queue.close_batch("a")
    assert queue.next("bob") is None
    assert queue.why_nothing("bob") == "paused"
    assert queue.progress("bob").remaining == 0
    send(queue, "ann", task)
    assert queue.next("ann") is None
    assert queue.batches()[0].done == 1
    back = queue.undo("ann")
    assert back is not None
    send(queue, "ann", back)
    queue.open_batch("a", control_share=0.0)
    assert len(judge_all(queue, "bob")) == 2


def test_nothing_to_judge(queue: Queue) -> None:
    assert queue.next("ann") is None
    assert queue.why_nothing("ann") == "nothing to judge"
    progress = queue.progress("ann")
    assert (progress.done, progress.remaining, progress.seconds_per_item, progress.target) == (0, 0, None, None)


@pytest.mark.parametrize("between", [1, 3])
def test_opened_anew_with_another_overlap(queue: Queue, store: Store, between: int) -> None:
    items = start(queue, store, 4, overlap=2)
    judge_all(queue, "ann")
    held = given(queue, "bob")
    queue.open_batch("a", overlap=between, control_share=0.0)
    check_counts(store)
    queue.open_batch("a", overlap=3, control_share=0.0)
    check_counts(store)
    send(queue, "bob", held)
    for name in ("bob", "cy", "dee"):
        judge_all(queue, name)
    counts = Counter(judgement.prompt_id for judgement in store.judgements())
    assert counts == dict.fromkeys(prompts_of(items), 3)


def test_a_smaller_overlap_asks_no_more(queue: Queue, store: Store) -> None:
    start(queue, store, 4, overlap=3)
    judge_all(queue, "ann")
    judge_all(queue, "bob", 2)
    queue.open_batch("a", overlap=1, control_share=0.0)
    assert queue.next("bob") is queue.next("cy") is None
    queue.open_batch("a", overlap=2, control_share=0.0)
    assert len(judge_all(queue, "cy")) == 2
    check_counts(store)


# Progress


def work(queue: Queue, name: str) -> list[tuple[int, Task]]:
    """What this person is told is left before each task, and the task."""
    seen = []
    while True:
        left = queue.progress(name).remaining
        if (task := queue.next(name)) is None:
            assert left == 0
            return seen
        assert queue.progress(name).remaining == left, "the one at hand is still to be done"
        seen.append((left, task))
        send(queue, name, task)


@pytest.mark.parametrize("settings", [{}, {"overlap": 2}, {"target": 25}, {"control_share": 0.3}])
@pytest.mark.parametrize("name", ["ann", "bob", "eve"])
def test_remaining_counts_down_by_one_each_time(
    queue: Queue, store: Store, settings: dict[str, Any], name: str
) -> None:
    gold = [replace(item, gold=(1, 2)) for item in fill(store, 8, first=30)]
    start(queue, store, 30, gold_share=0.25, **settings)
    queue.add_items("a", gold)
    queue.open_batch("b")
    queue.add_items("b", fill(store, 5, first=100))
    lefts = [left for left, _ in work(queue, name)]
    assert lefts == list(range(len(lefts), 0, -1))
    wanted = 5 + settings.get("target", 30)
    assert wanted < len(lefts) <= wanted + 8
    check_counts(store)


def test_remaining_work_is_counted_up_to_a_limit(queue: Queue, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment, "COUNTED", 7)
    start(queue, store, 20, target=9)
    assert (queue.progress("ann").remaining, queue.progress("ann").remaining_at_least) == (7, True)
    queue.open_batch("a", target=5, control_share=0.0)
    assert (queue.progress("ann").remaining, queue.progress("ann").remaining_at_least) == (5, False)
    judge_all(queue, "ann", 4)
    assert (queue.progress("ann").remaining, queue.progress("ann").remaining_at_least) == (1, False)


def test_progress_and_speed(queue: Queue, store: Store) -> None:
    start(queue, store, 30)
    for seconds in [100.0, *range(20)]:
        send(queue, "ann", given(queue, "ann"), seconds=float(seconds))
    queue.skip("ann", given(queue, "ann").id)
    send(queue, "bob", given(queue, "bob"), seconds=None)
    progress = queue.progress("ann")
    assert (progress.done, progress.skipped, progress.remaining) == (21, 1, 8)
    assert progress.seconds_per_item == 9.5, "of the last twenty"
    assert (progress.collected, progress.target) == (22, None)
    assert queue.progress("bob").seconds_per_item is None


# Gold


def with_gold(queue: Queue, store: Store, items: int, gold: int, **settings: Any) -> set[str]:
    """A batch ``a`` with gold items; their prompts."""
    start(queue, store, items, **settings)
    known = [replace(item, gold=(1, 2), priority=99.0) for item in fill(store, gold, first=items)]
    queue.add_items("a", known)
    return set(prompts_of(known))


@pytest.mark.parametrize("name", ["ann", "bob", "eve"])
def test_gold_comes_at_its_share(queue: Queue, store: Store, name: str) -> None:
    gold = with_gold(queue, store, 160, 60, gold_share=0.2, overlap=2)
    done = [prompt in gold for prompt in judge_all(queue, name)]
    assert binomtest(sum(done), len(done), 0.2).pvalue > 0.01
    assert not done[-1], "gold alone at the end would be known"
    assert len({b - a for a, b in pairwise(i for i, is_gold in enumerate(done) if is_gold)}) > 3, "no rhythm"
    assert len(done) == 160 + sum(done)


def test_gold_is_for_everybody(queue: Queue, store: Store) -> None:
    gold = with_gold(queue, store, 60, 2, gold_share=0.5, overlap=9)
    for name in "abcd":
        assert gold <= set(judge_all(queue, name)), "beyond the overlap, and each of them once"
    check_counts(store)


def test_gold_comes_at_other_places_in_another_batch(queue: Queue, store: Store) -> None:
    """The places are drawn with a number that nobody is told, so that knowing this program tells nothing."""
    places = []
    for name in ("a", "b"):
        known = [replace(item, gold=(1, 2)) for item in fill(store, 40, first=1000 * ord(name))]
        queue.open_batch(name, gold_share=0.5, control_share=0.0)
        queue.add_items(name, [*known, *fill(store, 40, first=1000 * ord(name) + 500)])
        gold = set(prompts_of(known))
        places.append([prompt in gold for prompt in judge_all(queue, f"ann {name}")])
        queue.close_batch(name)
    again = Queue(Store(queue._database)).open_batch("c")
    assert places[0][:40] != places[1][:40]
    assert not hasattr(again, "salt")


def test_nothing_that_a_person_is_told_tells_gold(queue: Queue, store: Store, clock: Clock) -> None:
    """The same work without gold looks the same: identifiers, text, moments and names aside."""
    gold = with_gold(queue, store, 20, 40, gold_share=0.5, target=15)
    told: dict[bool, set[str]] = {True: set(), False: set()}
    sent = 0
    while (task := queue.next("ann")) is not None:
        before = queue.progress("ann")
        assert (before.remaining, before.remaining_at_least) == (max(1, 30 - sent), False)
        assert before.collected == before.done == sent
        if sent < 25:  # a skip gives the task back, whatever it is
            queue.skip("ann", task.id)
            skipped = queue.progress("ann")
            assert skipped.remaining == 30 - sent
            assert queue.undo("ann") is not None
            assert queue.progress("ann") == before
        (said,) = send(queue, "ann", task)
        sent += 1
        said_ = said.model_dump(include={"annotator", "source", "criterion", "flags", "seconds", "guidelines"})
        shape = asdict(task) | {"prompt": 0, "shown": len(task.shown), "id": len(task.id), "number": 0}
        shape["expires"] = round((task.expires - clock.now).total_seconds())
        told[task.prompt.id in gold].add(str((shape, said_)))
    assert told[True] == told[False]
    assert len(told[True]) == 1
    after = queue.progress("ann")
    assert (after.remaining, after.collected) == (0, sent)
    assert after.target == 30, "gold is in what is collected, so it is in what is wanted"


def test_the_right_answers_in_the_order_shown(queue: Queue, store: Store) -> None:
    gold = with_gold(queue, store, 20, 10, gold_share=0.5, criteria=("help", "harm"))
    best = {item.prompt_id: item.completions[0] for item in fill(store, 10, first=20)}
    judge_all(queue, "ann")
    queue.undo("ann")
    stands = {one.id: one for one in store.judgements(criterion="help")}
    right = queue.gold_ranks()
    assert right.keys() == {id for id, one in stands.items() if one.prompt_id in gold}
    for id, ranks in right.items():
        assert stands[id].shown[ranks.index(1)] == best[stands[id].prompt_id]


# The control group


def arms(store: Store) -> dict[str, str]:
    with store.database.reading() as db:
        joined = sa.select(ITEMS.c.prompt_id, TASKS.c.arm).select_from(TASKS.join(ITEMS, TASKS.c.item == ITEMS.c.seq))
        return {row[0]: row[1] for row in db.execute(joined.order_by(TASKS.c.number))}


@pytest.mark.parametrize("seed", range(2))
def test_the_control_group_is_a_random_sample(queue: Queue, store: Store, seed: int) -> None:
    """At any time, whatever the priorities: a share of the places, and items like those of the whole batch."""
    for i in range(seed):
        queue.open_batch(f"other {i}")  # another seed: another salt
    items = [replace(item, priority=float(i)) for i, item in enumerate(fill(store, 500))]
    queue.open_batch("a", control_share=0.25)
    queue.add_items("a", items)
    judge_all(queue, f"ann {seed}", 150)
    found = arms(store)
    control = [i for i, item in enumerate(items) if found.get(item.prompt_id) == "control"]
    assert binomtest(len(control), 150, 0.25).pvalue > 0.005
    assert mannwhitneyu(control, range(500)).pvalue > 0.005, "not by priority"
    chosen = [i for i, item in enumerate(items) if found.get(item.prompt_id) == "priority"]
    assert len(chosen) + len(control) == 150
    assert min(chosen) > 500 - 150 / 0.75 * 1.25, "the others are the highest"
    turns = [arm == "control" for arm in found.values()]
    assert any(turns[:20])
    assert any(turns[-20:])


def test_when_one_part_is_used_up_the_other_serves(queue: Queue, store: Store) -> None:
    items = fill(store, 40)
    queue.open_batch("a", control_share=0.5)
    queue.add_items("a", items)
    queue.open_batch("a", control_share=0.0)
    assert sorted(judge_all(queue, "ann")) == sorted(prompts_of(items))
    found = list(arms(store).values())
    assert found == sorted(found, reverse=True), "the control group comes last when it has no share"


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


def test_how_much_of_a_batch_is_left(queue: Queue, store: Store, clock: Clock) -> None:
    start(queue, store, 2, overlap=2, lease_seconds=60)
    assert queue.left("a") == 4
    task = given(queue, "ann")
    assert queue.left("a") == 4, "one of them under way"
    send(queue, "ann", task)
    assert queue.left("a") == 3
    queue.set_target("a", 1)
    assert queue.next("bob") is None
    queue.set_target("a", 9)
    judge_all(queue, "ann")
    judge_all(queue, "bob")
    assert queue.left("a") == 0
    for change in (lambda: queue.set_target("b", 1), lambda: queue.left("b")):
        with pytest.raises(LookupError, match="no batch 'b'"):
            change()
