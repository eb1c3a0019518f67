"""Every route, one by one: the table is walked, so a route that nobody thought about fails here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import pytest
from starlette.testclient import TestClient
from tests.web.world import KEY, World, judgement

from prefloop.web.app import make_app

Who = Literal["anybody", "annotator", "admin"]


class Rule(NamedTuple):
    """Who may call a route, and a call that works for them: path parameters, body, status."""

    who: Who
    path: Mapping[str, str] = MappingProxyType({})
    body: Any = None
    status: int = 200
    own: bool = False
    """Whether it is about one annotator's task."""


def submission(id: str) -> dict[str, Any]:
    return {"id": id, "verdicts": [{"criterion": "overall", "ranks": [1, 2]}]}


RULES: dict[tuple[str, str], Rule] = {
    ("GET", "/"): Rule("anybody"),
    ("GET", "/admin"): Rule("anybody"),
    ("GET", "/join"): Rule("anybody"),
    ("GET", "/api/docs"): Rule("anybody"),
    ("GET", "/api/openapi.json"): Rule("anybody"),
    ("GET", "/static/{name}"): Rule("anybody", {"name": "admin.css"}),
    ("POST", "/api/session"): Rule("anybody", body={"key": KEY}),
    ("DELETE", "/api/session"): Rule("annotator", status=204),
    ("GET", "/api/me"): Rule("annotator"),
    ("POST", "/api/tasks/next"): Rule("annotator"),
    ("PUT", "/api/tasks/{task_id}/draft"): Rule("annotator", body={"draft": {}}, status=204, own=True),
    ("POST", "/api/tasks/{task_id}/judgement"): Rule("annotator", body=submission("12345678"), own=True),
    ("POST", "/api/tasks/{task_id}/skip"): Rule("annotator", status=204, own=True),
    ("POST", "/api/undo"): Rule("annotator"),
    ("GET", "/api/progress"): Rule("annotator"),
    ("GET", "/api/guidelines"): Rule("annotator"),
    ("GET", "/api/guidelines/versions"): Rule("admin"),
    ("POST", "/api/guidelines"): Rule("admin", body={"text": "Be kind."}),
    ("GET", "/api/people"): Rule("admin"),
    ("POST", "/api/people"): Rule("admin", body={"name": "bot", "role": "annotator"}),
    ("POST", "/api/people/{name:path}/revoke"): Rule("admin", {"name": "cy"}, status=204),
    ("POST", "/api/people/{name:path}/restore"): Rule("admin", {"name": "cy"}, status=204),
    ("GET", "/api/invites"): Rule("admin"),
    ("POST", "/api/invites"): Rule("admin", body={"role": "annotator"}),
    ("DELETE", "/api/invites/{invite_id}"): Rule("admin", {"invite_id": "INVITE"}, status=204),
    ("GET", "/api/tokens"): Rule("admin"),
    ("POST", "/api/tokens"): Rule("admin", body={"name": "cy"}),
    ("DELETE", "/api/tokens/{token_id}"): Rule("admin", {"token_id": "TOKEN"}, status=204),
    ("GET", "/api/batches"): Rule("admin"),
    ("POST", "/api/batches"): Rule("admin", body={"name": "more"}),
    ("POST", "/api/batches/{name:path}/close"): Rule("admin", {"name": "batch"}, status=204),
    ("POST", "/api/batches/{name:path}/items"): Rule("admin", {"name": "batch"}, body="ITEMS"),
    ("GET", "/api/stats"): Rule("admin"),
    ("GET", "/api/statistics"): Rule("admin"),
    ("POST", "/api/import"): Rule("admin", body="FILE"),
    ("GET", "/api/export"): Rule("admin"),
}


