"""The Python client against a real server, and the examples of docs/api.md as they stand there."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.web.test_serve import running
from tests.web.world import World

from prefloop import client as client_module
from prefloop.client import ApiError, Client
from prefloop.web.serve import LabelServer

DOCS = Path(__file__).parents[2] / "docs" / "api.md"


@pytest.fixture
def url(world: World) -> Iterator[str]:
    with running(LabelServer(world.store, port=0)) as server:
        yield server.settings.origins[0]


def token(world: World, name: str, role: Any = "annotator") -> str:
    world.people.ensure(name, role)
    return world.people.make_token(name, "")[1]


def test_a_labelling_session(world: World, url: str) -> None:
    world.fill(2, answers=3)
    with Client(url, token(world, "bot")) as client:
        assert client.me().name == "bot"
        task = client.next().task
        assert task is not None
        assert [answer.text[:6] for answer in task.answers] == ["answer"] * 3
        client.save_draft(task, {"reason": "hm"})
        again = client.next().task
        assert again is not None
        assert again.draft == {"reason": "hm"}
        sent = client.submit(task, [1, 2, 2], id="chosen-by-me")
        assert sent.stored == 1
        assert client.submit(task, [1, 2, 2], id="chosen-by-me") == sent
        with pytest.raises(ApiError, match="undo") as refused:
            client.submit(task, [2, 1, 1])
        assert refused.value.status == 409
        undone = client.undo()
        assert undone is not None
        assert undone.id == task.id
        client.submit(undone, {"overall": [1, 1, 1]}, demonstration="Better.", edited=2)
        second = client.next().task
        assert second is not None
        client.skip(second)
        assert client.progress().skipped == 1
        assert client.next().reason == "all judged"
        assert client.progress().done == 1
        assert client.guidelines().version is None
        with pytest.raises(ApiError, match="administrators") as refused:
            client.people()
        assert refused.value.status == 403
    assert [one.ranks for one in world.store.judgements()] == [(1, 1, 1)]
    (demonstration,) = world.store.demonstrations()
    assert demonstration.metadata == {"edited": next(world.store.judgements()).shown[2]}


def test_administration(world: World, url: str, tmp_path: Path) -> None:
    world.fill(3)
    with Client(url, token(world, "boss", "admin")) as client:
        assert [batch.name for batch in client.batches()] == ["batch"]
        client.close_batch("batch")
        assert client.batches()[0].closed
        assert client.open_batch("batch", overlap=3).overlap == 3
        for odd in ("a/b", "50% of <all>?", "x/close"):  # made elsewhere; the API itself is stricter
            world.queue.open_batch(odd)
            world.people.ensure(odd, "annotator")
            client.close_batch(odd)
            client.revoke(odd)
        assert all(batch.closed for batch in client.batches()[1:])
        assert sum(bool(person.revoked) for person in client.people()) == 3
        assert client.add_person("length bot").role == "annotator"
        client.revoke("length bot")
        assert {person.name: bool(person.revoked) for person in client.people()}["length bot"]
        client.restore("length bot")
        assert client.invite(days=1).url.startswith(f"{url}/join#")
        assert client.add_guidelines("Be kind.").version == client.guidelines().version == 1
        whole = client.export(tmp_path / "out.jsonl")
        assert (whole.format, whole.left_out) == ("prefloop", {})
        assert len((tmp_path / "out.jsonl").read_text("utf-8").splitlines()) == whole.rows
        assert [path.name for path in tmp_path.glob("*out*")] == ["out.jsonl"]
        kinds = [next(iter(json.loads(line))) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
        assert (kinds.count("prompt"), kinds.count("completion")) == (3, 6)
        assert client.import_file(tmp_path / "out.jsonl").prompts == 0  # all of it is there already
        assert client.export(tmp_path / "prompts.jsonl", "prompt").rows == 3
        assert len((tmp_path / "prompts.jsonl").read_text("utf-8").splitlines()) == 3
        with pytest.raises(ApiError, match="format"):
            client.export(tmp_path / "odd.jsonl", "odd")
        assert not (tmp_path / "odd.jsonl").exists()
        (tmp_path / "table.csv").write_text("prompt,chosen,rejected\nWhy?,Because.,No.\n", encoding="utf-8")
        assert client.import_file(tmp_path / "table.csv").judgements == 1
        (tmp_path / "bad.jsonl").write_text('{}\n{"prompt": "Why not?"}\n', encoding="utf-8")
        with pytest.raises(ApiError, match=r"^bad\.jsonl, line 1") as refused:
            client.import_file(tmp_path / "bad.jsonl")
        assert refused.value.status == 400
        told = client.import_file(tmp_path / "bad.jsonl", skip_bad=True)
        assert [(row.number, row.row) for row in told.rejected] == [(1, "{}")]
        assert client.stats().completions == 8


# When the connection breaks


class Broken(BaseHTTPRequestHandler):
    """Answers with the statuses in ``script``, one after the other; 0 hangs up."""

    script: list[int]
    heard: list[str]

    def do_POST(self) -> None:
        self.heard.append(self.path)
        if (status := self.script.pop(0)) == 0:
            self.connection.close()
            return
        body = b'{"task": null}' if status == 200 else b'{"error": {"what": "busy", "remedy": "wait"}}'
        if self.path.endswith("next") and status == 200:
            progress = dict.fromkeys(["done", "skipped", "remaining", "collected"], 0)
            progress |= {"remaining_at_least": False, "seconds_per_item": None, "target": None}
            body = json.dumps({"task": None, "reason": "paused", "progress": progress}).encode()
        self.send_response(status)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def broken() -> Iterator[tuple[Client, type[Broken]]]:
    class Handler(Broken):
        script: list[int] = []  # noqa: RUF012
        heard: list[str] = []  # noqa: RUF012

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with Client(f"http://127.0.0.1:{server.server_port}", "x" * 43) as client:
        yield client, Handler
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module.time, "sleep", lambda _: None)


def test_what_may_be_sent_twice_is_sent_again(broken: tuple[Client, type[Broken]]) -> None:
    client, handler = broken
    handler.script[:] = [0, 503, 0, 200]
    assert client.next().reason == "paused"
    assert len(handler.heard) == 4
    handler.script[:] = [0, 0, 0, 0]
    with pytest.raises(ConnectionError, match="cannot be reached"):
        client.next()


def test_what_may_not_is_not(broken: tuple[Client, type[Broken]]) -> None:
    client, handler = broken
    handler.script[:] = [0, 200]
    with pytest.raises(ConnectionError):
        client.undo()
    assert len(handler.heard) == 1
    handler.script[:] = [429, 429, 429, 429]
    with pytest.raises(ApiError, match=r"busy wait \(status 429\)"):
        client.undo()
    assert len(handler.heard) == 5


def test_no_server(world: World) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}", "x" * 43) as client, pytest.raises(ConnectionError):
        client.me()


def test_an_answer_of_somebody_else(broken: tuple[Client, type[Broken]]) -> None:
    client, handler = broken
    handler.script[:] = [200]
    with pytest.raises(ApiError, match="no answer of prefloop"):
        client._send("PUT", "/api/tasks/x/draft", {}, again=False)  # this server knows no PUT and says so in HTML


def test_an_export_of_somebody_else_is_not_kept(tmp_path: Path) -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<h1>Welcome</h1>")

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        with Client(url, "x" * 43) as client, pytest.raises(ApiError, match="no answer of prefloop"):
            client.export(tmp_path / "out.jsonl")
        thread.join()
    assert list(tmp_path.iterdir()) == []


# The documentation


def test_the_examples_of_the_page_run(
    world: World, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world.fill(3)
    monkeypatch.chdir(tmp_path)
    row = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
    (tmp_path / "comparisons.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    label, undo, administer, first_pair = re.findall(
        r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL
    )
    names = {"URL": url, "TOKEN": token(world, "ana"), "ADMIN_TOKEN": token(world, "boss", "admin")}
    for example in (first_pair, label, undo, administer):
        exec(compile(example, str(DOCS), "exec"), names)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "all judged 3"
    assert said[2] == "1 rows, 1 new judgements"
    assert said[-2].startswith(f"{url}/join#")
    assert said[-1] == "401 You are not signed in."
    assert [one.ranks for one in world.store.judgements()].count((1, 1)) >= 1
    assert next(world.store.demonstrations()).text == "A better answer."


def test_the_page_says_what_the_server_does(world: World) -> None:
    text = re.sub(r"\s+", " ", DOCS.read_text(encoding="utf-8"))
    settings = world.settings
    assert f"{settings.requests_per_second} times a second for long, {4 * settings.requests_per_second} times" in text
    assert f"sign in {settings.sign_ins_per_minute} times a minute" in text
    assert f"at most {settings.import_bytes >> 30} GiB of any kind" in text
    paths = {re.sub(r"\?.*", "", path) for path in re.findall(r"/api/[\w/.$-]+", DOCS.read_text(encoding="utf-8"))}
    known = {"/api/docs", *world.app.openapi()["paths"], "/api/openapi.json"}
    assert {path.replace("$TASK", "{task_id}") for path in paths} <= known
