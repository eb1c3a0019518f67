"""The database's tables. `prefloop.feedback.database` opens it; the rules are in `store`, `people` and `assignment`.

What people said is append-only: prompts, completions, demonstrations, guidelines and judgements are never changed.
Who may say something, and who is asked what, are states that change: people, secrets, batches, items and tasks.

In every table ``seq`` is the order of insertion. Moments are ISO 8601 in UTC with microseconds: they sort as text,
and SQLite has no type that keeps a time zone.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

METADATA = sa.MetaData()
_PREFIX = "\x1a"


class Text(sa.types.TypeDecorator[str]):
    """Any Unicode text. PostgreSQL has no NUL in its texts, so there U+0000 is written as U+001A and ``0``."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        if value is None or dialect.name != "postgresql" or not ("\0" in value or _PREFIX in value):
            return value
        return value.replace(_PREFIX, _PREFIX + "1").replace("\0", _PREFIX + "0")

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:
        if value is None or dialect.name != "postgresql" or _PREFIX not in value:
            return value
        return value.replace(_PREFIX + "0", "\0").replace(_PREFIX + "1", _PREFIX)


def moment(when: datetime) -> str:
    """A time with a zone as the database writes it."""
    return when.astimezone(UTC).isoformat(timespec="microseconds")


def _seq() -> sa.Column[Any]:
    return sa.Column("seq", sa.Integer, primary_key=True)


def _json(name: str, **how: Any) -> sa.Column[Any]:
    return sa.Column(name, sa.JSON(none_as_null=True), **({"nullable": False} | how))


def _moment(name: str, **how: Any) -> sa.Column[Any]:
    return sa.Column(name, sa.String(32), **({"nullable": False} | how))


# What people said

PROMPTS = sa.Table(
    "prompts",
    METADATA,
    _seq(),
    sa.Column("id", sa.String(32), nullable=False, unique=True),
    _json("messages"),  # [[role, content], …]
    sa.Column("split", sa.String(16)),
    _json("metadata"),
)


def _answers(name: str, *more: sa.Column[Any]) -> sa.Table:
    return sa.Table(
        name,
        METADATA,
        _seq(),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("prompt_id", sa.String(32), sa.ForeignKey("prompts.id"), nullable=False, index=True),
        sa.Column("text", Text, nullable=False),
        sa.Column("origin", Text, nullable=False),
        _json("metadata"),
        *more,
    )


COMPLETIONS = _answers("completions")
DEMONSTRATIONS = _answers("demonstrations", sa.Column("judgement_id", Text, sa.ForeignKey("judgements.id")))

GUIDELINES = sa.Table(
    "guidelines",
    METADATA,
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("text", Text, nullable=False),
    sa.Column("author", Text, nullable=False),
    _moment("created"),
)

# What was shown and how it was ranked are JSON columns rather than a child table: a judgement is one
# immutable value, written and read as a whole, so its two halves can never come apart, and reading a million
# of them is one scan without a join. The price, no foreign key on each completion, is paid by the store,
# which checks them in the writing transaction; what it found stays true because completions can be neither
# changed nor deleted.
JUDGEMENTS = sa.Table(
    "judgements",
    METADATA,
    _seq(),
    sa.Column("id", Text, nullable=False, unique=True),
    sa.Column("prompt_id", sa.String(32), sa.ForeignKey("prompts.id"), nullable=False, index=True),
    sa.Column("annotator", Text, nullable=False),
    sa.Column("source", sa.String(16), nullable=False),
    _json("shown"),
    _json("ranks"),
    sa.Column("strength", sa.Integer),
    sa.Column("criterion", Text, nullable=False),
    _json("flags"),
    sa.Column("reason", Text, nullable=False),
    sa.Column("seconds", sa.Float),
    # Unique: corrections form a chain, never a fork in which both ends would count.
    sa.Column("supersedes", Text, sa.ForeignKey("judgements.id"), unique=True),
    sa.Column("retracted", sa.Boolean, nullable=False),
    _moment("created"),
    sa.Column("guidelines", sa.Integer, sa.ForeignKey("guidelines.version")),
)

# Who may say something

PEOPLE = sa.Table(
    "people",
    METADATA,
    _seq(),
    sa.Column("name", Text, nullable=False, unique=True),
    sa.Column("role", sa.String(16), nullable=False),
    _moment("created"),
    _moment("revoked", nullable=True),
)

