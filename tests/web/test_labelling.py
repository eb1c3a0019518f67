"""A labelling session over the API: what is asked, sent, undone; and what nobody may be able to tell."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.web.world import World, judgement

Json = dict[str, Any]


def ask(client: TestClient) -> Json | None:
    task: Json | None = client.post("/api/tasks/next").json()["task"]
    return task


def send(client: TestClient, task: Json, ranks: list[int] | None = None, **fields: Any) -> Any:
    return client.post(f"/api/tasks/{task['id']}/judgement", json=judgement(task, ranks, **fields))


def test_what_is_sent_is_what_is_stored(world: World) -> None:
    """By place: the ranks are those of the answers in the order in which this person saw them."""
    world.fill(1, answers=4, criteria=("helpful", "harmless"))
    ana = world.browser("ana")
    task = ask(ana)
    assert task is not None
    said = {
        "id": "1" * 32,
        "verdicts": [
            {"criterion": "helpful", "ranks": [2, 1, 3, 2], "strength": 3},
            {"criterion": "harmless", "ranks": [1, 1, 1, 1], "strength": None},
        ],
        "flags": ["unsafe", "all bad"],
        "reason": "Because.\u202e <script>alert(1)</script>",
        "seconds": 12.5,
        "demonstration": {"answer": 1, "text": "Better so."},
    }
    answer = ana.post(f"/api/tasks/{task['id']}/judgement", json=said)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"stored": 2}
    assert ana.get("/api/progress").json()["done"] == 1
    texts = {completion.id: completion.text for completion in world.store.completions()}
    for verdict, stored in zip(said["verdicts"], world.store.judgements(), strict=True):  # type: ignore[call-overload]
        assert [texts[key] for key in stored.shown] == [shown["text"] for shown in task["answers"]]
        assert (stored.criterion, list(stored.ranks)) == (verdict["criterion"], verdict["ranks"])
        assert (stored.strength, stored.annotator, stored.source) == (verdict["strength"], "ana", "human")
        assert (stored.flags, stored.reason, stored.seconds) == (("unsafe", "all bad"), said["reason"], 12.5)
    (demonstration,) = world.store.demonstrations()
    assert demonstration.text == "Better so."
    assert texts[demonstration.metadata["edited"]] == task["answers"][1]["text"]


def test_a_session_from_the_first_task_to_the_last(world: World) -> None:
    world.fill(3)
    ana = world.browser("ana")
    nothing = ana.post("/api/undo").json()
    assert nothing["task"] is None
    first = ask(ana)
    assert first is not None
    again = ask(ana)  # a reload, a second tab
    assert again is not None
    assert again.pop("expires") >= first.pop("expires")
    assert again == first
    assert (first["number"], first["draft"]) == (1, None)
    assert ana.put(f"/api/tasks/{first['id']}/draft", json={"draft": {"reason": "hm"}}).status_code == 204
    assert (ask(ana) or {})["draft"] == {"reason": "hm"}
    assert send(ana, first, [2, 1], reason="short").status_code == 200
    undone = ana.post("/api/undo").json()
    assert undone["task"]["id"] == first["id"]
    assert undone["task"]["draft"]["verdicts"] == [{"criterion": "overall", "ranks": [2, 1], "strength": 2}]
    assert undone["task"]["draft"]["reason"] == "short"
    assert undone["progress"]["done"] == 0
    assert list(world.store.judgements()) == []
    assert send(ana, first, [1, 1], id="another-id").status_code == 200
    second = ask(ana)
    assert second is not None
    assert second["number"] == 2
    assert ana.post(f"/api/tasks/{second['id']}/skip").status_code == 204
    third = ask(ana)
    assert third is not None
    send(ana, third)
    last = ana.post("/api/tasks/next").json()
    assert (last["task"], last["reason"]) == (None, "all judged")
    assert (last["progress"]["done"], last["progress"]["skipped"], last["progress"]["remaining"]) == (2, 1, 0)
    assert ana.get("/api/progress").json() == last["progress"]


def test_why_there_is_nothing(world: World) -> None:
    ana, boss = world.browser("ana"), world.browser("boss", "admin")

    def reason() -> str:
        return str(ana.post("/api/tasks/next").json()["reason"])

    assert reason() == "nothing to judge"
    world.fill(2, target=1)
    task = ask(ana)
    assert task is not None
    send(ana, task)
    assert reason() == "enough collected"
    boss.post("/api/batches/batch/close")
    assert reason() == "paused"


def test_what_contradicts_is_a_conflict_and_changes_nothing(world: World) -> None:
    world.fill(1)
    ana = world.browser("ana")
    task = ask(ana)
    assert task is not None
    send(ana, task, [1, 2])
    assert send(ana, task, [2, 1], id="another-id").status_code == 409
    assert ana.put(f"/api/tasks/{task['id']}/draft", json={"draft": {}}).status_code == 409
    assert ana.post(f"/api/tasks/{task['id']}/skip").status_code == 409
    assert [one.ranks for one in world.store.judgements()] == [(1, 2)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"verdicts": []},
        {"verdicts": [{"criterion": "overall", "ranks": [1, 3]}]},
        {"verdicts": [{"criterion": "overall", "ranks": [1, 2, 3]}]},
        {"verdicts": [{"criterion": "overall", "ranks": [0, 1]}]},
        {"verdicts": [{"criterion": "overall", "ranks": [1, 2], "strength": 5}]},
        {"verdicts": [{"criterion": "overall", "ranks": [True, 2]}]},
        {"verdicts": [{"criterion": "overall", "ranks": ["1", "2"]}]},
        {"verdicts": [{"criterion": "other", "ranks": [1, 2]}]},
        {"verdicts": [{"criterion": "overall", "ranks": [1, 2]}] * 2},
        {"flags": ["gold"]},
        {"flags": ["unsafe"] * 6},
        {"reason": "x" * 10_001},
        {"reason": "a\0b"},
        {"seconds": -1},
        {"id": "short"},
        {"id": "x" * 65},
        {"annotator": "bob"},
        {"demonstration": {"answer": 2, "text": "x"}},
        {"demonstration": {"answer": 0, "text": ""}},
        {"demonstration": {"answer": 0, "text": " "}},
    ],
    ids=lambda wrong: json.dumps(wrong)[:60],
)
def test_what_does_not_fit_is_refused(world: World, wrong: Json) -> None:
    world.fill(1)
    ana = world.browser("ana")
    task = ask(ana)
    assert task is not None
    answer = send(ana, task, **wrong)
    assert answer.status_code in (400, 422), answer.text
    assert "pydantic" not in answer.text
    assert "input_value" not in answer.text
    assert world.store.counts().judgements == 0


# Sent twice


def test_the_same_send_counts_once(world: World) -> None:
    world.fill(1)
    ana = world.browser("ana")
    task = ask(ana)
    assert task is not None
    first, second = send(ana, task), send(ana, task)
    assert (first.status_code, first.json()) == (second.status_code, second.json())
    assert world.store.counts().judgements == 1


def at_once(clients: list[TestClient], do: Callable[[TestClient], Any]) -> list[Any]:
    """What all of them do at the same moment."""
    gate = threading.Barrier(len(clients))

    def one(client: TestClient) -> Any:
        gate.wait()
        return do(client)

    with ThreadPoolExecutor(len(clients)) as pool:
        return list(pool.map(one, clients))


def test_the_same_send_at_the_same_moment_counts_once(world: World) -> None:
    world.fill(3, criteria=("helpful", "harmless"))
    clients = [world.browser("ana") for _ in range(8)]
    for done in range(1, 4):
        tasks = at_once(clients, ask)
        assert len({task["id"] for task in tasks}) == 1
        answers = at_once(clients, lambda client: send(client, tasks[0]))  # noqa: B023
        assert [answer.status_code for answer in answers] == [200] * 8
        assert {answer.json()["stored"] for answer in answers} == {2}
        assert world.store.counts().judgements == 2 * done


def test_different_sends_at_the_same_moment_one_counts(world: World) -> None:
    world.fill(1)
    clients = [world.browser("ana") for _ in range(8)]
    task = ask(clients[0])
    assert task is not None
    ids = {id(client): f"send-number-{place}" for place, client in enumerate(clients)}
    answers = at_once(clients, lambda client: send(client, task, id=ids[id(client)]))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7
    assert world.store.counts().judgements == 1


def test_annotators_at_the_same_moment_get_different_items(world: World) -> None:
    world.fill(8)
    clients = [world.browser(f"person {place}") for place in range(8)]
    tasks = at_once(clients, ask)
    assert len({task["messages"][0]["text"] for task in tasks}) == 8


# What nobody may be able to tell


def shape(value: Any) -> Any:
    """A value's kind, without what it says."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return type(value).__name__


