"""The database's tables, its connection and its schema's steps. `prefloop.feedback.store` has the rules.

Only `_sqlite_engine`, `file_of` and the triggers of the first migration know that this is SQLite: PostgreSQL
is meant to become a second back end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DatabaseError, OperationalError

SCHEMA = "0001"
"""The newest migration that this code knows."""
VERSION_TABLE = "prefloop_version"
BUSY_SECONDS = 30.0
"""How long a writer waits for another one."""

METADATA = sa.MetaData()

# In every table `seq` is the order of insertion, in which everything is read.
PROMPTS = sa.Table(
    "prompts",
    METADATA,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("id", sa.String(32), nullable=False, unique=True),
    sa.Column("messages", sa.JSON, nullable=False),  # [[role, content], …]
    sa.Column("split", sa.String(16)),
    sa.Column("metadata", sa.JSON, nullable=False),
)


def _answers(name: str) -> sa.Table:
    return sa.Table(
        name,
        METADATA,
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("prompt_id", sa.String(32), sa.ForeignKey("prompts.id"), nullable=False, index=True),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
    )


COMPLETIONS = _answers("completions")
DEMONSTRATIONS = _answers("demonstrations")

# What was shown and how it was ranked are JSON columns rather than a child table: a judgement is one
# immutable value, written and read as a whole, so its two halves can never come apart, and reading a million
# of them is one scan without a join. The price, no foreign key on each completion, is paid by the store,
# which checks them in the writing transaction; what it found stays true because completions can be neither
# changed nor deleted.
JUDGEMENTS = sa.Table(
    "judgements",
    METADATA,
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
    # Unique: corrections form a chain, never a fork in which both ends would count.
    sa.Column("supersedes", sa.Text, sa.ForeignKey("judgements.id"), unique=True),
    sa.Column("retracted", sa.Boolean, nullable=False),
    # ISO 8601 in UTC with microseconds: sorts as text, and SQLite has no type that keeps a time zone.
    sa.Column("created", sa.String(32), nullable=False),
)


def open_database(path_or_url: str | Path, create: bool) -> tuple[sa.Engine, str]:
    """The engine, its schema brought up to date, and the name to call it by; errors: see `Store.open`."""
    path = _file_of(path_or_url)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected a database file such as {path / 'feedback.db'}")
    if not create and not path.exists():
        raise FileNotFoundError(f"{path} does not exist; is this the project's folder?")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot create {path}: the folder {path.parent} does not exist")
    engine = _sqlite_engine(path)
    try:
        _migrate(engine, str(path))
    except DatabaseError as error:
        engine.dispose()
        raise ValueError(f"cannot open {path} as a prefloop database: {error.orig}") from error
    except BaseException:
        engine.dispose()
        raise
    return engine, str(path)


@contextmanager
def writing(engine: sa.Engine, name: str) -> Iterator[sa.Connection]:
    """A transaction with the write lock from its start; TimeoutError when another one does not let go."""
    with ExitStack() as stack:
        try:
            db = stack.enter_context(engine.execution_options(writing=True).begin())
        except OperationalError as error:
            if "locked" not in str(error.orig):
                raise
            raise TimeoutError(
                f"{name} has been held by another writer for more than {BUSY_SECONDS:g} s; try again later"
            ) from error
        yield db


def _file_of(path_or_url: str | Path) -> Path:
    if isinstance(path_or_url, str) and "://" in path_or_url:
        url = sa.make_url(path_or_url)
        if url.get_backend_name() != "sqlite":
            raise ValueError(
                f"{url.get_backend_name()} is not supported; give a file or a URL like sqlite:///feedback.db"
            )
        path_or_url = url.database or ""
    if str(path_or_url) in ("", ":memory:"):
        raise ValueError("a store is kept in a file; got no file name")
    return Path(path_or_url)


def _sqlite_engine(path: Path) -> sa.Engine:
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(path)),
        json_serializer=json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode,
    )

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself; `_begin` does
        for pragma in (
            f"busy_timeout = {int(BUSY_SECONDS * 1000)}",
            "journal_mode = WAL",  # readers and the writer do not wait for each other
            "foreign_keys = ON",
            "cache_size = -65536",  # KiB; identifiers are hashes, so a large import touches pages at random
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # A transaction that starts as a reader and writes later fails at once when another writer came
        # between; one that asks for the lock at its start waits.
        immediate = connection.get_execution_options().get("writing", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


def _migrate(engine: sa.Engine, name: str) -> None:
    with engine.connect() as db:
        if _version(db, name) == SCHEMA:
            return
    with writing(engine, name) as db:
        if _version(db, name) == SCHEMA:  # another process was quicker
            return
        # Imported here: it takes as long as everything else that opening a store needs.
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        config.attributes["connection"] = db
        command.upgrade(config, SCHEMA)


def _version(db: sa.Connection, name: str) -> str | None:
    """The schema's number; None for a database without tables."""
    tables = sa.inspect(db).get_table_names()
    if VERSION_TABLE not in tables:
        if tables:
            raise ValueError(f"{name} is a database of something else; it has the tables {', '.join(tables[:5])}")
        return None
    version: str | None = db.scalar(sa.text(f"SELECT version_num FROM {VERSION_TABLE}"))
    if version is not None and version > SCHEMA:
        raise ValueError(
            f"{name} has schema {version}, and this prefloop knows schemas up to {SCHEMA}; upgrade prefloop"
        )
    return version