SECRETS = sa.Table(
    "secrets",
    METADATA,
    _seq(),
    sa.Column("id", sa.String(32), nullable=False, unique=True),  # to speak of it without giving it away
    sa.Column("hash", sa.String(64), nullable=False, unique=True),
    sa.Column("kind", sa.String(16), nullable=False),  # invite, session, token
    sa.Column("person", Text, sa.ForeignKey("people.name"), index=True),  # whose; who accepted an invite
    sa.Column("role", sa.String(16)),  # an invite's
    sa.Column("label", Text, nullable=False),
    sa.Column("author", Text, nullable=False),
    _moment("created"),
    _moment("expires", nullable=True),
    _moment("ended", nullable=True),  # used, withdrawn, signed out
)

# Who is asked what

BATCHES = sa.Table(
    "batches",
    METADATA,
    _seq(),
    sa.Column("name", Text, nullable=False, unique=True),
    sa.Column("salt", sa.String(32), nullable=False),  # told to nobody: what is drawn by hash is drawn with it
    _json("criteria"),
    sa.Column("overlap", sa.Integer, nullable=False),
    sa.Column("target", sa.Integer),
    sa.Column("gold_share", sa.Float, nullable=False),
    sa.Column("control_share", sa.Float, nullable=False),
    sa.Column("lease_seconds", sa.Integer, nullable=False),
    sa.Column("closed", sa.Boolean, nullable=False),
    sa.Column("done", sa.Integer, nullable=False),  # sends, without those about gold items
    sa.Column("sent", sa.Integer, nullable=False),  # all sends
    _moment("created"),
)

ITEMS = sa.Table(
    "items",
    METADATA,
    _seq(),
    sa.Column("batch", sa.Integer, sa.ForeignKey("batches.seq"), nullable=False),
    sa.Column("key", sa.String(32), nullable=False),  # hash of the prompt and the completions
    sa.Column("prompt_id", sa.String(32), sa.ForeignKey("prompts.id"), nullable=False),
    _json("completions"),
    _json("gold", nullable=True),
    # gold; control: drawn by hash for the random sample; priority: the others. Fixed when the item is added.
    sa.Column("arm", sa.String(16), nullable=False),
    sa.Column("priority", sa.Float, nullable=False),
    sa.Column("lot", sa.Float, nullable=False),  # a hash in [0, 1)
    sa.Column("place", sa.Float, nullable=False),  # highest first within the arm: the priority, or the lot
    # The overlap less the tasks that are leased or done, below 0 after a late send; a gold item stays at the overlap.
    sa.Column("free", sa.Integer, nullable=False),
    sa.UniqueConstraint("batch", "key"),
)
OPEN = sa.text("items.free > 0")
"""Items that somebody may be asked about; written out, so that both databases see that the index below serves."""
_OPEN = sa.text("free > 0")
# With the key: who had which item is then found without reading the items that somebody had already.
sa.Index(
    "items_open",
    *(ITEMS.c.batch, ITEMS.c.arm, ITEMS.c.place, ITEMS.c.lot, ITEMS.c.key),
    sqlite_where=_OPEN,
    postgresql_where=_OPEN,
)

TASKS = sa.Table(
    "tasks",
    METADATA,
    _seq(),
    sa.Column("id", sa.String(32), nullable=False, unique=True),  # random: tells nothing of the item
    sa.Column("item", sa.Integer, sa.ForeignKey("items.seq"), nullable=False, index=True),
    sa.Column("batch", sa.Integer, sa.ForeignKey("batches.seq"), nullable=False),
    sa.Column("key", sa.String(32), nullable=False),  # the item's, so that nobody judges it in two batches
    sa.Column("annotator", Text, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),  # the annotator's first, second, … task
    sa.Column("arm", sa.String(16), nullable=False),  # the item's
    _json("shown"),
    sa.Column("guidelines", sa.Integer, sa.ForeignKey("guidelines.version")),
    sa.Column("state", sa.String(16), nullable=False),  # leased, expired, skipped, done
    _moment("started"),
    _moment("expires"),
    _moment("finished", nullable=True),
    sa.Column("seconds", sa.Float),
    _json("draft", nullable=True),
    sa.Column("send", Text),  # the identifier of the send that stands
    _json("events"),  # criterion → the last judgement, or retraction, that this task led to
    sa.UniqueConstraint("annotator", "key"),
    sa.UniqueConstraint("annotator", "number"),
    sa.Index("tasks_by_annotator", "annotator", "state", "finished"),
)
LEASED = sa.text("tasks.state = 'leased'")
"""Tasks that somebody has before them: few, so that one small index serves every question about them."""
_LEASED = sa.text("state = 'leased'")
sa.Index("tasks_leased", TASKS.c.batch, TASKS.c.expires, sqlite_where=_LEASED, postgresql_where=_LEASED)
