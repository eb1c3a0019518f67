"""What holds for every request: headers, host, body; and tricks with paths and headers."""

from __future__ import annotations

import asyncio
import gzip
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from tests.web.world import KEY, ORIGIN, World

from prefloop.web import pages, security

Scope = dict[str, Any]


def ask(world: World, method: str, path: str, headers: dict[str, str] | None = None, *body: bytes) -> Any:
    """A request as it comes over the wire: nothing tidies up the path, the headers or the pieces of the body."""
    fields = {"host": "127.0.0.1:8765", "origin": ORIGIN} | (headers or {})
    raw, _, query = path.partition("?")
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
        "method": method,
        "path": raw,
        "raw_path": raw.encode(),
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in fields.items()],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8765),
    }
    end = {"type": "http.request", "body": b"", "more_body": False}
    pieces = iter([*({"type": "http.request", "body": piece, "more_body": True} for piece in body), end])
    taken, sent = 0, []

    async def receive() -> dict[str, Any]:
        nonlocal taken
        taken += 1
        return next(pieces, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(world.app(scope, receive, send))
    answer = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], answer, b"".join(part.get("body", b"") for part in sent[1:]), taken


# Headers


def answers(world: World) -> Iterator[tuple[int, Any]]:
    """One of every kind: pages, files, data, and every way to fail."""
    client = world.browser("ana")
    for path in ("/", "/join", "/admin", "/api/docs", "/api/openapi.json", "/static/admin.css", "/api/me"):
        yield 200, client.get(path)
    yield 204, client.delete("/api/session")
    yield 304, client.get("/static/admin.css", headers={"If-None-Match": pages.static_files()["admin.css"][2]})
    yield 401, client.get("/api/me")
    yield 403, client.post("/api/undo", headers={"Origin": "https://evil.example"})
    yield 404, client.get("/nothing")
    yield 404, client.get("/static/nothing")
    yield 405, client.get("/api/undo")
    yield 413, client.post("/api/session", content=b" " * (security.BODY_BYTES + 1))
    yield 415, client.post("/api/session", content=b"key=x")
    yield 421, client.get("/", headers={"Host": "evil.example"})
    yield 422, client.post("/api/session", json={})
    broken = world.browser("bob")
    world.app.state.prefloop.queue.progress = None
    yield 500, broken.get("/api/progress")


