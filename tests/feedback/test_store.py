"""The store: what goes in comes out, nothing else goes in, and nothing that was said is ever changed."""

import shutil
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread, Timer
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.databases import Server

from prefloop.feedback import database
from prefloop.feedback.records import Completion, Demonstration, Judgement, Message, Prompt, dense_ranks
from prefloop.feedback.store import AnyRecord, Counts, Store

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
PROMPT = Prompt.of("Why is the sky blue?")
ANSWERS = tuple(Completion(prompt_id=PROMPT.id, text=text, origin="test") for text in ("Air.", "Sea.", ""))


def judgement(id: str, **fields: Any) -> Judgement:
    base: dict[str, Any] = {
        "id": id,
        "prompt_id": PROMPT.id,
        "annotator": "ann",
        "source": "human",
        "shown": (ANSWERS[0].id, ANSWERS[1].id),
        "ranks": (1, 2),
        "created": NOON,
    }
    return Judgement(**{**base, **fields})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "feedback.db"


@pytest.fixture
def store(store: Store) -> Store:
    store.add([PROMPT, *ANSWERS])
    return store


@pytest.fixture
def file(path: Path) -> Iterator[Store]:
    """A store of SQLite's, for what is SQLite's only."""
    with Store.open(path) as store:
        store.add([PROMPT, *ANSWERS])
        yield store


@pytest.fixture
def database_url(postgres: Server) -> str:
    """A database of PostgreSQL's without tables."""
    return postgres.create()


def ids(store: Store, **how: Any) -> list[str]:
    return [judgement.id for judgement in store.judgements(**how)]


# What goes in comes out

TEXT = st.text(max_size=20)
METADATA = st.dictionaries(TEXT, st.none() | st.integers(-9, 9) | TEXT | st.lists(st.booleans()), max_size=2)


@st.composite
def record_sets(draw: st.DrawFn) -> list[AnyRecord]:
    messages = draw(st.lists(st.builds(Message, role=st.sampled_from(["system", "user"]), content=TEXT), min_size=1))
    prompt = Prompt(
        messages=tuple(messages),
        split=draw(st.sampled_from([None, "train", "heldout"])),
        metadata=draw(METADATA),
    )
    texts = draw(st.lists(TEXT, min_size=2, max_size=5, unique=True))
    answers = [Completion(prompt_id=prompt.id, text=t, origin=draw(TEXT), metadata=draw(METADATA)) for t in texts]
    values = draw(st.lists(st.integers(0, 3), min_size=len(texts), max_size=len(texts)))
    return [
        prompt,
        *answers,
        Demonstration(prompt_id=prompt.id, text=draw(TEXT), origin=draw(TEXT)),
        Judgement(
            id=draw(st.text(min_size=1, max_size=9)),
            prompt_id=prompt.id,
            annotator=draw(TEXT),
            source="ai",
            shown=tuple(answer.id for answer in draw(st.permutations(answers))),
            ranks=dense_ranks(values),
            strength=draw(st.none() | st.integers(1, 4)),
            criterion=draw(TEXT),
            flags=tuple(draw(st.lists(TEXT, max_size=2))),
            reason=draw(TEXT),
            seconds=draw(st.none() | st.floats(0, 1e6)),
            created=NOON + timedelta(microseconds=draw(st.integers(0, 10**12))),
        ),
    ]


@contextmanager
def sqlite_store(server: Server, template: Path) -> Iterator[Store]:
    with TemporaryDirectory() as folder, Store.open(shutil.copy(template, folder)) as store:
        yield store


@contextmanager
def postgres_store(server: Server, template: Path) -> Iterator[Store]:
    with server.lend() as url, Store.open(url) as store:
        yield store


@pytest.mark.parametrize("fresh", [sqlite_store, postgres_store])
@settings(max_examples=40, deadline=None)
@given(records=record_sets())
def test_round_trip(fresh: Any, postgres: Server, empty_sqlite: Path, records: list[AnyRecord]) -> None:
    with fresh(postgres, empty_sqlite) as store:
        added = store.add(records)
        assert added == store.counts() == Counts(1, len(records) - 3, 1, 1)
        read = [*store.prompts(), *store.completions(), *store.demonstrations(), *store.judgements()]
        assert read == records
        assert store.add(records) == Counts(), "adding again adds nothing"
        assert store.counts() == added


