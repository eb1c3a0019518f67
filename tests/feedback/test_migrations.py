"""The schema: the migrations make the tables of the code, and what older schemas hold is there in today's."""

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from prefloop.feedback import database, tables
from prefloop.feedback.assignment import Queue
from prefloop.feedback.records import Completion, Demonstration, Judgement, Prompt
from prefloop.feedback.store import Store
from prefloop.feedback.tasks import Item, Submission, Verdict

FOLDER = Path(database.__file__).parent / "migrations"
PROMPT = Prompt.of("Why?", split="train", metadata={"from": "a file\0"})
ANSWERS = [Completion(prompt_id=PROMPT.id, text=text, origin="old") for text in ("Air.", "Sea.")]
DEMONSTRATION = Demonstration(prompt_id=PROMPT.id, text="Light.", origin="ann")
JUDGEMENTS = [
    Judgement(
        id=id,
        prompt_id=PROMPT.id,
        annotator="ann",
        source="human",
        shown=(ANSWERS[0].id, ANSWERS[1].id),
        ranks=ranks,
        seconds=1.5,
        supersedes=supersedes,
        created=datetime(2026, 1, 1, microsecond=7, tzinfo=UTC),
    )
    for id, ranks, supersedes in [("a", (1, 2), None), ("b", (2, 1), "a")]
]


def of_schema_1(place: str | Path) -> None:
    """A store as the first version of prefloop wrote it, in plain SQL."""
    engine, name = database._postgres(place) or database._sqlite(place, create=True)
    old = database.Database(engine, name)
    with old.writing() as db:
        database.upgrade(db, "0001")
        messages = json.dumps([[m.role, m.content] for m in PROMPT.messages])
        insert(db, "prompts", id=PROMPT.id, messages=messages, split="train", metadata=json.dumps(PROMPT.metadata))
        for table, answer in [
            ("completions", ANSWERS[0]),
            ("completions", ANSWERS[1]),
            ("demonstrations", DEMONSTRATION),
        ]:
            fields = {"id": answer.id, "prompt_id": PROMPT.id, "text": answer.text, "origin": answer.origin}
            insert(db, table, **fields, metadata="{}")
        for judgement in JUDGEMENTS:
            fields = judgement.model_dump(exclude={"guidelines"})
            lists = {name: json.dumps(fields[name]) for name in ("shown", "ranks", "flags")}
            insert(db, "judgements", **{**fields, **lists, "created": tables.moment(judgement.created)})
    old.close()


def insert(db: sa.Connection, table: str, **values: Any) -> None:
    columns, places = ", ".join(values), ", ".join(f":{name}" for name in values)
    db.execute(sa.text(f"INSERT INTO {table} ({columns}) VALUES ({places})"), values)


def test_the_last_step_is_the_codes_schema() -> None:
    assert ScriptDirectory(str(FOLDER)).get_current_head() == database.SCHEMA


@pytest.mark.parametrize("old", [False, True])
def test_the_migrations_make_the_tables_of_the_code(nowhere: str | Path, old: bool) -> None:
    if old:
        of_schema_1(nowhere)
    with Store.open(nowhere) as store, store.database.reading() as db:
        context = MigrationContext.configure(
            db, opts={"version_table": database.VERSION_TABLE, "compare_server_default": True}
        )
        assert compare_metadata(context, tables.METADATA) == []
        assert indexes(db) == indexes_of_the_code(store.database)


def indexes(db: sa.Connection) -> set[tuple[str, tuple[str | None, ...], str]]:
    """Name, columns and condition of every index; the comparison above leaves the conditions out."""
    look, found = sa.inspect(db), set()
    for table in tables.METADATA.tables:
        for index in look.get_indexes(table):
            condition = index.get("dialect_options", {}).get(f"{db.dialect.name}_where", "")
            if not index.get("duplicates_constraint"):
                found.add((str(index["name"]), tuple(index["column_names"]), plain(condition)))
    return found


def indexes_of_the_code(database: database.Database) -> set[tuple[str, tuple[str | None, ...], str]]:
    kind = database.engine.dialect.name
    return {
        (str(index.name), tuple(column.name for column in index.columns), plain(index.dialect_options[kind]["where"]))
        for table in tables.METADATA.tables.values()
        for index in table.indexes
    }


def plain(condition: Any) -> str:
    """A condition without what PostgreSQL adds when it says it back."""
    text = "" if condition is None else str(condition)
    return text.replace("(", "").replace(")", "").replace("::text", "").replace("::character varying", "")


def test_a_store_of_the_first_schema_works_on(nowhere: str | Path) -> None:
    of_schema_1(nowhere)
    with Store.open(nowhere) as store:
        assert list(store.prompts("train")) == [PROMPT]
        assert list(store.completions()) == ANSWERS
        assert list(store.demonstrations()) == [DEMONSTRATION]
        assert list(store.judgements(effective=False)) == JUDGEMENTS
        assert list(store.judgements()) == JUDGEMENTS[1:]
        assert store.add([PROMPT, *ANSWERS, DEMONSTRATION, *JUDGEMENTS]).judgements == 0
        version = store.add_guidelines("Be kind.", "ann").version
        queue = Queue(store)
        queue.open_batch("new")
        queue.add_items("new", [Item(PROMPT.id, tuple(answer.id for answer in ANSWERS))])
        task = queue.next("bob")
        assert task is not None
        said = queue.submit(
            "bob", task.id, Submission("s", (Verdict("overall", (1, 2)),), demonstration=(0, "Better."))
        )
        assert [*store.judgements()] == [*JUDGEMENTS[1:], *said]
        assert said[0].guidelines == version
        assert [one.judgement_id for one in store.demonstrations()] == [None, said[0].id]
    with Store.open(nowhere, create=False) as again:
        assert again.counts().judgements == 3


def test_what_the_first_schema_refused_is_refused_still(tmp_path: Path) -> None:
    of_schema_1(tmp_path / "feedback.db")
    Store.open(tmp_path / "feedback.db").close()
    with (
        closing(sqlite3.connect(tmp_path / "feedback.db")) as db,
        pytest.raises(sqlite3.IntegrityError, match="append-only"),
    ):
        db.execute("UPDATE judgements SET guidelines = NULL")


def test_a_step_that_fails_changes_nothing(nowhere: str | Path) -> None:
    def fail(_db: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(f"UPDATE {database.VERSION_TABLE}"):  # the last thing that a step does
            raise RuntimeError("out of luck")

    of_schema_1(nowhere)
    sa.event.listen(sa.Engine, "before_cursor_execute", fail)
    try:
        with pytest.raises(RuntimeError, match="out of luck"):
            Store.open(nowhere)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", fail)
    engine, _ = database._postgres(nowhere) or database._sqlite(nowhere, create=False)
    with engine.connect() as db:
        assert db.scalar(sa.text(f"SELECT version_num FROM {database.VERSION_TABLE}")) == "0001"
        assert "tasks" not in sa.inspect(db).get_table_names()
    engine.dispose()
    with Store.open(nowhere) as store:
        assert list(store.judgements(effective=False)) == JUDGEMENTS