def test_every_answer_has_the_headers(world: World, caplog: pytest.LogCaptureFixture) -> None:
    for status, answer in answers(world):
        assert answer.status_code == status, answer.text
        for name, value in security.HEADERS.items():
            assert answer.headers.get_list(name) == [value], (status, name)
        kept = answer.request.url.path.startswith("/static/") and status in (200, 304)
        assert answer.headers["Cache-Control"] == ("no-cache" if kept else "no-store"), status
        assert "server" not in answer.headers
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_the_policy_allows_our_own_things_and_nothing_else() -> None:
    policy = dict(part.strip().split(" ", 1) for part in security.POLICY.split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in security.POLICY
    assert "http" not in security.POLICY


def test_browsers_are_told_to_stay_with_tls(tmp_path: Path) -> None:
    team = World(tmp_path, origins=("https://label.example.org",))
    with team.store:
        assert "max-age=31536000" in team.stranger().get("/").headers["Strict-Transport-Security"]
    assert "strict-transport" not in str(security.HEADERS).lower()


@pytest.mark.parametrize("path", ["/", "/join", "/admin", "/api/docs"])
def test_pages_ask_for_nothing_from_elsewhere_and_have_nothing_inline(world: World, path: str) -> None:
    html = world.stranger().get(path).text
    addresses = re.findall(r'(?:href|src|srcset|action|poster)="([^"]*)"', html)
    assert addresses
    assert not [address for address in addresses if not re.match(r"/(?!/)|#|data:image/", address)]
    for inline in (" style=", "<style", " onclick", " onload", "javascript:"):
        assert inline not in html
    assert html.count("<script") == html.count('<script type="module" src="/static/')


# Unforeseen


def test_what_nobody_foresaw_is_a_number_outside_and_a_traceback_in_the_log(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = world.browser("ana")
    for fault in (RuntimeError, KeyError, IndexError, UnicodeError, AssertionError, NotImplementedError):

        def fails(_: str, fault: type[Exception] = fault) -> None:
            raise fault("the secret inside /srv/feedback.db")

        monkeypatch.setattr(world.app.state.prefloop.queue, "progress", fails)
        caplog.clear()
        with caplog.at_level(logging.ERROR):
            answer = client.get("/api/progress")
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert "Traceback" not in answer.text
        number = answer.json()["error"]["what"].split("incident ")[1].rstrip(").")
        assert number in caplog.text
        assert "the secret inside" in caplog.text


def test_what_the_store_refuses_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    client = world.browser("ana")
    for fault, status, told in (
        (ValueError("do this instead"), 400, "do this instead"),
        (LookupError("there is none"), 404, "there is none"),
        (TimeoutError("/srv/feedback.db has been held"), 503, "The store is busy."),
    ):

        def fails(_: str, fault: Exception = fault) -> None:
            raise fault

        monkeypatch.setattr(world.app.state.prefloop.queue, "progress", fails)
        answer = client.get("/api/progress")
        assert (answer.status_code, answer.json()["error"]["what"]) == (status, told)
        assert ("retry-after" in answer.headers) == (status == 503)


# Host


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8765", "127.0.0.1", "127.0.0.1:8766", "127.0.0.1:8765.evil.example", ""),
        *("127.0.0.1:8765@evil.example", "localhost", "0.0.0.0:8765", "[::1]:8765", "127.0.0.1:8765, evil.example"),
    ],
)
def test_another_host_is_refused(world: World, host: str) -> None:
    """DNS rebinding: a site's name that suddenly means this machine."""
    session = f"prefloop_session_8765={world.browser('ana').cookies['prefloop_session_8765']}"
    for path in ("/", "/api/me", "/static/admin.css", "/nothing"):
        assert ask(world, "GET", path, {"host": host, "cookie": session})[0] == 421
    forwarded = {"x-forwarded-host": "127.0.0.1:8765", "forwarded": "host=127.0.0.1:8765"}
    assert ask(world, "GET", "/api/me", {"host": host, "cookie": session} | forwarded)[0] == 421


def test_its_own_names_are_answered(world: World) -> None:
    for host in ("127.0.0.1:8765", "localhost:8765", "LOCALHOST:8765"):
        assert ask(world, "GET", "/", {"host": host, "x-forwarded-host": "evil.example"})[0] == 200


# Bodies


JSON = {"content-type": "application/json"}


def test_a_body_that_says_it_is_too_long_is_not_read(world: World) -> None:
    for path in ("/api/session", "/", "/static/admin.css", "/nothing"):
        status, _, _, taken = ask(world, "POST", path, JSON | {"content-length": str(security.BODY_BYTES + 1)}, b"x")
        assert (status, taken) == (413, 0)
    for length in ("-1", "1e3", "0x10", "", "9" * 30, "1, 2"):
        assert ask(world, "POST", "/api/session", JSON | {"content-length": length}, b"x")[0] == 400


def test_a_body_that_turns_out_too_long_is_cut_off(world: World) -> None:
    """Chunked, or with a length that is a lie."""
    pieces = [b" " * 4096] * 100_000
    for more in ({}, {"content-length": "10"}, {"transfer-encoding": "chunked"}):
        status, headers, _, taken = ask(world, "POST", "/api/session", JSON | more, *pieces)
        assert status == 413
        assert taken == security.BODY_BYTES // 4096 + 1
        assert headers["connection"] == "close"


