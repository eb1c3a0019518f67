"""Sessions, invites, tokens: who gets in, for how long, and how it ends."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.web.world import KEY, World

from prefloop.feedback.people import People
from prefloop.web.settings import Settings, loopback_origins


def me(client: TestClient) -> int:
    return client.get("/api/me").status_code


def test_the_key_makes_its_bearer_the_owner(world: World) -> None:
    client = world.stranger()
    assert client.post("/api/session", json={"key": KEY}).json() == {"name": "owner", "role": "admin"}
    assert client.get("/api/me").json() == {"name": "owner", "role": "admin"}


@pytest.mark.parametrize("key", [KEY[:-1], KEY + "K", "k" * 43, KEY.swapcase()])
def test_another_key_does_not(world: World, key: str) -> None:
    client = world.stranger()
    assert client.post("/api/session", json={"key": key}).status_code == 401
    assert not client.cookies
    assert world.people.all() == []


def test_a_server_without_a_key_has_none(tmp_path: Path) -> None:
    world = World(tmp_path, key="")
    with world.store:
        assert world.stranger().post("/api/session", json={"key": ""}).status_code == 422
        assert world.stranger().post("/api/session", json={"key": "x" * 43}).status_code == 401


def cookie_of(answer: Any) -> tuple[str, str, set[str]]:
    """Name, value and attributes of the one cookie that an answer sets."""
    (header,) = answer.headers.get_list("set-cookie")
    pair, *attributes = header.split("; ")
    name, _, value = pair.partition("=")
    return name, value, {attribute.lower() for attribute in attributes}


def test_the_cookies_flags(world: World, tmp_path: Path) -> None:
    name, value, flags = cookie_of(world.stranger().post("/api/session", json={"key": KEY}))
    assert (name, len(value)) == ("prefloop_session_8765", 43)
    assert flags == {"httponly", "samesite=strict", "path=/", f"max-age={30 * 24 * 3600}"}

    (tmp_path / "team").mkdir()
    team = World(tmp_path / "team", origins=("https://label.example.org",))
    with team.store:
        client = team.stranger()
        name, value, flags = cookie_of(client.post("/api/session", json={"key": KEY}))
        assert name == "__Host-prefloop_session"  # no domain: only this very host gets it
        assert flags == {"httponly", "samesite=strict", "secure", "path=/", f"max-age={30 * 24 * 3600}"}
        assert me(client) == 200
        name, value, flags = cookie_of(client.delete("/api/session"))
        assert (name, value.strip('"'), "max-age=0" in flags, "secure" in flags) == (
            "__Host-prefloop_session",
            "",
            True,
            True,
        )
        # A cookie that another host of the domain could set is not looked at.
        world_secret = team.people.start_session("owner", 1)
        assert me(team.stranger(Cookie=f"prefloop_session_8765={world_secret}")) == 401
        assert me(team.stranger(Cookie=f"__Host-prefloop_session={world_secret}")) == 200


def test_a_session_begins_with_a_new_id_and_the_old_one_is_over(world: World) -> None:
    """Fixation: an id that somebody else put into the browser is never the one that is signed in."""
    client = world.stranger()
    client.cookies.set("prefloop_session_8765", "chosen-by-somebody-else", domain="127.0.0.1")
    _, first, _ = cookie_of(client.post("/api/session", json={"key": KEY}))
    assert first != "chosen-by-somebody-else"
    again = world.stranger(Cookie=f"prefloop_session_8765={first}")
    _, second, _ = cookie_of(again.post("/api/session", json={"key": KEY}))
    assert second != first
    assert me(world.stranger(Cookie=f"prefloop_session_8765={first}")) == 401
    assert me(world.stranger(Cookie=f"prefloop_session_8765={second}")) == 200
    assert me(world.stranger(Cookie="prefloop_session_8765=chosen-by-somebody-else")) == 401


def test_signing_out_ends_the_session_itself(world: World) -> None:
    client = world.browser("ana")
    secret = client.cookies["prefloop_session_8765"]
    assert client.delete("/api/session").status_code == 204
    assert not client.cookies
    assert me(world.stranger(Cookie=f"prefloop_session_8765={secret}")) == 401


def late(world: World, **by: float) -> People:
    """The people as they are later on."""
    return People(world.store, lambda: datetime.now(UTC) + timedelta(**by))


def at(world: World, **by: float) -> None:
    """Let the server's clock go on."""
    state = world.app.state.prefloop
    world.app.state.prefloop = type(state)(**{**vars(state), "people": late(world, **by)})


