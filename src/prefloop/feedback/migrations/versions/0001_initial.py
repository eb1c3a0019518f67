"""Prompts, completions, demonstrations and judgements; what was written stays as it was written.

The columns are explained in `prefloop.feedback.database`. They are spelled out again here because a step
describes the schema of its day, whatever the tables become later.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision: str | None = None
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "prompts",
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("messages", sa.JSON, nullable=False),
        sa.Column("split", sa.String(16)),
        sa.Column("metadata", sa.JSON, nullable=False),
    )
    for name in ("completions", "demonstrations"):
        op.create_table(
            name,
            sa.Column("seq", sa.Integer, primary_key=True),
            sa.Column("id", sa.String(32), nullable=False, unique=True),
            sa.Column("prompt_id", sa.String(32), sa.ForeignKey("prompts.id"), nullable=False, index=True),
            sa.Column("text", sa.Text, nullable=False),
            sa.Column("origin", sa.Text, nullable=False),
            sa.Column("metadata", sa.JSON, nullable=False),
        )
    op.create_table(
        "judgements",
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("prompt_id", sa.String(32), sa.ForeignKey("prompts.id"), nullable=False, index=True),
        sa.Column("annotator", sa.Text, nullable=False),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("shown", sa.JSON, nullable=False),
        sa.Column("ranks", sa.JSON, nullable=False),
        sa.Column("strength", sa.Integer),
        sa.Column("criterion", sa.Text, nullable=False),
        sa.Column("flags", sa.JSON, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("seconds", sa.Float),
        sa.Column("supersedes", sa.Text, sa.ForeignKey("judgements.id"), unique=True),
        sa.Column("retracted", sa.Boolean, nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
    )
    if op.get_bind().dialect.name == "sqlite":
        _forbid_changes_in_sqlite()


def _forbid_changes_in_sqlite() -> None:
    """Triggers that refuse what the store never does, whoever opens the file with whatever tool.

    Completions are protected with the judgements: those name them in JSON, where no foreign key guards them.
    """
    for table in ("judgements", "completions"):
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} are append-only: {verb} is refused'); END"
            )
        # INSERT OR REPLACE deletes the old row without firing the DELETE trigger (unless the connection asked
        # for recursive triggers), so the collision itself is refused.
        chain = " OR supersedes = NEW.supersedes" if table == "judgements" else ""
        op.execute(
            f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "
            f"WHEN EXISTS (SELECT 1 FROM {table} WHERE id = NEW.id OR seq = NEW.seq{chain}) "
            f"BEGIN SELECT RAISE(ABORT, '{table} are append-only: this one is there already'); END"
        )
