"""`prefloop label` as a person starts it, and the server as a process."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from tests.toys import heeds_ctrl_c
from tests.web.world import World

from prefloop.feedback.people import People, Role, user_name
from prefloop.feedback.store import Store
from prefloop.web.serve import LabelServer, listen, open_browser


@contextmanager
def running(server: LabelServer) -> Iterator[LabelServer]:
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "feedback.db") as made:
        yield made


def test_the_link_signs_in(store: Store) -> None:
    with running(LabelServer(store, port=0)) as server:
        origin, key = server.link.split("/#key=")
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", origin)
        with httpx.Client(base_url=origin, headers={"Origin": origin}) as client:
            assert client.get("/").status_code == 200
            assert client.post("/api/session", json={"key": key}).json() == {"name": user_name(), "role": "admin"}
            assert client.get("/api/people").status_code == 200
    again = LabelServer(store, port=0)
    again.socket.close()
    assert again.settings.key != key


@pytest.mark.parametrize("role", ["annotator", "admin"])
def test_whoever_looks_like_the_owner_keeps_nobody_out(store: Store, role: Role) -> None:
    there = People(store).ensure(user_name().title(), role).name
    server = LabelServer(store, port=0)
    server.socket.close()
    assert server.settings.owner == f"{user_name()}-admin" != there


def test_nothing_lets_others_in_by_chance(store: Store) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "label.example.org", ""):
        with pytest.raises(ValueError, match="say with --url"):
            LabelServer(store, host, 0)
    team = LabelServer(store, "127.0.0.1", 0, "https://label.example.org/")
    team.socket.close()
    assert team.link.startswith("https://label.example.org/#key=")
    assert team.settings.origins == ("https://label.example.org",)
    assert team.settings.secure


def test_a_port_in_use_is_told(store: Store) -> None:
    taken = listen("127.0.0.1", 0)
    port = taken.getsockname()[1]
    with pytest.raises(ValueError, match=rf"port {port} is in use.*--port"):
        LabelServer(store, port=port)
    taken.close()
    with pytest.raises(ValueError, match=r"cannot listen on --host 192\.0\.2\.1"):
        listen("192.0.2.1", 0)


def test_answers_are_sent_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nagle's algorithm and delayed acknowledgements together make 40 ms of every answer in two pieces."""
    options: list[int] = []
    set_nodelay = asyncio.base_events._set_nodelay

    def watched(accepted: socket.socket) -> None:
        set_nodelay(accepted)
        options.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr("asyncio.base_events._set_nodelay", watched)
    with running(LabelServer(store, port=0)) as server:
        assert httpx.get(f"{server.settings.origins[0]}/").status_code == 200
    assert options
    assert all(options)


def test_a_visitors_address_is_what_a_proxy_on_this_machine_says(store: Store) -> None:
    """Behind a proxy the limit of sign-ins is the visitor's; without one, nobody can choose their address."""
    for url in ("http://label.example.org", ""):
        with running(LabelServer(store, port=0, url=url)) as server:
            here = f"http://127.0.0.1:{server.socket.getsockname()[1]}"
            headers = {"Origin": server.settings.origins[0], "Host": server.settings.origins[0].split("//")[1]}
            tried = [
                httpx.post(
                    f"{here}/api/session",
                    json={"key": "x" * 43},
                    headers=headers | {"X-Forwarded-For": f"192.0.2.{number}"},
                ).status_code
                for number in range(33)
            ]
            assert (429 in tried) == (not url)


def test_requests_under_way_are_finished(world: World) -> None:
    """Stopping waits for an answer that a handler is working on."""
    server = LabelServer(world.store, port=0)
    token = world.people.make_token(world.people.ensure("ana", "annotator").name, "")[1]
    entered, leave = threading.Event(), threading.Event()
    queue = server.app.state.prefloop.queue
    progress = queue.progress

    def slow(name: str) -> object:
        entered.set()
        assert leave.wait(20)
        return progress(name)

    queue.progress = slow
    answers: list[int] = []

    def ask() -> None:
        url = f"{server.settings.origins[0]}/api/progress"
        answers.append(httpx.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=30).status_code)

    with running(server):
        thread = threading.Thread(target=ask)
        thread.start()
        assert entered.wait(20)
        server.stop()
        leave.set()
        thread.join(20)
    assert answers == [200]


def test_no_browser_is_opened_where_there_is_no_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = threading.Event()
    monkeypatch.setattr("webbrowser.open", lambda _: opened.set())
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    open_browser("http://127.0.0.1")
    assert not opened.wait(0.05)
    monkeypatch.setenv("DISPLAY", ":0")
    open_browser("http://127.0.0.1")
    assert opened.wait(10)


def test_the_key_is_in_no_programs_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They can be read by everybody on the machine; the file that leads to the link by its owner alone."""
    asked: list[str] = []
    opened = threading.Event()
    monkeypatch.setattr("webbrowser.open", lambda url: (asked.append(url), opened.set()))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("DISPLAY", ":0")
    open_browser("http://127.0.0.1:1/#key=s3cret&x")
    assert opened.wait(10)
    assert "s3cret" not in asked[0]
    page = Path(asked[0].removeprefix("file://"))
    assert page.parent.stat().st_mode & 0o077 == 0
    assert "url=http://127.0.0.1:1/#key=s3cret&amp;x" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["Ana Ruiz", "DOMAIN\\ana", "", "../..", "ana", "дима"])
def test_the_owners_name_can_stand_in_an_address(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: name)
    expected = {"Ana Ruiz": "Ana-Ruiz", "DOMAIN\\ana": "DOMAIN-ana", "": "somebody", "../..": "somebody"}
    assert user_name() == expected.get(name, name)


# The command


def label(folder: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "prefloop", "label", "--no-browser", *options],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PREFLOOP_DATABASE"},
        preexec_fn=heeds_ctrl_c,
    )


def test_label_prints_a_link_and_stops_with_ctrl_c(tmp_path: Path) -> None:
    Store.open(tmp_path / "feedback.db").close()
    process = label(tmp_path, "--port", "0")
    try:
        assert process.stdout is not None
        link = process.stdout.readline().split()[1]
        origin, key = link.split("/#key=")
        assert httpx.get(f"{origin}/api/me", timeout=30).status_code == 401
        with httpx.Client(base_url=origin, headers={"Origin": origin}) as client:
            assert client.post("/api/session", json={"key": key}).status_code == 200
        process.send_signal(signal.SIGINT)
        said, told = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Stopped. Everything that was sent is kept." in told
    assert key not in said + told  # the link was the only place: no log has it
    with Store.open(tmp_path / "feedback.db") as store:
        assert [person.name for person in People(store).all()] == [user_name()]


def test_label_says_what_is_wrong(tmp_path: Path) -> None:
    for options, complaint in (
        (("--port", "0"), "is this the project's folder?"),
        (("--host", "0.0.0.0"), "say with --url"),
        (("--url", "label.example.org"), "expected something like https://label.example.org"),
    ):
        process = label(tmp_path, *options)
        _, told = process.communicate(timeout=60)
        assert process.returncode == 2
        assert complaint in told
        Store.open(tmp_path / "feedback.db").close()


def test_label_says_how_a_team_comes_in(tmp_path: Path) -> None:
    Store.open(tmp_path / "feedback.db").close()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = label(tmp_path, "--port", str(port), "--url", "https://label.example.org")
    try:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(3)]
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert said[0].startswith("Open https://label.example.org/#key=")
    assert said[2] == "Others need an invite: make links for them at https://label.example.org/admin\n"