def test_a_session_and_a_token_expire(world: World) -> None:
    browser, script = world.browser("ana"), world.script("bot")
    world.people.ensure("cy", "annotator")
    brief = world.stranger(Authorization=f"Bearer {world.people.make_token('cy', '', days=1)[1]}")
    del brief.headers["Origin"]
    assert [me(browser), me(brief), me(script)] == [200, 200, 200]
    at(world, minutes=61)
    assert [me(browser), me(brief), me(script)] == [401, 200, 200]
    at(world, days=1.01)
    assert [me(brief), me(script)] == [401, 200]


def test_whoever_is_revoked_is_out_at_once(world: World) -> None:
    boss, browser, script = world.browser("boss", "admin"), world.browser("ana"), world.script("ana")
    world.fill(1)
    task = browser.post("/api/tasks/next").json()["task"]
    assert boss.post("/api/people/ana/revoke").status_code == 204
    for client in (browser, script):
        assert me(client) == 401
        assert client.post(f"/api/tasks/{task['id']}/skip").status_code == 401
    assert boss.post("/api/people/ana/restore").status_code == 204
    assert [me(browser), me(script)] == [401, 401]  # what was ended stays so
    assert boss.post("/api/people/nobody/revoke").status_code == 404
    assert boss.post("/api/people/boss/revoke").status_code == 400
    assert me(boss) == 200


def test_a_dropped_token_is_worthless(world: World) -> None:
    boss, script = world.browser("boss", "admin"), world.script("bot")
    ((token),) = boss.get("/api/tokens").json()
    assert set(token) == {"id", "person", "label", "created", "expires"}
    assert boss.delete(f"/api/tokens/{token['id']}").status_code == 204
    assert me(script) == 401
    assert boss.delete(f"/api/tokens/{token['id']}").status_code == 404


