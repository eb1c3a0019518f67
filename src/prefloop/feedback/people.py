"""Who may judge and who may look after it: people, invites, sessions, tokens.

Every secret is 256 random bits. The database holds its SHA-256 alone, so that nobody who reads the database can sign
in with what is in it; there are no passwords, and nothing is there by default.
"""

from __future__ import annotations

import getpass
import hashlib
import re
import secrets
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, get_args

import sqlalchemy as sa

from .store import Store
from .tables import PEOPLE, SECRETS, moment

Role = Literal["annotator", "admin"]
_Kind = Literal["invite", "session", "token"]
_LONGEST_NAME = 80


@dataclass(frozen=True)
class Person:
    name: str
    role: Role
    created: datetime
    revoked: datetime | None
    """Since when they may do nothing any more; what they said stays."""


@dataclass(frozen=True)
class Invite:
    """A link that makes one person."""

    id: str
    """To speak of it; the secret itself is shown once."""
    role: Role
    name: str
    """Who it is meant for; empty where whoever accepts it chooses."""
    author: str
    created: datetime
    expires: datetime
    accepted_by: str | None
    ended: datetime | None
    """When it was accepted or withdrawn."""


@dataclass(frozen=True)
class Token:
    """What a script signs in with."""

    id: str
    person: str
    label: str
    created: datetime
    expires: datetime | None


