"""Guidelines and their versions, people and what they sign in with, and the queue: batches, items, tasks.

The columns are explained in `prefloop.feedback.tables`.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision: str | None = "0001"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "guidelines",
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
    )
    op.execute("ALTER TABLE judgements ADD COLUMN guidelines INTEGER REFERENCES guidelines (version)")
    op.execute("ALTER TABLE demonstrations ADD COLUMN judgement_id TEXT REFERENCES judgements (id)")
    _people()
    _queue()
    if op.get_bind().dialect.name == "sqlite":
        _forbid_changes_in_sqlite()
    else:
        _forbid_changes_in_postgres()


def _people() -> None:
    op.create_table(
        "people",
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
        sa.Column("revoked", sa.String(32)),
    )
    op.create_table(
        "secrets",
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("hash", sa.String(64), nullable=False, unique=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("person", sa.Text, sa.ForeignKey("people.name"), index=True),
        sa.Column("role", sa.String(16)),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
        sa.Column("expires", sa.String(32)),
        sa.Column("ended", sa.String(32)),
    )


def _queue() -> None:
    op.create_table(
        "batches",
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("salt", sa.String(32), nullable=False),
        sa.Column("criteria", sa.JSON, nullable=False),
        sa.Column("overlap", sa.Integer, nullable=False),
        sa.Column("target", sa.Integer),
        sa.Column("gold_share", sa.Float, nullable=False),
        sa.Column("control_share", sa.Float, nullable=False),
        sa.Column("lease_seconds", sa.Integer, nullable=False),
        sa.Column("closed", sa.Boolean, nullable=False),
        sa.Column("done", sa.Integer, nullable=False),
        sa.Column("sent", sa.Integer, nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
    )
    op.create_table(
        "items",
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("batch", sa.Integer, sa.ForeignKey("batches.seq"), nullable=False),
        sa.Column("key", sa.String(32), nullable=False),
        sa.Column("prompt_id", sa.String(32), sa.ForeignKey("prompts.id"), nullable=False),
        sa.Column("completions", sa.JSON, nullable=False),
        sa.Column("gold", sa.JSON),
        sa.Column("arm", sa.String(16), nullable=False),
        sa.Column("priority", sa.Float, nullable=False),
        sa.Column("lot", sa.Float, nullable=False),
        sa.Column("place", sa.Float, nullable=False),
        sa.Column("free", sa.Integer, nullable=False),
        sa.UniqueConstraint("batch", "key"),
    )
    op.execute("CREATE INDEX items_open ON items (batch, arm, place, lot, key) WHERE free > 0")
    op.create_table(
        "tasks",
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("item", sa.Integer, sa.ForeignKey("items.seq"), nullable=False, index=True),
        sa.Column("batch", sa.Integer, sa.ForeignKey("batches.seq"), nullable=False),
        sa.Column("key", sa.String(32), nullable=False),
        sa.Column("annotator", sa.Text, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("arm", sa.String(16), nullable=False),
        sa.Column("shown", sa.JSON, nullable=False),
        sa.Column("guidelines", sa.Integer, sa.ForeignKey("guidelines.version")),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("started", sa.String(32), nullable=False),
        sa.Column("expires", sa.String(32), nullable=False),
        sa.Column("finished", sa.String(32)),
        sa.Column("seconds", sa.Float),
        sa.Column("draft", sa.JSON),
        sa.Column("send", sa.Text),
        sa.Column("events", sa.JSON, nullable=False),
        sa.UniqueConstraint("annotator", "key"),
        sa.UniqueConstraint("annotator", "number"),
    )
    op.create_index("tasks_by_annotator", "tasks", ["annotator", "state", "finished"])
    op.execute("CREATE INDEX tasks_leased ON tasks (batch, expires) WHERE state = 'leased'")


def _forbid_changes_in_sqlite() -> None:
    for verb in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER guidelines_no_{verb.lower()} BEFORE {verb} ON guidelines "
            f"BEGIN SELECT RAISE(ABORT, 'guidelines are append-only: {verb} is refused'); END"
        )
    op.execute(
        "CREATE TRIGGER guidelines_no_replace BEFORE INSERT ON guidelines "
        "WHEN EXISTS (SELECT 1 FROM guidelines WHERE version = NEW.version) "
        "BEGIN SELECT RAISE(ABORT, 'guidelines are append-only: this version is there already'); END"
    )


def _forbid_changes_in_postgres() -> None:
    """What the triggers of step 0001 and of this one do in SQLite."""
    op.execute(
        "CREATE FUNCTION prefloop_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RAISE EXCEPTION '% are append-only: % is refused', TG_TABLE_NAME, TG_OP USING ERRCODE = '23001'; END $$"
    )
    for table in ("judgements", "completions", "guidelines"):
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION prefloop_append_only()"
        )