def test_a_token_is_no_session_and_a_session_no_token(world: World) -> None:
    browser, script = world.browser("ana"), world.script("ana")
    session, token = browser.cookies["prefloop_session_8765"], script.headers["Authorization"].split()[1]
    assert me(world.stranger(Authorization=f"Bearer {session}")) == 401
    assert me(world.stranger(Cookie=f"prefloop_session_8765={token}")) == 401
    assert me(world.stranger(Authorization=f"Basic {token}")) == 401
    # A wrong token is not made good by a session.
    assert browser.get("/api/me", headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_an_invite_lets_one_person_in_once(world: World) -> None:
    boss = world.browser("boss", "admin")
    made = boss.post("/api/invites", json={"role": "annotator"}).json()
    assert made["url"] == f"http://127.0.0.1:8765/join#{made['secret']}"
    ana, bob = world.stranger(), world.stranger()
    accept = {"invite": made["secret"], "name": "ana"}
    assert ana.post("/api/session", json=accept).json() == {"name": "ana", "role": "annotator"}
    assert me(ana) == 200
    for name in ("ana", "bob"):
        answer = bob.post("/api/session", json=accept | {"name": name})
        assert answer.status_code == 400
        assert "ask for a new one" in answer.json()["error"]["what"]
        assert me(bob) == 401
    (listed,) = boss.get("/api/invites").json()
    assert listed["accepted_by"] == "ana"
    assert made["secret"] not in boss.get("/api/invites").text


def test_whoever_lost_their_session_comes_back_by_a_token(world: World) -> None:
    """An invite makes a person once; a token's link is how they return, and how somebody restored does."""
    boss, ana = world.browser("boss", "admin"), world.stranger()
    world.people.ensure("ana", "annotator")
    made = boss.post("/api/tokens", json={"name": "ana", "label": "sign-in link", "days": 7}).json()
    assert made["url"] == f"http://127.0.0.1:8765/#key={made['token']}"
    assert ana.post("/api/session", json={"key": made["token"]}).json() == {"name": "ana", "role": "annotator"}
    assert me(ana) == 200
    boss.delete(f"/api/tokens/{made['id']}")
    assert world.stranger().post("/api/session", json={"key": made["token"]}).status_code == 401
    boss.post("/api/people/ana/revoke")
    assert me(ana) == 401
    boss.post("/api/people/ana/restore")
    assert me(ana) == 401
    made = boss.post("/api/tokens", json={"name": "ana"}).json()
    assert ana.post("/api/session", json={"key": made["token"]}).status_code == 200
    assert me(ana) == 200


def test_invites_that_are_too_old_withdrawn_or_made_up(world: World) -> None:
    boss, ana = world.browser("boss", "admin"), world.stranger()

    def accept(secret: str, name: str = "ana") -> int:
        return ana.post("/api/session", json={"invite": secret, "name": name}).status_code

    made = boss.post("/api/invites", json={"role": "annotator", "days": 1}).json()
    assert boss.delete(f"/api/invites/{made['id']}").status_code == 204
    assert boss.delete(f"/api/invites/{made['id']}").status_code == 404
    assert accept(made["secret"]) == 400
    assert accept("x" * 43) == 400
    made = boss.post("/api/invites", json={"role": "annotator", "days": 1}).json()
    assert accept(made["secret"], "boss") == 400  # the name is taken; the invite is not used up
    at(world, days=1.01)
    assert accept(made["secret"]) == 400
    at(world, days=0.99)
    assert accept(made["secret"]) == 200


@pytest.mark.parametrize(
    "name", ["", " ", "a/b", "../me", "a\r\nSet-Cookie: x=1", "a\0b", "<b>", "a" * 65, "\u202eana", " ana", "a\ud800"]
)
def test_names_that_cannot_be_told_apart_or_put_into_an_address(world: World, name: str) -> None:
    secret = world.people.invite("annotator", "boss")[1]
    body = b'{"invite": "%s", "name": %s}' % (secret.encode(), json.dumps(name).encode())
    answer = world.stranger().post("/api/session", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert "set-cookie" not in answer.headers


def test_the_key_brings_back_an_owner_who_was_sent_away(world: World) -> None:
    """Whoever starts the server has the database."""
    world.people.ensure("owner", "admin")
    world.people.revoke("owner")
    client = world.stranger()
    assert client.post("/api/session", json={"key": KEY}).status_code == 200
    assert me(client) == 200


def test_no_secret_is_kept_or_logged(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    boss = world.stranger()
    boss.post("/api/session", json={"key": KEY})
    secrets = [
        boss.cookies["prefloop_session_8765"],
        boss.post("/api/invites", json={"role": "annotator"}).json()["secret"],
        boss.post("/api/tokens", json={"name": "owner"}).json()["token"],
        KEY,
    ]
    world.store.close()
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("feedback.db*"))
    assert b"owner" in kept
    assert not [secret for secret in secrets if secret.encode() in kept or secret in caplog.text]


def test_servers_on_two_ports_have_two_cookies(tmp_path: Path) -> None:
    """A browser sends a host's cookies to every port of it."""
    names = [Settings(loopback_origins("127.0.0.1", port)).cookie for port in (8765, 8766)]
    assert names == ["prefloop_session_8765", "prefloop_session_8766"]
    assert Settings(("http://label.example.org",)).cookie == "prefloop_session_80"
