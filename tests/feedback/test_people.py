"""People: an invite makes one person once, a revoked one can do nothing, and no secret is in the database."""

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier

import pytest
import sqlalchemy as sa
from tests.feedback.threads import in_threads

from prefloop.feedback.people import People
from prefloop.feedback.store import Store
from prefloop.feedback.tables import PEOPLE, SECRETS


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def add(self, **by: float) -> None:
        self.now += timedelta(**by)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def people(store: Store, clock: Clock) -> People:
    people = People(store, clock)
    people.ensure("root", "admin")
    return people


def test_ensure_makes_a_person_once(people: People, clock: Clock) -> None:
    made = people.ensure("  Ann \t Lee ", "annotator")
    assert (made.name, made.role, made.created, made.revoked) == ("Ann Lee", "annotator", clock.now, None)
    clock.add(days=1)
    assert people.ensure("Ann Lee", "admin") == made, "nobody becomes an administrator by the way"
    assert [person.name for person in people.all()] == ["root", "Ann Lee"]
    assert people.find("Ann Lee") == made
    assert people.find("nobody") is None


@pytest.mark.parametrize("name", ["", "  ", "x" * 81, "a\0b", "a\u202eb", "half \ud800", "a\x7f"])
def test_names_that_nobody_can_read_are_refused(people: People, name: str) -> None:
    with pytest.raises(ValueError, match="1 to 80 printable characters"):
        people.ensure(name, "annotator")


def test_one_name_in_two_spellings_is_one_name(people: People) -> None:
    assert people.ensure("Zoe\u0308", "annotator") == people.ensure("Zo\u00eb", "annotator")


LIKE_ROOT = ["Root", "ROOT", "ｒｏｏｔ", "𝐫𝐨𝐨𝐭", "ro\u034fot", "root\u3164", "root\ufe0f", "roo\U000e0100t", "ʳoot"]


@pytest.mark.parametrize("name", LIKE_ROOT)
def test_a_name_that_looks_like_somebody_elses_is_refused(people: People, name: str) -> None:
    with pytest.raises(ValueError, match="looks like 'root'"):
        people.invite("annotator", "root", name=name)
    _, secret = people.invite("annotator", "root")
    for make in (lambda: people.accept(secret, name), lambda: people.ensure(name, "annotator")):
        with pytest.raises(ValueError, match="looks like 'root'"):
            make()
    assert [person.name for person in people.all()] == ["root"]
    assert people.accept(secret, "Ruth").name == "Ruth", "the refusal did not use it up"


@pytest.mark.parametrize("name", ["rооt", "roοt", "rооt bot", "Ann Ꭰ"])
def test_whoever_is_invited_uses_one_alphabet(people: People, name: str) -> None:
    _, secret = people.invite("annotator", "root")
    for make in (lambda: people.accept(secret, name), lambda: people.invite("annotator", "root", name=name)):
        with pytest.raises(ValueError, match="use one alphabet"):
            make()
    assert people.ensure(name, "annotator").name == name, "an administrator may call a program so"


def test_a_name_can_be_seen(people: People) -> None:
    with pytest.raises(ValueError, match="can be seen"):
        people.ensure("\u3164\u115f", "annotator")


NAMES = [
    "Zoë",
    "Zoe",
    "Иван Петров",
    "Γιώργος",
    "Ιωάννης",
    "山田 Taro",
    "김 Kim",
    "राम-2",
    "عمر",
    "Straße",
    "o'Neil",
    "rooty",
]


def test_names_of_all_the_world_are_taken(people: People) -> None:
    for name in NAMES:
        _, secret = people.invite("annotator", "root")
        assert people.accept(secret, name).name == name
    assert [person.name for person in people.all()] == ["root", *NAMES]


def test_those_who_look_alike_already_go_on(people: People, store: Store) -> None:
    there = ["Root", "rооt", "\u3164"]
    with store.database.writing() as db:
        made = {"role": "annotator", "created": "2026-01-01T00:00:00+00:00", "revoked": None}
        db.execute(PEOPLE.insert(), [{"name": name, **made} for name in there])
    for name in there:
        assert people.ensure(name, "admin").role == "annotator"
        found = people.signed_in(people.start_session(name))
        assert found is not None
        assert found.name == name
        people.revoke(name)
        people.restore(name)


# Invites


def test_an_invite_makes_one_person_once(people: People, clock: Clock) -> None:
    invite, secret = people.invite("annotator", "root")
    person = people.accept(secret, "ann")
    assert (person.name, person.role) == ("ann", "annotator")
    with pytest.raises(ValueError, match="unknown, used or too old"):
        people.accept(secret, "bob")
    assert people.find("bob") is None
    (after,) = people.invites()
    assert (after.id, after.accepted_by, after.ended, after.author) == (invite.id, "ann", clock.now, "root")


def test_an_invite_for_somebody_keeps_the_name_and_the_role(people: People) -> None:
    _, secret = people.invite("admin", "root", name="Ann")
    person = people.accept(secret, "root2")
    assert (person.name, person.role) == ("Ann", "admin")