def test_an_import_has_a_limit_of_its_own(tmp_path: Path) -> None:
    world = World(tmp_path, import_bytes=3 << 20)
    with world.store:
        session = world.browser("boss", "admin").cookies["prefloop_session_8765"]
        headers = {"cookie": f"prefloop_session_8765={session}", "content-type": "application/x-ndjson"}
        row = b'{"prompt": "%d ' + b"x" * 1000 + b'", "response": "Hello"}\n'
        rows = [row % number for number in range(2500)]
        status, _, body, _ = ask(world, "POST", "/api/import?name=a.jsonl", headers, *rows)
        assert status == 200, body
        assert world.store.counts().demonstrations == 2500
        rows = [row % number for number in range(2500, 9999)]
        status, _, _, taken = ask(world, "POST", "/api/import?name=b.jsonl", headers, *rows)
        assert (status, taken < 3200) == (413, True)
        declared = headers | {"content-length": str((3 << 20) + 1)}
        assert ask(world, "POST", "/api/import?name=b.jsonl", declared, *rows)[0::3] == (413, 0)
        assert world.store.counts().demonstrations == 2500


def test_no_copy_is_left_behind(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what was imported or exported; not even when somebody hangs up or the file is refused."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    boss = world.browser("boss", "admin")
    session = {"cookie": f"prefloop_session_8765={boss.cookies['prefloop_session_8765']}"}
    assert boss.get("/api/export").status_code == 200
    ask(world, "GET", "/api/export", session)  # hangs up at once
    for content in (b'{"prompt": "Hi", "response": "Hello"}\n', b"odd"):
        headers = session | {"content-type": "application/x-ndjson"}
        ask(world, "POST", "/api/import?name=x.jsonl&skip_bad=true", headers, content)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_body_that_drips_is_not_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "BODY_SECONDS", 0.05)

    async def never() -> Any:
        await asyncio.Event().wait()

    with pytest.raises(security.ProblemError) as refused:
        asyncio.run(security._whole(never))
    assert refused.value.status == 408


def test_a_compressed_import_is_refused(world: World) -> None:
    row = b'{"prompt": "Hi", "response": "Hello"}\n'
    boss, kind = world.browser("boss", "admin"), {"Content-Type": "application/octet-stream"}
    refused = boss.post("/api/import", params={"name": "x.gz"}, content=gzip.compress(row), headers=kind)
    assert refused.status_code == 415
    assert "unpacked" in refused.json()["error"]["remedy"]
    assert world.store.counts().demonstrations == 0
    assert boss.post("/api/import", params={"name": "x.jsonl"}, content=row, headers=kind).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "application/json; charset=utf-16"},
        {"content-type": "application/jsonp"},
        {"content-type": "text/json"},
        {},
        JSON | {"content-encoding": "gzip"},
    ],
)
def test_only_json_is_read(world: World, headers: dict[str, str]) -> None:
    """A form on another site can send the other kinds without being asked."""
    body = b'{"key": "%s"}' % KEY.encode()
    assert ask(world, "POST", "/api/session", headers, body)[0] == 415
    assert ask(world, "POST", "/api/session", JSON, body)[0] == 200
    assert ask(world, "POST", "/api/session", {"content-type": "application/json; charset=UTF-8"}, body)[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        *(b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b'{"key": NaN}', b'{"key": ' + b"9" * 5000 + b"}"),
        *(b"[" * 100_000, b'{"a":' * 50_000, b'{"key": "\\ud800xxxxxxxxxxxxxxxxxxxx"}', b'{"key": 1}', b"\x00"),
    ],
)
def test_odd_json_is_refused_politely(world: World, body: bytes) -> None:
    status, _, told, _ = ask(world, "POST", "/api/session", JSON, body)
    assert status in (400, 422)
    assert b'"remedy"' in told


