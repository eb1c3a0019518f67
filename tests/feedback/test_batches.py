"""Batches: what they are told, targets, closing, and what is left of them for somebody; on both databases."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from tests.feedback.queues import Clock, check_counts, fill, given, judge_all, prompts_of, send, start

from prefloop.feedback import progress
from prefloop.feedback.assignment import Queue
from prefloop.feedback.store import Store
from prefloop.feedback.tasks import Task

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
    monkeypatch.setattr(progress, "COUNTED", 7)
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