def routes(table: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """(method, path) of every route, those of included routers too; HEAD goes with GET."""
    for route in table:
        if (included := getattr(route, "original_router", None)) is not None:
            yield from routes(included.routes)
        else:
            assert route.methods, f"{route!r}: neither a route nor a router; teach this walk about it"
            yield from ((method, route.path) for method in route.methods - {"HEAD"})


def test_every_route_has_a_rule_and_every_rule_a_route(world: World) -> None:
    assert sorted(routes(world.app.routes)) == sorted(RULES)


def test_the_walk_sees_a_new_route(world: World) -> None:
    app = make_app(world.store, world.settings)
    app.get("/api/new")(lambda: None)
    assert set(routes(app.routes)) - RULES.keys() == {("GET", "/api/new")}


class Call:
    """Calls one route as its rule says, by whichever client."""

    def __init__(self, world: World, route: tuple[str, str]) -> None:
        world.fill(2)
        world.people.ensure("cy", "annotator")
        self.world, self.method, self.rule = world, route[0], RULES[route]
        self.ana = world.browser("ana")
        path = dict(self.rule.path)
        if self.rule.own:
            path["task_id"] = self.ana.post("/api/tasks/next").json()["task"]["id"]
        path = {key: self._made(value) for key, value in path.items()}
        self.path = re.sub(r"\{(\w+)(?::path)?\}", lambda found: path[found[1]], route[1])

    def _made(self, value: str) -> str:
        if value == "INVITE":
            return self.world.people.invite("annotator", "boss")[0].id
        return self.world.people.make_token("cy", "")[0].id if value == "TOKEN" else value

    def __call__(self, client: TestClient, **headers: str) -> Any:
        body = self.rule.body
        if body == "FILE":
            content = b'{"prompt": "Hi", "response": "Hello"}\n'
            headers = {"Content-Type": "application/x-ndjson"} | headers
            return client.post(self.path, params={"name": "x.jsonl"}, content=content, headers=headers)
        if body == "ITEMS":
            prompt = next(self.world.store.prompts())
            answers = [one.id for one in self.world.store.completions([prompt.id])]
            body = {"items": [{"prompt_id": prompt.id, "completions": answers}]}
        return client.request(self.method, self.path, json=body, headers=headers)

    def allowed(self) -> TestClient:
        if self.rule.who == "anybody":
            return self.world.stranger()
        return self.world.browser("boss", "admin") if self.rule.who == "admin" else self.ana


@pytest.fixture(params=sorted(RULES), ids=" ".join)
def call(world: World, request: pytest.FixtureRequest) -> Call:
    return Call(world, request.param)


def told(answer: Any, status: int) -> None:
    """An error in the form that all have, and nothing else."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"what", "remedy"}
    assert all(error.values())


def test_it_answers_those_who_may(call: Call) -> None:
    answer = call(call.allowed())
    assert answer.status_code == call.rule.status, answer.text


def test_it_refuses_whoever_is_not_signed_in(call: Call) -> None:
    if call.rule.who != "anybody":
        told(call(call.world.stranger()), 401)
        told(call(call.world.stranger(), Authorization="Bearer " + "x" * 43), 401)
        told(call(call.world.stranger(), Cookie=f"{call.world.settings.cookie}={'x' * 43}"), 401)


def test_it_refuses_the_wrong_role(call: Call) -> None:
    if call.rule.who == "admin":
        told(call(call.ana), 403)
        told(call(call.world.script("bob")), 403)


FOREIGN: dict[str, dict[str, str]] = {
    "none": {"Origin": ""},
    "null": {"Origin": "null"},
    "another site": {"Origin": "https://evil.example"},
    "another port": {"Origin": "http://127.0.0.1:8766"},
    "another scheme": {"Origin": "https://127.0.0.1:8765"},
    "ours as a beginning": {"Origin": "http://127.0.0.1:8765.evil.example"},
    "ours as an end": {"Origin": "http://evil.example/http://127.0.0.1:8765"},
    "another of our names": {"Origin": "http://localhost:8765"},
    "cross-site": {"Origin": "http://127.0.0.1:8765", "Sec-Fetch-Site": "cross-site"},
    "same-site": {"Origin": "http://127.0.0.1:8765", "Sec-Fetch-Site": "same-site"},
}


def test_it_refuses_a_change_from_elsewhere(call: Call) -> None:
    if call.method == "GET":
        return
    client = call.allowed()
    for headers in FOREIGN.values():
        told(call(client, **headers), 403)
    del client.headers["Origin"]
    told(call(client), 403)
    for site in ("cross-site", "same-site", "none", ""):
        told(call(client, **{"Sec-Fetch-Site": site}), 403)
    # A token does not help a request that a browser made, nor one that has a cookie too.
    token = call.world.people.make_token("cy", "")[1]
    bearer = {"Authorization": f"Bearer {token}"}
    told(call(call.world.stranger(), **bearer | FOREIGN["another site"]), 403)
    if call.rule.who != "anybody":
        told(call(client, **bearer), 403)
    assert call(client, **{"Sec-Fetch-Site": "same-origin"}).status_code == call.rule.status


def test_it_refuses_what_is_about_another_annotators_task(call: Call) -> None:
    if call.rule.own:
        world = call.world
        for other in (world.browser("bob"), world.script("bot"), world.browser("boss", "admin")):
            told(call(other), 404)
        assert world.store.counts().judgements == 0
        assert world.queue.progress("ana").skipped == 0
        assert call(call.ana).status_code == call.rule.status  # it was there all the time


def test_a_token_is_enough(call: Call) -> None:
    if call.rule.who != "anybody" and not call.rule.own:
        assert call(call.world.script("bot", "admin")).status_code == call.rule.status


def test_a_task_that_was_never_there(world: World) -> None:
    ana = world.browser("ana")
    for id in ("0" * 32, "x", "%00", "..%2f..%2fme", "'; DROP TABLE tasks; --"):
        told(ana.post(f"/api/tasks/{id}/skip"), 404)


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "PUT", "PATCH", "DELETE", "GET", "POST", "ODD"])
def test_no_other_method_works(world: World, method: str) -> None:
    """Nor does a header change one into another."""
    world.fill(1)
    ana = world.browser("ana", "admin")
    task = ana.post("/api/tasks/next").json()["task"]
    before = world.store.counts()
    paths = {route: route[1].replace("{task_id}", task["id"]) for route in RULES}
    for route, path in paths.items():
        if (method, route[1]) in RULES or (method == "HEAD" and ("GET", route[1]) in RULES):
            continue
        answer = ana.request(method, path, json=judgement(task))
        assert answer.status_code in (404, 405), (method, path, answer.text)
        override = {"X-HTTP-Method-Override": route[0], "X-Method-Override": route[0], "X-HTTP-Method": route[0]}
        answer = ana.request(method, path, params={"_method": route[0]}, json=judgement(task), headers=override)
        assert answer.status_code in (404, 405), (method, path, answer.text)
    assert world.store.counts() == before
    assert world.queue.progress("ana").done == 0


def test_head_is_get_without_a_body_and_changes_nothing(world: World) -> None:
    client = world.stranger()
    for path in ("/", "/admin", "/join", "/api/docs", "/static/admin.css"):
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
    assert client.head("/api/session").status_code == 405


def test_what_is_refused_is_refused_before_anything_is_read(world: World) -> None:
    """A stranger learns nothing of the fields that a route takes."""
    for (_method, path), rule in RULES.items():
        if rule.who != "anybody" and isinstance(rule.body, dict):
            told(world.stranger().request(_method, re.sub(r"\{[\w:]+\}", "x", path), json={"odd": 1}), 401)
