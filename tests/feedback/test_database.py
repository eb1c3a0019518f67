"""Opening a database, and the turns that several writers take."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from threading import Timer

import psycopg
import pytest
import sqlalchemy as sa
from tests.databases import Server

from prefloop.feedback import database
from prefloop.feedback.records import Prompt
from prefloop.feedback.store import Counts, Store

PROMPT = Prompt.of("Why is the sky blue?")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "feedback.db"


# Several at once


def test_a_writer_that_waits_in_vain_says_so(
    place: str | Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    store.add([PROMPT])
    with Store.open(place) as impatient, store.database.writing():
        assert impatient.counts() == Counts(prompts=1), "readers do not wait"
        with pytest.raises(TimeoutError, match="held by another writer"):
            impatient.add([Prompt.of("Another")])
        with pytest.raises(TimeoutError, match="held by another writer"):  # another thread of the same store
            store.add([Prompt.of("Another")])


def test_a_new_database_opened_by_several_processes(nowhere: str | Path) -> None:
    program = "import sys; from prefloop.feedback.store import Store; Store.open(sys.argv[1]).close()"
    running = [subprocess.Popen([sys.executable, "-c", program, str(nowhere)]) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    with Store.open(nowhere, create=False) as store:
        assert store.counts() == Counts()


# Opening


def test_settings_of_the_connection(path: Path) -> None:
    with Store.open(path) as store, store.database.reading() as db:
        values = [db.scalar(sa.text(f"PRAGMA {name}")) for name in ("journal_mode", "foreign_keys", "busy_timeout")]
    assert values == ["wal", 1, 30000]


def test_settings_of_the_servers_connection(postgres: Server) -> None:
    with Store.open(postgres.create()) as store, store.database.reading() as db:
        values = [db.scalar(sa.text(f"SHOW {name}")) for name in ("lock_timeout", "timezone")]
    assert values == ["30s", "UTC"]


def test_a_newer_schema_is_not_touched(nowhere: str | Path) -> None:
    with Store.open(nowhere) as store, store.database.writing() as db:
        db.execute(sa.text(f"UPDATE {database.VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(ValueError, match=r"schema 9999, .* upgrade prefloop"):
        Store.open(nowhere)


def test_a_file_that_is_no_database(path: Path) -> None:
    path.write_text('{"chosen": "a long line of text, and not a database at all"}\n' * 50, encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"cannot open .*file is not a database"):
        Store.open(path)
    assert path.read_bytes() == before


def test_a_database_of_something_else(path: Path, postgres: Server) -> None:
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("CREATE TABLE invoices (id INTEGER)")
    with psycopg.connect(url := postgres.create()) as another:
        another.execute("CREATE TABLE invoices (id INTEGER)")
    for place in (path, url):
        with pytest.raises(ValueError, match="database of something else; it has the tables invoices"):
            Store.open(place)


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot open postgresql://ann:\*\*\*@/x.* as a prefloop database") as told:
        Store.open(f"postgresql://ann:hidden@/x?host={tmp_path}")
    assert "hidden" not in str(told.value)


def test_where_there_is_nothing_to_open(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Store.open(tmp_path / "no.db", create=False)
    with pytest.raises(FileNotFoundError, match=r"the folder .* does not exist"):
        Store.open(tmp_path / "no" / "no.db")
    with pytest.raises(ValueError, match="is a folder"):
        Store.open(tmp_path)
    with pytest.raises(ValueError, match="kept in a file"):
        Store.open(":memory:")
    with pytest.raises(ValueError, match="mysql is not supported"):
        Store.open("mysql://host/db")
    assert not list(tmp_path.iterdir())


def test_a_url_names_a_file(path: Path) -> None:
    with Store.open(path) as store, Store.open(f"sqlite:///{path}", create=False) as same:
        store.add([PROMPT])
        assert same.counts() == Counts(prompts=1)


def test_a_projects_store_is_where_the_environment_says(
    place: str | Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add([PROMPT])
    folder = tmp_path / "project"
    folder.mkdir()
    with Store.of_project(folder) as own:
        assert own.counts() == Counts()
    monkeypatch.setenv(database.ENVIRONMENT, str(place))
    with Store.of_project(folder) as elsewhere:
        assert elsewhere.counts() == Counts(prompts=1)


def test_feedback_does_not_import_torch_or_alembic() -> None:
    program = (
        "import sys, prefloop.feedback.formats, prefloop.feedback.aggregate;"
        "assert not {'torch', 'alembic'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_another_connection_that_switches_a_new_file_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run and the page, started together in a new project: SQLite's own timeout does not hold there."""
    first, second = (
        sqlite3.connect(tmp_path / "new.db", timeout=0, isolation_level=None, check_same_thread=False) for _ in "ab"
    )
    with closing(first), closing(second):
        first.execute("BEGIN EXCLUSIVE")
        with monkeypatch.context() as patch:
            patch.setattr(database, "BUSY_SECONDS", 0.05)
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                database._write_ahead(second)
        release = Timer(0.2, first.execute, ["COMMIT"])
        release.start()
        database._write_ahead(second)
        release.join()
        assert second.execute("PRAGMA journal_mode").fetchone() == ("wal",)