class People:
    """The people of a store. Names are unique and stay: they are in the judgements."""

    def __init__(self, store: Store, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._database = store.database
        self._now = now

    # People

    def all(self) -> list[Person]:
        """Everybody, in the order in which they came."""
        with self._database.reading() as db:
            return [_person(row) for row in db.execute(sa.select(PEOPLE).order_by(PEOPLE.c.seq)).mappings()]

    def find(self, name: str) -> Person | None:
        """The person of that name, revoked or not."""
        with self._database.reading() as db:
            return _find(db, name)

    def ensure(self, name: str, role: Role) -> Person:
        """The person of that name, made with ``role`` if there is none. ValueError: it looks like somebody else's."""
        name = checked_name(name)
        with self._database.writing() as db:
            if person := _find(db, name):
                return person
            _check_unlike(db, name)
            return self._make(db, name, role)

    def revoke(self, name: str) -> None:
        """From now on this person may do nothing: their sessions, tokens and invites end. LookupError: no such."""
        with self._database.writing() as db:
            self._change(db, name, moment(self._now()))
            db.execute(self._ending().where(sa.or_(SECRETS.c.person == name, SECRETS.c.author == name)))

    def restore(self, name: str) -> None:
        """Undo `revoke`; they sign in anew."""
        with self._database.writing() as db:
            self._change(db, name, None)

    # Invites

    def invite(self, role: Role, author: str, name: str = "", days: float = 7) -> tuple[Invite, str]:
        """An invite and its secret, which nobody can read again."""
        if role not in get_args(Role):
            raise ValueError(f"role {role!r} is not one of {', '.join(get_args(Role))}")
        name = checked_name(name) if name else ""
        with self._database.writing() as db:
            if name:
                _check_new(db, name)
            row, secret = self._add(db, "invite", label=name, author=author, days=days, role=role)
        return _invite(row), secret

    def invites(self) -> list[Invite]:
        """Every invite, newest first; also those that were accepted or withdrawn."""
        return [_invite(row) for row in self._secrets("invite")]

    def withdraw(self, id: str) -> None:
        """An invite that nobody has accepted is good for nothing from now on. LookupError: there is none."""
        self._end(id, "invite")

    def accept(self, secret: str, name: str) -> Person:
        """Make the person whom an invite is for; once. ValueError says why it cannot be."""
        with self._database.writing() as db:
            row = self._valid(db, "invite", secret)
            if row is None:
                raise ValueError("this invite is unknown, used or too old; ask for a new one")
            name = row["label"] or checked_name(name)
            _check_new(db, name)
            person = self._make(db, name, row["role"])
            db.execute(self._ending().where(SECRETS.c.seq == row["seq"]).values(person=name))
        return person

    # Sessions and tokens

    def start_session(self, name: str, hours: float = 24 * 7) -> str:
        """A new session's secret, for a person who is not revoked."""
        with self._database.writing() as db:
            self._check_active(db, name)
            over = sa.or_(SECRETS.c.expires < moment(self._now()), SECRETS.c.ended.is_not(None))
            db.execute(sa.delete(SECRETS).where(SECRETS.c.kind == "session", over))
            return self._add(db, "session", person=name, author=name, days=hours / 24)[1]

    def end_session(self, secret: str) -> None:
        with self._database.writing() as db:
            db.execute(self._ending().where(SECRETS.c.hash == _hash(secret), SECRETS.c.kind == "session"))

    def signed_in(self, secret: str) -> Person | None:
        """Whose session this is; None for one that is unknown, over, or of somebody who was revoked."""
        return self._owner("session", secret)

    def make_token(self, name: str, label: str, days: float | None = None, author: str = "") -> tuple[Token, str]:
        """A token for scripts and its secret, which nobody can read again.

        ``author`` is who made it, where that is somebody else: it ends with them as well.
        """
        with self._database.writing() as db:
            self._check_active(db, name)
            row, secret = self._add(db, "token", person=name, author=author or name, label=label, days=days)
        return _token(row), secret

    def tokens(self) -> list[Token]:
        """The tokens that are good for something, newest first."""
        return [_token(row) for row in self._secrets("token") if row["ended"] is None]

    def drop_token(self, id: str) -> None:
        """LookupError: there is none."""
        self._end(id, "token")

    def bearer(self, secret: str) -> Person | None:
        """Whose token this is; None as in `signed_in`."""
        return self._owner("token", secret)

    # Rows

    def _make(self, db: sa.Connection, name: str, role: str) -> Person:
        row = {"name": name, "role": role, "created": moment(self._now()), "revoked": None}
        db.execute(PEOPLE.insert(), [row])
        return _person(row)

    def _change(self, db: sa.Connection, name: str, revoked: str | None) -> None:
        change = sa.update(PEOPLE).where(PEOPLE.c.name == name).values(revoked=revoked)
        if db.execute(change).rowcount == 0:
            raise LookupError(f"there is nobody called {name!r}")

    def _check_active(self, db: sa.Connection, name: str) -> None:
        person = _find(db, name)
        if person is None or person.revoked:
            raise LookupError(f"there is nobody called {name!r} who may sign in")

    def _add(
        self, db: sa.Connection, kind: _Kind, *, days: float | None, **fields: str | None
    ) -> tuple[dict[str, Any], str]:
        secret, now = secrets.token_urlsafe(32), self._now()
        row: dict[str, Any] = {
            "id": secrets.token_hex(8),
            "hash": _hash(secret),
            "kind": kind,
            "person": None,
            "role": None,
            "label": "",
            "created": moment(now),
            "expires": None if days is None else moment(now + timedelta(days=days)),
            "ended": None,
            **fields,
        }
        db.execute(SECRETS.insert(), [row])
        return row, secret

    def _secrets(self, kind: _Kind) -> list[dict[str, Any]]:
        query = sa.select(SECRETS).where(SECRETS.c.kind == kind).order_by(SECRETS.c.seq.desc())
        with self._database.reading() as db:
            return [dict(row) for row in db.execute(query).mappings()]

    def _ending(self) -> sa.Update:
        return sa.update(SECRETS).where(SECRETS.c.ended.is_(None)).values(ended=moment(self._now()))

    def _end(self, id: str, kind: _Kind) -> None:
        with self._database.writing() as db:
            if db.execute(self._ending().where(SECRETS.c.id == id, SECRETS.c.kind == kind)).rowcount == 0:
                raise LookupError(f"there is no {kind} {id!r} that could be ended")

    def _valid(self, db: sa.Connection, kind: _Kind, secret: str) -> sa.RowMapping | None:
        query = sa.select(SECRETS).where(
            SECRETS.c.hash == _hash(secret),
            SECRETS.c.kind == kind,
            SECRETS.c.ended.is_(None),
            sa.or_(SECRETS.c.expires.is_(None), SECRETS.c.expires > moment(self._now())),
        )
        return db.execute(query).mappings().first()

    def _owner(self, kind: _Kind, secret: str) -> Person | None:
        with self._database.reading() as db:
            row = self._valid(db, kind, secret)
            person = _find(db, row["person"]) if row else None
        return None if person is None or person.revoked else person


def user_name() -> str:
    """Who sits at this machine, by a name that can stand in an address; on the page and in judging sheets alike."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user without a name
        name = ""
    return re.sub(r"[^\w.@+-]+", "-", name).strip("-.")[:64] or "somebody"


def checked_name(name: str) -> str:
    """A name as it is kept; ValueError for one that nobody could read or type."""
    name = unicodedata.normalize("NFC", " ".join(name.split()))
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        raise ValueError(f"a name has 1 to {_LONGEST_NAME} printable characters; got {name!r:.100}")
    return name


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _find(db: sa.Connection, name: str) -> Person | None:
    row = db.execute(sa.select(PEOPLE).where(PEOPLE.c.name == name)).mappings().first()
    return _person(row) if row else None


def _check_new(db: sa.Connection, name: str) -> None:
    """Whoever is invited is called what nobody else is, and what nobody takes for somebody else's name."""
    if _find(db, name):
        raise ValueError(f"there is somebody called {name!r} already; choose another name")
    _check_unlike(db, name)
    if len(alphabets := _alphabets(name)) > 1:
        raise ValueError(f"{name!r} mixes letters of {' and '.join(alphabets)} that look alike; use one alphabet")


def _check_unlike(db: sa.Connection, name: str) -> None:
    look = _look(name)
    if not look:
        raise ValueError("a name has letters that can be seen")
    for other in db.scalars(sa.select(PEOPLE.c.name)):
        if _look(other) == look:
            raise ValueError(f"{name!r} looks like {other!r}, who is there already; choose another name")


def _look(name: str) -> str:
    """The same for names that differ in case, in the width or style of letters, or in what is not to be seen."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return " ".join("".join(char for char in folded if not _UNSEEN.search(unicodedata.name(char, ""))).split())


_UNSEEN = re.compile("FILLER|VARIATION SELECTOR|GRAPHEME JOINER|VOWEL INHERENT|PATTERN BLANK")
"""In the Unicode names of the characters that are printable by their category and yet show nothing."""


def _alphabets(name: str) -> list[str]:
    """Those with capitals, whose letters are easily mistaken: Latin, Greek, Cyrillic, and a few more.

    One of them beside another script, as in Japanese names, is fine: UTS 39 (section 5.2) allows that as well.
    """
    letters = (
        char for char in unicodedata.normalize("NFKC", name) if char.isalpha() and char.lower() != char.upper()
    )
    return sorted({unicodedata.name(letter).partition(" ")[0].title() for letter in letters})


def _person(row: Any) -> Person:
    return Person(row["name"], row["role"], datetime.fromisoformat(row["created"]), _time(row["revoked"]))


def _invite(row: Any) -> Invite:
    created, expires = datetime.fromisoformat(row["created"]), datetime.fromisoformat(row["expires"])
    name, author = row["label"], row["author"]
    return Invite(row["id"], row["role"], name, author, created, expires, row["person"], _time(row["ended"]))


def _token(row: Any) -> Token:
    created = datetime.fromisoformat(row["created"])
    return Token(row["id"], row["person"], row["label"], created, _time(row["expires"]))


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