def told(world: World, name: str) -> dict[bool, list[tuple[Json, Any]]]:
    """Every task that somebody gets, with its answer's headers, by whether it is a gold item."""
    gold = {f"batch question {number}" for number in range(0, 40, 2)}
    client, found = world.browser(name), {True: [], False: []}  # type: ignore[var-annotated]
    while (answer := client.post("/api/tasks/next")).json()["task"] is not None:
        task = answer.json()["task"]
        found[task["messages"][0]["text"] in gold].append((answer.json(), answer.headers))
        client.put(f"/api/tasks/{task['id']}/draft", json={"draft": {"reason": "so"}})
        send(client, task)
    return found


def test_a_gold_task_looks_like_any_other(world: World) -> None:
    world.fill(40, gold=range(0, 40, 2), gold_share=0.5, overlap=2)
    found = told(world, "ana")
    assert min(len(found[True]), len(found[False])) >= 3, "by lot: of gold 20 in the mean, below 10 in one of 30 runs"
    (ordinary, headers), *_ = found[False]
    assert set(ordinary["task"]) == {
        *("id", "criteria", "messages", "answers", "guidelines", "draft", "expires", "number"),
    }
    for kind in (True, False):
        for answer, its_headers in found[kind]:
            assert shape(answer) == shape(ordinary) or answer["progress"]["done"] == 0  # no speed before the first
            assert its_headers.keys() == headers.keys()
            assert len(answer["task"]["id"]) == 32
            assert answer["task"]["draft"] is None
            # The text follows from the item alone, and is as long for a gold item as for another.
            assert {len(shown["text"]) for shown in answer["task"]["answers"]} <= {len("answer 10 of *kind* 0"), 20}
    leases = {
        kind: {datetime.fromisoformat(answer["task"]["expires"]).utcoffset() for answer, _ in found[kind]}
        for kind in (True, False)
    }
    assert leases[True] == leases[False]
    # What a send answers, and what the progress says, count all tasks alike.
    dones = [answer["progress"]["done"] for answer, _ in [*found[True], *found[False]]]
    collected = [answer["progress"]["collected"] for answer, _ in [*found[True], *found[False]]]
    assert dones == collected


