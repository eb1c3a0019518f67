"""A long import into an empty store: other indexes on the way, the same store at the end."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from prefloop.feedback import adding, stored
from prefloop.feedback.records import Completion, Judgement, Prompt
from prefloop.feedback.store import AnyRecord, Counts, Store
from prefloop.feedback.tables import COMPLETIONS


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """An addition is long from its 11th record on, and statements find two rows at once."""
    monkeypatch.setattr(adding, "AT_ONCE", 5)
    monkeypatch.setattr(adding, "_LONG", 2)
    monkeypatch.setattr(stored, "AT_ONCE", 2)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "feedback.db") as store:
        yield store


def compared(start: int, end: int) -> Iterator[AnyRecord]:
    for number in range(start, end):
        yield (prompt := Prompt.of(f"Q{number}"))
        answers = [Completion(prompt_id=prompt.id, text=text, origin="m") for text in "AB"]
        yield from answers
        shown = (answers[0].id, answers[1].id)
        yield Judgement(
            id=f"j{number}", prompt_id=prompt.id, annotator="mia", source="human", shown=shown, ranks=(1, 2)
        )


def schema(store: Store) -> set[tuple[str, str]]:
    with store.database.reading() as db:
        return {tuple(row) for row in db.exec_driver_sql("SELECT name, sql FROM sqlite_master")}


def sound(store: Store) -> bool:
    """Whether every index has every row."""
    with store.database.reading() as db:
        return db.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"


@pytest.mark.parametrize("before", [0, 3])
def test_the_schema_is_as_it_was(store: Store, before: int) -> None:
    store.add(compared(0, before))
    schema_before, inside = schema(store), set[tuple[str, str]]()

    def watched() -> Iterator[AnyRecord]:
        yield from compared(0, 20)
        inside.update(schema(store))

    with pytest.MonkeyPatch.context() as patch:
        dropped = list[str]()
        drop = sa.Index.drop
        patch.setattr(sa.Index, "drop", lambda self, db: (dropped.append(self.name), drop(self, db)))
        assert store.add(watched()).judgements == 20 - before
    late = {"ix_completions_prompt_id", "ix_judgements_prompt_id"}
    assert set(dropped) == (set() if before else late)
    assert inside == schema_before == schema(store), "others never see it"
    assert sound(store)
    prompts = [prompt.id for prompt in store.prompts()]
    assert len(list(store.completions(prompts))) == 40


def test_what_is_there_is_left_as_it_is(store: Store) -> None:
    store.add(compared(0, 20))
    assert store.add(compared(0, 20)) == Counts()


def test_a_long_import_that_fails_leaves_the_indexes(store: Store) -> None:
    before = schema(store)

    def broken() -> Iterator[AnyRecord]:
        yield from compared(0, 20)
        raise ValueError("bad row")

    with pytest.raises(ValueError, match="bad row"):
        store.add(broken())
    assert schema(store) == before
    assert sound(store)


def test_the_cache_is_as_it_was(store: Store) -> None:
    with store.database.writing() as db:
        before = db.exec_driver_sql("PRAGMA cache_size").scalar()
        adding.add_stream(db, compared(0, 20))
        assert db.exec_driver_sql("PRAGMA cache_size").scalar() == before
        assert len(sa.inspect(db).get_indexes(COMPLETIONS.name)) == 1