@pytest.mark.parametrize("text", ["\0", "\x1a", "\x1a0", "\0\x1a1\0", "\U0010ffff\ufffe", "ä\u0301\u202e"])
def test_odd_texts(store: Store, text: str) -> None:
    prompt = Prompt.of(text, metadata={text: text})
    answers = [Completion(prompt_id=prompt.id, text=t, origin=text) for t in (text, text + text)]
    odd = judgement(text, prompt_id=prompt.id, shown=tuple(a.id for a in answers), reason=text, flags=(text,))
    later = odd.model_copy(update={"id": "later", "supersedes": text})
    store.add([prompt, *answers, odd, later])
    assert next(store.judgements(effective=False)) == odd
    assert list(store.judgements()) == [later]
    assert list(store.completions([prompt.id])) == answers


def test_order_of_insertion_across_pages(store: Store) -> None:
    many = [judgement(f"{i * 7919 % 2501:04}") for i in range(2501)]
    store.add(many)
    assert list(store.judgements()) == many
    prompts = [Prompt.of(str(i), split="heldout" if i % 3 else "train") for i in range(30)]
    store.add(prompts)
    assert list(store.prompts("train")) == prompts[::3]
    answers = [Completion(prompt_id=p.id, text=t, origin="o") for t in "xy" for p in prompts]
    store.add(answers)
    wanted = [prompts[5].id, prompts[2].id]
    assert list(store.completions(wanted)) == [answers[5], answers[35], answers[2], answers[32]]


def test_readers_see_one_moment_and_may_stop_half_way(store: Store) -> None:
    store.add(judgement(str(i)) for i in range(1500))  # more than a page, so that the end is read later
    reading = store.judgements()
    next(reading)
    store.add([judgement("new"), judgement("correction", supersedes="1499")])
    now = store.judgements()
    assert [j.id for j in reading] == [str(i) for i in range(1, 1500)]
    assert [j.id for j in now][-2:] == ["new", "correction"]
    next(store.completions())  # left half way: warnings are errors in tests, so a leaked connection would show


# What counts


def test_effective_follows_corrections_and_retractions(store: Store) -> None:
    store.add([judgement("a"), judgement("b", criterion="harm"), judgement("c")])
    store.add([judgement("a2", supersedes="a", ranks=(2, 1)), judgement("a3", supersedes="a2", ranks=(1, 1))])
    store.add([judgement("c-undo", supersedes="c", retracted=True)])
    assert ids(store) == ["b", "a3"]
    assert ids(store, criterion="overall") == ["a3"]
    assert ids(store, effective=False) == ["a", "b", "c", "a2", "a3", "c-undo"]
    store.add([judgement("c-again", supersedes="c-undo")])
    assert ids(store) == ["b", "a3", "c-again"]


def test_a_correction_in_the_batch_of_what_it_corrects(store: Store) -> None:
    store.add([judgement("a"), judgement("b", supersedes="a")])
    assert ids(store) == ["b"]


# What is refused

OTHER = Prompt.of("Another")


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([judgement("x", prompt_id=OTHER.id)], "which is not in the store; add the prompt first"),
        (
            [judgement("x", shown=(ANSWERS[0].id, "f" * 32))],
            "shows completion 'f+', which is not in the store",
        ),
        ([OTHER, judgement("x", prompt_id=OTHER.id)], "answers prompt"),
        ([Completion(prompt_id=OTHER.id, text="t", origin="o")], "completion .* belongs to prompt"),
        ([Demonstration(prompt_id=OTHER.id, text="t", origin="o")], "demonstration .* belongs to prompt"),
        ([judgement("known", ranks=(2, 1))], "here already with other content"),
        ([judgement("x"), judgement("x", reason="more")], "here already with other content"),
        ([judgement("x", supersedes="y")], "'y', which is not in the store"),
        ([judgement("x", supersedes="x")], "'x', which is not in the store"),
        ([judgement("x", supersedes="known"), judgement("y", supersedes="known")], "has superseded already"),
        ([Prompt.of("s", split="train"), Prompt.of("s", split="heldout")], "split 'heldout' too"),
        ([Prompt.of("half a pair: \ud800")], "lone surrogate"),
        ([judgement("x\udfff")], "lone surrogate"),
        ([Prompt.of("x", metadata={"deep": ["\udc00"]})], "lone surrogate"),
    ],
)
def test_refused_with_nothing_written(store: Store, records: list[AnyRecord], message: str) -> None:
    store.add([judgement("known")])
    before = store.counts()
    with pytest.raises(ValueError, match=message):
        store.add([Prompt.of("comes before the fault"), *records])
    assert store.counts() == before


