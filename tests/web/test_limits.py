"""How often somebody may ask: over HTTP, and the buckets behind it."""

from __future__ import annotations

from pathlib import Path

from tests.web.world import KEY, World

from prefloop.web import limits
from prefloop.web.limits import Limiter, network


def test_signing_in_by_trial_is_slowed_down(world: World) -> None:
    client = world.stranger()
    tried = [client.post("/api/session", json={"key": "x" * 43}).status_code for _ in range(40)]
    assert tried == [401] * 30 + [429] * 10
    refused = client.post("/api/session", json={"key": KEY})
    assert refused.status_code == 429  # the right one too
    assert int(refused.headers["Retry-After"]) in (1, 2)


def test_a_person_who_floods_is_slowed_down_and_nobody_else(tmp_path: Path) -> None:
    world = World(tmp_path, requests_per_second=1)
    with world.store:
        ana, script, bob = world.browser("ana"), world.script("ana"), world.browser("bob")
        asked = [client.get("/api/me").status_code for client in (ana, script) * 10]
        assert asked[:4] == [200] * 4
        assert asked.count(429) >= 10  # both ways in count together
        assert bob.get("/api/me").status_code == 200


def test_a_stranger_who_guesses_is_slowed_down(tmp_path: Path) -> None:
    """Each guess at a token or a session costs a look into the database."""
    world = World(tmp_path, requests_per_second=1)
    with world.store:
        guess = world.stranger(Authorization="Bearer guessed")
        asked = [guess.get("/api/me").status_code for _ in range(12)]
        assert asked[:4] == [401] * 4
        assert asked.count(429) >= 6
        assert world.browser("ana").get("/api/me").status_code == 200, "who is signed in is not held up"


def test_a_bucket() -> None:
    now = 0.0
    limiter = Limiter(2.0, 3, lambda: now)
    assert [limiter.wait("a") for _ in range(3)] == [0, 0, 0]
    assert limiter.wait("a") == 0.5
    assert limiter.wait("b") == 0
    now = 0.25
    assert limiter.wait("a") == 0.25
    now = 0.5
    assert [limiter.wait("a"), limiter.wait("a")] == [0, 0.5]
    now = 1000.0
    assert [limiter.wait("a") for _ in range(4)] == [0, 0, 0, 0.5]  # no more than the burst is saved up


def test_limits_are_kept_in_bounded_memory() -> None:
    limiter = Limiter(1.0, 1)
    for number in range(limits.MOST_BUCKETS + 500):
        limiter.wait(str(number))
    assert len(limiter) == limits.MOST_BUCKETS


def test_addresses_that_one_customer_has_count_as_one() -> None:
    assert network("2001:db8:1:2:3::4") == network("2001:db8:1:2:ffff::")
    assert network("2001:db8:1:2::") != network("2001:db8:1:3::")
    assert network("::ffff:192.0.2.1") == network("192.0.2.1") == "192.0.2.1"
    assert network("::1") == "::/64"
    assert network("testclient") == network("") == "unknown"
