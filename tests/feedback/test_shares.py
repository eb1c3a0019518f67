"""Gold items and the control group: at their shares, and nothing tells them from others; on both databases."""

from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import pytest
import sqlalchemy as sa
from scipy.stats import binomtest, mannwhitneyu
from tests.feedback.queues import Clock, check_counts, fill, judge_all, prompts_of, send, start

from prefloop.feedback.assignment import Queue
from prefloop.feedback.store import Store
from prefloop.feedback.tables import ITEMS, TASKS

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