def test_drafts_are_plain_json_of_a_bounded_size(world: World) -> None:
    world.fill(1)
    ana = world.browser("ana")
    task = ana.post("/api/tasks/next").json()["task"]

    def save(draft: bytes) -> int:
        path, body = f"/api/tasks/{task['id']}/draft", b'{"draft": %s}' % draft
        return ana.put(path, content=body, headers=JSON).status_code

    assert save(b'{"reason": "because \\u0000 \\ud83d\\ude00"}') == 204
    kept = ana.post("/api/tasks/next").json()["task"]["draft"]
    assert kept == {"reason": "because \0 😀"}
    for wrong in (
        b'{"x": NaN}',
        b'{"x": "\\ud800"}',
        b'{"x": "%s"}' % (b"y" * 1_000_001),
        b"[]",
        b"null",
        b'{"x":1e999}',
    ):
        assert save(wrong) == 422
    assert save(b'{"x":' * 2000 + b"1" + b"}" * 2000) in (400, 422)
    assert ana.post("/api/tasks/next").json()["task"]["draft"] == kept


# Paths and headers


TRICKS = [
    *("../app.py", "..%2fapp.py", "%2e%2e/app.py", "%2e%2e%2fapp.py", "..\\app.py", "..%5capp.py", "....//app.py"),
    *(
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "//etc/passwd",
        "./admin.css",
        "admin.css/",
        "admin.css%00.js",
        "admin.css\0",
    ),
    *(
        "",
        ".",
        "..",
        "ADMIN.CSS",
        "admin.css::$DATA",
        "..%c0%af..%c0%afapp.py",
        "%252e%252e%252fapp.py",
        "__init__.py",
    ),
]


@pytest.mark.parametrize("trick", TRICKS)
def test_static_files_are_those_in_the_table_and_no_others(world: World, trick: str) -> None:
    for path in (f"/static/{trick}", f"/static/{unquote(trick)}"):
        assert ask(world, "GET", path)[0] == 404


def test_no_file_of_the_package_but_the_static_ones_is_served(world: World) -> None:
    folder = Path(pages.__file__).parent
    for path in (path for path in folder.rglob("*") if path.parent.name != "static"):
        inside = path.relative_to(folder).as_posix()
        for address in (f"/{inside}", f"/static/../{inside}", f"/static/{inside}", f"/templates/{path.name}"):
            assert ask(world, "GET", address)[0] == 404


@pytest.mark.parametrize("path", ["/api/me/", "//api/me", "/API/me", "/api//me", "/api/./me", "/api/people/../me"])
def test_a_path_has_one_spelling(world: World, path: str) -> None:
    """No redirect either: its address would be made from what the request says."""
    status, headers, _, _ = ask(world, "GET", path)
    assert status == 404
    assert "location" not in headers


@pytest.mark.parametrize("injected", ["x\r\nSet-Cookie: evil=1", "x\nX-Evil: 1", "x%0d%0aSet-Cookie:%20evil=1"])
def test_nothing_that_is_sent_becomes_a_header(world: World, injected: str) -> None:
    boss = world.browser("boss", "admin")
    session = {"cookie": f"prefloop_session_8765={boss.cookies['prefloop_session_8765']}"}
    for path in (
        f"/{injected}",
        f"/static/{injected}",
        f"/api/export?format={injected}",
        f"/api/export?x={injected}",
    ):
        _, headers, _, _ = ask(world, "GET", path, session)
        assert "evil" not in str(headers).lower()
    for header in ("if-none-match", "x-request-id", "accept", "origin"):
        _, headers, _, _ = ask(world, "GET", "/static/admin.css", {header: injected})
        assert "evil" not in str(headers).lower()
    assert boss.post("/api/import", params={"name": injected}, content=b"{}").status_code in (415, 422)


def test_two_hosts_or_origins_are_none(world: World) -> None:
    async def never(*_: Any) -> None:
        raise AssertionError("it got through")

    for twice in ([(b"host", b"127.0.0.1:8765")] * 2, []):
        scope = {"type": "http", "method": "GET", "path": "/", "headers": twice}
        with pytest.raises(security.ProblemError):
            asyncio.run(security.OwnHost(never, world.settings)(scope, never, never))
    headers = [(b"host", b"127.0.0.1:8765"), (b"origin", ORIGIN.encode()), (b"origin", b"https://evil.example")]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
    with pytest.raises(security.ProblemError):
        asyncio.run(security.OwnOrigin(never, world.settings)(scope, never, never))