def test_sending_gold_answers_like_sending_any_other(world: World) -> None:
    world.fill(20, gold=range(0, 20, 2), gold_share=0.5)
    ana = world.browser("ana")
    shapes, seen = [], set()
    while (task := ask(ana)) is not None:
        seen.add(int(task["messages"][0]["text"].split()[-1]) % 2)
        answer = send(ana, task, seconds=1)
        shapes.append((answer.status_code, shape(answer.json()), sorted(answer.headers)))
    assert seen == {0, 1}
    assert all(one == shapes[0] for one in shapes)


def test_nothing_tells_who_wrote_an_answer_or_why_it_is_asked(world: World) -> None:
    """Not in the task, not after a send, not in an undo, not in an error."""
    world.fill(24, answers=3, gold=range(0, 24, 2), gold_share=0.5, batch="secret-batch")
    ana = world.browser("ana")
    said = []
    while (task := (answer := ana.post("/api/tasks/next")).json()["task"]) is not None:
        said += [answer.text, send(ana, task).text, send(ana, task, id="another-id").text]
        said += [ana.post("/api/undo").text, send(ana, task, id="and-another").text, ana.get("/api/progress").text]
        said.append(send(ana, task, verdicts=[{"criterion": "x", "ranks": [1, 2]}], id="and-so-on").text)
    assert len(said) > 12 * 7, "some of it about gold items"
    everything = "".join(said)
    hidden = ["policy-", "origin", "gold", "batch-", "arm", "control", "priority"]
    hidden += [one.id for one in (*world.store.completions(), *world.store.prompts())]
    # The question's own text says the batch's name, for the tests' sake.
    everything = everything.replace("secret-batch question", "")
    assert [word for word in hidden if word in everything] == []


def test_the_order_differs_between_people_and_not_between_reloads(world: World) -> None:
    world.fill(1, answers=5, overlap=12)
    orders = []
    for number in range(12):
        client = world.browser(f"person {number}")
        first, second = ask(client), ask(client)
        assert first is not None
        assert second is not None
        assert first["answers"] == second["answers"]
        orders.append(tuple(shown["text"] for shown in first["answers"]))
    assert len(set(orders)) > 6


def test_answers_come_as_safe_html(world: World) -> None:
    world.fill(1)
    task = ask(world.browser("ana"))
    assert task is not None
    for shown in task["answers"]:
        assert "<em>kind</em>" in shown["html"]
        assert "*kind*" in shown["text"]


def test_guidelines(world: World) -> None:
    ana, boss = world.browser("ana"), world.browser("boss", "admin")
    assert ana.get("/api/guidelines").json() == {"version": None, "html": "", "text": ""}
    for text in ("Be *kind*.", "Be **fair**."):
        assert boss.post("/api/guidelines", json={"text": text}).status_code == 200
    newest = ana.get("/api/guidelines").json()
    assert (newest["version"], newest["text"]) == (2, "Be **fair**.")
    assert "<strong>fair</strong>" in newest["html"]
    assert [one["author"] for one in boss.get("/api/guidelines/versions").json()] == ["boss", "boss"]
    world.fill(1)
    task = ask(ana)
    assert task is not None
    assert task["guidelines"] == 2
