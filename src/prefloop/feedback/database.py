"""Opening a database and its transactions: SQLite in a file, PostgreSQL by URL. The tables are in `tables`.

Writers take turns, on either kind: then the order of ``seq`` is the order of commits, a reader who stops at the
newest ``seq`` misses nothing, and the queue's rules need no other locks. On SQLite that is ``BEGIN IMMEDIATE``, on
PostgreSQL an advisory lock, held until the commit is seen. The threads of one process wait in front of it: SQLite
itself waits by polling, and on PostgreSQL every waiting transaction would hold a connection. A turn takes
milliseconds; a large import makes all others wait.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DatabaseError, DataError, OperationalError

SCHEMA = "0002"
"""The newest migration that this code knows."""
VERSION_TABLE = "prefloop_version"
BUSY_SECONDS = 30.0
"""How long a writer waits for another one."""
ENVIRONMENT = "PREFLOOP_DATABASE"
"""Names the database of every project whose commands run in this environment."""
_ADVISORY = 0x70726566  # any number that other programs do not use


class Database:
    """An engine, the name to call it by in messages, and its transactions."""

    def __init__(self, engine: sa.Engine, name: str) -> None:
        self.engine = engine
        self.name = name
        self.is_postgres = engine.dialect.name == "postgresql"
        self._turn = Lock()

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that changes nothing."""
        with self.engine.connect() as db:
            yield db

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """The one transaction that changes something; TimeoutError when another one does not let go.

        It ends with the block and is on disk then. Nothing else is written meanwhile, by no thread and no process, so
        what was read in it is still true when it is committed.
        """
        with self._our_turn(), self._told(), self.engine.execution_options(writing=True).begin() as db:
            if self.is_postgres:
                db.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY)))
            yield db

    @contextmanager
    def _our_turn(self) -> Iterator[None]:
        if not self._turn.acquire(timeout=BUSY_SECONDS):
            raise self._held()
        try:
            yield
        finally:
            self._turn.release()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What the database refuses, in words for the user."""
        try:
            yield
        except DataError as error:
            raise ValueError(f"{self.name} does not take this: {str(error.orig).strip()}") from error
        except OperationalError as error:
            if _is_busy(error):
                raise self._held() from error
            raise

    def _held(self) -> TimeoutError:
        return TimeoutError(
            f"{self.name} has been held by another writer for more than {BUSY_SECONDS:g} s; try again later"
        )


def _is_busy(error: OperationalError) -> bool:
    told = str(error.orig)
    return "locked" in told or "lock timeout" in told


def place_of(folder: Path) -> str | Path:
    """The database of the project in ``folder``: what the environment says, else the file in it."""
    return os.environ.get(ENVIRONMENT) or folder / "feedback.db"


def open_database(path_or_url: str | Path, create: bool) -> Database:
    """The database with its schema brought up to date; errors: see `Store.open`."""
    engine, name = _postgres(path_or_url) or _sqlite(path_or_url, create)
    database = Database(engine, name)
    try:
        _migrate(database)
    except DatabaseError as error:
        engine.dispose()
        raise ValueError(f"cannot open {name} as a prefloop database: {str(error.orig).strip()}") from error
    except BaseException:
        engine.dispose()
        raise
    return database


def _json(value: Any) -> str:
    return _encode(value)


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _postgres(path_or_url: str | Path) -> tuple[sa.Engine, str] | None:
    if not isinstance(path_or_url, str) or not path_or_url.startswith(("postgresql://", "postgres://")):
        return None
    try:
        url = sa.make_url(path_or_url.replace("postgres://", "postgresql://", 1)).set(drivername="postgresql+psycopg")
    except sa.exc.ArgumentError as error:
        raise ValueError("cannot read the database's URL; expected postgresql://USER:PASSWORD@HOST/NAME") from error
    name = url.set(drivername="postgresql").render_as_string(hide_password=True)
    try:
        engine = sa.create_engine(url, json_serializer=_json, pool_size=10, max_overflow=30, pool_pre_ping=True)
    except ModuleNotFoundError as error:
        raise ValueError(f"{name} needs the driver of PostgreSQL: pip install 'prefloop[postgres]'") from error

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET lock_timeout = {int(BUSY_SECONDS * 1000)}")
            cursor.execute("SET TIME ZONE 'UTC'")
        connection.commit()

    return engine, name


def _sqlite(path_or_url: str | Path, create: bool) -> tuple[sa.Engine, str]:
    path = _file_of(path_or_url)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected a database file such as {path / 'feedback.db'}")
    if not create and not path.exists():
        raise FileNotFoundError(f"{path} does not exist; is this the project's folder?")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot create {path}: the folder {path.parent} does not exist")
    return _sqlite_engine(path), str(path)


def _file_of(path_or_url: str | Path) -> Path:
    if isinstance(path_or_url, str) and "://" in path_or_url:
        kind = path_or_url.split("://")[0]
        if kind != "sqlite":
            raise ValueError(
                f"{kind} is not supported; give a file, a URL like sqlite:///feedback.db, or postgresql://…"
            )
        path_or_url = sa.make_url(path_or_url).database or ""
    if str(path_or_url) in ("", ":memory:"):
        raise ValueError("a store is kept in a file; got no file name")
    return Path(path_or_url)


def _sqlite_engine(path: Path) -> sa.Engine:
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)), json_serializer=_json)

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself; `_begin` does
        for pragma in (
            f"busy_timeout = {int(BUSY_SECONDS * 1000)}",
            "synchronous = FULL",  # what was acknowledged survives a power cut, not only a crash
            "foreign_keys = ON",
            "cache_size = -65536",  # KiB; identifiers are hashes, so a large import touches pages at random
        ):
            connection.execute(f"PRAGMA {pragma}").close()
        _write_ahead(connection)

    @event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # A transaction that starts as a reader and writes later fails at once when another writer came
        # between; one that asks for the lock at its start waits.
        immediate = connection.get_execution_options().get("writing", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


def _write_ahead(connection: sqlite3.Connection) -> None:
    """WAL: readers and the writer do not wait for each other.

    SQLite refuses at once, however long its timeout, when two connections switch a new file at the same time.
    """
    patience = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return connection.execute("PRAGMA journal_mode = WAL").close()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > patience:
                raise
        time.sleep(0.005)


def _migrate(database: Database) -> None:
    with database.reading() as db:
        if _version(db, database.name) == SCHEMA:
            return
    with database.writing() as db:
        if _version(db, database.name) != SCHEMA:  # else another process was quicker
            upgrade(db, SCHEMA)


def upgrade(db: sa.Connection, schema: str) -> None:
    """Bring the schema to a version, within the caller's transaction."""
    # Imported here: it takes as long as everything else that opening a store needs.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = db
    command.upgrade(config, schema)


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
