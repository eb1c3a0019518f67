"""Backup and restore: every row of every table comes back, from each kind of database into each."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.databases import Server
from tests.feedback.queues import fill, send
from tests.feedback.queues import given as given_task
from tests.feedback.test_migrations import JUDGEMENTS, of_schema_1

from prefloop.feedback import backup
from prefloop.feedback.assignment import Queue
from prefloop.feedback.backup import back_up, restore
from prefloop.feedback.people import People
from prefloop.feedback.records import Completion, Demonstration, Judgement, Prompt
from prefloop.feedback.store import Store
from prefloop.feedback.tables import METADATA
from prefloop.feedback.tasks import Verdict

ODD = "NUL \0, SUB \x1a\x1a0, \u202e, \U0010ffff, a\u0301, \r\n, '\"\\ %s :x"


@pytest.fixture(params=["sqlite", "postgresql"])
def target(request: pytest.FixtureRequest, tmp_path: Path, postgres: Server) -> str | Path:
    """Where nothing is yet."""
    return tmp_path / "restored.db" if request.param == "sqlite" else postgres.create()


def content(store: Store) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table but sessions."""
    with store.database.reading() as db:
        rows = {
            name: [dict(row) for row in db.execute(sa.select(table).order_by(*table.primary_key)).mappings()]
            for name, table in METADATA.tables.items()
        }
    return rows | {"secrets": [row for row in rows["secrets"] if row["kind"] != "session"]}


def live(store: Store) -> None:
    """Something in every table and every column, odd texts included."""
    prompt = Prompt.of(ODD, split="train", metadata={ODD: [1, 0.1, None, True, ODD], "big": 2**60})
    answers = [Completion(prompt_id=prompt.id, text=text, origin=ODD, metadata={ODD: ODD}) for text in (ODD, "", "x")]
    odd = Judgement(
        id=ODD,
        prompt_id=prompt.id,
        annotator=ODD,
        source="imported",
        shown=tuple(one.id for one in answers),
        ranks=(1, 2, 2),
        criterion=ODD,
        flags=(ODD,),
        reason=ODD,
        seconds=0.1 + 0.2,
    )
    later = odd.model_copy(update={"id": "later", "supersedes": ODD})
    store.add([prompt, *answers, odd, later, Demonstration(prompt_id=prompt.id, text=ODD, origin=ODD)])
    store.add_guidelines(ODD, ODD)
    people = People(store)
    people.ensure("root", "admin")
    people.start_session("root")
    people.make_token("root", ODD, days=3)
    people.accept(people.invite("annotator", "root")[1], "ann")
    people.revoke("ann")
    people.start_session("root")
    people.invite("admin", "root", name="Zoë")
    queue = Queue(store)
    queue.open_batch(ODD, criteria=("help", ODD), target=9, gold_share=0.3)
    items = fill(store, 6)
    queue.add_items(ODD, [*items[:5], items[5].__class__(items[5].prompt_id, items[5].completions, 0.1, (2, 1))])
    for name in ("ann", "bob"):
        send(queue, name, given_task(queue, name), demonstration=(1, ODD), reason=ODD)
    queue.undo("bob")
    queue.skip("ann", given_task(queue, "ann").id)
    queue.save_draft("ann", given_task(queue, "ann").id, {"reason": ODD, "x": [None]})


def test_every_row_comes_back(place: str | Path, store: Store, target: str | Path, tmp_path: Path) -> None:
    live(store)
    rows = back_up(store, tmp_path / "out.db")
    before = content(store)
    assert rows == {name: len(found) for name, found in before.items()}
    assert all(rows.values()), "something in every table"
    assert restore(tmp_path / "out.db", target) == rows
    with Store.open(target, create=False) as restored:
        assert content(restored) == before
        assert list(restored.judgements()) == list(store.judgements())
        assert list(restored.demonstrations()) == list(store.demonstrations())
        with restored.database.reading() as db:
            assert db.scalar(sa.text("SELECT count(*) FROM secrets WHERE kind = 'session'")) == 0
        work_on(restored)


def work_on(store: Store) -> None:
    """New rows of every table go in after a restore: PostgreSQL counts on where it should."""
    before = {name: len(rows) for name, rows in content(store).items()}
    items = fill(store, 1, first=100)
    People(store).ensure("new", "admin")
    People(store).make_token("new", "t")
    store.add_guidelines("More.", "new")
    queue = Queue(store)
    queue.open_batch("new")
    queue.add_items("new", items)
    back = queue.undo("ann")
    assert back is not None
    verdicts = tuple(Verdict(criterion, (2, 1)) for criterion in back.criteria)
    send(queue, "new", given_task(queue, "new"), verdicts=verdicts, demonstration=(None, "New."))
    assert all(len(rows) > before[name] for name, rows in content(store).items())


