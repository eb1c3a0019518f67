"""The API's description: complete, true (fuzzed from itself), and readable without anybody else's help."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient
from tests.web.test_routes import RULES, routes
from tests.web.world import World

from prefloop.web.schemas import MOST_ANSWERS


@pytest.fixture
def openapi(world: World) -> dict[str, Any]:
    schema: dict[str, Any] = world.stranger().get("/api/openapi.json").json()
    return schema


def described(openapi: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(method.upper(), path): what for path, item in openapi["paths"].items() for method, what in item.items()}


def test_every_route_of_the_api_is_described(world: World, openapi: dict[str, Any]) -> None:
    api = {route for route in routes(world.app.routes) if route[1].startswith("/api/")}
    api -= {("GET", "/api/docs"), ("GET", "/api/openapi.json")}
    assert described(openapi).keys() == {(method, path.replace(":path}", "}")) for method, path in api}
    rules = {(method, path.replace(":path}", "}")): rule for (method, path), rule in RULES.items()}
    for (method, path), what in described(openapi).items():
        assert what["description"].endswith("."), path
        assert what["tags"][0] in {tag["name"] for tag in openapi["tags"]}
        who, status = rules[method, path].who, str(rules[method, path].status)
        assert bool(what["security"]) == (who != "anybody")
        codes = {*what["responses"]}
        assert {status, "400", "413", "415", "421", "422", "429", "500", "503"} <= codes
        assert ("401" in codes) == (who != "anybody" or path == "/api/session")
        assert ("403" in codes) == (who == "admin" or method != "GET")
        assert ("404" in codes) >= ("{" in path)
        for code, answer in what["responses"].items():
            if int(code) >= 400:
                assert answer["content"]["application/json"]["schema"]["$ref"].endswith("/Error")


def objects(openapi: dict[str, Any]) -> dict[str, Any]:
    return {name: schema for name, schema in openapi["components"]["schemas"].items() if "properties" in schema}


def bounded(schema: dict[str, Any]) -> bool:
    if "anyOf" in schema:
        return all(bounded(part) for part in schema["anyOf"])
    kind = schema.get("type")
    if kind == "string":
        return "maxLength" in schema or "enum" in schema or "const" in schema
    if kind == "array":
        return "maxItems" in schema and bounded(schema["items"])
    if kind in ("number", "integer"):
        return "minimum" in schema and ("maximum" in schema or "exclusiveMaximum" in schema)
    return kind in ("null", "boolean", "object") or "$ref" in schema


def test_every_field_that_is_sent_has_a_bound(openapi: dict[str, Any]) -> None:
    sent = {name: schema for name, schema in objects(openapi).items() if name.endswith(("In", "SignIn"))}
    assert len(sent) >= 10
    for name, schema in sent.items():
        assert schema["additionalProperties"] is False, name
        for field, described in schema["properties"].items():
            assert bounded(described), (name, field)
    assert sent["VerdictIn"]["properties"]["ranks"]["maxItems"] == MOST_ANSWERS


def test_the_page_says_all_of_it(world: World, openapi: dict[str, Any]) -> None:
    html = world.stranger().get("/api/docs").text
    for method, path in described(openapi):
        assert f"{method} {path}" in html
    for name, schema in objects(openapi).items():
        if name not in ("Error", "ErrorBody", "HTTPValidationError", "ValidationError"):
            assert f"<h5>{name}</h5>" in html
            assert all(f"<code>{field}</code>" in html for field in schema["properties"])
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))


# Fuzzed from its own description

EXAMPLES = 7
"""For each operation, mode and role."""
FEW = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=False,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
CHECKS = [
    *(not_a_server_error, status_code_conformance, content_type_conformance),
    *(response_schema_conformance, response_headers_conformance),
]


@schemathesis.serializer("application/x-ndjson")
def lines(_: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[World]:
    """A world without limits of rate, with something in every table."""
    world = World(tmp_path, requests_per_second=100_000, sign_ins_per_minute=100_000)
    with world.store:
        world.fill(500, answers=3, criteria=("helpful", "harmless"), overlap=3)
        world.store.add_guidelines("Be kind.", "boss")
        world.people.ensure("cy", "annotator")
        yield world


def known(world: World, path: str, headers: dict[str, str]) -> dict[str, str]:
    """Path parameters that lead somewhere."""
    if "{task_id}" in path:
        client = TestClient(world.app, base_url=world.origin, headers=headers)
        return {"task_id": client.post("/api/tasks/next").json()["task"]["id"]}
    if "{invite_id}" in path:
        return {"invite_id": world.people.invite("annotator", "boss")[0].id}
    if "{token_id}" in path:
        return {"token_id": world.people.make_token("cy", "")[0].id}
    return {"name": "batch" if "batches" in path else "cy"} if "{name}" in path else {}


@pytest.fixture
def first(request: pytest.FixtureRequest) -> int:
    """Other examples on every run, and those of a run that failed with ``--hypothesis-seed``."""
    given = request.config.getoption("--hypothesis-seed")
    return random.SystemRandom().getrandbits(32) if given is None else int(given)


def fuzz(world: World, headers: dict[str, str], signed_in: bool, first: int) -> Counter[int]:
    """Ask every operation for something that fits its description, and for something that does not."""
    headers = {"Host": "127.0.0.1:8765", "Origin": world.origin} | headers
    schema = schemathesis.openapi.from_asgi("/api/openapi.json", world.app, headers=headers)
    seen: Counter[int] = Counter()
    for operation, mode in product([result.ok() for result in schema.get_all_operations()], GenerationMode):
        if (operation.method, operation.path) == ("delete", "/api/session"):
            continue  # its session is needed

        @seed(first)
        @FEW
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            if signed_in:
                case.cookies, case.headers = {}, {}  # schemathesis makes up credentials, too
                case.path_parameters = known(world, case.operation.path, headers)
            answer = case.call(headers=headers)
            seen[answer.status_code] += 1
            case.validate_response(answer, checks=CHECKS)

        try:
            ask()
        except Unsatisfiable:  # nothing that could be wrong about it
            assert mode is GenerationMode.NEGATIVE
        except BaseException as fault:
            fault.add_note(f"{operation.label}, {mode.value}; the same again: pytest --hypothesis-seed={first}")
            raise
    return seen


@pytest.mark.parametrize("role", ["stranger", "annotator", "admin"])
def test_no_request_that_the_description_leads_to_breaks_the_server(patient: World, role: str, first: int) -> None:
    headers = {}
    if role != "stranger":
        patient.people.ensure(role, "admin" if role == "admin" else "annotator")
        headers = {"Cookie": f"prefloop_session_8765={patient.people.start_session(role, 1)}"}
    seen = fuzz(patient, headers, role != "stranger", first)
    assert not [status for status in seen if status >= 500]
    assert seen[{"stranger": 401, "annotator": 403, "admin": 422}[role]] >= 30, seen
    assert seen[200] + seen[204] >= 20 or role == "stranger", seen