def test_a_correction_stays_with_its_prompt(store: Store) -> None:
    answers = [Completion(prompt_id=OTHER.id, text=t, origin="o") for t in "xy"]
    store.add([judgement("a"), OTHER, *answers])
    wrong = judgement("b", prompt_id=OTHER.id, shown=tuple(a.id for a in answers), supersedes="a")
    with pytest.raises(ValueError, match="about another prompt"):
        store.add([wrong])


def test_a_second_correction_of_a_stored_one_is_refused(store: Store) -> None:
    store.add([judgement("a"), judgement("b", supersedes="a")])
    with pytest.raises(ValueError, match="'b' has superseded already; supersede that one"):
        store.add([judgement("c", supersedes="a")])


def test_a_repeated_send_has_its_own_clock(store: Store) -> None:
    store.add([judgement("a")])
    assert store.add([judgement("a", created=NOON + timedelta(seconds=9))]) == Counts()
    assert next(store.judgements()).created == NOON


def test_a_prompt_without_a_split_does_not_contradict(store: Store) -> None:
    store.add([Prompt.of("x", split="train")])
    assert store.add([Prompt.of("x")]) == Counts()


def test_what_is_not_a_record_is_refused(store: Store) -> None:
    with pytest.raises(TypeError, match="not 'text'"):
        store.add(["text"])  # type: ignore[list-item]


def test_a_failure_half_way_leaves_nothing(store: Store) -> None:
    def records() -> Iterator[AnyRecord]:
        yield from (Prompt.of(str(i)) for i in range(2500))
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        store.add(records())
    assert store.counts() == Counts(1, 3, 0, 0)
    assert store.add([Prompt.of("0")]) == Counts(prompts=1), "the lock was let go"


def test_a_killed_writer_leaves_nothing(place: str | Path) -> None:
    program = textwrap.dedent("""
        import os, sys
        from prefloop.feedback.records import Prompt
        from prefloop.feedback.store import Store
        def records():
            yield from (Prompt.of(str(i)) for i in range(2500))
            os._exit(9)
        Store.open(sys.argv[1]).add(records())
    """)
    assert subprocess.run([sys.executable, "-c", program, str(place)], check=False).returncode == 9
    with Store.open(place, create=False) as store:
        assert store.counts() == Counts()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE judgements SET ranks = '[2,1]'",
        "DELETE FROM judgements",
        "INSERT OR REPLACE INTO judgements SELECT * FROM judgements",
        "UPDATE completions SET text = 'changed'",
        "DELETE FROM completions",
        "INSERT OR REPLACE INTO completions SELECT * FROM completions",
        "UPDATE guidelines SET text = 'changed'",
        "DELETE FROM guidelines",
        "INSERT OR REPLACE INTO guidelines SELECT * FROM guidelines",
    ],
)
def test_the_file_itself_refuses_changes(file: Store, path: Path, statement: str) -> None:
    file.add([judgement("a")])
    told = file.add_guidelines("Be kind.", "ann")
    with closing(sqlite3.connect(path)) as other, pytest.raises(sqlite3.IntegrityError, match="append-only"):
        other.execute(statement)
    assert list(file.judgements()) == [judgement("a")]
    assert tuple(file.completions()) == ANSWERS
    assert file.guidelines() == [told]