def test_a_backup_is_one_file_of_its_own(place: str | Path, store: Store, tmp_path: Path) -> None:
    live(store)
    folder = tmp_path / "backups"
    folder.mkdir()
    back_up(store, folder / "out.db")
    assert [path.name for path in folder.iterdir()] == ["out.db"]
    bare = Path(shutil.copy(folder / "out.db", tmp_path / "elsewhere.db"))
    with closing(sqlite3.connect(f"file:{bare}?mode=ro&immutable=1", uri=True)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("PRAGMA foreign_key_check").fetchone() is None
    with Store.open(bare) as opened:
        assert content(opened) == content(store), "a backup is a store"


TEXT = st.text(max_size=6) | st.sampled_from(["\0", "\x1a", "\x1a0\0"])


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(TEXT, min_size=2, max_size=4, unique=True), metadata=st.dictionaries(TEXT, st.none() | TEXT))
def test_there_and_back_again(
    postgres: Server, empty_sqlite: Path, tmp_path: Path, texts: list[str], metadata: dict[str, str | None]
) -> None:
    """SQLite → PostgreSQL → SQLite."""
    files = [tmp_path / f"{i}.db" for i in range(4)]
    for file in files:
        file.unlink(missing_ok=True)
    shutil.copy(empty_sqlite, files[0])
    with Store.open(files[0]) as store:
        prompts = [Prompt.of(text, metadata=metadata) for text in texts]
        store.add([*prompts, *(Completion(prompt_id=p.id, text=t, origin=t) for p in prompts for t in texts)])
        before = content(store)
        back_up(store, files[1])
    with postgres.lend() as url:
        restore(files[1], url)
        with Store.open(url) as moved:
            assert content(moved) == before
            back_up(moved, files[2])
    restore(files[2], files[3])
    with Store.open(files[3]) as back:
        assert content(back) == before


def test_a_backup_under_load_is_one_moment(place: str | Path, store: Store, tmp_path: Path) -> None:
    """Sends go on while backups are taken; in each one everything fits together."""
    queue = Queue(store)
    queue.open_batch("a", overlap=50)
    queue.add_items("a", fill(store, 40))
    over, acknowledged, failures = Event(), [], []

    def work(name: str) -> None:
        try:
            while not over.is_set() and (task := queue.next(name)) is not None:
                acknowledged.extend(one.id for one in send(queue, name, task, demonstration=(0, f"{task.id}")))
        except BaseException as error:
            failures.append(error)

    threads = [Thread(target=work, args=(f"person {i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for i in range(5):
        already = list(acknowledged)
        back_up(store, tmp_path / f"{i}.db")
        with Store.open(tmp_path / f"{i}.db") as copy:
            judgements = [one.id for one in copy.judgements()]
            assert set(already) <= set(judgements)
            assert copy.counts().demonstrations == len(judgements) == Queue(copy).batches()[0].done
            rows = content(copy)
            assert [one["id"] for one in rows["judgements"]] == judgements, "no gap"
            assert sum(task["state"] == "done" for task in rows["tasks"]) == len(judgements)
    over.set()
    for thread in threads:
        thread.join()
    assert not failures
    everything = [one.id for one in store.judgements()]
    assert sorted(everything) == sorted(acknowledged)


# What is refused


def test_a_backup_overwrites_nothing(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out.db"
    out.write_text("precious")
    with pytest.raises(ValueError, match=r"out.db is there already"):
        back_up(store, out)
    assert out.read_text() == "precious"
    with pytest.raises(FileNotFoundError, match=r"the folder .*no.* does not exist"):
        back_up(store, tmp_path / "no" / "out.db")
    assert not list(tmp_path.glob(".out*"))


def test_a_backup_that_fails_leaves_nothing(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(backup, "_tidy", fail)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(OSError, match="disk full"):
        back_up(store, tmp_path / "out.db")
    assert {path.name for path in tmp_path.iterdir()} == before


def test_restore_into_something_that_is_not_empty(place: str | Path, store: Store, tmp_path: Path) -> None:
    live(store)
    before = content(store)
    back_up(store, tmp_path / "out.db")
    with pytest.raises(ValueError, match=r"is not empty \(7 prompts, .*into an empty database only"):
        restore(tmp_path / "out.db", place)
    assert content(store) == before


def test_restore_into_a_database_of_something_else(tmp_path: Path, store: Store) -> None:
    back_up(store, tmp_path / "out.db")
    with closing(sqlite3.connect(tmp_path / "other.db")) as db, db:
        db.execute("CREATE TABLE invoices (id INTEGER)")
    with pytest.raises(ValueError, match="database of something else"):
        restore(tmp_path / "out.db", tmp_path / "other.db")


def test_restore_is_all_or_nothing(
    store: Store, target: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live(store)
    back_up(store, tmp_path / "out.db")
    with monkeypatch.context() as patch:
        counts = iter([{}, {"prompts": 1}, {"prompts": 2}])
        patch.setattr(backup, "_count", lambda *_, **__: next(counts))
        with pytest.raises(ValueError, match="does not hold what was written"):
            restore(tmp_path / "out.db", target)
    with Store.open(target) as left:
        assert not any(content(left).values())
    restore(tmp_path / "out.db", target)
    with Store.open(target) as restored:
        assert content(restored) == content(store)


def test_what_is_no_backup(tmp_path: Path, target: str | Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        restore(tmp_path / "none.db", target)
    text = tmp_path / "text.db"
    text.write_text("not a database at all, but long enough to be one\n" * 50)
    with pytest.raises(ValueError, match=r"cannot read .*text.db as a backup: file is not a database"):
        restore(text, target)
    empty = tmp_path / "empty.db"
    empty.touch()
    with pytest.raises(ValueError, match=r"empty.db is an empty database"):
        restore(empty, target)
    with closing(sqlite3.connect(empty)) as db, db:
        db.execute("CREATE TABLE invoices (id INTEGER)")
    with pytest.raises(ValueError, match=r"empty.db is a database of something else"):
        restore(empty, target)


def test_a_backup_of_the_first_schema(tmp_path: Path, target: str | Path) -> None:
    old = tmp_path / "old.db"
    of_schema_1(old)
    before = old.read_bytes()
    old.chmod(0o400)
    rows = restore(old, target)
    assert rows["judgements"] == 2
    assert old.read_bytes() == before
    with Store.open(target) as store:
        assert list(store.judgements(effective=False)) == JUDGEMENTS
