"""What a send, a skip and an undo do, on both databases."""

import shutil
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given as given_
from hypothesis import strategies as st
from tests.feedback.queues import Clock, check_counts, fill, given, send, start

from prefloop.feedback.assignment import Queue
from prefloop.feedback.records import Completion, Demonstration
from prefloop.feedback.store import Store
from prefloop.feedback.tasks import ConflictError, Submission, Verdict

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