@pytest.mark.parametrize("table", ["judgements", "completions", "guidelines"])
@pytest.mark.parametrize("change", ["UPDATE {} SET seq = seq", "DELETE FROM {}", "TRUNCATE {} CASCADE"])
def test_the_server_itself_refuses_changes(database_url: str, table: str, change: str) -> None:
    with Store.open(database_url) as store:
        store.add([PROMPT, *ANSWERS, judgement("a")])
        told = store.add_guidelines("Be kind.", "ann")
        column = "version = version" if table == "guidelines" else "seq = seq"
        statement = change.format(table).replace("seq = seq", column)
        with psycopg.connect(database_url) as other, pytest.raises(psycopg.Error, match="append-only"):
            other.execute(statement)
        assert list(store.judgements()) == [judgement("a")]
        assert tuple(store.completions()) == ANSWERS
        assert store.guidelines() == [told]


# Several at once


def test_two_writers_wait_for_each_other(place: str | Path, store: Store) -> None:
    failures: list[BaseException] = []

    def write(name: str) -> None:
        try:
            with Store.open(place) as mine:
                for i in range(40):
                    mine.add([judgement(f"{name}{i}"), judgement(f"both{i}")])
        except BaseException as error:
            failures.append(error)

    threads = [Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sorted(ids(store)) == sorted(f"{name}{i}" for name in ("a", "b", "both") for i in range(40))


def test_a_writer_that_waits_in_vain_says_so(
    place: str | Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    with Store.open(place) as impatient, store.database.writing():
        assert impatient.counts() == Counts(1, 3, 0, 0), "readers do not wait"
        with pytest.raises(TimeoutError, match="held by another writer"):
            impatient.add([OTHER])
        with pytest.raises(TimeoutError, match="held by another writer"):  # another thread of the same store
            store.add([OTHER])


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_new_database_opened_by_several_processes(path: Path, database_url: str, kind: str) -> None:
    place = str(path) if kind == "sqlite" else database_url
    program = "import sys; from prefloop.feedback.store import Store; Store.open(sys.argv[1]).close()"
    running = [subprocess.Popen([sys.executable, "-c", program, place]) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    with Store.open(place, create=False) as store:
        assert store.counts() == Counts()


# Opening


def test_settings_of_the_connection(file: Store) -> None:
    with file.database.reading() as db:
        values = [db.scalar(sa.text(f"PRAGMA {name}")) for name in ("journal_mode", "foreign_keys", "busy_timeout")]
    assert values == ["wal", 1, 30000]


def test_settings_of_the_servers_connection(postgres: Server, database_url: str) -> None:
    with Store.open(database_url) as store, store.database.reading() as db:
        values = [db.scalar(sa.text(f"SHOW {name}")) for name in ("lock_timeout", "timezone")]
    assert values == ["30s", "UTC"]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_newer_schema_is_not_touched(path: Path, database_url: str, kind: str) -> None:
    place = str(path) if kind == "sqlite" else database_url
    with Store.open(place) as store, store.database.writing() as db:
        db.execute(sa.text(f"UPDATE {database.VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(ValueError, match=r"schema 9999, .* upgrade prefloop"):
        Store.open(place)


def test_a_file_that_is_no_database(path: Path) -> None:
    path.write_text('{"chosen": "a long line of text, and not a database at all"}\n' * 50, encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"cannot open .*file is not a database"):
        Store.open(path)
    assert path.read_bytes() == before


def test_a_database_of_something_else(path: Path, database_url: str) -> None:
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("CREATE TABLE invoices (id INTEGER)")
    with psycopg.connect(database_url) as another:
        another.execute("CREATE TABLE invoices (id INTEGER)")
    for place in (path, database_url):
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


def test_a_url_names_a_file(path: Path, file: Store) -> None:
    with Store.open(f"sqlite:///{path}", create=False) as same:
        assert same.counts() == file.counts()


def test_a_projects_store_is_where_the_environment_says(
    place: str | Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    with Store.of_project(folder) as own:
        assert own.counts() == Counts()
    monkeypatch.setenv(database.ENVIRONMENT, str(place))
    with Store.of_project(folder) as elsewhere:
        assert elsewhere.counts() == store.counts() != Counts()


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
