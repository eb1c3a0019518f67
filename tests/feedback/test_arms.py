"""The control group beside what was chosen by priority: from the queue to the figures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.feedback.queues import Clock, fill, send

from prefloop.feedback.assignment import Queue
from prefloop.feedback.intervals import Estimate, difference, wilson
from prefloop.feedback.statistics import statistics
from prefloop.feedback.store import Store
from prefloop.feedback.tables import TASKS
from prefloop.feedback.tasks import Verdict


def test_the_difference_of_two_shares_is_newcombes() -> None:
    found = difference(wilson(56, 70), wilson(48, 80))  # Newcombe 1998, table II, (a), method 10
    assert [round(found[key], 4) for key in ("value", "low", "high")] == [0.2, 0.0524, 0.3339]
    assert found["n"] == 150
    lopsided = Estimate(value=0.5, low=0.5, high=0.9, n=1)
    zero = Estimate(value=0.0, low=0.0, high=0.0, n=1)
    assert difference(lopsided, zero)["high"] == pytest.approx(0.9)
    assert difference(zero, lopsided)["low"] == pytest.approx(-0.9)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_interval_holds_no_difference_in_19_of_20(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shares = rng.binomial([40, 300], 0.2, (400, 2))
    found = [difference(wilson(a, 40), wilson(b, 300)) for a, b in shares.tolist()]
    assert 0.92 <= np.mean([one["low"] <= 0 <= one["high"] for one in found]) <= 0.98


def test_arms_that_differ_are_seen_to(store: Store) -> None:
    """People tie on whatever has priority, and agree on the rest."""
    queue = Queue(store, Clock())
    queue.open_batch("batch", criteria=("overall", "tone"), overlap=2, control_share=0.5, gold_share=0.2)
    items = [replace(item, priority=float(k + 1)) for k, item in enumerate(fill(store, 60))]
    items += [replace(item, gold=(1, 2)) for item in fill(store, 10, first=60)]
    queue.add_items("batch", items)
    queue.open_batch("alone", control_share=0.0)
    queue.add_items("alone", fill(store, 5, first=70))
    other = {one.prompt_id for one in fill(store, 5, first=70)}
    control: set[str] = set()
    for who in ("ana", "bo"):
        while (task := queue.next(who)) is not None:
            arm = arm_of(store, task.id)
            control |= {task.prompt.id} if arm == "control" else set()
            ranks = (
                (1, 1)
                if arm == "priority" and task.batch == "batch"
                else (1, 2)
                if task.shown[0].text == "Answer 0"
                else (2, 1)
            )
            send(queue, who, task, verdicts=tuple(Verdict(one, ranks) for one in task.criteria))
    arms = queue.arms()
    assert set(arms.values()) == {"control", "priority"}
    by_id = {one.id: one for one in store.judgements()}
    assert not any(by_id[key].prompt_id in other for key in arms), "a batch of one arm has nothing to compare"
    assert {by_id[key].prompt_id for key, arm in arms.items() if arm == "control"} == control
    for one in statistics(store, arms=arms).criteria:
        assert one.arms is not None
        assert one.arms.control.judgements == len(control) * 2
        assert one.arms.priority.judgements == (60 - len(control)) * 2
        assert (one.arms.priority.ties["value"], one.arms.control.ties["value"]) == (1.0, 0.0)
        assert one.arms.ties["value"] == 1.0
        assert one.arms.ties["low"] > 0.7
        assert one.arms.raw is not None
        assert one.arms.raw["low"] < 0 < one.arms.raw["high"], "all say the same in both"
    assert all(one.arms is None for one in statistics(store).criteria)


def arm_of(store: Store, id: str) -> str:
    with store.database.reading() as db:
        return str(db.execute(TASKS.select().where(TASKS.c.id == id)).mappings().one()["arm"])