def test_invites_that_are_over(people: People, clock: Clock) -> None:
    withdrawn, secret = people.invite("annotator", "root")
    people.withdraw(withdrawn.id)
    _, late = people.invite("annotator", "root", days=7)
    clock.add(days=7)
    for dead in (secret, late, "guess", ""):
        with pytest.raises(ValueError, match="unknown, used or too old"):
            people.accept(dead, "ann")
    with pytest.raises(LookupError, match="no invite"):
        people.withdraw(withdrawn.id)
    with pytest.raises(LookupError, match="no invite"):
        people.withdraw("no such")
    assert [one.accepted_by for one in people.invites()] == [None, None]


def test_a_name_that_is_taken(people: People) -> None:
    with pytest.raises(ValueError, match="somebody called 'root' already"):
        people.invite("annotator", "root", name="root")
    _, secret = people.invite("annotator", "root")
    with pytest.raises(ValueError, match="somebody called 'root' already"):
        people.accept(secret, "root")
    assert people.accept(secret, "ann").name == "ann", "the refusal did not use it up"
    with pytest.raises(ValueError, match="role 'king'"):
        people.invite("king", "root")  # type: ignore[arg-type]


def test_an_invite_accepted_by_many_at_once(people: People) -> None:
    _, secret = people.invite("annotator", "root")
    barrier, made, refused = Barrier(8), [], []

    def accept(name: str) -> None:
        barrier.wait()
        try:
            made.append(people.accept(secret, name))
        except ValueError as error:
            refused.append(error)

    in_threads([f"p{i}" for i in range(8)], accept)
    assert (len(made), len(refused)) == (1, 7)
    assert [person.name for person in people.all()] == ["root", made[0].name]


# Sessions and tokens


def test_a_session_lasts_as_long_as_it_says(people: People, clock: Clock) -> None:
    secret = people.start_session("root", hours=2)
    clock.add(hours=1.9)
    assert people.signed_in(secret) == people.find("root")
    clock.add(hours=0.1)
    assert people.signed_in(secret) is None
    assert people.signed_in("guess") is None


def test_signing_out_ends_that_session_alone(people: People) -> None:
    here, there = people.start_session("root"), people.start_session("root")
    people.end_session(here)
    people.end_session("guess")
    assert people.signed_in(here) is None
    assert people.signed_in(there) is not None


def test_old_sessions_are_cleared_away(people: People, store: Store, clock: Clock) -> None:
    people.make_token("root", "kept")
    people.end_session(people.start_session("root"))
    people.start_session("root", hours=1)
    clock.add(hours=2)
    people.start_session("root")
    with store.database.reading() as db:
        assert sorted(db.scalars(sa.select(SECRETS.c.kind))) == ["session", "token"]


def test_tokens(people: People, clock: Clock) -> None:
    token, secret = people.make_token("root", "nightly", days=1)
    _, forever = people.make_token("root", "other")
    assert people.bearer(secret) == people.find("root")
    assert [one.label for one in people.tokens()] == ["other", "nightly"]
    clock.add(days=1)
    assert people.bearer(secret) is None
    assert people.bearer(forever) is not None
    people.drop_token(token.id)
    assert [one.label for one in people.tokens()] == ["other"]
    with pytest.raises(LookupError, match="no token"):
        people.drop_token(token.id)


def test_one_kind_of_secret_is_no_other(people: People) -> None:
    session = people.start_session("root")
    _, token = people.make_token("root", "t")
    invite, link = people.invite("admin", "root")
    assert people.bearer(session) is people.bearer(link) is people.signed_in(token) is people.signed_in(link) is None
    with pytest.raises(ValueError, match="unknown"):
        people.accept(token, "ann")
    with pytest.raises(LookupError):
        people.drop_token(invite.id)


def test_revoking_ends_everything_at_once(people: People, clock: Clock) -> None:
    people.ensure("eve", "admin")
    session, (_, token), (_, link) = (
        people.start_session("eve"),
        people.make_token("eve", "t"),
        people.invite("admin", "eve"),
    )
    kept = people.start_session("root")
    people.revoke("eve")
    assert people.signed_in(session) is people.bearer(token) is None
    assert people.signed_in(kept) is not None
    with pytest.raises(ValueError, match="unknown"):
        people.accept(link, "eve again")
    for start in (lambda: people.start_session("eve"), lambda: people.make_token("eve", "u")):
        with pytest.raises(LookupError, match="nobody called 'eve' who may sign in"):
            start()
    eve = people.find("eve")
    assert eve is not None
    assert eve.revoked == clock.now
    people.restore("eve")
    assert people.signed_in(session) is people.bearer(token) is None, "they sign in anew"
    assert people.signed_in(people.start_session("eve")) is not None
    for change in (people.revoke, people.restore):
        with pytest.raises(LookupError, match="nobody called 'nobody'"):
            change("nobody")


def test_no_secret_is_in_the_database(people: People, store: Store, place: str | Path) -> None:
    secrets = [people.start_session("root"), people.make_token("root", "t")[1], people.invite("admin", "root")[1]]
    assert len({len(secret) for secret in secrets}) == 1
    assert all(len(secret) >= 43 for secret in secrets), "256 bits"
    with store.database.reading() as db:
        rows = [tuple(map(str, row)) for row in db.execute(sa.select(SECRETS))]
    assert not any(secret in value for row in rows for value in row for secret in secrets)
    assert {row[2] for row in rows} == {hashlib.sha256(secret.encode()).hexdigest() for secret in secrets}
    if isinstance(place, Path):
        assert not any(secret.encode() in file.read_bytes() for file in place.parent.iterdir() for secret in secrets)
