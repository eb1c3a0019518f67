"""Backup and restore. A backup is one SQLite file of today's schema, whichever database it was taken from.

It is the store as it was at one moment, taken while others write. Restored into another database it is that store
again, row by row, with the order of everything; so the same file moves a project from SQLite to PostgreSQL and back.
Sessions are left out: whoever was signed in signs in anew.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import sqlalchemy as sa

from .database import Database, open_database
from .store import Store
from .tables import METADATA, SECRETS

_BATCH = 1000

Rows = dict[str, int]
"""Table → number of rows."""


def back_up(store: Store, out: Path) -> Rows:
    """Write the store to ``out``. ValueError when that is there already; nothing is left half written."""
    if not out.parent.is_dir():
        raise FileNotFoundError(f"cannot write {out}: the folder {out.parent} does not exist")
    with _beside(out) as partial:
        if store.database.is_postgres:
            _from_postgres(store.database, partial)
        else:
            _from_sqlite(store.database, partial)
        return _tidy(partial)


def restore(file: Path, place: str | Path) -> Rows:
    """Write a backup into the database at ``place``, all or nothing, and return what was written.

    The database is a SQLite file, missing or empty, or a PostgreSQL database without anything in it. A backup of an
    older schema is brought up to date on the way; ``file`` itself is not changed.

    Raises FileNotFoundError when there is no such file; ValueError when it is no prefloop database or of a newer
    prefloop, and when something is in the database already.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    with TemporaryDirectory(prefix="prefloop-restore-") as folder:
        source = _copy_of(file, Path(folder) / "copy.db")
        target = open_database(place, create=True)
        with closing(source), closing(target):
            return _restore(source, target)


# Backup


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A file that takes the place of ``out`` at the end, unless something is there."""
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        _check_free(out)
        yield partial
        _check_free(out)
        partial.rename(out)
        _sync(out.parent)
    finally:
        for rest in ("", "-wal", "-shm", "-journal"):
            partial.with_name(partial.name + rest).unlink(missing_ok=True)


def _check_free(out: Path) -> None:
    if os.path.lexists(out):
        raise ValueError(f"{out} is there already and was left as it is; name another file")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _from_sqlite(database: Database, partial: Path) -> None:
    with database.reading() as db, closing(sqlite3.connect(partial)) as copy:
        driver = db.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        driver.backup(copy)  # at one go: writers, who go on, cannot make it begin anew


def _from_postgres(database: Database, partial: Path) -> None:
    target = open_database(partial, create=True)
    with closing(target), database.engine.connect() as source:
        snapshot = source.execution_options(isolation_level="REPEATABLE READ")
        with target.writing() as db:
            _copy_rows(snapshot, db)


def _tidy(partial: Path) -> Rows:
    """Without sessions, in one file that needs no other beside it, on disk."""
    with closing(sqlite3.connect(partial, isolation_level=None)) as db:
        db.execute("DELETE FROM secrets WHERE kind = 'session'")
        db.execute("VACUUM")
        db.execute("PRAGMA journal_mode = DELETE")
        rows = {name: db.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in METADATA.tables}
    _sync(partial)
    return rows


# Restore


def _copy_of(file: Path, copy: Path) -> Database:
    """The backup's content, with today's schema, in a file of ours."""
    try:
        with (
            closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
            if not target.execute("SELECT 1 FROM sqlite_master").fetchone():
                raise ValueError(f"{file} is an empty database, not a backup")
    except sqlite3.DatabaseError as error:
        raise ValueError(f"cannot read {file} as a backup: {error}") from error
    try:
        return open_database(copy, create=False)
    except ValueError as error:
        raise ValueError(str(error).replace(str(copy), str(file))) from error


def _restore(source: Database, target: Database) -> Rows:
    with ExitStack() as stack:
        read = stack.enter_context(source.reading())
        write = stack.enter_context(target.writing())
        there = {name: count for name, count in _count(write).items() if count}
        if there:
            found = ", ".join(f"{count} {name}" for name, count in there.items())
            raise ValueError(
                f"{target.name} is not empty ({found}); a backup is restored into an empty database only"
            )
        _copy_rows(read, write)
        if target.is_postgres:
            _set_sequences(write)
        rows = _count(write)
        expected = _count(read, sessions=False)
        if rows != expected:
            raise ValueError(f"{target.name} does not hold what was written: {rows} instead of {expected}; undone")
    return rows


def _copy_rows(source: sa.Connection, target: sa.Connection) -> None:
    """Every table, those that others refer to first; rows as they are, in their order."""
    for table in METADATA.sorted_tables:
        rows = sa.select(table).order_by(*table.primary_key).execution_options(yield_per=_BATCH)
        if table is SECRETS:
            rows = rows.where(SECRETS.c.kind != "session")
        for page in source.execute(rows).mappings().partitions():
            target.execute(table.insert(), [dict(row) for row in page])


def _count(db: sa.Connection, sessions: bool = True) -> Rows:
    counts = {}
    for name, table in METADATA.tables.items():
        query = sa.select(sa.func.count()).select_from(table)
        if table is SECRETS and not sessions:
            query = query.where(SECRETS.c.kind != "session")
        counts[name] = db.scalar(query) or 0
    return counts


def _set_sequences(db: sa.Connection) -> None:
    """Go on counting after the highest number that was restored."""
    for table in METADATA.sorted_tables:
        (key,) = table.primary_key
        sequence = sa.func.pg_get_serial_sequence(table.name, key.name)
        last = sa.select(sa.func.max(key)).scalar_subquery()
        db.execute(sa.select(sa.func.setval(sequence, sa.func.coalesce(last, 1), last.is_not(None))))
