"""Empty databases for tests: SQLite files, and databases of a PostgreSQL server that runs for the session alone.

The server is a private one in a temporary folder, reached by a socket in it and by nothing else. Where PostgreSQL is
not installed the tests fail: the store promises the same on both.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg
from psycopg import sql

from prefloop.feedback.store import Store
from prefloop.feedback.tables import METADATA

_USER = "prefloop"
_OPTIONS = "-c listen_addresses='' -c fsync=off -c full_page_writes=off -c log_min_messages=fatal"


class Server:
    """A running PostgreSQL server."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = count()
        self._ready: list[str] = []

    def url(self, name: str) -> str:
        return f"postgresql://{_USER}@/{name}?host={self._folder}"

    def create(self) -> str:
        """The URL of a new database without tables."""
        name = f"test_{next(self._numbers)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as db:
            db.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        return self.url(name)

    @contextmanager
    def lend(self) -> Iterator[str]:
        """The URL of a database with today's tables, empty. Emptied and lent again: quicker than another."""
        url = self._ready.pop() if self._ready else self._create_with_schema()
        yield url
        with psycopg.connect(url) as db:
            db.execute("SET lock_timeout = '5s'")  # a test that left a transaction open
            db.execute("SET session_replication_role = replica")  # without the triggers that refuse it
            names = sql.SQL(", ").join(map(sql.Identifier, METADATA.tables))
            db.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY").format(names))
        self._ready.append(url)

    def _create_with_schema(self) -> str:
        url = self.create()
        Store.open(url).close()
        return url


@contextmanager
def running_server() -> Iterator[Server]:
    """A server that is gone afterwards, even when this process is killed."""
    programs = _programs()
    folder = Path(tempfile.mkdtemp(prefix="prefloop-pg-"))  # short: a socket's path has 107 bytes at most
    data = folder / "data"
    as_owner: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root; Debian's package makes this user
        owner = pwd.getpwnam("postgres")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        as_owner = ["runuser", "-u", "postgres", "--"]
    # Stops the server when its input ends: at the end of the block, or with this process, however that ends.
    stop = 'cat >/dev/null; "$@" || true; rm -rf "$0"'
    stopping = [*as_owner, str(programs / "pg_ctl"), "stop", "-D", str(data), "-m", "immediate", "-s"]
    guard = subprocess.Popen(
        ["sh", "-c", stop, str(folder), *stopping],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        made = ["-U", _USER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        _call([*as_owner, str(programs / "initdb"), "-D", str(data), *made], folder)
        options = f"{_OPTIONS} -k {folder}"
        start = ["-D", str(data), "-l", str(folder / "log"), "-o", options, "-w", "start"]
        _call([*as_owner, str(programs / "pg_ctl"), *start], folder)
        yield Server(folder)
    finally:
        guard.communicate()


def _programs() -> Path:
    """The folder of initdb and pg_ctl, of the newest version that is installed."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = debian[-1] if debian else shutil.which("initdb")
    if found is None:
        raise RuntimeError("these tests need PostgreSQL's initdb and pg_ctl: apt-get install postgresql")
    return Path(found).resolve().parent


def _call(command: list[str], folder: Path) -> None:
    # To a file, not a pipe: the server keeps its output open for as long as it runs.
    with (folder / "out").open("wb") as out:
        done = subprocess.run(command, stdout=out, stderr=out, cwd=folder, check=False)
    if done.returncode:
        told = "\n".join(path.read_text() for path in (folder / "out", folder / "log") if path.exists())
        raise RuntimeError(f"{command} failed:\n{told}")
